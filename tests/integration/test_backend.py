"""The whole backend between real Label Studio and real vLLM: what Label Studio asks, stores and shows."""

from collections.abc import Iterator

import httpx
import pytest

from demo.corpus import generate
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from tests.conftest import BackendServer, LabelStudioServer

CASES = Cases(ROOT / "label_config")


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


def connected(studio: LabelStudio, backend: BackendServer, case: str, title: str) -> Project:
    project = studio.create_project(title, CASES.config(case))
    studio.connect_backend(project, backend.url, **backend.logins, extra_params={"case": case})
    return project


def imported(studio: LabelStudio, project: Project, case: str, count: int) -> list[int]:
    rows = ({"text": row.text, "draft_status": ""} for row in generate(case, "held_out", count, seed=7))
    return [task_id for ids in studio.import_tasks(project, rows) for task_id in ids]


def known_versions(backend: BackendServer, project: Project) -> list[str]:
    """Ask the backend which versions it stated at `/setup` and drafted in."""
    answer = httpx.get(
        f"{backend.url}/versions",
        params={"project": project.id},
        auth=(backend.user, backend.password),
        trust_env=False,
    )
    versions: list[str] = answer.raise_for_status().json()["versions"]
    return versions


def test_two_projects_retrieve_predictions_at_once_one_each_of_the_version_of_setup(
    studio: LabelStudio, backend: BackendServer
) -> None:
    projects = {
        case: connected(studio, backend, case, f"Retrieve {case}") for case in ("complaint", "flight_booking")
    }
    for case, project in projects.items():
        ids = imported(studio, project, case, 12)
        studio.retrieve_predictions(project, ids)
        studio.retrieve_predictions(project, ids)  # what is there already is not asked for again
    for case, project in projects.items():
        tasks = list(studio.tasks(project, full=True))
        assert [len(task["predictions"]) for task in tasks] == [1] * 12
        versions = {task["predictions"][0]["model_version"] for task in tasks}
        assert list(versions) == known_versions(backend, project)
        definition = CASES.get(case)
        for task in tasks:
            task_value = definition.labelling.from_regions(
                task["predictions"][0]["result"], Task(task["id"], task["data"])
            )
            assert set(task_value) <= {control.name for control in definition.labelling.controls}


def test_predict_answers_without_a_setup_and_scores_are_shares(backend: BackendServer) -> None:
    body = {
        "tasks": [{"id": 9_000_001, "data": {"text": "投诉人:林志远。电梯坏了没人修!!", "draft_status": ""}}],
        "project": "99.1",
        "label_config": CASES.config("complaint"),
        "params": {},
    }
    answer = httpx.post(
        f"{backend.url}/predict",
        json=body,
        auth=(backend.user, backend.password),
        timeout=60,
        trust_env=False,
    )
    result = answer.json()["results"][0]
    assert 0 <= result["score"] <= 1
    assert result["model_version"].startswith("tiny-qwen3-")
    assert {region["from_name"] for region in result["result"]} <= {"name", "address", "email", "question"}


def test_a_hundred_tasks_in_one_call_are_all_answered(
    backend: BackendServer,
) -> None:
    rows = list(generate("sentiment", "held_out", 100, seed=3))
    body = {
        "tasks": [{"id": number, "data": {"text": row.text}} for number, row in enumerate(rows)],
        "project": "98.1",
        "label_config": CASES.config("sentiment"),
    }
    answer = httpx.post(
        f"{backend.url}/predict",
        json=body,
        auth=(backend.user, backend.password),
        timeout=90,
        trust_env=False,
    )
    results = answer.json()["results"]
    assert len(results) == 100
    assert all(result["result"] for result in results)


def test_reasons_stand_in_the_task_that_needs_a_human(studio: LabelStudio, backend: BackendServer) -> None:
    project = connected(studio, backend, "flight_booking", "Reasons")
    # Nothing in this text is a city: what the model must write there cannot stand in the text twice.
    ids = next(iter(studio.import_tasks(project, [{"text": "?", "draft_status": ""}])))
    studio.retrieve_predictions(project, ids)
    task = next(iter(studio.tasks(project, full=True)))
    assert task["predictions"][0]["score"] == 0
    assert "The draft breaks its rules" in task["data"]["draft_status"]
    assert task["data"]["text"] == "?"


def test_a_wrong_password_is_refused_without_a_traceback(backend: BackendServer) -> None:
    answer = httpx.post(f"{backend.url}/predict", json={}, auth=("x", "y"), trust_env=False)
    assert answer.status_code == 401
    assert "Traceback" not in answer.text


def test_the_backend_says_that_it_is_ready(backend: BackendServer) -> None:
    answer = httpx.get(f"{backend.url}/ready", trust_env=False, timeout=30)
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert "the model cannot draft yet" not in backend.log.read_text()
