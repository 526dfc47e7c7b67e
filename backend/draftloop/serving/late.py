"""Late work: drafts that are finished and stored after their call was answered.

Knows when they are written, and which process takes over from one that died. Does not know how a draft is
made. Nothing is stored twice: a task is claimed until its draft is written, and read before.
"""

import queue
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import structlog

from draftloop.drafting.drafter import BATCH_LIMIT_S
from draftloop.drafting.drafts import Draft
from draftloop.errors import DraftloopError, ServiceError, SetupError, where
from draftloop.labelling.labelling import Task
from draftloop.prompting.prompt import parse_extra_params
from draftloop.serving.claims import Claims
from draftloop.serving.draft_log import DraftLog
from draftloop.serving.seams import Assignment, Board, DraftLedger, DraftMaker, FindCase
from draftloop.serving.task_pages import TaskPages

_log = structlog.get_logger("backend")

LATE_LEASE_S = BATCH_LIMIT_S + 120
_LATE_BATCH = 200  # late answers written in one request to Label Studio


@dataclass(frozen=True)
class _LateDraft:
    assignment: Assignment
    task: Task
    draft: Draft


class LateWriter:
    """Writes drafts that became ready after their call was answered."""

    def __init__(
        self,
        drafter: DraftMaker,
        board: Board,
        claims: Claims,
        log: DraftLog,
        pages: TaskPages,
        every_s: float,
    ) -> None:
        """Prepare; `start` begins to write.

        Args:
            drafter: Makes the drafts.
            board: Label Studio.
            claims: Given back when a draft is written.
            log: Records drafts.
            pages: Shows them.
            every_s: Between two batches.
        """
        self._drafter = drafter
        self._board = board
        self._claims = claims
        self._log = log
        self._pages = pages
        self._every_s = every_s
        self._ready: queue.SimpleQueue[_LateDraft] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to write what becomes ready."""
        threading.Thread(target=self._write_for_ever, name="late", daemon=True).start()

    def follow(self, assignment: Assignment, task: Task, future: Future[Draft]) -> None:
        """Write a claimed task's draft when it is ready."""

        def enqueue(future: Future[Draft]) -> None:
            if not future.cancelled():  # by the end of the process: the next one takes it over
                draft = self._drafter.result(future, task, assignment.version.name)
                self._ready.put(_LateDraft(assignment, task, draft))

        future.add_done_callback(enqueue)

    def _write_for_ever(self) -> None:
        """Write what became ready; what Label Studio cannot take now is tried again."""
        waiting: list[_LateDraft] = []
        while True:
            waiting += self._gathered(block=not waiting)
            batches: dict[tuple[int, str], list[_LateDraft]] = {}
            for late in waiting:
                key = late.assignment.project, late.draft.version
                batches.setdefault(key, []).append(late)
            waiting = [late for batch in batches.values() for late in self._unwritten(batch)]
            time.sleep(self._every_s)

    def _gathered(self, *, block: bool) -> list[_LateDraft]:
        gathered = [self._ready.get()] if block else []
        while len(gathered) < _LATE_BATCH:
            try:
                gathered.append(self._ready.get_nowait())
            except queue.Empty:
                break
        return gathered

    def _unwritten(self, batch: Sequence[_LateDraft]) -> Sequence[_LateDraft]:
        """Write a batch; return what is worth trying again. An internal error costs only its own task."""
        try:
            return [] if self._write(batch) else batch
        except Exception as error:  # noqa: BLE001  whatever it is, the late answers of others are still to write
            if len(batch) > 1:
                return [left for late in batch for left in self._unwritten([late])]
            task, version = batch[0].task.id, batch[0].draft.version
            _log.error("late answer broke", task=task, error=type(error).__name__, where=where(error))
            self._claims.give_back([task], version)
            return []

    def _write(self, batch: Sequence[_LateDraft]) -> bool:
        """Write drafts of one project and version; False where it is worth trying again."""
        project, version, case = (
            batch[0].assignment.project,
            batch[0].draft.version,
            batch[0].assignment.case,
        )
        predictions = [
            {"task": late.task.id, **prediction}
            for late in batch
            if (prediction := late.draft.prediction()) is not None
        ]
        ran = [late for late in batch if late.draft.run is not None]
        # What came of code is there before the prediction that it belongs to can be opened.
        wait(self._show(ran))
        try:
            if predictions:
                self._board.write(project, predictions)
        except ServiceError as error:
            _log.warning("late answers wait", project=project, tasks=len(batch), error=str(error))
            return False
        except DraftloopError as error:
            _log.error("late answers refused", project=project, tasks=len(batch), error=str(error))
        else:
            _log.info("late answers written", project=project, version=version, tasks=len(predictions))
        self._log.keep(project, case, [late.draft for late in batch])
        self._show(batch)
        # One that failed for its whole time is given back, and asked for again when somebody opens it.
        self._claims.give_back([late.task.id for late in batch], version)
        return True

    def _show(self, batch: Sequence[_LateDraft]) -> list[Future[None]]:
        if not batch:
            return []
        case = batch[0].assignment.case
        return self._pages.show_drafts(case, [late.task for late in batch], [late.draft for late in batch])


