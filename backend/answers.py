"""Answer calls within their deadline, finish what is late behind the answer, tell why a human is needed.

Knows deadlines, claims on tasks and what must be written where. Does not know how a draft is made
(`predict`), nor HTTP. Every task of a call gets exactly one answer; nothing is stored twice:

    ready in time      the answer is the draft; Label Studio stores it
    late               the answer is "nothing"; the draft is finished and written through the API, by the
                       next process if this one dies
    refined            an annotator asks in words for something else: answered, never stored or late
    run                an annotator wants the code in the page run: run, and shown in the task
    somebody else's    two pages of one task cost one model call: the second waits until the first one's
                       prediction can be read, and is answered "nothing"

Without a `board` (no token for Label Studio) late work cannot be written: it is dropped and asked again.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from backend.coding import run_reasons
from backend.core.drafts import Draft, draft_status_html, status_html
from backend.core.labelling import STATUS_KEY, Task, Value
from backend.core.prompting import Case, Overrides, Promoted, Refinement, parse_extra_params
from backend.core.rules import Reason
from backend.core.runs import NO_RUN, RUN_KEY, Run, missing_outputs, outputs_of
from backend.edge.metrics import Metrics
from backend.errors import DraftloopError, ServiceError, SetupError, where
from backend.predict import BATCH_LIMIT_S, Drafter
from backend.runner import told

_log = structlog.get_logger("backend")

_POLL_S = 0.2
_LATE_BATCH = 200  # late answers written in one request to Label Studio
_LATE_LEASE_S = BATCH_LIMIT_S + 120
# Label Studio needs so long to store what it was answered: about 0.17 s a task at its slowest.
_STORED_S = 5.0
_STORED_S_PER_TASK = 0.25
_PATCHES = 4  # at once; one takes Label Studio 60 to 90 ms

_WORDS_KEPT = 1000  # tasks whose annotator's last words are remembered

Kept = tuple[int, int, str, str, list[str], str]
# Puts what a run left where annotators get at it; gives the entries of task data that show it.
Publish = Callable[[Run], Mapping[str, Any]]


class Memory(Protocol):
    """The ledger: who is drafting which task, and what needed a human; shared by all processes."""

    def claim(self, project: int, tasks: Collection[int], version: str, lease_s: float) -> set[int]:
        """Take the tasks that nobody is drafting in this version."""
        ...

    def extend(self, tasks: Collection[int], version: str, lease_s: float, *, late: bool) -> None:
        """Keep claims for longer; `late` ones outlive this process."""
        ...

    def release(self, tasks: Collection[int], version: str) -> None:
        """Give claims back."""
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

    def remember_drafts(self, rows: Sequence[Kept]) -> None:
        """Keep what came of tasks."""
        ...

    def setup_of(self, project: int) -> dict[str, Any]:
        """Give what `/setup` said about a project."""
        ...

    def promoted(self, project: int) -> Promoted | None:
        """Give the adapter that drafts for a project, if one was promoted."""
        ...


class Board(Protocol):
    """Label Studio, as far as answers are written to it."""

    def has_prediction(self, task_id: int, version: str) -> bool:
        """Tell whether a task has a prediction of this version."""
        ...

    def write(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Store predictions where a task has none of their version yet."""
        ...

    def read(self, project: int, tasks: Collection[int]) -> tuple[str, str | None, list[Task]]:
        """Give the labelling config, the name of the case, and those of the tasks that still exist."""
        ...

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace a task's data."""
        ...


@dataclass(frozen=True)
class _Late:
    project: int
    case: Case
    task: Task
    draft: Draft


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


