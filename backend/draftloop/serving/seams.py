"""Protocols of what answers are made with: a drafter, the ledger and Label Studio.

Does not know how any of them works; the parts of `answers` take these protocols.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from draftloop.drafting.drafts import Draft
from draftloop.drafting.versions import Version
from draftloop.labelling.labelling import Task, Value
from draftloop.prompting.prompt import Case, Overrides, Promoted, Refinement
from draftloop.runs.run import Run

_POLL_S = 0.2

KeptDraft = tuple[int, int, str, str, list[str], str]  # project, task, version, status, reasons, raw answer
# Finds a case by config, name and what its project wants otherwise.
FindCase = Callable[[str, str | None, Overrides], Case]


class RunsCode(Protocol):
    """Runs the code that a human has in a page."""

    def rerun_of_human(self, case: Case, task: Task, value: Value, *, limit_s: float) -> Run | None:
        """Run it; None where the value holds no code, or code is not run here.

        Raises:
            DraftloopError: It cannot be run.
        """
        ...


class DraftMaker(Protocol):
    """Drafts tasks behind the caller's back."""

    @property
    def coding(self) -> RunsCode:
        """What runs the code of drafts."""
        ...

    @property
    def unreachable_s(self) -> float:
        """Seconds since when nobody answers at the model server; 0 when somebody does."""
        ...

    def version(self, case: Case) -> Version:
        """Return the version of a case's drafts."""
        ...

    def submit(
        self,
        case: Case,
        tasks: Sequence[Task],
        version: Version,
        *,
        limit_s: float,
        refinement: Refinement | None = None,
    ) -> list[Future[Draft]]:
        """Begin to draft tasks; each is tried for so long at most."""
        ...

    def result(self, future: Future[Draft], task: Task, version: str) -> Draft:
        """Return what came of a future; one that is not done is cancelled and `failed`."""
        ...


class DraftLedger(Protocol):
    """The ledger: who is drafting which task, and what needed a human; shared by all processes."""

    def claim(self, project: int, tasks: Collection[int], version: str, lease_s: float) -> set[int]:
        """Take the tasks that nobody is drafting in this version."""
        ...

    def extend(self, tasks: Collection[int], version: str, lease_s: float, *, late: bool) -> None:
        """Keep claims for longer; `late` ones outlive this process."""
        ...

    def release(self, tasks: Collection[int], version: str) -> None:
        """Release claims."""
        ...

    def abandoned(self, lease_s: float) -> dict[int, list[tuple[int, str]]]:
        """Take over late tasks whose owner is gone: by project, tasks and their version."""
        ...

    def late(self) -> int:
        """Count the tasks that were promised and are not written yet."""
        ...

    def remember_version(self, project: int, version: str, manifest: dict[str, Any]) -> None:
        """Keep what a version stands for."""
        ...

    def remember_drafts(self, rows: Sequence[KeptDraft]) -> None:
        """Keep what came of tasks."""
        ...

    def setup_of(self, project: int) -> dict[str, Any]:
        """Return what `/setup` said about a project."""
        ...

    def promoted(self, project: int) -> Promoted | None:
        """Return the adapter that drafts for a project, if one was promoted."""
        ...


class Board(Protocol):
    """Label Studio, as far as answers are written to it."""

    def has_prediction(self, task_id: int, version: str) -> bool:
        """Check whether a task has a prediction of this version."""
        ...

    def write(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Store predictions where a task has none of their version yet."""
        ...

    def read(self, project: int, tasks: Collection[int]) -> tuple[str, str | None, list[Task]]:
        """Return the labelling config, the name of the case, and those of the tasks that still exist."""
        ...

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace a task's data."""
        ...


@dataclass(frozen=True)
class Assignment:
    """What drafts are made for: a project, with its case and the version that they will have."""

    project: int
    case: Case
    version: Version


@dataclass(frozen=True)
class Pace:
    """How long is waited, in seconds.

    patience_s          by a page, for a model server at which nobody answers
    late_every_s        between two batches of late answers
    take_over_every_s   between two looks for late work whose process is gone
    """

    patience_s: float = 5.0
    late_every_s: float = 1.0
    take_over_every_s: float = 15.0


@dataclass(frozen=True)
class Deadline:
    """How long a call waits for drafts.

    drafter      makes them
    ends         when the call must be answered, on the monotonic clock
    patience_s   for a model server at which nobody answers
    """

    drafter: DraftMaker
    ends: float
    patience_s: float

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return max(0.0, self.ends - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether to wait no longer."""
        return time.monotonic() >= self.ends or self.drafter.unreachable_s >= self.patience_s

    def wait(self, futures: Collection[Future[Draft]]) -> None:
        """Wait until drafts are ready, as long as it makes sense."""
        while not self.is_over and any(not future.done() for future in futures):
            self.pause(futures)

    def pause(self, futures: Collection[Future[Draft]]) -> None:
        """Wait a moment, or until all drafts that are not ready yet are."""
        moment_s = min(_POLL_S, self.left_s)
        waiting = [future for future in futures if not future.done()]
        if waiting:
            wait(waiting, timeout=moment_s)
        else:
            time.sleep(moment_s)
