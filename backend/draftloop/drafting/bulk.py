"""Where bulk drafts go: a record file, the ledger, the task's page, Label Studio's predictions.

In this order, because a task that has a prediction is not drafted again: whatever a crash leaves undone
is done by the next run, and nothing is done twice.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import structlog

from draftloop.drafting.drafter import Drafter
from draftloop.drafting.drafts import Draft, draft_status_html
from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.labelling.labelling import STATUS_KEY, Task
from draftloop.labelstudio import LabelStudio, Project
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.prompt import Case
from draftloop.runs.run import NO_RUN, RUN_KEY, Publish, Run
from draftloop.support.files import append_to_disk, disk_errors, replacing_file
from draftloop.support.progress import UNWATCHED, Progress

_log = structlog.get_logger("backend")

_BATCH = 100  # drafts stored at once, at least; what a crash may cost is drafted again
_MOST = 5000  # drafts held in memory at most
_BATCH_S = 15.0
# Storing any number of predictions costs Label Studio a count over all tasks of the project that have
# some: 0.3 s at first, 20 s at 25,000. So the next batch waits, and grows, as long as the last one took.
_REST = 2.0
_GIVE_UP = 20  # failed drafts in a row: each has been tried for minutes


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


class Store:
    """Stores drafts in batches, one in the background while the next is drafted."""

    def __init__(
        self,
        label_studio: LabelStudio,
        project: Project,
        case: Case,
        records: Records,
        ledger: Ledger,
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
        """Store the rest, unless a person wants out."""
        try:
            if kind is None or issubclass(kind, Exception):
                self._save()
                self._wait()
                self._records.keep_last()
        finally:
            self._saver.shutdown(cancel_futures=True)

    def add(self, task: Task, draft: Draft) -> None:
        """Take a draft; it is stored with its batch.

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
            told = self._told(task, draft)
            if all(task.data.get(key, "") == part for key, part in told.items()):
                continue
            try:
                self.label_studio.set_task_data(task.id, {**task.data, **told})
            except SetupError:
                continue  # deleted meanwhile
        predictions = [{"task": task.id, **found} for task, draft in batch if (found := draft.prediction())]
        refused = self.label_studio.import_predictions(
            self.project, predictions, unjudged=self._case.labelling.unjudged
        )
        self._took_s = time.monotonic() - started
        return refused

    def _told(self, task: Task, draft: Draft) -> dict[str, Any]:
        """Give what a task's data says of its draft: why it needs a human, what came of its code."""
        told: dict[str, Any] = {}
        if self._case.labelling.shows_status:
            told[STATUS_KEY] = draft_status_html(draft)
        if draft.run is None:
            return {**told, **NO_RUN} if task.data.get(RUN_KEY) else told
        try:
            return {**told, **(self._publish(draft.run) if self._publish else {})}
        except (TaskError, SetupError) as error:
            _log.error("run not shown", task=task.id, error=str(error))
            return told


@dataclass(frozen=True)
class Drafted:
    """Drafts of a project that were made.

    counts    how many, by status
    seconds   that they took
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
    drafter: Drafter,
    case: Case,
    store: Store,
    *,
    limit: int = 0,
    unbegun: bool = False,
    again: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    progress: Progress = UNWATCHED,
) -> Drafted:
    """Draft a project's tasks, store the drafts, and make their version the one that its tabs show.

    Args:
        drafter: Drafts.
        case: The project's case.
        store: Where the drafts go; it is closed in the end.
        limit: Tasks at most; 0 is all.
        unbegun: Leave tasks alone that a human has begun.
        again: Draft those too that have a draft of this version: what their pages say is of another one.
        tell: Takes what there is to do, in words.
        progress: Shows how far it is.
    Returns:
        How many tasks were drafted, and with what result.
    Raises:
        ServiceError: Nothing is drafted any more, or cannot be stored.
    """
    label_studio, target, ledger = store.label_studio, store.project, store.ledger
    version = drafter.version(case)
    ledger.remember_version(target.id, version.name, version.manifest)
    lacking = None if again else version.name
    there = label_studio.count_tasks(target, unbegun=unbegun)
    missing = label_studio.count_tasks(target, lacking=lacking, unbegun=unbegun)
    todo = min(limit or missing, missing)
    which = "tasks that nobody has begun" if unbegun else "tasks"
    tell(f"version {version.name}: {there} {which}, {there - missing} drafted already, {todo} to draft")
    running: dict[int, Task] = {}

    def tasks() -> Iterator[Task]:
        for found in islice(label_studio.tasks(target, lacking=lacking, unbegun=unbegun), todo):
            running[found["id"]] = Task(found["id"], found["data"], target.id)
            yield running[found["id"]]

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


def _ran(run: Run) -> dict[str, Any]:
    return {
        "key": run.key,
        "attempts": len(run.attempts),
        "outcome": run.last.outcome,
        "ms": round(sum(attempt.wall_s for attempt in run.attempts) * 1000),
    }


def record(project: int, case: Case, task: Task, draft: Draft) -> dict[str, Any]:
    """Say what was asked and what came of it; a draft without a value has no key `value`."""
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
        **({} if draft.run is None else {"run": _ran(draft.run)}),
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
