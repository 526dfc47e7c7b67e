"""What `Answers` counts on when it writes to Label Studio: the fake in every run, the real one beside it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from draftloop.errors import SetupError
from draftloop.labelling.labelling import hash_config
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from draftloop.serving.board import LabelStudioBoard
from draftloop.serving.seams import Board
from draftloop.support.environments import ROOT
from tests.fake_board import FakeBoard

CONFIG = Cases(ROOT / "label_config").config("sentiment")
DATA = {"text": "很好", "draft_status": ""}


@dataclass(frozen=True)
class Opened:
    board: Board
    project: int
    tasks: list[int]
    stored: Callable[[], int]  # predictions of all tasks


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    if request.param == "fake":
        held: dict[int, Any] = {1: DATA, 2: DATA}
        fake = FakeBoard(config=CONFIG, tasks=held)
        yield Opened(fake, 7, [1, 2], lambda: len(fake.predictions))
        return
    server = request.getfixturevalue("label_studio")
    with LabelStudio(server.url, server.token) as studio:
        project = studio.create_project("Board", CONFIG)
        ids = [task_id for chunk in studio.import_tasks(project, [DATA, DATA]) for task_id in chunk]

        def stored() -> int:
            return sum(len(task["predictions"]) for task in studio.tasks(project, full=True))

        yield Opened(LabelStudioBoard(studio), project.id, ids, stored)


def prediction(task: int, version: str = "v1") -> dict[str, Any]:
    region = {
        "id": "sentiment-0",
        "from_name": "sentiment",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": ["positive"]},
    }
    return {"task": task, "result": [region], "score": 0.5, "model_version": version}


def test_a_written_prediction_is_known_by_task_and_version(opened: Opened) -> None:
    one, two = opened.tasks
    assert not opened.board.has_prediction(one, "v1")
    opened.board.write(opened.project, [prediction(one)])
    assert opened.board.has_prediction(one, "v1")
    assert not opened.board.has_prediction(one, "v2")
    assert not opened.board.has_prediction(two, "v1")


def test_writing_again_doubles_nothing_and_stores_what_was_missing(opened: Opened) -> None:
    one, two = opened.tasks
    opened.board.write(opened.project, [prediction(one)])
    opened.board.write(opened.project, [prediction(one), prediction(two)])
    assert opened.board.has_prediction(two, "v1")
    assert opened.stored() == 2


def test_only_tasks_that_exist_are_read_with_their_config(opened: Opened) -> None:
    one, _ = opened.tasks
    config, case, tasks = opened.board.read(opened.project, {one, 999_999_999})
    assert hash_config(config) == hash_config(CONFIG)  # Label Studio strips white space
    assert case is None
    assert [(task.id, dict(task.data)) for task in tasks] == [(one, DATA)]


def test_the_data_of_a_task_is_replaced(opened: Opened) -> None:
    one, _ = opened.tasks
    opened.board.set_task_data(one, {**DATA, "draft_status": "why"})
    _, _, tasks = opened.board.read(opened.project, {one})
    assert tasks[0].data["draft_status"] == "why"


def test_a_deleted_project_is_a_setup_error(opened: Opened) -> None:
    with pytest.raises(SetupError):
        opened.board.read(888_888_888, {1})
