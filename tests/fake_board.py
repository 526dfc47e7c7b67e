"""Label Studio as `Answers` sees it, in memory; passes tests/contract/test_board.py as the real one does."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from draftloop.errors import ServiceError, SetupError
from draftloop.labelling.labelling import Task


@dataclass
class FakeBoard:
    """Projects with their tasks, and what was written to them."""

    config: str = "<View/>"
    case: str | None = None
    tasks: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    project: int = 7
    down: bool = False
    predictions: list[dict[str, Any]] = field(default_factory=list)
    patched: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def has_prediction(self, task_id: int, version: str) -> bool:
        """Check whether a task has a prediction of this version."""
        self._up()
        return any((p["task"], p["model_version"]) == (task_id, version) for p in self.predictions)

    def write(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Store predictions where a task has none of their version yet."""
        self._up()
        with self._lock:
            for prediction in predictions:
                if not self.has_prediction(prediction["task"], prediction["model_version"]):
                    self.predictions.append(dict(prediction))

    def read(self, project: int, tasks: Collection[int]) -> tuple[str, str | None, list[Task]]:
        """Return config, case and tasks."""
        self._up()
        if project != self.project:
            raise SetupError(f"There is no project {project}.")
        known = [Task(task_id, self.tasks[task_id]) for task_id in tasks if task_id in self.tasks]
        return self.config, self.case, known

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace a task's data."""
        self._up()
        self.patched.append((task_id, dict(data)))
        self.tasks[task_id] = dict(data)

    def _up(self) -> None:
        if self.down:
            raise ServiceError("Label Studio does not answer.")
