"""A draft: what came of one task, which of two drafts is kept, and what the task's page shows of one.

Does not know models or the order of steps (`steps`).

    ok            decoded, and passed every rule: prefilled, scored
    invalid       decoded, and broke a rule twice: prefilled too, score 0, reasons shown
    undecodable   no value could be read, twice, or the task cannot be asked: empty, score 0, reasons shown
    failed        the model server failed until the deadline: no prediction, the task is drafted later

In a cascade what is not `ok`, or scores below a threshold, is drafted again by a larger model:

    kept        the small model's draft is kept: it is sure enough
    escalated   the larger model drafted too; its draft is kept unless its status is worse
    failed      the larger model did not answer: the small model's draft is kept, and not cached
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from draftloop.labelling.controls import Region
from draftloop.labelling.labelling import Question, Task, Value
from draftloop.labelling.rules import Reason
from draftloop.prompting.prompt import Case, Refinement
from draftloop.runs.run import Run

Status = Literal["ok", "invalid", "undecodable", "failed"]
Escalation = Literal["", "kept", "escalated", "failed"]
_KINDS: tuple[Status, ...] = ("ok", "invalid", "undecodable")  # the better first


@dataclass(frozen=True)
class Request:
    """A draft to be made; every step gets it.

    case              the task's case, with the options that the task brings
    question          the task, read
    model             name of the model that drafts
    version           name of the version that the draft will have
    ends              the deadline, on the monotonic clock
    refinement        what an annotator wants changed, where one does
    has_own_options   whether the task brings options of its own: answers to other tasks do not fit it
    """

    case: Case
    question: Question
    model: str
    version: str
    ends: float
    refinement: Refinement | None = None
    has_own_options: bool = False

    @property
    def task(self) -> Task:
        """The task."""
        return self.question.task


@dataclass(frozen=True)
class Draft:
    """What came of one task: the value and its regions, or the reasons why there is none."""

    task_id: int
    status: Status
    version: str
    value: Value | None = None
    regions: list[Region] = field(default_factory=list)
    score: float = 0.0
    field_scores: dict[str, float] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    raw: str = ""
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    ms: float = 0.0
    from_cache: bool = False
    near_duplicate: Literal["", "example", "reused"] = ""  # how a near-duplicate was used
    run: Run | None = None  # of a code task, where its code was run
    model: str = ""  # name of the model that answered
    cascade: Escalation = ""  # empty without a cascade, and where an earlier answer is used

    def prediction(self) -> dict[str, Any] | None:
        """Return the prediction that Label Studio stores; None where it is to ask again later."""
        if self.status == "failed":
            return None
        return {"result": self.regions, "score": self.score, "model_version": self.version}


def failed(task_id: int, version: str, words: str, ms: float = 0.0) -> Draft:
    """Return the draft of a task that the model could not be asked; it is drafted later."""
    return Draft(task_id, "failed", version, reasons=(Reason("engine", "", words),), ms=ms)


def choose_draft(small: Draft, larger: Draft) -> Draft:
    """Return the draft that is kept of two, with the tokens and the time of both.

    Args:
        small: The small model's.
        larger: The larger model's: kept unless it failed, or its status is worse.
    """
    failed = larger.status == "failed"
    better = not failed and _KINDS.index(larger.status) <= _KINDS.index(small.status)
    return replace(
        larger if better else small,
        cascade="failed" if failed else "escalated",
        attempts=small.attempts + larger.attempts,
        prompt_tokens=small.prompt_tokens + larger.prompt_tokens,
        completion_tokens=small.completion_tokens + larger.completion_tokens,
        cached_tokens=small.cached_tokens + larger.cached_tokens,
        ms=round(small.ms + larger.ms, 1),
        near_duplicate=small.near_duplicate,
    )


def status_html(reasons: Sequence[Reason], *, empty: bool = False) -> str:
    """Return why something needs a human, as HTML for its page; empty without reasons.

    It has no tags, because lists of tasks show it as text.

    Args:
        reasons: Why.
        empty: Whether there is no draft at all.
    """
    if not reasons:
        return ""
    code_alone = all(reason.kind == "run" for reason in reasons)
    title = "There is no draft" if empty else "The draft breaks its rules"
    rows = "".join(f"\n• {html.escape(str(reason), quote=False)}" for reason in reasons)
    return f"{'The code needs a human' if code_alone else title}:{rows}"


def draft_status_html(draft: Draft) -> str:
    """Return why a draft needs a human, as HTML for its page; empty without reasons."""
    return status_html(draft.reasons, empty=draft.status != "invalid")
