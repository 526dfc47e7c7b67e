"""What the page of a task shows of its draft: why it needs a human, and the run of its code.

Knows the keys of task data that pages show. Does not know how a draft is made.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import structlog

from draftloop.drafting.drafts import Draft, draft_status_html, status_html
from draftloop.errors import DraftloopError
from draftloop.labelling.labelling import STATUS_KEY, Task
from draftloop.labelling.regions import too_deep
from draftloop.labelling.rules import Reason
from draftloop.prompting.prompt import Case
from draftloop.runs.run import NO_RUN, RUN_KEY, Publish, Run
from draftloop.serving.seams import Board

_log = structlog.get_logger("backend")

_PATCHES = 4  # at once; one takes Label Studio 60 to 90 ms


class TaskPages:
    """Shows drafts in the pages of their tasks; if that fails, only the sight of them is lost."""

    def __init__(self, board: Board | None, publish: Publish | None) -> None:
        """Prepare.

        Args:
            board: Label Studio; None where it may not be written to: then nothing is shown.
            publish: Shows runs of code; None shows none.
        """
        self._board = board
        self._publish = publish
        self._pool = ThreadPoolExecutor(_PATCHES, "patch")

    def show_drafts(self, case: Case, tasks: Sequence[Task], drafts: Sequence[Draft]) -> list[Future[None]]:
        """Begin to show why drafts need a human, and the runs of their code."""
        patches = []
        for task, draft in zip(tasks, drafts, strict=True):
            if self._board is None or draft.status == "failed":
                continue
            data = {STATUS_KEY: draft_status_html(draft)} if case.labelling.shows_status else {}
            if draft.run is None and task.data.get(RUN_KEY):
                data |= NO_RUN  # it shows the run of an older draft
            if draft.run is not None or _differs(task, data):
                patches.append(self._pool.submit(self._patch, task, data, draft.run))
        return patches

    def show_run(self, task: Task, run: Run) -> None:
        """Show a run; leave the other fields of the page."""
        self._patch(task, {}, run)

    def show_reasons(self, case: Case, task: Task, reasons: Sequence[Reason], run: Run | None) -> None:
        """Show why what a human has in the page needs one, and what came of its code where it ran."""
        status = {STATUS_KEY: status_html(reasons)} if case.labelling.shows_status else {}
        self._patch(task, status, run)

    def _patch(self, task: Task, data: Mapping[str, Any], run: Run | None) -> None:
        """Change a task's data where it says something else."""
        # The data are written back whole, so not where they may have been cut.
        if self._board is None or not task.id or too_deep(dict(task.data)):
            return
        try:
            shown = {**data, **(self._publish(run) if run and self._publish else {})}
            if _differs(task, shown):
                self._board.set_task_data(task.id, {**task.data, **shown})
        except DraftloopError as error:
            _log.error("not shown in the page", task=task.id, error=str(error))


def _differs(task: Task, data: Mapping[str, Any]) -> bool:
    return any(task.data.get(key, "") != part for key, part in data.items())
