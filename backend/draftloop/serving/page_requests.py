"""What an annotator asks for in an open page: another draft in words, or a run of the code there.

Knows what of it is shown and what is remembered. Does not know deadlines of other calls: the annotator waits,
and takes or leaves what comes, so nothing is claimed, stored or late.
"""

import time

import structlog

from draftloop.drafting.drafts import Draft
from draftloop.errors import DraftloopError
from draftloop.execution.coding import run_reasons
from draftloop.execution.runner import describe_attempt
from draftloop.labelling.labelling import Task, Value
from draftloop.labelling.rules import Reason
from draftloop.prompting.prompt import Case, Refinement
from draftloop.runs.run import missing_outputs, outputs_of
from draftloop.serving.draft_log import DraftLog
from draftloop.serving.seams import Deadline, DraftLedger, DraftMaker
from draftloop.serving.task_pages import TaskPages

_log = structlog.get_logger("backend")

_WORDS_KEPT = 1000  # tasks whose annotator's last words are remembered


class PageRequests:
    """Does what annotators ask for in open pages. Safe to call from several threads."""

    def __init__(
        self,
        drafter: DraftMaker,
        memory: DraftLedger,
        log: DraftLog,
        pages: TaskPages,
        *,
        deadline_s: float,
        patience_s: float,
    ) -> None:
        """Prepare.

        Args:
            drafter: Makes drafts, and runs code.
            memory: The ledger.
            log: Records drafts.
            pages: Shows what came of code.
            deadline_s: Time within which a request is answered.
            patience_s: For a model server at which nobody answers.
        """
        self._drafter = drafter
        self._memory = memory
        self._log = log
        self._pages = pages
        self._deadline_s = deadline_s
        self._patience_s = patience_s
        self._answered: dict[int, str] = {}

    def refine(self, project: int, case: Case, task: Task, refinement: Refinement) -> Draft:
        """Draft a task anew as its annotator asks, within the deadline.

        The annotator waits, then takes or leaves it. It is no prediction of the task: nothing is claimed,
        and the page goes on to show the reasons of the stored draft. The run of its code is shown.
        """
        version = self._drafter.version(case)
        try:
            self._memory.remember_version(project, version.name, version.manifest)
        except DraftloopError as error:
            _log.error("version not kept", project=project, error=str(error))
        (future,) = self._drafter.submit(
            case, [task], version, limit_s=self._deadline_s, refinement=refinement
        )
        Deadline(self._drafter, time.monotonic() + self._deadline_s, self._patience_s).wait([future])
        draft = self._drafter.result(future, task, version.name)
        self._log.note(project, case, draft)
        if draft.status != "failed":
            self._answered.pop(task.id, None)
            self._answered[task.id] = refinement.words
            for oldest in list(self._answered)[:-_WORDS_KEPT]:
                self._answered.pop(oldest, None)
        if draft.run is not None:
            self._pages.show_run(task, draft.run)
        return draft

    def has_answered(self, task: Task, words: str) -> bool:
        """Whether these words in the page of a code task are those that its last redraft answered.

        They stay in their box when the annotator goes on to edit the code, and are not asked again then.
        """
        return bool(task.id) and self._answered.get(task.id) == words

    def rerun(self, project: int, case: Case, task: Task, value: Value) -> str:
        """Run exactly the code that an annotator has in the page, and show in the task what came of it.

        Args:
            project: The project.
            case: Its case.
            task: The task.
            value: What the page holds.
        Returns:
            The result in words; empty where code is not run here, or there is none.
        """
        try:
            case = case.for_task(task)
            run = self._drafter.coding.rerun_of_human(case, task, value, limit_s=self._deadline_s)
            if run is None:
                return ""
            missing = missing_outputs(run.last, outputs_of(task.data))
            reasons = (*case.rules.check(value, task), *run_reasons(case, task, run))
        except DraftloopError as error:
            words = f"The code was not run: {error}"
            _log.warning("not run", project=project, task=task.id, error=str(error))
            self._pages.show_reasons(case, task, [Reason("run", "", words)], None)
            return words
        _log.info(
            "run",
            project=project,
            task=task.id,
            case=case.name,
            outcome=run.last.outcome,
            ms=round(run.last.wall_s * 1000),
        )
        self._pages.show_reasons(case, task, reasons, run)
        return describe_attempt(run.last, missing)
