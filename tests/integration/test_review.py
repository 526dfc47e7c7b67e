"""Back to humans, on a real Label Studio: a blind spot check, and what a gate stopped."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from draftloop.dataset.spot_check import CONFIG
from draftloop.dataset.sync import Report, sync
from draftloop.labelling.labelling import STATUS_KEY
from draftloop.labelstudio import SENT_BACK_TAB, LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.review.queues import open_spot_check, send_back, stopped_by
from draftloop.support.environments import ROOT
from tests.conftest import LabelStudioServer
from tests.verbs import environment, run

CASES = Cases(ROOT / "label_config")


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


@pytest.fixture
def project(studio: LabelStudio) -> Project:
    """Six annotated tasks; the second one breaks the schema: it has no question."""
    made = studio.create_project(f"review {time.time_ns()}", CASES.config("complaint"))
    texts = [f"我叫张三{n},{n * 7919}号包裹{n * 104729}还没到,请问第{n}次了什么时候能到?" for n in range(6)]
    ((*ids,),) = studio.import_tasks(made, [{"text": text, "draft_status": ""} for text in texts])
    for number, (task, text) in enumerate(zip(ids, texts, strict=True)):
        filled = {"name": text[2:5]} if number == 1 else {"name": text[2:5], "question": text[-9:]}
        studio.submit_annotation(task, regions(**filled))
    return made


def regions(**filled: str) -> list[dict[str, Any]]:
    return [
        {"from_name": name, "to_name": "text", "type": "textarea", "value": {"text": [part]}}
        for name, part in filled.items()
    ]


def synced(studio: LabelStudio, project: Project, folder: Path, **changes: Any) -> Report:
    return sync(studio, CASES, folder, [project.id], wanted_case="complaint", changes=changes)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_verdict_of_the_review_project_lets_samples_pass_or_holds_them(
    label_studio: LabelStudioServer, studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    synced(studio, project, folder)
    env = environment(label_studio, tmp_path)
    code, out, err = run(env, "spot_check", "--out", folder, "--share", 1)
    assert code == 0, err
    assert "5 samples wait for a second human; 5 of them came just now" in out
    options = json.loads((folder / "manifest.json").read_bytes())["options"]
    review = studio.project(options["reviews"])
    assert review.label_config.strip() == CONFIG.strip()
    tasks = list(studio.tasks(review))
    assert all("张三" in task["data"]["question"] for task in tasks)

    said = {"from_name": "verdict", "to_name": "answer", "type": "choices"}
    comment = {"from_name": "comment", "to_name": "answer", "type": "textarea"}
    made = [
        studio.submit_annotation(
            task["id"],
            [
                said | {"value": {"choices": [verdict]}},
                comment | {"value": {"text": ["because"]}},
            ],
        )
        for task, verdict in zip(tasks, ["pass", "needs_fix"], strict=False)
    ]
    own = synced(studio, project, folder)
    assert own.counts["stopped_by"]["spot_checked"] == 5  # nobody passes their own
    assert open_spot_check(studio, folder).sent == 0

    name = f"reviewer{time.time_ns()}"
    reviewer = studio._sdk.users.create(username=name, email=f"{name}@example.com")
    for annotation in made:
        studio._sdk.annotations.update(annotation, completed_by=reviewer.id)
    code, out, err = run(env, "sync", "--out", folder)
    assert code == 0, err
    (passed,) = lines(folder / "samples.jsonl")
    assert passed["annotation"] == tasks[0]["data"]["annotation"]
    assert passed["review"]["verdict"] == "pass"
    assert passed["review"]["by"] == reviewer.id
    (fix,) = stopped_by(folder, "spot_checked")
    assert fix.annotation == tasks[1]["data"]["annotation"]
    assert fix.reason == f"Reviewer {reviewer.id} says needs_fix: because"
    assert synced(studio, project, folder).written == ()


def test_what_a_gate_stopped_goes_back_with_its_reason_and_is_taken_off_when_mended(
    label_studio: LabelStudioServer, studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    synced(studio, project, folder)
    (stopped,) = stopped_by(folder)
    env = environment(label_studio, tmp_path)
    code, out, err = run(env, "requeue", "--out", folder)
    assert code == 0, err
    assert f"{stopped.gate}: 1" in out
    code, out, err = run(env, "requeue", "--out", folder, "--gate", stopped.gate)
    assert code == 0, err
    assert f"task {stopped.task}, annotation {stopped.annotation}: " in out
    assert "1 tasks are sent back (1 written just now)" in out
    (task,) = studio.tasks(project, status="Sent back by")
    assert task["id"] == stopped.task
    assert stopped.gate in task["data"][STATUS_KEY]
    titles = [view["data"]["title"] for view in studio._get("tabs", "api/dm/views/", {"project": project.id})]
    assert SENT_BACK_TAB in titles
    assert send_back(studio, folder, stopped.gate).written == 0

    text = task["data"]["text"]
    mended = regions(name=text[2:5], question=text[-9:])
    studio._sdk.annotations.update(stopped.annotation, result=mended)
    assert synced(studio, project, folder).counts["samples"] == 6
    sent = send_back(studio, folder, stopped.gate)
    assert (sent.written, sent.cleared, sent.tasks) == (0, 1, 0)
    assert list(studio.tasks(project, status="Sent back by")) == []
    assert synced(studio, project, folder).counts["rejected"] == 0
