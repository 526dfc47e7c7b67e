"""Earlier answers to questions that are nearly equal to a task's.

Knows when such an answer is reused, when it is shown as an example, and when neither. Does not know how
similarity is measured (`duplicates`) or where answers are kept (`neighbours`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from draftloop.drafting.drafts import Draft, Request
from draftloop.drafting.duplicates import Neighbour, reusable_value
from draftloop.prompting.prompt import Case


class Neighbours(Protocol):
    """Finds earlier answers to similar questions; never raises, at worst it returns nothing."""

    reuse: bool

    def find(self, version: str, question: str) -> Neighbour | None:
        """Return the most similar earlier question, if one is similar enough."""
        ...

    def put(self, version: str, question: str, answer: str, score: float) -> None:
        """Keep an answer under its question."""
        ...


@dataclass(frozen=True)
class NearDuplicates:
    """Finds the answer to a nearly equal question of the same version.

    neighbours   where answers are kept; None keeps nothing
    """

    neighbours: Neighbours | None

    def manifest(self, case: Case) -> Mapping[str, Any]:
        """Return the part of a manifest that says what an earlier answer is used for."""
        if self.neighbours is None:
            return {}
        return {"near_duplicates": "reuse" if self.neighbours.reuse else "example"}

    def find(self, request: Request) -> Neighbour | None:
        """Return the most similar earlier question with its answer, if one is similar enough."""
        kept = self._kept_for(request)
        return kept.find(request.version, request.question.text) if kept is not None else None

    def reused(self, request: Request, neighbour: Neighbour | None) -> Draft | None:
        """Return a neighbour's answer as the draft, where answers are reused and it is right for the task.

        Args:
            request: The draft to be made.
            neighbour: What `find` returned.
        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        if neighbour is None or self.neighbours is None or not self.neighbours.reuse:
            return None
        value = reusable_value(request.case, request.question, neighbour)
        if value is None:
            return None
        return Draft(
            task_id=request.task.id,
            status="ok",
            version=request.version,
            value=value,
            regions=request.case.labelling.to_regions(value, request.question).regions,
            score=neighbour.score * neighbour.similarity,
            raw=neighbour.answer,
            near_duplicate="reused",
            model=request.model,
        )

    def put(self, request: Request, draft: Draft) -> None:
        """Keep a draft that passed every rule."""
        kept = self._kept_for(request)
        if kept is not None and draft.status == "ok":
            kept.put(request.version, request.question.text, draft.raw, draft.score)

    def _kept_for(self, request: Request) -> Neighbours | None:
        # What a human asked for, options of one task, and code fit no other task.
        is_own = request.refinement or request.has_own_options or request.case.labelling.program
        return None if is_own else self.neighbours
