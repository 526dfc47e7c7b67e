"""prelabel on the real Label Studio: every task drafted once, its record kept, its reasons in the page.

The model is the fake that passes the contract suite: what is shown here is that nothing is lost or
doubled, not how good drafts are.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from draftloop.cli import servers
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import LabelStudio, Project
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.cases import Cases
from tests.conftest import LabelStudioServer
from tests.fake_vllm import Body, FakeVllm, fake_vllm
from tests.verbs import environment, kill, run, start

CASES = Cases(Path(__file__).parents[2] / "label_config")
LABELLING = CASES.get("complaint").labelling
TASKS = 320  # more than three batches


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


@pytest.fixture
def project(studio: LabelStudio) -> Project:
    made = studio.create_project(f"prelabel {time.time_ns()}", CASES.config("complaint"))
    rows = [{"text": f"张三{n}说:快递还没到!", "draft_status": ""} for n in range(TASKS)]
    list(studio.import_tasks(made, rows))
    return made


@pytest.fixture
def model() -> Iterator[FakeVllm]:
    def answer(body: Body) -> str:
        # Every tenth draft breaks the rules, also when it is sent back.
        text = next(message["content"] for message in body["messages"] if message["role"] == "user")
        return LABELLING.encode({"name": "李四" if "0说" in text else text[:2], "question": text[-7:]})

    with fake_vllm(context_tokens=4096, answer=answer) as fake:
        yield fake


@pytest.fixture
def env(label_studio: LabelStudioServer, model: FakeVllm, tmp_path: Path) -> dict[str, str]:
    settings = {"MODEL_URL": model.url, "MODEL_NAME": model.name, "MODEL_PROFILE": "compact"}
    return environment(label_studio, tmp_path, **settings, MODEL_CONCURRENCY="8")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def assert_every_task_was_drafted_once(studio: LabelStudio, project: Project, file: Path) -> None:
    tasks = list(studio.tasks(project, full=True))
    assert len(tasks) == TASKS
    assert Counter(len(task["predictions"]) for task in tasks) == {1: TASKS}
    kept = records(file)
    assert sorted(row["task"] for row in kept) == [task["id"] for task in tasks]
    by_task = {row["task"]: row for row in kept}
    for task in tasks:
        row, prediction = by_task[task["id"]], task["predictions"][0]
        assert prediction["model_version"] == row["version"]
        assert prediction["score"] == pytest.approx(row["score"])
        assert row["status"] == ("invalid" if "0说" in task["data"]["text"] else "ok")
        assert (row["status"] == "invalid") == bool(task["data"]["draft_status"])
        assert row["input"] == {"text": task["data"]["text"]}
        assert LABELLING.from_regions(prediction["result"], Task(task["id"], task["data"])) == row["value"]
        assert set(row) >= {"reasons", "raw", "prompt_tokens", "completion_tokens", "ms"}


def test_every_task_gets_a_prediction_a_record_and_its_reasons(
    studio: LabelStudio, project: Project, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    code, out, err = run(env, "prelabel", "--project", project.id, "--case", "complaint", "--out", file)
    assert code == 0, err
    assert "288 ok, 32 invalid, 0 undecodable, 0 failed" in out
    assert_every_task_was_drafted_once(studio, project, file)
    version = records(file)[0]["version"]
    assert studio.project(project.id).model_version == version
    invalid = [row for row in records(file) if row["status"] == "invalid"]
    ledger = Ledger(env["LEDGER_URL"])
    assert all(ledger.reasons_of(project.id, row["task"])[0][:2] == (version, "invalid") for row in invalid)
    before = file.read_bytes()
    code, out, err = run(env, "prelabel", "--project", project.id, "--case", "complaint", "--out", file)
    assert code == 0, err
    assert f"{TASKS} drafted already, 0 to draft" in out
    assert file.read_bytes() == before


def test_killed_midway_and_run_again_no_draft_is_lost_or_doubled(
    studio: LabelStudio, project: Project, model: FakeVllm, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    model.delay_s = 0.03
    arguments = ("prelabel", "--project", project.id, "--case", "complaint", "--out", file)
    version = ""
    # Between the records and the predictions of a batch, twice; then right after predictions.
    for stored in ("records", "records", "predictions"):
        there = progress(studio, project, file, version, stored)
        process = start(env, *arguments)
        while process.poll() is None and progress(studio, project, file, version, stored) == there:
            time.sleep(0.005)
        kill(process)
        version = records_even_if_torn(file)[0]["version"]
    assert 0 < studio.count_tasks(project, lacking=version) < TASKS
    with file.open("ab") as stream:
        stream.write(b'{"task": 1, "torn')
    model.delay_s = 0.0
    code, _, err = run(env, *arguments)
    assert code == 0, err
    assert_every_task_was_drafted_once(studio, project, file)


def progress(studio: LabelStudio, project: Project, file: Path, version: str, stored: str) -> int:
    if stored == "records":
        return file.stat().st_size if file.exists() else 0
    return studio.count_tasks(project, lacking=version)


def records_even_if_torn(path: Path) -> list[dict[str, Any]]:
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def test_bulk_drafts_are_made_as_the_projects_connection_says(
    studio: LabelStudio, label_studio: LabelStudioServer, model: FakeVllm, env: dict[str, str], tmp_path: Path
) -> None:
    project = studio.create_project("Extra params", CASES.config("complaint"))
    (ids,) = studio.import_tasks(
        project, [{"text": f"李四 {index}说", "draft_status": ""} for index in range(4)]
    )
    extra = {"case": "complaint", "temperature": 0.9, "instruction": "摘录。"}
    ours = ("MODEL_", "LABEL_STUDIO_", "LEDGER_", "CACHE_")
    settings = {name: value for name, value in env.items() if name.startswith(ours)}
    with servers.start_backend(settings, log=tmp_path / "backend.log") as server:
        studio.connect_backend(project, server.url, extra_params=extra)
        studio.retrieve_predictions(project, ids[:2])
    code, _, err = run(env, "prelabel", "--project", project.id, "--out", tmp_path / "records.jsonl")
    assert code == 0, err
    drafted = [task["predictions"] for task in studio.tasks(project, full=True)]
    assert len({prediction["model_version"] for (prediction,) in drafted}) == 1
    asked = [body for body in model.asked if "top_logprobs" not in body]  # as the probe asks
    assert {body["temperature"] for body in asked} == {0.9}
    assert {body["messages"][0]["content"] for body in asked} == {"摘录。"}


def test_tasks_for_which_the_model_failed_are_asked_again_by_the_next_run(
    studio: LabelStudio, project: Project, model: FakeVllm, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    arguments = ("prelabel", "--project", project.id, "--case", "complaint", "--out", file)
    model.fail = lambda body: 401 if "张三7说" in body["messages"][1]["content"] else None
    code, out, _ = run(env, *arguments)
    assert code == 1
    assert "1 failed" in out
    assert studio.count_tasks(project, lacking=records(file)[0]["version"]) == 1
    model.fail = lambda _: None
    code, _, err = run(env, *arguments)
    assert code == 0, err
    assert_every_task_was_drafted_once(studio, project, file)


def test_a_model_server_that_is_down_or_serves_another_model_is_an_error_at_once(
    project: Project, env: dict[str, str]
) -> None:
    started = time.monotonic()
    for wrong, words in (
        ({"MODEL_URL": "http://127.0.0.1:9/v1"}, "cannot be reached"),
        ({"MODEL_NAME": "other"}, "does not serve 'other'"),
        ({"MODEL_NAMES": "other"}, "Unknown settings: MODEL_NAMES"),
    ):
        code, _, err = run({**env, **wrong}, "prelabel", "--project", project.id, "--case", "complaint")
        assert code == 1
        assert words in err
        assert "Traceback" not in err
    assert time.monotonic() - started < 30
