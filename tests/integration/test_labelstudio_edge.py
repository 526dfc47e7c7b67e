"""The door to Label Studio, against the real one."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.labelstudio import EVENTS, TABS, LabelStudio, Project
from draftloop.labelstudio.client import _basic
from tests.conftest import LabelStudioServer
from tests.families import FAMILIES

CONFIG = (Path(__file__).parents[2] / "label_config" / "complaint" / "config.xml").read_text(encoding="utf-8")
NUMBERS = count(1)


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


@pytest.fixture
def project(studio: LabelStudio) -> Project:
    return studio.create_project(f"edge {next(NUMBERS)} {time.time_ns()}", CONFIG)


def rows(number: int) -> list[dict[str, str]]:
    return [{"text": f"text {index}", "draft_status": ""} for index in range(number)]


def imported(studio: LabelStudio, project: Project, number: int) -> list[int]:
    return [task_id for chunk in studio.import_tasks(project, rows(number)) for task_id in chunk]


def prediction(
    task_id: int, version: str = "m-1", name: str = "question", score: float = 0.5
) -> dict[str, Any]:
    region = {"from_name": name, "to_name": "text", "type": "textarea", "value": {"text": ["text"]}}
    return {"task": task_id, "result": [region], "score": score, "model_version": version}


@contextmanager
def recording_backend() -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """Answer as an ML backend does; note path, Authorization header and body of every call."""
    calls: list[tuple[str, str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            calls.append((self.path, self.headers.get("Authorization", ""), body))
            content = json.dumps({"status": "UP", "model_version": "m-1"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", calls
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_both_kinds_of_token_log_in(label_studio: LabelStudioServer) -> None:
    for token in (label_studio.token, label_studio.personal_access_token()):
        with LabelStudio(label_studio.url, token) as studio:
            assert studio.check() == label_studio.username


def test_a_token_that_ends_in_a_newline_works(label_studio: LabelStudioServer) -> None:
    with LabelStudio(label_studio.url, label_studio.token + "\n") as studio:
        studio.check()


def test_the_error_of_a_wrong_token_says_how_to_make_one_and_hides_it(
    label_studio: LabelStudioServer,
) -> None:
    for token in ("0123456789abcdef-wrong", "", "令牌", "two words"):
        with pytest.raises(SetupError) as error, LabelStudio(label_studio.url, token) as studio:
            studio.check()
        for word in ("Personal Access Token", "Legacy Token", "API Tokens Settings", "LABEL_STUDIO_API_KEY"):
            assert word in str(error.value)
        assert not token or token not in str(error.value)


def test_an_address_without_a_server_is_a_service_error_at_once() -> None:
    with LabelStudio("http://127.0.0.1:9", "token") as studio:
        started = time.monotonic()
        with pytest.raises(ServiceError, match="does not answer"):
            studio.check()
    assert time.monotonic() - started < 3


def test_another_server_at_the_address_is_refused() -> None:
    refused = pytest.raises(SetupError, match="is not Label Studio")
    with recording_backend() as (url, _), LabelStudio(url, "token") as studio, refused:
        studio.check()
    with LabelStudio("nonsense", "token") as studio, pytest.raises(SetupError, match="is no address"):
        studio.check()


def test_a_missing_project_is_named_by_its_number(studio: LabelStudio) -> None:
    with pytest.raises(SetupError, match="has no project 999999"):
        studio.project(999_999)


def test_projects_are_looked_up_on_every_page(studio: LabelStudio) -> None:
    title = f"page {time.time_ns()}"
    made = [studio.create_project(f"{title} {number}", CONFIG).id for number in range(31)]  # 30 are a page
    assert set(made) <= set(studio.project_ids())
    for number in (0, 30):
        match = studio.find_project(f"{title} {number}")
        assert match is not None
        assert match.id == made[number]


def test_a_project_is_looked_up_by_its_exact_title(studio: LabelStudio, project: Project) -> None:
    assert studio.find_project(project.title) == project
    assert studio.find_project(project.title[:-1]) is None
    studio.create_project(project.title, CONFIG)
    with pytest.raises(SetupError, match="--project"):
        studio.find_project(project.title)


def test_a_refused_config_quotes_label_studios_error(studio: LabelStudio) -> None:
    with pytest.raises(SetupError, match="label_config: "):
        studio.create_project("refused", "<View><Choices/></View>")


def test_backend_and_webhook_are_connected_once_each_with_its_own_login(
    studio: LabelStudio, project: Project
) -> None:
    with recording_backend() as (url, calls):
        login: Any = {
            "extra_params": {"case": "complaint"},
            "user": "drafts",
            "password": "the-password",
            "webhook_secret": "the-webhooks-secret",
        }
        assert studio.connect_backend(project, url, **login) == {"backend": "made", "webhook": "made"}
        assert studio.connect_backend(project, f"{url}/", **login) == {
            "backend": "already there",
            "webhook": "already there",
        }
        assert studio.project(project.id).case == "complaint"
        (backend,) = studio._sdk.ml.list(project=project.id)
        (hook,) = studio._sdk.webhooks.list(project=str(project.id))
        assert backend.url == url
        assert (hook.url, hook.send_for_all_actions) == (f"{url}/webhook", False)
        assert sorted(hook.actions or []) == sorted(EVENTS)
        assert hook.headers == {"Authorization": "Bearer the-webhooks-secret"}
        (task_id,) = imported(studio, project, 1)
        studio.submit_annotation(task_id, prediction(task_id)["result"])
        assert studio.count_annotations(project.id) == 1
    headers = {path: header for path, header, _ in calls}
    assert headers.pop("/webhook") == "Bearer the-webhooks-secret"
    assert len(set(headers.values())) == 1
    assert next(iter(headers.values())).startswith("Basic ")
    bodies = {path: body for path, _, body in calls}
    assert json.loads(bodies["/setup"]["extra_params"]) == {"case": "complaint"}
    assert bodies["/webhook"]["action"] == "ANNOTATION_CREATED"


def test_a_webhook_that_carries_the_backends_login_is_given_its_own(
    studio: LabelStudio, project: Project
) -> None:
    login: Any = {"extra_params": {}, "user": "drafts", "password": "the-password"}
    ours, theirs = _basic("drafts", "the-password"), {"Authorization": "Basic c29tZTpib2R5"}
    with recording_backend() as (url, _):
        studio.connect_backend(project, url, **login)
        (made,) = studio._sdk.webhooks.list(project=str(project.id))
        assert made.headers == {}  # nobody's login, rather than everybody's
        assert made.id is not None
        # As earlier versions made it; by another address of the backend too, and beside somebody else's.
        studio._sdk.webhooks.update(made.id, url=f"{url}/webhook", headers={"Authorization": ours})
        for path, header in (("other/webhook", {"Authorization": ours}), ("theirs", theirs)):
            studio._sdk.webhooks.create(
                project=project.id,
                url=f"{url}/{path}",
                headers=header,
                actions=["TASKS_DELETED"],
                send_for_all_actions=False,
            )
        secret: Any = {"webhook_secret": "the-webhooks-secret"}
        assert studio.connect_backend(project, url, **login, **secret)["webhook"] == "updated"
        assert studio.connect_backend(project, url, **login, **secret)["webhook"] == "already there"
        hooks = studio._sdk.webhooks.list(project=str(project.id))
    assert {hook.url: hook.headers for hook in hooks} == {
        f"{url}/webhook": {"Authorization": "Bearer the-webhooks-secret"},
        f"{url}/other/webhook": {"Authorization": "Bearer the-webhooks-secret"},
        f"{url}/theirs": theirs,
    }
    assert {tuple(hook.actions or ()) for hook in hooks if hook.url != f"{url}/webhook"} == {
        ("TASKS_DELETED",)
    }


def test_webhooks_are_removed_where_none_is_wanted(studio: LabelStudio, project: Project) -> None:
    with recording_backend() as (url, calls):
        studio.connect_backend(project, url, extra_params={})
        theirs = f"{url}/theirs"
        studio._sdk.webhooks.create(project=project.id, url=theirs, send_for_all_actions=True)
        without: Any = {"extra_params": {}, "webhook": False}
        assert studio.connect_backend(project, url, **without)["webhook"] == "removed"
        assert studio.connect_backend(project, url, **without) == {"backend": "already there"}
        assert [hook.url for hook in studio._sdk.webhooks.list(project=str(project.id))] == [theirs]
        (task_id,) = imported(studio, project, 1)
        studio.submit_annotation(task_id, prediction(task_id)["result"])
    assert "/webhook" not in {path for path, _, _ in calls}


def test_what_people_wrote_into_the_connection_stays(studio: LabelStudio, project: Project) -> None:
    with recording_backend() as (url, calls):
        studio.connect_backend(project, url, extra_params={"case": "complaint"})
        (backend,) = studio._get("ML backends", "api/ml/", {"project": project.id})
        assert backend["is_interactive"] is False
        mine = {
            "project": project.id,
            "url": url,
            "extra_params": json.dumps({"case": "sentiment", "temperature": 0.9}),
        }
        studio._send("a backend", "PATCH", f"api/ml/{backend['id']}", json.dumps(mine).encode())
        outcome = studio.connect_backend(project, url, extra_params={"case": "complaint"}, interactive=True)
        assert outcome["backend"] == "updated"
        assert studio.connect_backend(project, url, extra_params={})["backend"] == "already there"
        updated = studio.project(project.id)
        assert (updated.case, updated.extra_params) == (
            "complaint",
            {"case": "complaint", "temperature": 0.9},
        )
        (backend,) = studio._get("ML backends", "api/ml/", {"project": project.id})
        assert backend["is_interactive"] is True
    said = [json.loads(body["extra_params"]) for path, _, body in calls if path == "/setup"]
    assert said[-1] == updated.extra_params


def test_a_backend_that_moved_takes_its_webhook_along(studio: LabelStudio, project: Project) -> None:
    with recording_backend() as (old, _), recording_backend() as (new, _):
        studio.connect_backend(project, old, extra_params={})
        assert studio.connect_backend(project, new, extra_params={}) == {
            "backend": "updated",
            "webhook": "updated",
        }
        assert [backend.url for backend in studio._sdk.ml.list(project=project.id)] == [new]
        assert [hook.url for hook in studio._sdk.webhooks.list(project=str(project.id))] == [f"{new}/webhook"]


def test_the_error_of_an_unreachable_backend_hides_its_password(
    studio: LabelStudio, project: Project
) -> None:
    with pytest.raises(SetupError, match="Start the backend") as error:
        studio.connect_backend(
            project, "http://127.0.0.1:9", user="drafts", password="the-password", extra_params={}
        )
    assert "the-password" not in str(error.value)
    assert list(studio._sdk.webhooks.list(project=str(project.id))) == []


def test_tabs_are_made_once_and_part_the_tasks_by_what_the_rules_said(
    studio: LabelStudio, project: Project
) -> None:
    assert studio.keep_tabs(project, shows_status=True) == dict.fromkeys(TABS, "made")
    assert studio.keep_tabs(project, shows_status=True) == dict.fromkeys(TABS, "already there")
    ids = imported(studio, project, 5)
    studio.import_predictions(
        project, [prediction(ids[0], score=0.0), prediction(ids[1]), prediction(ids[2])]
    )
    studio.set_task_data(ids[0], {"text": "text 0", "draft_status": "<b>The draft breaks its rules</b>"})
    assert tabs(studio, project) == dict(zip(TABS, (ids, ids[:1], ids[1:3]), strict=True))


def test_tabs_hide_what_is_for_the_page_of_a_task_and_reasons_where_there_are_none(
    studio: LabelStudio, project: Project
) -> None:
    studio.keep_tabs(project, shows_status=True)
    views = studio._get("tabs", "api/dm/views/", {"project": project.id})
    hidden = {view["data"]["title"]: view["data"]["hiddenColumns"] for view in views}
    for title, columns in hidden.items():
        assert {"tasks:data.input_preview", "tasks:data.run_output"} <= set(columns["explore"]), title
        assert ("tasks:data.draft_status" in columns["explore"]) == (title == "Passed the rules")
        assert ("tasks:completed_at" in columns["explore"]) == (title == "Needs a human")
        assert "tasks:data.draft_status" in columns["labeling"], "it stands above the task"
        assert "tasks:data.instruction" not in columns["explore"] + columns["labeling"]


def test_tabs_go_by_score_where_the_config_shows_no_status(studio: LabelStudio) -> None:
    plain = '<View><Text name="text" value="$text"/><TextArea name="question" toName="text"/></View>'
    project = studio.create_project(f"plain {time.time_ns()}", plain)
    ids = imported(studio, project, 4)
    studio.keep_tabs(project, shows_status=False)
    studio.import_predictions(project, [prediction(ids[0], score=0.0), prediction(ids[1], score=0.3)])
    studio.set_model_version(project, "m-1")
    assert tabs(studio, project) == dict(zip(TABS, (ids, ids[:1], ids[1:2]), strict=True))


def test_tabs_show_the_uncertain_first_and_what_has_no_draft_last(
    studio: LabelStudio, project: Project
) -> None:
    studio.keep_tabs(project, shows_status=True)
    ids = imported(studio, project, 8)
    scores = [0.4, 0.9, 0.0, 0.7, 0.1, 0.5]
    studio.import_predictions(
        project, [prediction(task_id, score=score) for task_id, score in zip(ids, scores, strict=False)]
    )
    studio.set_model_version(project, "m-1")
    for task_id in (*ids[:3], ids[7]):
        studio.set_task_data(task_id, {"text": "x", "draft_status": "<b>The draft breaks its rules</b>"})
    shown = tabs(studio, project)
    assert shown["Needs a human"] == [ids[2], ids[0], ids[1], ids[7]]
    assert shown["Passed the rules"] == [ids[4], ids[5], ids[3]]


def tabs(studio: LabelStudio, project: Project) -> dict[str, list[int]]:
    """Return the tasks of each tab, in the order that its page shows."""
    views = studio._get("tabs", "api/dm/views/", {"project": project.id})
    pages = {
        view["data"]["title"]: studio._get("a tab", "api/tasks/", {"view": view["id"]}) for view in views
    }
    return {title: [task["id"] for task in page["tasks"]] for title, page in pages.items()}


def test_tabs_that_people_changed_keep_their_columns(studio: LabelStudio, project: Project) -> None:
    studio.keep_tabs(project, shows_status=False)
    view = studio._get("tabs", "api/dm/views/", {"project": project.id})[1]
    mine = {**view["data"], "gridWidth": 7}
    studio._send("a tab", "PATCH", f"api/dm/views/{view['id']}/", json.dumps({"data": mine}).encode())
    assert studio.keep_tabs(project, shows_status=True)[TABS[1]] == "updated"
    assert studio._get("tabs", "api/dm/views/", {"project": project.id})[1]["data"]["gridWidth"] == 7


def test_imported_tasks_come_back_in_order_over_several_chunks_and_pages(
    studio: LabelStudio, project: Project
) -> None:
    ids = imported(studio, project, 2100)
    assert len(set(ids)) == 2100
    listed = list(studio.tasks(project))
    assert [task["id"] for task in listed] == ids
    assert [task["data"]["text"] for task in listed] == [f"text {index}" for index in range(2100)]
    assert studio.count_tasks(project) == 2100


def test_a_row_without_a_shown_key_is_refused_by_name(studio: LabelStudio, project: Project) -> None:
    with pytest.raises(SetupError, match='"text"'):
        list(studio.import_tasks(project, [{"draft_status": ""}]))


def test_text_of_every_kind_survives_the_way_there_and_back(studio: LabelStudio, project: Project) -> None:
    text = "😀张三\u2028\u0000\\u4e00 \"'<b>&amp;</b>\r\n\t" * 3
    list(studio.import_tasks(project, [{"text": text, "draft_status": "", "nested": {"a": [1, None]}}]))
    (task,) = studio.tasks(project)
    assert task["data"] == {"text": text, "draft_status": "", "nested": {"a": [1, None]}}


def test_predictions_are_stored_once_whatever_is_asked_twice(studio: LabelStudio, project: Project) -> None:
    ids = imported(studio, project, 700)
    assert studio.import_predictions(project, [prediction(task_id) for task_id in ids[:600]]) == []
    assert studio.count_tasks(project, lacking="m-1") == 100
    assert studio.import_predictions(project, [prediction(task_id) for task_id in ids]) == []
    assert studio.import_predictions(project, [prediction(task_id, "m-2") for task_id in ids[:3]]) == []
    drafts = {task["id"]: task["predictions"] for task in studio.tasks(project, full=True)}
    assert [len(drafts[task_id]) for task_id in ids] == [2] * 3 + [1] * 697
    assert drafts[ids[0]][0]["result"] == prediction(ids[0])["result"]
    assert [task["id"] for task in studio.tasks(project, lacking="m-2")] == ids[3:]


def test_a_prediction_that_label_studio_does_not_take_is_named_and_the_others_are_stored(
    studio: LabelStudio, project: Project
) -> None:
    ids = imported(studio, project, 5)
    predictions = [prediction(task_id, name="nobody" if task_id == ids[2] else "question") for task_id in ids]
    assert studio.import_predictions(project, predictions) == [ids[2]]
    assert studio.count_tasks(project, lacking="m-1") == 1


def test_what_bulk_import_does_not_know_is_stored_one_at_a_time(studio: LabelStudio) -> None:
    config, data = FAMILIES["options"]
    labelling = compile_labelling(config)
    project = studio.create_project(f"edge {next(NUMBERS)} {time.time_ns()}", config)
    ids = [task_id for chunk in studio.import_tasks(project, [data] * 3) for task_id in chunk]
    values: list[dict[str, Any]] = [{"nested": "A > B"}, {"flat": "x 1"}, {"kinds": ["plant"]}]
    predictions = [
        {**prediction(task_id), "result": labelling.to_regions(value, Task(task_id, data)).regions}
        for task_id, value in zip(ids, values, strict=True)
    ]
    assert labelling.unjudged == {"kinds", "nested"}
    assert studio.import_predictions(project, predictions) == [ids[0], ids[2]]
    assert studio.import_predictions(project, predictions, unjudged=labelling.unjudged) == []
    assert studio.import_predictions(project, predictions, unjudged=labelling.unjudged) == []
    drafts = {task["id"]: task["predictions"] for task in studio.tasks(project, full=True)}
    assert [[kept["result"] for kept in drafts[task_id]] for task_id in ids] == [
        [given["result"]] for given in predictions
    ]


def test_a_task_deleted_meanwhile_costs_the_others_nothing(studio: LabelStudio, project: Project) -> None:
    ids = imported(studio, project, 4)
    studio._sdk.tasks.delete(str(ids[1]))
    assert studio.import_predictions(project, [prediction(task_id) for task_id in ids]) == []
    assert studio.count_tasks(project, lacking="m-1") == 0


def test_what_changed_since_a_moment_is_listed_and_annotations_count_as_change(
    studio: LabelStudio, project: Project
) -> None:
    assert studio.newest_change(project) is None
    ids = imported(studio, project, 5)
    before = studio.newest_change(project)
    assert before is not None
    assert list(studio.tasks(project, since=before)) == []
    studio.submit_annotation(ids[3], prediction(ids[3])["result"], lead_time_s=2.0)
    (changed,) = studio.tasks(project, since=before, full=True)
    assert changed["id"] == ids[3]
    assert changed["annotations"][0]["lead_time"] == 2.0
    assert studio.count_annotated(project) == 1
    assert studio.newest_change(project) == changed["updated_at"] > before


@pytest.mark.parametrize("late", [False, True])
def test_annotated_tasks_come_with_the_predictions_of_a_listing_as_a_page_has_them(
    label_studio: LabelStudioServer, studio: LabelStudio, project: Project, late: bool
) -> None:
    texts = [{"text": f"{number} \U0001f600", "draft_status": ""} for number in range(8)]
    (ids,) = studio.import_tasks(project, texts)
    for version in ("v-1", "v-2"):
        studio.import_predictions(project, [prediction(task, version) for task in ids[:6]])
    drafts = {task["id"]: task["predictions"] for task in studio.tasks(project, full=True)}
    for task in ids[2:5]:
        regions = drafts[task][0]["result"]
        studio.submit_annotation(task, regions, parent_prediction=drafts[task][1]["id"], lead_time_s=2.5)
    studio.submit_annotation(ids[7], drafts[ids[2]][0]["result"])
    wanted = [task for task in studio.tasks(project, full=True) if task["annotations"]]
    assert [len(task["predictions"]) for task in wanted] == [2, 2, 2, 0]
    project = studio.project(project.id)
    assert (project.annotations, project.predictions) == (4, 12)
    with (_Early if late else LabelStudio)(label_studio.url, label_studio.token) as reading:
        annotated = list(reading.annotated_tasks(project))
    parts = ("id", "result", "score", "model_version")
    assert [_with(task, parts) for task in annotated] == [_with(task, parts) for task in wanted]


class _Early(LabelStudio):
    """Lists predictions before there is one: what is drafted and annotated later is read again."""

    def _stream(
        self, what: str, path: str, params: Mapping[str, Any], take: Callable[[Iterator[str]], None]
    ) -> None:
        take(iter(["[]"]))


def _with(task: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    predictions = [{part: one[part] for part in parts} for one in task["predictions"]]
    return {**task, "predictions": sorted(predictions, key=itemgetter("id"))}


def test_errors_are_ours_and_say_whether_waiting_helps(studio: LabelStudio, project: Project) -> None:
    with pytest.raises(SetupError):
        studio.set_model_version(project, "never-seen")
    with pytest.raises(SetupError, match="no task 999999"):
        studio.set_task_data(999_999, {})
    with pytest.raises(SetupError):
        studio.set_label_config(project, "<View>")
    assert all(issubclass(kind, DraftloopError) for kind in (SetupError, ServiceError))