class TakeOver:
    """Does the late work of processes that are gone; the model is asked again."""

    def __init__(
        self,
        drafter: DraftMaker,
        memory: DraftLedger,
        find_case: FindCase,
        board: Board,
        claims: Claims,
        writer: LateWriter,
        every_s: float,
    ) -> None:
        """Prepare; `start` begins to look.

        Args:
            drafter: Makes the drafts.
            memory: The ledger, which knows the work.
            find_case: Finds the case of a project.
            board: Label Studio.
            claims: Keeps the work this process's.
            writer: Writes the drafts.
            every_s: Between two looks.
        """
        self._drafter = drafter
        self._memory = memory
        self._find_case = find_case
        self._board = board
        self._claims = claims
        self._writer = writer
        self._every_s = every_s

    def start(self) -> None:
        """Begin to look for late work."""
        threading.Thread(target=self._look_for_ever, name="take-over", daemon=True).start()

    def _look_for_ever(self) -> None:
        """Look now and then for late work whose process is gone, and do it."""
        # What Label Studio could not be asked about stays ours, and is asked again.
        ours: dict[int, set[tuple[int, str]]] = {}
        while True:
            try:
                for project, promised in self._memory.abandoned(LATE_LEASE_S).items():
                    ours.setdefault(project, set()).update(promised)
            except DraftloopError as error:
                _log.warning("late work not looked for", error=str(error))
            for project in list(ours):
                try:
                    self._take_over(project, ours[project])
                except ServiceError as error:
                    _log.warning("late work waits", project=project, error=str(error))
                    continue
                except Exception as error:  # noqa: BLE001  one project must not cost the others theirs
                    _log.error(
                        "late work broke",
                        project=project,
                        tasks=sorted(task_id for task_id, _ in ours[project])[:20],
                        error=type(error).__name__,
                        where=where(error),
                    )
                del ours[project]
            time.sleep(self._every_s)

    def _take_over(self, project: int, promised: Collection[tuple[int, str]]) -> None:
        ids = {task_id for task_id, _ in promised}
        try:
            xml, wanted, tasks = self._board.read(project, ids)
            _, overrides = parse_extra_params(self._memory.setup_of(project))
            case = self._find_case(xml, wanted, overrides.served_by(self._memory.promoted(project)))
        except SetupError as error:
            # The project is gone, or its config is not ours any more: nobody waits for this.
            _log.error("late work dropped", project=project, tasks=len(ids), error=str(error))
            for task_id, version in promised:
                self._claims.give_back([task_id], version)
            return
        assignment = Assignment(project, case, self._drafter.version(case))
        version = assignment.version.name
        existing = {task.id for task in tasks}
        ours = {task_id for task_id, old in promised if old == version} & existing
        # Promised in an older version: drafted in this one, unless somebody is at it already.
        ours |= self._memory.claim(project, existing - ours, version, LATE_LEASE_S)
        self._memory.extend(ours, version, LATE_LEASE_S, late=True)
        for task_id, old in promised:
            if old != version or task_id not in existing:
                self._claims.give_back([task_id], old)
        mine = [task for task in tasks if task.id in ours]
        _log.info("late work taken over", project=project, version=version, tasks=len(mine))
        futures = self._drafter.submit(case, mine, assignment.version, limit_s=BATCH_LIMIT_S)
        for task, future in zip(mine, futures, strict=True):
            self._writer.follow(assignment, task, future)