class Answers:
    """Answers calls. Safe to call from several threads."""

    def __init__(
        self,
        drafter: Drafter,
        memory: Memory,
        find_case: Callable[[str, str | None, Overrides], Case],
        board: Board | None = None,
        *,
        deadline_s: float = 90.0,
        pace: Pace = Pace(),
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
            pace: How long it waits for what.
            metrics: Where drafts are counted.
            publish: Shows runs of code in tasks.
        """
        self._drafter = drafter
        self._memory = memory
        self._find_case = find_case
        self._board = board
        self._deadline_s = deadline_s
        self._pace = pace
        self._metrics = metrics or Metrics()
        self._publish = publish
        self._answered: dict[int, str] = {}
        self._late: queue.SimpleQueue[_Late] = queue.SimpleQueue()
        self._patchers = ThreadPoolExecutor(_PATCHES, "patch")

    def start(self) -> None:
        """Begin to write late answers; for those of an earlier process the model is asked again."""
        if self._board is not None:
            threading.Thread(target=self._write_for_ever, name="late", daemon=True).start()
            threading.Thread(target=self._take_over_for_ever, name="take-over", daemon=True).start()

    def late(self) -> int:
        """Count the tasks that were promised and are not written yet, by any process."""
        return self._memory.late()

    def answer(self, project: int, case: Case, tasks: Sequence[Task]) -> list[Draft | None]:
        """Draft tasks within the deadline.

        Returns:
            One draft per task, in order; None where Label Studio shall store nothing.
        """
        ends = time.monotonic() + self._deadline_s
        version = self._drafter.version(case)
        free = self._free(project, case, tasks, version)
        ours = list({task.id: task for task in tasks if task.id in free}.values())
        drafts = self._draft(project, case, ours, version, ends)
        for task in tasks:
            if task.id not in free:
                drafts |= self._after_another(project, case, task, version, ends)
        return [drafts.get(task.id) for task in tasks]

    def refine(self, project: int, case: Case, task: Task, refinement: Refinement) -> Draft:
        """Draft a task anew as its annotator asks, within the deadline.

        The annotator waits and takes or leaves it: it is no prediction of the task, so nothing is claimed,
        and what it breaks is not told in the page, which shows the reasons of the stored draft. What came of
        its code is shown.
        """
        version = self._drafter.version(case)
        try:
            self._memory.remember_version(project, version, self._drafter.manifest(case))
        except DraftloopError as error:
            _log.error("version not kept", project=project, error=str(error))
        futures = self._drafter.submit(case, [task], limit_s=self._deadline_s, refinement=refinement)
        self._wait(futures, time.monotonic() + self._deadline_s)
        draft = self._drafter.result(futures[0], task, version)
        self._note(project, case, draft)
        if draft.status != "failed":
            self._answered.pop(task.id, None)
            self._answered[task.id] = refinement.words
            for oldest in list(self._answered)[:-_WORDS_KEPT]:
                self._answered.pop(oldest, None)
        if draft.run is not None:
            self._patch(task, {}, draft.run)
        return draft

    def has_answered(self, task: Task, words: str) -> bool:
        """Whether these words in the page of a code task are those that its last redraft answered.

        They stay in their box when the annotator goes on to edit the code, and are not asked again then.
        """
        return self._answered.get(task.id) == words

    def rerun(self, project: int, case: Case, task: Task, value: Value) -> str:
        """Run exactly the code that an annotator has in the page, and show in the task what came of it.

        Args:
            project: The project.
            case: Its case.
            task: The task.
            value: What the page holds.
        Returns:
            What came of it in words; empty where code is not run here, or there is none.
        """
        try:
            case = case.for_task(task)
            run = self._drafter.rerun(case, task, value, limit_s=self._deadline_s)
            if run is None:
                return ""
            missing = missing_outputs(run.last, outputs_of(task.data))
            reasons = (*case.rules.check(value, task), *run_reasons(case, task, run))
        except DraftloopError as error:
            words = f"The code was not run: {error}"
            _log.warning("not run", project=project, task=task.id, error=str(error))
            self._patch(task, self._status(case, [Reason("run", "", words)]), None)
            return words
        _log.info(
            "run",
            project=project,
            task=task.id,
            case=case.name,
            outcome=run.last.outcome,
            ms=round(run.last.wall_s * 1000),
        )
        self._patch(task, self._status(case, reasons), run)
        return told(run.last, missing)

    def _status(self, case: Case, reasons: Sequence[Reason]) -> dict[str, str]:
        return {STATUS_KEY: status_html(reasons)} if case.labelling.shows_status else {}

    def _wait(self, futures: Collection[Future[Draft]], ends: float) -> None:
        """Wait for drafts, but not for a model server at which nobody answers."""
        waiting = set(futures)
        while waiting and time.monotonic() < ends and self._drafter.unreachable_s < self._pace.patience_s:
            waiting = wait(waiting, timeout=min(_POLL_S, max(0.0, ends - time.monotonic()))).not_done

    def _free(self, project: int, case: Case, tasks: Sequence[Task], version: str) -> set[int]:
        """Claim tasks; a ledger that fails costs the sharing of work, not the drafts."""
        ids = {task.id for task in tasks}
        try:
            self._memory.remember_version(project, version, self._drafter.manifest(case))
            return self._memory.claim(project, ids, version, self._lease_s)
        except DraftloopError as error:
            _log.error("nothing claimed", project=project, tasks=len(ids), error=str(error))
            return ids

    @property
    def _lease_s(self) -> float:
        return self._deadline_s + 60

    def _draft(
        self, project: int, case: Case, tasks: Sequence[Task], version: str, ends: float
    ) -> dict[int, Draft]:
        """Draft claimed tasks; those that are not ready in time follow late, where they can."""
        limit_s = BATCH_LIMIT_S if self._board else max(0.0, ends - time.monotonic())
        futures = self._drafter.submit(case, tasks, limit_s=limit_s)
        self._wait(futures, ends)
        ready: dict[int, Draft] = {}
        late: list[tuple[Task, Future[Draft]]] = []
        for task, future in zip(tasks, futures, strict=True):
            if future.done() or self._board is None:
                ready[task.id] = self._drafter.result(future, task, version)
            else:
                late.append((task, future))
        if late:
            _log.warning("late", project=project, version=version, tasks=len(late))
            self._extend([task.id for task, _ in late], version, _LATE_LEASE_S, late=True)
            for task, future in late:
                future.add_done_callback(self._when_done(project, case, task, version))
        told = [task for task in tasks if task.id in ready]
        patches = self._tell(project, case, told, [ready[task.id] for task in told])
        wait(patches, timeout=max(1.0, ends - time.monotonic()))
        stored = [task_id for task_id, draft in ready.items() if draft.status != "failed" and self._board]
        # Until Label Studio has stored what it is answered, another caller must still find the claim.
        self._extend(stored, version, _STORED_S + _STORED_S_PER_TASK * len(stored), late=False)
        self._give_back(ready.keys() - set(stored), version)
        return ready

    def _after_another(
        self, project: int, case: Case, task: Task, version: str, ends: float
    ) -> dict[int, Draft]:
        """Wait until another caller's draft can be read; draft it ourselves if that caller gave up."""
        while time.monotonic() < ends and self._drafter.unreachable_s < self._pace.patience_s:
            if self._has(task.id, version):
                return {}
            if self._free(project, case, [task], version):
                if self._has(task.id, version):  # it was stored between the two questions
                    self._give_back([task.id], version)
                    return {}
                return self._draft(project, case, [task], version, ends)
            time.sleep(_POLL_S)
        return {}

    def _has(self, task_id: int, version: str) -> bool:
        try:
            return self._board is not None and self._board.has_prediction(task_id, version)
        except DraftloopError:
            return False  # a lost question is asked again

    def _tell(
        self, project: int, case: Case, tasks: Sequence[Task], drafts: Sequence[Draft]
    ) -> list[Future[None]]:
        """Keep drafts in the ledger, begin to show them in the page; no draft is lost if that fails."""
        for draft in drafts:
            self._note(project, case, draft)
        try:
            self._memory.remember_drafts(
                [
                    (
                        project,
                        draft.task_id,
                        draft.version,
                        draft.status,
                        [*map(str, draft.reasons)],
                        draft.raw,
                    )
                    for draft in drafts
                ]
            )
        except DraftloopError as error:
            _log.error("drafts not kept", project=project, error=str(error))
        return self._show(case, tasks, drafts)

    def _show(self, case: Case, tasks: Sequence[Task], drafts: Sequence[Draft]) -> list[Future[None]]:
        """Begin to show in pages why drafts need a human, and what came of their code."""
        patches = []
        for task, draft in zip(tasks, drafts, strict=True):
            if self._board is None or draft.status == "failed":
                continue
            told = {STATUS_KEY: draft_status_html(draft)} if case.labelling.shows_status else {}
            if draft.run is None and task.data.get(RUN_KEY):
                told |= NO_RUN  # it shows the run of an older draft
            if draft.run is not None or any(task.data.get(key, "") != part for key, part in told.items()):
                patches.append(self._patchers.submit(self._patch, task, told, draft.run))
        return patches

    def _note(self, project: int, case: Case, draft: Draft) -> None:
        """Count a draft and log it: numbers and names, never the task's text or the model's."""
        self._metrics.drafts.labels(case.name, draft.status).inc()
        if draft.near_duplicate:
            self._metrics.near_duplicates.labels(case.name, draft.near_duplicate).inc()
        if draft.cascade:
            self._metrics.cascade.labels(case.name, draft.cascade).inc()
        for reason in draft.reasons:
            self._metrics.reasons.labels(case.name, reason.kind).inc()
        _log.info(
            "draft",
            project=project,
            task=draft.task_id,
            case=case.name,
            version=draft.version,
            status=draft.status,
            reasons=[reason.kind for reason in draft.reasons],
            **({"model": draft.model, "cascade": draft.cascade} if draft.cascade else {}),
            attempts=draft.attempts,
            ms=draft.ms,
            prompt_tokens=draft.prompt_tokens,
            cached_tokens=draft.cached_tokens,
            completion_tokens=draft.completion_tokens,
        )

    def _patch(self, task: Task, told: Mapping[str, Any], run: Run | None) -> None:
        """Change a task's data where it says something else; if that fails, only the sight of it is lost."""
        if self._board is None:
            return
        try:
            shown = {**told, **(self._publish(run) if run and self._publish else {})}
            if any(task.data.get(key, "") != part for key, part in shown.items()):
                self._board.set_task_data(task.id, {**task.data, **shown})
        except DraftloopError as error:
            _log.error("not shown in the page", task=task.id, error=str(error))

    # ---------------------------------------------------------------------------------- late work

    def _when_done(
        self, project: int, case: Case, task: Task, version: str
    ) -> Callable[[Future[Draft]], None]:
        def put(future: Future[Draft]) -> None:
            if not future.cancelled():  # by the end of the process: the next one takes it over
                self._late.put(_Late(project, case, task, self._drafter.result(future, task, version)))

        return put

    def _write_for_ever(self) -> None:
        """Write what became ready; what Label Studio cannot take now is tried again."""
        waiting: list[_Late] = []
        while True:
            waiting += self._gathered(block=not waiting)
            batches: dict[tuple[int, str], list[_Late]] = {}
            for entry in waiting:
                batches.setdefault((entry.project, entry.draft.version), []).append(entry)
            waiting = [entry for batch in batches.values() for entry in self._unwritten(batch)]
            time.sleep(self._pace.late_every_s)

    def _unwritten(self, batch: Sequence[_Late]) -> Sequence[_Late]:
        """Write a batch; give what is worth trying again. A mistake of ours costs only its own task."""
        try:
            return [] if self._write(batch) else batch
        except Exception as error:  # noqa: BLE001  whatever it is, the late answers of others are still to write
            if len(batch) > 1:
                return [left for entry in batch for left in self._unwritten([entry])]
            task, version = batch[0].task.id, batch[0].draft.version
            _log.error("late answer broke", task=task, error=type(error).__name__, where=where(error))
            self._give_back([task], version)
            return []

    def _gathered(self, *, block: bool) -> list[_Late]:
        gathered = [self._late.get()] if block else []
        while len(gathered) < _LATE_BATCH:
            try:
                gathered.append(self._late.get_nowait())
            except queue.Empty:
                break
        return gathered

    def _write(self, batch: Sequence[_Late]) -> bool:
        """Write drafts of one project and version; False where it is worth trying again."""
        project, version, case = batch[0].project, batch[0].draft.version, batch[0].case
        predictions = [
            {"task": entry.task.id, **prediction}
            for entry in batch
            if (prediction := entry.draft.prediction()) is not None
        ]
        ran = [entry for entry in batch if entry.draft.run is not None]
        # What came of code is there before the prediction that it belongs to can be opened.
        wait(self._show(case, [entry.task for entry in ran], [entry.draft for entry in ran]))
        try:
            if predictions and self._board is not None:
                self._board.write(project, predictions)
        except ServiceError as error:
            _log.warning("late answers wait", project=project, tasks=len(batch), error=str(error))
            return False
        except DraftloopError as error:
            _log.error("late answers refused", project=project, tasks=len(batch), error=str(error))
        else:
            _log.info("late answers written", project=project, version=version, tasks=len(predictions))
        self._tell(project, case, [entry.task for entry in batch], [entry.draft for entry in batch])
        # One that failed for its whole time is given back, and asked for again when somebody opens it.
        self._give_back([entry.task.id for entry in batch], version)
        return True

    def _extend(self, tasks: Collection[int], version: str, lease_s: float, *, late: bool) -> None:
        try:
            self._memory.extend(tasks, version, lease_s, late=late)
        except DraftloopError as error:
            _log.error("claims not extended", tasks=len(tasks), error=str(error))

    def _give_back(self, tasks: Collection[int], version: str) -> None:
        try:
            self._memory.release(tasks, version)
        except DraftloopError as error:
            _log.error("claims not released", tasks=len(tasks), error=str(error))  # their lease ends them

    def _take_over_for_ever(self) -> None:
        """Look now and then for late work whose process is gone, and do it."""
        # What Label Studio could not be asked about stays ours, and is asked again.
        ours: dict[int, set[tuple[int, str]]] = {}
        while True:
            try:
                for project, promised in self._memory.abandoned(_LATE_LEASE_S).items():
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
            time.sleep(self._pace.take_over_every_s)

    def _take_over(self, project: int, promised: Collection[tuple[int, str]]) -> None:
        if self._board is None:
            return
        ids = {task_id for task_id, _ in promised}
        try:
            xml, wanted, tasks = self._board.read(project, ids)
            _, overrides = parse_extra_params(self._memory.setup_of(project))
            case = self._find_case(xml, wanted, overrides.served_by(self._memory.promoted(project)))
        except SetupError as error:
            # The project is gone, or its config is not ours any more: nobody waits for this.
            _log.error("late work dropped", project=project, tasks=len(ids), error=str(error))
            for task_id, version in promised:
                self._give_back([task_id], version)
            return
        version = self._drafter.version(case)
        there = {task.id for task in tasks}
        ours = {task_id for task_id, old in promised if old == version} & there
        # Promised in an older version: drafted in this one, unless somebody is at it already.
        ours |= self._memory.claim(project, there - ours, version, _LATE_LEASE_S)
        self._memory.extend(ours, version, _LATE_LEASE_S, late=True)
        for task_id, old in promised:
            if old != version or task_id not in there:
                self._give_back([task_id], old)
        mine = [task for task in tasks if task.id in ours]
        _log.info("late work taken over", project=project, version=version, tasks=len(mine))
        futures = self._drafter.submit(case, mine, limit_s=BATCH_LIMIT_S)
        for task, future in zip(mine, futures, strict=True):
            future.add_done_callback(self._when_done(project, case, task, version))
