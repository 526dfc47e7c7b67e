"""Drafts a project in bulk, and stores each draft in four places.

They are the record file, the ledger, the task's page and Label Studio's predictions, in this order. A task
that has a prediction is not drafted again: so the next run does what a crash left undone, and nothing twice.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import orjson
import structlog

from draftloop.drafting.drafts import Draft, draft_status_html
from draftloop.drafting.versions import Version
from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.labelling.labelling import STATUS_KEY, Task
from draftloop.labelstudio import Project
from draftloop.prompting.prompt import Case
from draftloop.runs.run import NO_RUN, RUN_KEY, Publish, Run
from draftloop.support.files import append_to_disk, disk_errors, replacing_file
from draftloop.support.progress import UNWATCHED, Progress

_log = structlog.get_logger("backend")

_BATCH = 100  # drafts stored at once, at least; a crash loses so many, and they are drafted again
_MOST = 5000  # drafts held in memory at most
_BATCH_S = 15.0
# For each import of predictions, whatever its size, Label Studio counts all tasks of the project that have
# some: 0.3 s at first, 20 s at 25,000. So the next batch waits twice as long as the last one took, and grows.
_REST = 2.0
_GIVE_UP = 20  # failed drafts in a row: each has been tried for minutes


class DraftStream(Protocol):
    """Drafts tasks as they come."""

    def version(self, case: Case) -> Version:
        """Return the version of a case's drafts."""
        ...

    def stream(self, case: Case, tasks: Iterable[Task], version: Version | None = None) -> Iterator[Draft]:
        """Draft tasks; one draft each, in the order in which they are ready."""
        ...


class DraftedBoard(Protocol):
    """The tasks and predictions of Label Studio's projects."""

    def tasks(
        self, project: Project, *, lacking: str | None = None, unbegun: bool = False
    ) -> Iterator[dict[str, Any]]:
        """List tasks; `lacking` a prediction of this version, `unbegun` by any human."""
        ...

    def count_tasks(self, project: Project, *, lacking: str | None = None, unbegun: bool = False) -> int:
        """Count the tasks that `tasks` lists."""
        ...

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace a task's whole data."""
        ...

    def import_predictions(
        self, project: Project, predictions: Sequence[Mapping[str, Any]], *, unjudged: Collection[str] = ()
    ) -> list[int]:
        """Store predictions where a task has none of their version; returns the tasks that were refused."""
        ...

    def set_model_version(self, project: Project, version: str) -> None:
        """Make a version the one whose scores the tabs show."""
        ...


class VersionLedger(Protocol):
    """Keeps versions and what came of tasks."""

    def remember_version(self, project: int, version: str, manifest: dict[str, Any]) -> None:
        """Keep what a version stands for."""
        ...

    def remember_drafts(self, rows: Sequence[tuple[int, int, str, str, list[str], str]]) -> None:
        """Keep what came of tasks: project, task, version, status, reasons, raw answer."""
        ...


