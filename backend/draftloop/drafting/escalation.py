"""The larger model of a cascade, which drafts what the small model is not sure of.

Knows when it is asked and how much of the time it gets. Does not know how a threshold is chosen (`cascade`).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from draftloop.drafting.drafts import Draft, choose_draft
from draftloop.drafting.versions import Version
from draftloop.labelling.labelling import Question, Task
from draftloop.prompting.prompt import Case, Refinement

_log = structlog.get_logger("backend")

_TIME_SHARE = 0.9  # of the time left, for the larger model; the rest is for returning the small one's draft


class OneDrafter(Protocol):
    """Drafts one task in the calling thread."""

    def version(self, case: Case) -> Version:
        """Return the version of a case's drafts."""
        ...

    def draft_one(
        self,
        case: Case,
        task: Task | Question,
        version: str,
        ends: float,
        refinement: Refinement | None = None,
    ) -> Draft:
        """Draft a task."""
        ...

    def close(self) -> None:
        """Stop what it keeps running."""
        ...


@dataclass(frozen=True)
class Larger:
    """Drafts again what a small model is not sure of.

    drafter     of the larger model, without a cache
    threshold   drafts that score below it are drafted again, 0..1
    """

    drafter: OneDrafter
    threshold: float

    def manifest(self, case: Case) -> Mapping[str, Any]:
        """Return the part of a manifest that describes the cascade."""
        theirs = self.drafter.version(_for_larger(case)).manifest
        decisive = {key: theirs[key] for key in ("model", "profile", "prompt", "examples") if key in theirs}
        return {"cascade": {"threshold": self.threshold, **decisive}}

    def ensure(
        self, draft: Draft, case: Case, task: Task | Question, ends: float, refinement: Refinement | None
    ) -> Draft:
        """Return the draft that is kept: the small model's, or the larger one's where that is asked.

        Args:
            draft: The small model's.
            case: The task's case, not bound to the options that the task brings.
            task: The task, or its question where it could be read.
            ends: The deadline, on the monotonic clock.
            refinement: What an annotator wants changed.
        """
        if draft.status == "ok" and draft.score >= self.threshold:
            return replace(draft, cascade="kept")
        ends -= (1 - _TIME_SHARE) * max(0.0, ends - time.monotonic())
        theirs = self.drafter.draft_one(_for_larger(case), task, draft.version, ends, refinement)
        if theirs.status == "failed":
            _log.warning("not escalated", task=draft.task_id, error=str(theirs.reasons[0]))
        return choose_draft(draft, theirs)


def _for_larger(case: Case) -> Case:
    """Return a case without the model that a project names: the larger model's server may not serve it."""
    return replace(case, overrides=case.overrides.without_model())
