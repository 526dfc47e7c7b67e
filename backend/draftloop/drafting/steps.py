"""The steps of one draft: question -> prompt -> value -> rules -> run -> draft.

Knows their order and what is done when one fails. Does not know deadlines of calls, threads or versions.

The code of a code task is run too. As long as it fails, it goes back to the model with its output; where it
still fails in the end, or could not be run, the draft is `invalid`, with the reason.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from draftloop.drafting.asking import ValueAsker
from draftloop.drafting.draft_cache import DraftCache, cache_key
from draftloop.drafting.drafts import Draft, Request, failed
from draftloop.drafting.duplicates import Neighbour
from draftloop.drafting.escalation import Larger
from draftloop.drafting.near_duplicates import NearDuplicates
from draftloop.drafting.versions import AskOptions
from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.execution.coding import Answered, Coding
from draftloop.labelling.labelling import Question, Task
from draftloop.labelling.rules import Reason
from draftloop.model.scoring import score
from draftloop.prompting.prompt import Case, Message, Refinement, Shown, render, with_examples


class Examples(Protocol):
    """Chooses corrections similar to a task in a frozen snapshot: the same ones for the same task."""

    def manifest(self, case: Case) -> Mapping[str, Any]:
        """Return the part of a manifest that says which ones a case's tasks get; empty for none."""
        ...

    def find(self, case: Case, question: Question) -> tuple[Shown, ...]:
        """Return the corrections most similar to a task, the most similar one last.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        ...


class _Prompt(NamedTuple):
    """The messages of a task, the examples shown before it, and the key of its answer in the cache."""

    messages: tuple[Message, ...]
    shown: tuple[Shown, ...]
    key: str


@dataclass(frozen=True)
class Steps:
    """Drafts one task, in the calling thread.

    options    how the model is asked
    values     asks it for values
    coding     runs the code of values
    cache      drafts of equal tasks
    near       answers to nearly equal tasks
    examples   corrections that prompts show; None shows none
    larger     drafts what this model is not sure of; None where there is no cascade
    """

    options: AskOptions
    values: ValueAsker
    coding: Coding
    cache: DraftCache
    near: NearDuplicates
    examples: Examples | None = None
    larger: Larger | None = None

    def draft(
        self,
        case: Case,
        task: Task | Question,
        *,
        model: str,
        version: str,
        ends: float,
        refinement: Refinement | None = None,
    ) -> Draft:
        """Draft a task.

        Args:
            case: The task's case.
            task: What to draft.
            model: Name of the model that drafts.
            version: Name of the draft's version.
            ends: The deadline, on the monotonic clock.
            refinement: What an annotator wants changed.
        """
        started = time.monotonic()
        task_id = task.task.id if isinstance(task, Question) else task.id
        try:
            bound = case.for_task(task)
            task = bound.labelling.read(task)
            # `bound` does not say any more whether the options are the task's own; so the larger model is
            # handed `case`.
            has_own_options = case.labelling.dynamic
            request = Request(bound, task, model, version, ends, refinement, has_own_options)
            prompt = self._prompt(request)
            known = self.cache.get(request, prompt.key)
            if known is not None:
                return replace(known, ms=_elapsed_ms(started))
            neighbour = self.near.find(request)
            reused = self.near.reused(request, neighbour)
            if reused is not None:
                return replace(reused, ms=_elapsed_ms(started))
            answered = self._answer(request, prompt, neighbour)
        except (ServiceError, SetupError) as error:
            return failed(task_id, version, str(error), _elapsed_ms(started))
        except TaskError as error:
            reasons = (Reason("engine", "", str(error)),)
            ms = _elapsed_ms(started)
            refused = Draft(task_id, "undecodable", version, reasons=reasons, ms=ms, model=model)
            return self._ensured(refused, case, task, ends, refinement)
        draft = replace(_draft(request, answered, neighbour), ms=_elapsed_ms(started))
        draft = self._ensured(draft, case, task, ends, refinement)
        if draft.cascade != "failed":
            self.cache.put(prompt.key, draft)
            self.near.put(request, draft)
        return draft

    def _prompt(self, request: Request) -> _Prompt:
        """Render a request, with the corrections that are shown.

        No corrections are shown where a human asks for a change, or the task brings its own options.
        """
        case = request.case
        messages = render(
            case,
            request.question,
            self.options.profile_of(case),
            request.refinement,
            environment=self.coding.environment(case),
        )
        shown: tuple[Shown, ...] = ()
        if self.examples is not None and request.refinement is None and not request.has_own_options:
            shown = self.examples.find(case, request.question)
        return _Prompt(messages, shown, cache_key(request.version, with_examples(messages, shown)))

    def _answer(self, request: Request, prompt: _Prompt, neighbour: Neighbour | None) -> Answered:
        """Ask for a value, and run the code in it."""
        messages, shown = prompt.messages, prompt.shown
        if neighbour is not None:
            shown = (*shown, Shown(neighbour.question, neighbour.answer))
        grammar = self.values.grammar(request)
        return self.coding.run_and_correct(
            request.case,
            request.task,
            self.values.ask(request, messages, grammar, shown),
            lambda runs: self.values.ask(request, (*messages, *runs), grammar),
            version=request.version,
            ends=request.ends,
        )

    def _ensured(
        self, draft: Draft, case: Case, task: Task | Question, ends: float, refinement: Refinement | None
    ) -> Draft:
        return draft if self.larger is None else self.larger.ensure(draft, case, task, ends, refinement)


def _draft(request: Request, answered: Answered, neighbour: Neighbour | None) -> Draft:
    """Return the draft of an answer."""
    value, reasons, answers = answered.value, answered.reasons, answered.answers
    labelling, kept = request.case.labelling, answers[-1]
    total = score(kept.text, kept.tokens)
    return Draft(
        task_id=request.task.id,
        status="undecodable" if value is None else "invalid" if reasons else "ok",
        version=request.version,
        value=value,
        regions=[] if value is None else labelling.to_regions(value, request.question).regions,
        score=0.0 if reasons else total.total,
        field_scores=dict(total.fields),
        reasons=reasons,
        raw=kept.text,
        attempts=len(answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        near_duplicate="example" if neighbour else "",
        run=answered.run,
        model=request.model,
    )


def _elapsed_ms(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)