class Records:
    """A JSONL file with one line per task: the last one that was written for it."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending; what a crash left of a line is dropped.

        Raises:
            ServiceError: It cannot be written.
        """
        self._path = path
        with disk_errors(path, "Choose another --out."):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self.keep_last()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write lines so that they survive a crash."""
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        append_to_disk(self._path, lines)

    def keep_last(self) -> None:
        """Keep the last line of every task; memory holds a number per task."""
        last: dict[int, int] = {}
        lines = 0
        with self._path.open("rb") as stream:
            for number, line in enumerate(stream):
                lines = number + 1
                task = _task(line)
                if task is not None:
                    last[task] = number
        kept = set(last.values())
        if len(kept) == lines:
            return
        with (
            self._path.open("rb") as stream,
            replacing_file(self._path) as part,
            part.open("wb") as copy,
        ):
            copy.writelines(line for number, line in enumerate(stream) if number in kept)


class PredictionStore:
    """Stores drafts in batches, one in the background while the next is drafted."""

    def __init__(
        self,
        label_studio: DraftedBoard,
        project: Project,
        case: Case,
        records: Records,
        ledger: VersionLedger,
        publish: Publish | None = None,
    ) -> None:
        self.label_studio = label_studio
        self.project = project
        self.ledger = ledger
        self._case = case
        self._records = records
        self._publish = publish
        self._batch: list[tuple[Task, Draft]] = []
        self._begun = time.monotonic()
        self._took_s = 0.0  # the last batch to be stored
        self._saver = ThreadPoolExecutor(1, "store")
        self._saving: Future[list[int]] | None = None
        self.refused: list[int] = []  # tasks whose prediction Label Studio did not take

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Store the rest, unless a person has interrupted."""
        try:
            if kind is None or issubclass(kind, Exception):
                self._save()
                self._wait()
                self._records.keep_last()
        finally:
            self._saver.shutdown(cancel_futures=True)

    def add(self, task: Task, draft: Draft) -> None:
        """Add a draft to the batch that is stored next.

        Raises:
            ServiceError: An earlier batch could not be stored.
        """
        self._batch.append((task, draft))
        waited_s = time.monotonic() - self._begun
        idle = self._saving is None or self._saving.done()
        due = len(self._batch) >= _BATCH or waited_s > _BATCH_S
        if len(self._batch) >= _MOST or (idle and due and waited_s >= self._took_s * _REST):
            self._save()

    def _save(self) -> None:
        self._wait()
        if self._batch:
            self._saving = self._saver.submit(self._store, self._batch)
        self._batch, self._begun = [], time.monotonic()

    def _wait(self) -> None:
        if self._saving is not None:
            self.refused += self._saving.result()
            self._saving = None

    def _store(self, batch: list[tuple[Task, Draft]]) -> list[int]:
        started = time.monotonic()
        project = self.project.id
        self._records.append([record(project, self._case, task, draft) for task, draft in batch])
        self.ledger.remember_drafts(
            [(project, d.task_id, d.version, d.status, [*map(str, d.reasons)], d.raw) for _, d in batch]
        )
        for task, draft in batch:
            if draft.status == "failed":
                continue
            changes = self._page_data(task, draft)
            if all(task.data.get(key, "") == part for key, part in changes.items()):
                continue
            try:
                self.label_studio.set_task_data(task.id, {**task.data, **changes})
            except SetupError:
                continue  # deleted meanwhile
        predictions = [
            {"task": task.id, **prediction} for task, draft in batch if (prediction := draft.prediction())
        ]
        refused = self.label_studio.import_predictions(
            self.project, predictions, unjudged=self._case.labelling.unjudged
        )
        self._took_s = time.monotonic() - started
        return refused

    def _page_data(self, task: Task, draft: Draft) -> dict[str, Any]:
        """Return what the task's page shows of a draft: why it needs a human, what came of its code."""
        status = {STATUS_KEY: draft_status_html(draft)} if self._case.labelling.shows_status else {}
        if draft.run is None:
            return {**status, **NO_RUN} if task.data.get(RUN_KEY) else status
        try:
            return {**status, **(self._publish(draft.run) if self._publish else {})}
        except (TaskError, SetupError) as error:
            _log.error("run not shown", task=task.id, error=str(error))
            return status


@dataclass(frozen=True)
class Drafted:
    """What came of drafting a project.

    counts    drafts by status
    seconds   how long it took
    refused   tasks whose prediction Label Studio did not take
    """

    counts: Mapping[str, int]
    seconds: float
    refused: Sequence[int]

    @property
    def is_complete(self) -> bool:
        """Whether every task has its draft."""
        return not (self.counts.get("failed") or self.refused)

    def describe(self) -> Iterator[str]:
        """Describe what was done, a line at a time."""
        total = sum(self.counts.values())
        by_status = ", ".join(
            f"{self.counts.get(status, 0)} {status}" for status in ("ok", "invalid", "undecodable", "failed")
        )
        yield f"{total} drafted in {self.seconds:.1f} s ({total / self.seconds:.1f}/s): {by_status}"
        if self.refused:
            yield f"Label Studio refused the drafts of {len(self.refused)} tasks, as of {self.refused[0]}"


