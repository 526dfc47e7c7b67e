"""Answer calls within their deadline: every task of a call gets exactly one answer, nothing is stored twice.

Knows which tasks are drafted here and which are waited for. Does not know how a draft is made (`drafting`),
nor HTTP.

    ready in time      the answer is the draft; Label Studio stores it
    late               the answer is "nothing"; the draft is finished and written through the API, by the
                       next process if this one dies (`late`)
    refined            an annotator asks in words for something else: answered, never stored or late
    run                an annotator wants the code in the page run: run, and shown in the task
                       (both `page_requests`)
    somebody else's    two pages of one task cost one model call: the second waits until the first one's
                       prediction can be read, and is answered "nothing"

Without a `board` (no token for Label Studio) late work cannot be written: it is dropped and asked again.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait

import structlog

from draftloop.drafting.drafter import BATCH_LIMIT_S
from draftloop.drafting.drafts import Draft
from draftloop.drafting.versions import Version
from draftloop.errors import DraftloopError
from draftloop.labelling.labelling import Task
from draftloop.prompting.prompt import Case
from draftloop.runs.run import Publish
from draftloop.serving.claims import Claims
from draftloop.serving.draft_log import DraftLog
from draftloop.serving.late import LATE_LEASE_S, LateWriter, TakeOver
from draftloop.serving.metrics import Metrics
from draftloop.serving.page_requests import PageRequests
from draftloop.serving.seams import Assignment, Board, Deadline, DraftLedger, DraftMaker, FindCase, Pace
from draftloop.serving.task_pages import TaskPages

_log = structlog.get_logger("backend")

# Label Studio needs so long to store what it was answered: about 0.17 s a task at its slowest.
_STORED_S = 5.0
_STORED_S_PER_TASK = 0.25

_Begun = list[tuple[Task, Future[Draft]]]


class Answers:
    """Answers calls within their deadline. Safe to call from several threads.

    pages   what an annotator asks for in an open page
    """

    def __init__(
        self,
        drafter: DraftMaker,
        memory: DraftLedger,
        find_case: FindCase,
        board: Board | None = None,
        *,
        deadline_s: float = 90.0,
        pace: Pace | None = None,
        metrics: Metrics | None = None,
        publish: Publish | None = None,
    ) -> None:
        """Prepare; `start` begins with what an earlier process promised.

        Args:
            drafter: Makes the drafts.
            memory: The ledger.
            find_case: Finds a case by config, name and what its project wants otherwise.
            board: Label Studio, if it may be written to.
            deadline_s: Time within which a call is answered.
            pace: How long it waits for what, where not as usual.
            metrics: Where drafts are counted.
            publish: Shows runs of code in tasks.
        """
        pace = pace or Pace()
        self._drafter = drafter
        self._memory = memory
        self._board = board
        self._deadline_s = deadline_s
        self._pace = pace
        self._claims = Claims(memory, deadline_s + 60)
        self._log = DraftLog(memory, metrics or Metrics())
        self._shown = TaskPages(board, publish)
        self.pages = PageRequests(
            drafter, memory, self._log, self._shown, deadline_s=deadline_s, patience_s=pace.patience_s
        )
        self._late: LateWriter | None = None
        self._take_over: TakeOver | None = None
        if board is not None:
            self._late = LateWriter(drafter, board, self._claims, self._log, self._shown, pace.late_every_s)
            self._take_over = TakeOver(
                drafter, memory, find_case, board, self._claims, self._late, pace.take_over_every_s
            )

    def start(self) -> None:
        """Begin to write late answers; for those of an earlier process the model is asked again."""
        if self._late is not None and self._take_over is not None:
            self._late.start()
            self._take_over.start()

    def late(self) -> int:
        """Count the tasks that were promised and are not written yet, by any process."""
        return self._memory.late()

    def answer(
        self, project: int, case: Case, tasks: Sequence[Task], version: Version | None = None
    ) -> list[Draft | None]:
        """Draft tasks within the deadline.

        A task whose id is 0 is in no Label Studio that we know: it is drafted, and neither claimed, kept nor
        shown.

        Args:
            project: The project.
            case: Its case.
            tasks: Its tasks.
            version: That of the case, where it is known already.
        Returns:
            One draft per task, in order; None where Label Studio shall store nothing.
        """
        deadline = Deadline(self._drafter, time.monotonic() + self._deadline_s, self._pace.patience_s)
        version = version or self._drafter.version(case)
        assignment = Assignment(project, case, version)
        nameless = [task for task in tasks if not task.id]
        futures = self._submit(assignment, nameless, self._deadline_s)
        begun = self._share(assignment, {task.id: task for task in tasks if task.id}, deadline)
        drafts = self._settle(assignment, begun, deadline)
        deadline.wait([future for _, future in futures])
        unstored = [self._drafter.result(future, task, version.name) for task, future in futures]
        for draft in unstored:
            self._log.note(project, case, draft)
        in_order = iter(unstored)
        return [drafts.get(task.id) if task.id else next(in_order) for task in tasks]

    def _share(self, assignment: Assignment, tasks: dict[int, Task], deadline: Deadline) -> _Begun:
        """Draft what nobody else does; wait for that, and beside it for what others draft.

        Args:
            assignment: What the drafts are made for.
            tasks: The tasks, by id.
            deadline: How long to wait.
        Returns:
            The tasks that are drafted here; the others are somebody else's.
        """
        if not tasks:
            return []
        free = self._claims.begin(assignment, tasks.keys())
        others = {task_id: task for task_id, task in tasks.items() if task_id not in free}
        ours = [task for task_id, task in tasks.items() if task_id in free]
        begun = self._submit(assignment, ours, self._limit_s(deadline))
        while not deadline.is_over and (others or not all(future.done() for _, future in begun)):
            begun += self._submit(assignment, self._freed(assignment, others), self._limit_s(deadline))
            deadline.pause([future for _, future in begun])
        return begun

    def _limit_s(self, deadline: Deadline) -> float:
        """Return the time that a draft may take: what is late is written, where it can be."""
        return deadline.left_s if self._late is None else BATCH_LIMIT_S

    def _submit(self, assignment: Assignment, tasks: Sequence[Task], limit_s: float) -> _Begun:
        if not tasks:
            return []
        futures = self._drafter.submit(assignment.case, tasks, assignment.version, limit_s=limit_s)
        return list(zip(tasks, futures, strict=True))

    def _freed(self, assignment: Assignment, others: dict[int, Task]) -> list[Task]:
        """Claim tasks that their caller gave up; those whose draft can be read are waited for no more.

        Args:
            assignment: What the drafts are made for.
            others: Tasks that somebody else drafts; those that need no more waiting are taken out.
        """
        version = assignment.version.name
        for task_id in list(others):
            if not self._is_stored(task_id, version):
                break  # as long as one is missing, the call waits: the rest can be asked about later
            del others[task_id]
        taken = self._claims.take(assignment, others.keys()) if others else set()
        freed = [others.pop(task_id) for task_id in list(others) if task_id in taken]
        # Some were stored between the two questions.
        stored = {task.id for task in freed if self._is_stored(task.id, version)}
        if stored:
            self._claims.give_back(stored, version)
        return [task for task in freed if task.id not in stored]

    def _is_stored(self, task_id: int, version: str) -> bool:
        try:
            return self._board is not None and self._board.has_prediction(task_id, version)
        except DraftloopError:
            return False  # a lost question is asked again

    def _settle(self, assignment: Assignment, begun: _Begun, deadline: Deadline) -> dict[int, Draft]:
        """Return the drafts that are ready, by task; the others follow late, where they can."""
        if not begun:
            return {}
        version = assignment.version.name
        ready: dict[int, tuple[Task, Draft]] = {}
        late: _Begun = []
        for task, future in begun:
            if future.done() or self._late is None:
                ready[task.id] = task, self._drafter.result(future, task, version)
            else:
                late.append((task, future))
        self._promise(assignment, late)
        tasks, drafts = [task for task, _ in ready.values()], [draft for _, draft in ready.values()]
        self._log.keep(assignment.project, assignment.case, drafts)
        patches = self._shown.show_drafts(assignment.case, tasks, drafts)
        wait(patches, timeout=max(1.0, deadline.left_s))
        stored = {draft.task_id for draft in drafts if draft.status != "failed" and self._late is not None}
        # Until Label Studio has stored what it is answered, another caller must still find the claim.
        self._claims.extend(stored, version, _STORED_S + _STORED_S_PER_TASK * len(stored), late=False)
        self._claims.give_back(ready.keys() - stored, version)
        return {draft.task_id: draft for draft in drafts}

    def _promise(self, assignment: Assignment, late: _Begun) -> None:
        """Have drafts written when they are ready, by another process if this one dies."""
        if not late or self._late is None:
            return
        version = assignment.version.name
        _log.warning("late", project=assignment.project, version=version, tasks=len(late))
        self._claims.extend([task.id for task, _ in late], version, LATE_LEASE_S, late=True)
        for task, future in late:
            self._late.follow(assignment, task, future)
