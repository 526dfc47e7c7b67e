"""What to label next, on a real Label Studio: its stream of tasks follows the tab's order."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from draftloop.labelling.labelling import NEXT_KEY
from draftloop.labelstudio import NEXT_TAB, LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.review.queues import put_next
from draftloop.support.environments import ROOT
from tests.conftest import LabelStudioServer
from tests.verbs import environment, run_here

TEXTS = (
    "电梯又坏了三天没人修,老人下不了楼。",
    "电梯又坏了三天没人修,老人根本没法下楼。",
    "My parcel never arrived and nobody answers the phone.",
    "外卖送来已经凉透,骑手还私自点了送达。",
    "The bill is twice as high as last month.",
    "宽带天天掉线,客服一直推脱责任。",
    "The heating has been off since Monday.",
)
SCORES = (0.1, 0.12, 0.5, 0.0, 0.3, 0.95, None)
ORDER = (3, 0, 4, 2, 1)  # what broke a rule; its like waits behind what is surer


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


@pytest.fixture
def project(studio: LabelStudio) -> Project:
    made = studio.create_project(f"next {time.time_ns()}", Cases(ROOT / "label_config").config("complaint"))
    ids = [one for chunk in studio.import_tasks(made, map(row, TEXTS)) for one in chunk]
    predict(studio, made, ids, "old-1", (0.99,) * len(TEXTS))
    predict(studio, made, ids, "new-1", SCORES)
    studio.set_model_version(made, "new-1")
    return studio.project(made.id)


def row(text: str) -> dict[str, Any]:
    return {"text": text, "draft_status": "", "source": {"line": 7}}


def predict(
    studio: LabelStudio, project: Project, ids: list[int], version: str, scores: tuple[float | None, ...]
) -> None:
    drafts = [
        {"task": task, "result": answer("她"), "score": score, "model_version": version}
        for task, score in zip(ids, scores, strict=True)
        if score is not None
    ]
    assert studio.import_predictions(project, drafts) == []


def answer(words: str) -> list[dict[str, Any]]:
    return [{"from_name": "question", "to_name": "text", "type": "textarea", "value": {"text": [words]}}]


def tab(studio: LabelStudio, project: Project) -> dict[str, Any]:
    (next_tab,) = [
        view
        for view in studio._get("tabs", "api/dm/views/", {"project": project.id})
        if view["data"]["title"] == NEXT_TAB
    ]
    return dict(next_tab)


def displayed(studio: LabelStudio, project: Project) -> list[int]:
    page = studio._get("a tab", "api/tasks/", {"view": tab(studio, project)["id"]})
    return [task["id"] for task in page["tasks"]]


def handed_out(studio: LabelStudio, project: Project) -> int:
    """Ask for a task as the page does for "Label Tasks As Displayed"."""
    view = tab(studio, project)
    body = {key: view["data"][key] for key in ("filters", "ordering")}
    body["selectedItems"] = {"all": True, "excluded": []}
    params = {"id": "next_task", "project": project.id, "tabID": view["id"]}
    task = studio.send("a task", "POST", "api/dm/actions", json.dumps(body).encode(), params)
    return int(task["id"])


def test_the_stream_of_tasks_follows_the_order_and_what_is_labelled_leaves_it(
    label_studio: LabelStudioServer, studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    ids = [task["id"] for task in studio.tasks(project)]
    env = environment(label_studio, tmp_path)
    code, out, err = run_here(env, "next_tasks", "--project", project.id, "--count", len(ORDER))
    assert code == 0, err
    assert f"{len(ORDER)} of {len(TEXTS)} tasks" in out
    assert "1  whose draft broke a rule, or is none" in out
    assert "score 0.10 to 0.50" in out
    assert displayed(studio, project) == [ids[place] for place in ORDER]
    for place in ORDER[:3]:
        assert handed_out(studio, project) == ids[place]
        studio.submit_annotation(ids[place], answer("改好"))
    assert displayed(studio, project) == [ids[place] for place in ORDER[3:]]


def test_another_run_replaces_the_order_and_leaves_begun_work_and_all_other_data_alone(
    studio: LabelStudio, project: Project
) -> None:
    ids = [task["id"] for task in studio.tasks(project)]
    put_next(studio, project.id, len(ORDER))
    begun, done, skipped = (ids[place] for place in ORDER[:3])
    studio.send("a draft", "POST", f"api/tasks/{begun}/drafts", b'{"result": [], "lead_time": 1}')
    studio.submit_annotation(done, answer("改好"))
    skip = {"result": [], "was_cancelled": True}
    studio.send("a skip", "POST", f"api/tasks/{skipped}/annotations/", json.dumps(skip).encode())
    before = {task["id"]: task for task in studio.tasks(project)}
    predict(studio, project, ids, "next-2", (0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2))
    studio.set_model_version(project, "next-2")

    queue = put_next(studio, project.id, 2)
    assert [one.task for one in queue.ranked] == [ids[5], ids[6]]
    assert (queue.unbegun, queue.written) == (4, 4)
    after = {task["id"]: task["data"] for task in studio.tasks(project)}
    assert {one: data.get(NEXT_KEY) for one, data in after.items()} == {
        **{one: before[one]["data"].get(NEXT_KEY) for one in (begun, done, skipped)},
        **{ids[place]: None for place in ORDER[3:]},
        ids[5]: "000001",
        ids[6]: "000002",
    }
    assert [{**data, NEXT_KEY: ""} for data in after.values()] == [
        {**row(text), NEXT_KEY: ""} for text in TEXTS
    ]
    # What somebody has begun keeps its place.
    assert [one for one in displayed(studio, project) if one != begun] == [ids[5], ids[6]]
    assert begun in displayed(studio, project)

    assert put_next(studio, project.id, 2).written == 0
    by_chance = put_next(studio, project.id, 4, seed=1, chance=True)
    assert {one.task for one in by_chance.ranked} == {ids[place] for place in (2, 1, 5, 6)}
