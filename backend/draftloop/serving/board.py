"""Label Studio's side of late answers: predictions are written there, tasks and their config are read.

Knows the client of Label Studio. Does not know which tasks are late.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import structlog

from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.labelstudio import LabelStudio

_log = structlog.get_logger("backend")


class LabelStudioBoard:
    """The part of Label Studio's client that answers are written through, see `seams.Board`."""

    def __init__(self, label_studio: LabelStudio) -> None:
        self._label_studio = label_studio
        self.has_prediction = label_studio.has_prediction
        self.set_task_data = label_studio.set_task_data

    def write(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Store predictions where a task has none of their version yet."""
        target = self._label_studio.project(project)
        unjudged = compile_labelling(target.label_config).unjudged
        refused = self._label_studio.import_predictions(target, predictions, unjudged=unjudged)
        if refused:
            _log.error("Label Studio refused drafts", project=project, tasks=refused)

    def read(self, project: int, tasks: Collection[int]) -> tuple[str, str | None, list[Task]]:
        """Return the labelling config, the name of the case, and those of the tasks that still exist."""
        source = self._label_studio.project(project)
        rows = self._label_studio.tasks_by_id(source, tasks)
        return source.label_config, source.case, [Task(row["id"], row["data"], project) for row in rows]