def draft_project(
    drafter: DraftStream,
    case: Case,
    store: PredictionStore,
    *,
    limit: int = 0,
    unbegun: bool = False,
    again: bool = False,
    announce: Callable[[str], None] = lambda _: None,
    progress: Progress = UNWATCHED,
) -> Drafted:
    """Draft a project's tasks, store the drafts, and make their version the one that its tabs show.

    Args:
        drafter: Drafts.
        case: The project's case.
        store: Stores the drafts; it is closed in the end.
        limit: Tasks at most; 0 is all.
        unbegun: Leave out tasks that a human has begun.
        again: Draft tasks too that have a draft of this version already, whose pages show another one.
        announce: Is called with a line that says how many tasks there are to draft.
        progress: Advances with each draft.
    Returns:
        How many tasks were drafted, and with what result.
    Raises:
        ServiceError: Nothing is drafted any more, or cannot be stored.
    """
    label_studio, target, ledger = store.label_studio, store.project, store.ledger
    version = drafter.version(case)
    ledger.remember_version(target.id, version.name, version.manifest)
    lacking = None if again else version.name
    present = label_studio.count_tasks(target, unbegun=unbegun)
    missing = label_studio.count_tasks(target, lacking=lacking, unbegun=unbegun)
    todo = min(limit or missing, missing)
    which = "tasks that nobody has begun" if unbegun else "tasks"
    announce(
        f"version {version.name}: {present} {which}, {present - missing} drafted already, {todo} to draft"
    )
    running: dict[int, Task] = {}

    def tasks() -> Iterator[Task]:
        for listed in islice(label_studio.tasks(target, lacking=lacking, unbegun=unbegun), todo):
            running[listed["id"]] = Task(listed["id"], listed["data"], target.id)
            yield running[listed["id"]]

    counts, failed_in_a_row = Counter[str](), 0
    started = time.monotonic()
    progress.begin("drafting", todo)
    with store:
        for draft in drafter.stream(case, tasks(), version):
            store.add(running.pop(draft.task_id), draft)
            counts[draft.status] += 1
            progress.advance()
            failed_in_a_row = failed_in_a_row + 1 if draft.status == "failed" else 0
            if failed_in_a_row >= _GIVE_UP:
                raise ServiceError(f"{_GIVE_UP} drafts in a row failed: {draft.reasons[0]}")
    everything = label_studio.count_tasks(target)
    name = version.name
    if target.model_version != name and label_studio.count_tasks(target, lacking=name) < everything:
        label_studio.set_model_version(target, name)  # the tabs show the scores of this version
    return Drafted(counts, time.monotonic() - started, store.refused)


def _run_record(run: Run) -> dict[str, Any]:
    return {
        "key": run.key,
        "attempts": len(run.attempts),
        "outcome": run.last.outcome,
        "ms": round(sum(attempt.wall_s for attempt in run.attempts) * 1000),
    }


def record(project: int, case: Case, task: Task, draft: Draft) -> dict[str, Any]:
    """Return the line of the record file for a draft; one without a value has no key `value`."""
    try:
        texts = case.labelling.inputs(task)
    except TaskError:
        texts = {}
    return {
        "project": project,
        "task": task.id,
        "case": case.name,
        "input": texts,
        **({} if draft.value is None else {"value": draft.value}),
        "status": draft.status,
        "reasons": [{"kind": r.kind, "path": r.path, "message": r.message} for r in draft.reasons],
        "score": draft.score,
        "raw": draft.raw,
        "attempts": draft.attempts,
        **({} if draft.run is None else {"run": _run_record(draft.run)}),
        **({"near_duplicate": draft.near_duplicate} if draft.near_duplicate else {}),
        **({"model": draft.model, "cascade": draft.cascade} if draft.cascade else {}),
        "prompt_tokens": draft.prompt_tokens,
        "completion_tokens": draft.completion_tokens,
        "cached_tokens": draft.cached_tokens,
        "ms": draft.ms,
        "version": draft.version,
    }


def _task(line: bytes) -> int | None:
    try:
        return int(orjson.loads(line)["task"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
