"""What prelabel counts on in Label Studio: the fake in every run, the real one beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from draftloop.errors import ServiceError, SetupError
from draftloop.labelstudio import LabelStudio, Project, Sessions
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from tests.fake_label_studio import fake_label_studio

CONFIG = Cases(ROOT / "label_config").config("sentiment")
TASKS = 620  # more than a page


def data(number: int) -> dict[str, str]:
    return {"text": f"text {number}", "draft_status": ""}


@dataclass(frozen=True)
class Opened:
    studio: LabelStudio
    project: Project


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    if request.param == "fake":
        with fake_label_studio(CONFIG, TASKS, data) as fake, LabelStudio(fake.url, "a-token") as studio:
            yield Opened(studio, studio.project(1))
        return
    server = request.getfixturevalue("label_studio")
    with LabelStudio(server.url, server.token) as studio:
        project = studio.create_project("Contract", CONFIG)
        for _ in studio.import_tasks(project, map(data, range(1, TASKS + 1))):
            pass
        yield Opened(studio, studio.project(project.id))


def prediction(task: int, version: str) -> dict[str, object]:
    region = {
        "id": "sentiment-0",
        "from_name": "sentiment",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": ["positive"]},
    }
    return {"task": task, "result": [region], "score": 0.5, "model_version": version}


def test_who_we_are_and_what_the_project_is(opened: Opened) -> None:
    assert "@" in opened.studio.check()
    assert opened.project.label_config.strip() == CONFIG.strip()
    assert opened.project.case is None
    with pytest.raises(SetupError):
        opened.studio.project(opened.project.id + 10_000)


def test_tasks_are_listed_by_rising_id_over_pages(opened: Opened) -> None:
    tasks = list(opened.studio.tasks(opened.project))
    assert [task["data"] for task in tasks] == [data(number) for number in range(1, TASKS + 1)]
    ids = [task["id"] for task in tasks]
    assert ids == sorted(set(ids))
    some = [ids[3], ids[600]]
    assert [task["id"] for task in opened.studio.tasks_by_id(opened.project, some)] == some
    assert opened.studio.count_tasks(opened.project) == TASKS


def test_a_drafted_task_lacks_no_draft_of_that_version_and_one_of_every_other(opened: Opened) -> None:
    studio, project = opened.studio, opened.project
    ids = [task["id"] for task in studio.tasks(project)]
    assert studio.import_predictions(project, [prediction(task, "v-1") for task in ids[:5]]) == []
    assert studio.import_predictions(project, [prediction(task, "v-1") for task in ids[:7]]) == []
    assert [task["id"] for task in studio.tasks(project, lacking="v-1")] == ids[7:]
    assert studio.count_tasks(project, lacking="v-1") == TASKS - 7
    assert studio.count_tasks(project, lacking="v-2") == TASKS
    # A prediction is not begun work.
    assert studio.count_tasks(project, unbegun=True) == TASKS
    assert [task["id"] for task in studio.tasks(project, lacking="v-1", unbegun=True)] == ids[7:]


def test_data_of_a_task_can_be_replaced_and_a_version_shown(opened: Opened) -> None:
    first = next(opened.studio.tasks(opened.project))
    opened.studio.set_task_data(first["id"], data(1))
    opened.studio.import_predictions(opened.project, [prediction(first["id"], "v-1")])
    opened.studio.set_model_version(opened.project, "v-1")


def test_tasks_that_are_imported_are_listed_with_all_their_data(opened: Opened) -> None:
    rows: list[dict[str, Any]] = [
        {**data(TASKS + 1), "inputs": [{"name": "表.csv"}], "run_charts": []},
        data(TASKS + 2),
    ]
    (ids,) = opened.studio.import_tasks(opened.project, rows)
    assert opened.studio.count_tasks(opened.project) == TASKS + 2
    tasks = list(opened.studio.tasks_by_id(opened.project, ids))
    assert [(task["id"], task["data"]) for task in tasks] == list(zip(ids, rows, strict=True))


@dataclass(frozen=True)
class Visitors:
    url: str
    member: str  # cookies
    anonymous: str


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def visitors(request: pytest.FixtureRequest) -> Iterator[Visitors]:
    if request.param == "fake":
        with fake_label_studio(CONFIG, 1, data) as fake:
            fake.sessions = {"ey-member:1v:signed_by-us": {"id": 1, "active_organization": 1}}
            yield Visitors(fake.url, next(iter(fake.sessions)), "ey-anonymous:1v:signed_by-us")
        return
    server = request.getfixturevalue("label_studio")
    with server.session() as member, httpx.Client(base_url=server.url, trust_env=False) as anonymous:
        anonymous.get("/user/login/").raise_for_status()
        yield Visitors(server.url, member.cookies["sessionid"], anonymous.cookies["sessionid"])


def test_a_session_of_a_member_is_distinguished_from_all_others(visitors: Visitors) -> None:
    sessions = Sessions(visitors.url)
    for _ in range(2):  # nothing of one visitor stays for the next
        assert sessions.is_member(visitors.member)
        assert not sessions.is_member(visitors.anonymous)
    member = visitors.member
    for wrong in (
        *("", "x", member[:-1], f"{member}x", member.upper(), f"{member}; sessionid={member}", f'"{member}"'),
        *(f"{member}\r\nAuthorization: Token x", f"{member} ", "é" * 20, "\ud800" * 20, "x" * 5000),
    ):
        assert not sessions.is_member(wrong), wrong


def test_a_label_studio_that_does_not_answer_is_no_answer() -> None:
    with pytest.raises(ServiceError, match="not asked about a session"):
        Sessions("http://127.0.0.1:9").is_member("ey-member:1v:signed")
    with fake_label_studio(CONFIG, 1, data) as fake:
        fake.sessions = {"removed-from-all": {"id": 1, "active_organization": None}}
        assert not Sessions(fake.url).is_member("removed-from-all")
        assert not Sessions(f"{fake.url}/elsewhere").is_member("removed-from-all")
