"""Label Studio's wire protocol, as the measured bodies of Label Studio 1.23 ask it."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.app.log import log_as_json
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.flywheel.adapters import Adapters
from draftloop.flywheel.jobs import Jobs
from draftloop.ledger.sqlite import JobRecord, Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Promoted
from draftloop.serving.answers import Answers
from draftloop.serving.metrics import Metrics
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.readiness import ModelCheck
from draftloop.serving.web import WebApp
from draftloop.support.logins import Logins
from tests.adapters import run_of
from tests.fake_board import FakeBoard
from tests.fake_vllm import FakeVllm, fake_vllm

CASES = Cases(Path(__file__).parents[2] / "label_config")
CONFIG = CASES.config("sentiment")
UNSUPPORTED = '<View><Image name="i" value="$i"/><Brush name="b" toName="i"/></View>'


@pytest.fixture(autouse=True)
def json_log() -> Iterator[None]:
    log_as_json("debug")
    yield
    structlog.reset_defaults()


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(context_tokens=4096) as server:
        yield server


def serve(
    fake: FakeVllm, folder: Path, board: FakeBoard | None = None, deadline_s: float = 5
) -> Iterator[WebApp]:
    with VllmModel(fake.url, fake.name, find_adapter=Adapters(folder / "registry").find) as model:
        metrics = Metrics()
        drafter = Drafter(
            metrics.metered(model), AskOptions(profile="compact", temperature=0), concurrency=16
        )
        ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite3")
        answers = Answers(drafter, ledger, CASES.find, board, deadline_s=deadline_s, metrics=metrics)
        protocol = ProtocolServer(
            drafter, CASES, ledger, answers, metrics, model.check_served, model.check_schema
        )
        yield WebApp(protocol, Logins("ann", "páss"), ModelCheck(model).check)
        drafter.close()


@pytest.fixture
def server(fake: FakeVllm, tmp_path: Path) -> Iterator[WebApp]:
    yield from serve(fake, tmp_path)


@pytest.fixture
def client(server: WebApp) -> FlaskClient:
    return logged_in(server)


def logged_in(server: WebApp) -> FlaskClient:
    client = server.wsgi().test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = "Basic " + base64.b64encode("ann:páss".encode()).decode()
    return client


def task(number: int, text: str = "很好") -> dict[str, Any]:
    return {"id": number, "data": {"text": text, "draft_status": ""}, "annotations": [], "predictions": []}


def predict(
    client: FlaskClient, tasks: list[Any], config: str = CONFIG, project: str = "7.1700000000"
) -> list[Any]:
    body = {
        "tasks": tasks,
        "project": project,
        "label_config": config,
        "params": {"login": None, "context": None},
    }
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200
    results: list[Any] = answer.get_json()["results"]
    return results


def setup(client: FlaskClient, extra_params: Any, config: str = CONFIG, project: str = "7.1700000000") -> Any:
    body = {
        "project": project,
        "schema": config,
        "hostname": "http://ls",
        "access_token": "t",
        "extra_params": extra_params,
    }
    return client.post("/setup", json=body)


def test_health_and_readiness_need_no_password_and_everything_else_does(server: WebApp) -> None:
    client = logged_in(replace(server, logins=replace(server.logins, wrong_logins=100)))
    client.environ_base.pop("HTTP_AUTHORIZATION")
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
    calls = [
        ("post", "/setup"),
        ("post", "/predict"),
        ("post", "/webhook"),
        ("get", "/versions"),
        ("get", "/jobs"),
        ("get", "/metrics"),
    ]
    for method, path in calls:
        for header in (
            {},
            {"Authorization": "Basic " + base64.b64encode(b"ann:wrong").decode()},
            {"Authorization": "Bearer x"},
        ):
            answer = getattr(client, method)(path, headers=header)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (
                401,
                'Basic realm="draftloop"',
            )


def test_predict_works_without_a_setup_before_it(client: FlaskClient) -> None:
    results = predict(client, [task(1), task(2)])
    assert [result["result"][0]["value"] for result in results] == [{"choices": ["positive"]}] * 2


@pytest.mark.parametrize("extra", [None, "", {}, {"case": "sentiment"}, '{"case": "sentiment"}'])
def test_setup_and_predictions_carry_the_same_version(client: FlaskClient, extra: Any) -> None:
    version = setup(client, extra).get_json()["model_version"]
    assert {result["model_version"] for result in predict(client, [task(1), task(2)])} == {version}
    assert client.get("/versions?project=7").get_json() == {"versions": [version]}


def test_every_worker_drafts_with_a_projects_adapter_from_its_promotion_until_its_roll_back(
    fake: FakeVllm, tmp_path: Path
) -> None:
    fake.max_lora_rank = 16
    adapter = Adapters(tmp_path / "registry").register(run_of(tmp_path / "run"), fake.name)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")

    def versions(client: FlaskClient, number: int) -> set[str]:
        stated = {setup(client, {"case": "sentiment"}, project="7.1").get_json()["model_version"]}
        return stated | {result["model_version"] for result in predict(client, [task(number)], project="7.1")}

    with contextmanager(serve)(fake, tmp_path) as one, contextmanager(serve)(fake, tmp_path) as other:
        workers = [logged_in(one), logged_in(other)]
        (before,) = versions(workers[0], 1) | versions(workers[1], 2)
        ledger.promote(7, Promoted(adapter.name, "full"))
        (after,) = versions(workers[0], 3) | versions(workers[1], 4)
        assert after.rpartition("-")[0] == adapter.name
        assert before.rpartition("-")[0] == fake.name
        assert fake.asked[-1]["model"] == adapter.name
        assert "JSON Schema" in fake.asked[-1]["messages"][0]["content"]  # in the adapter's profile
        elsewhere = setup(workers[0], {"case": "sentiment"}, project="8.1").get_json()["model_version"]
        assert elsewhere == before
        fake.restart()
        assert versions(workers[1], 5) == {after}
        assert fake.handed == 2
        ledger.roll_back(7)
        assert versions(workers[0], 6) | versions(workers[1], 7) == {before}


@pytest.mark.parametrize("extra", [{"temperature": 0.9, "model": "big"}, '{"instruction": "判断语气。"}'])
def test_extra_params_make_a_projects_own_version_and_its_prompt(
    client: FlaskClient, fake: FakeVllm, extra: Any
) -> None:
    fake.adapters = ["big"]
    plain = setup(client, {"case": "sentiment"}, project="8.1").get_json()["model_version"]
    version = setup(client, extra).get_json()["model_version"]
    assert version != plain
    assert {result["model_version"] for result in predict(client, [task(1)])} == {version}
    body = fake.asked[-1]
    asked = (body["temperature"], body["model"], body["messages"][0]["content"] == "判断语气。")
    assert asked == ((0.9, "big", False) if isinstance(extra, dict) else (0, "fake", True))
    assert predict(client, [task(1)], project="8.1")[0]["model_version"] == plain


@pytest.mark.parametrize(
    ("extra", "words", "hint"),
    [
        ('{"case": ', "not JSON", "Write"),
        ({"temprature": 1}, "'temprature', which nobody reads", "temperature"),
        ({"case": "nobody"}, "no case 'nobody'", "There are"),
        ({"model": "nobody"}, "does not serve 'nobody'; it serves: fake", "extra params"),
        ({"temperature": -1}, "from 0 to 2", "Write"),
    ],
)
def test_extra_params_that_cannot_be_used_are_refused_in_a_sentence(
    client: FlaskClient, extra: Any, words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = setup(client, extra)
    assert answer.status_code == 400
    assert words in answer.get_json()["error"]
    assert hint in answer.get_json()["hint"]
    # Label Studio shows nothing but the status.
    assert json.loads(capsys.readouterr().out.strip().split("\n")[-1])["error"] == answer.get_json()["error"]
    assert predict(client, [task(1)])[0]["result"], "what was refused is not remembered"


def test_a_model_that_cannot_be_checked_is_taken(server: WebApp) -> None:
    with VllmModel("http://127.0.0.1:9/v1", "x") as nobody:
        client = logged_in(
            replace(server, protocol=replace(server.protocol, check_served=nobody.check_served))
        )
        assert setup(client, {"model": "big"}).get_json()["model_version"].startswith("big-")


def test_a_label_that_the_model_takes_for_a_control_token_is_refused_at_set_up(client: FlaskClient) -> None:
    config = """<View><Text name="text" value="$text"/><Labels name="l" toName="text">
    <Label value="&lt;|im_start|&gt; marker"/><Label value="&lt;b&gt;"/></Labels></View>"""
    answer = client.post("/setup", json={"project": "7.1", "schema": config, "extra_params": None})
    assert answer.status_code == 400
    assert "holds '<|im_start|>'" in answer.get_json()["error"]
    fine = config.replace("|im_start|", "|start|")
    assert (
        client.post("/setup", json={"project": "7.1", "schema": fine, "extra_params": None}).status_code
        == 200
    )


COMPLAINT = CASES.config("complaint")


def ask(client: FlaskClient, context: Any, **more: Any) -> Any:
    body = {
        "tasks": [{**task(1, "我叫林志远。电梯坏了!"), **more}],
        "project": "7.1",
        "label_config": COMPLAINT,
        "params": {"login": None, "password": None, "context": context},
    }
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200
    (item,) = answer.get_json()["results"]
    return item


def field(name: str, *texts: str, **more: Any) -> dict[str, Any]:
    value = {"text": [*texts]}
    return {"from_name": name, "to_name": "text", "type": "textarea", "id": "i", "value": value, **more}


@pytest.mark.parametrize("context", [None, {}, {"result": []}, {"result": None}, "x", {"result": [3, {}]}])
def test_a_call_without_context_is_a_normal_draft(client: FlaskClient, fake: FakeVllm, context: Any) -> None:
    assert ask(client, context)["result"]
    assert [message["role"] for message in fake.asked[0]["messages"]] == ["system", "user"]


def test_words_of_an_annotator_redraft_what_the_page_holds(client: FlaskClient, fake: FakeVllm) -> None:
    before = {"result": [field("name", "old"), field("email", "a@b")], "created_at": "2026-01-02"}
    drafted = {"result": [field("name", "draft"), field("address", "x")], "updated_at": "2026-01-03"}
    context = {"result": [field("name", "林志"), field("prompt", "the whole name")]}
    fake.answer = lambda _: CASES.get("complaint").labelling.encode(
        {"name": "林志远", "question": "电梯坏了!"}
    )
    item = ask(client, context, predictions=[before], drafts=[drafted])
    sent = fake.asked[0]["messages"]
    assert json.loads(sent[2]["content"]) == {"name": "林志", "address": "x", "email": None, "question": None}
    assert "the whole name" in sent[3]["content"]
    shown = {region["from_name"]: region["value"]["text"] for region in item["result"]}
    assert shown == {"name": ["林志远"], "question": ["电梯坏了!"], "address": []}
    assert item["model_version"] == ask(client, None)["model_version"]


def test_a_human_who_works_by_hand_is_not_drafted_over(client: FlaskClient, fake: FakeVllm) -> None:
    assert ask(client, {"result": [field("name", "林志远")]}) == {}
    assert ask(client, {"result": [field("prompt", " ")]}) == {}
    assert fake.asked == []


def test_a_redraft_is_neither_claimed_nor_explained_nor_written(fake: FakeVllm, tmp_path: Path) -> None:
    board = FakeBoard()
    for server in serve(fake, tmp_path, board):
        fake.answer = lambda _: "no json"
        item = ask(logged_in(server), {"result": [field("prompt", "again")]})
        assert item["result"] == []
        fake.answer, fake.fail = None, lambda _: 503
        server.protocol.drafter.close()
        assert (board.predictions, board.patched, server.protocol.answers.late()) == ([], [], 0)
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
        assert ledger.reasons_of(7, 1) == []
        assert ledger.claim(7, [1], item["model_version"], 1) == {1}


def test_what_the_page_holds_but_the_config_does_not_costs_only_the_value(
    client: FlaskClient, fake: FakeVllm
) -> None:
    context = {"result": [field("gone", "x"), field("prompt", "again")]}
    assert ask(client, context)["result"]
    assert len(fake.asked[0]["messages"]) == 2
    assert "again" in fake.asked[0]["messages"][1]["content"]


def test_two_projects_are_served_at_once_each_by_its_own_config(client: FlaskClient) -> None:
    setup(client, {"case": "sentiment"}, project="7.1")
    setup(client, {"case": "complaint"}, CASES.config("complaint"), project="8.1")
    one = predict(client, [task(1)], project="7.1")
    two = predict(client, [task(1)], CASES.config("complaint"), project="8.1")
    assert one[0]["result"][0]["from_name"] == "sentiment"
    assert {region["from_name"] for region in two[0]["result"]} == {"name", "address", "email", "question"}
    assert one[0]["model_version"] != two[0]["model_version"]


def test_an_edited_config_keeps_its_case_and_gets_a_new_version(client: FlaskClient) -> None:
    edited = CONFIG.replace("neutral", "mixed")
    version = setup(client, {"case": "sentiment"}).get_json()["model_version"]
    result = predict(client, [task(1)], edited)[0]
    assert result["model_version"] != version
    assert result["result"]


def test_there_are_exactly_n_results_in_order_whatever_fails_inside(
    client: FlaskClient, fake: FakeVllm
) -> None:
    fake.fail = lambda body: 400 if "bad" in body["messages"][-1]["content"] else None
    tasks = [task(5), task(6, "bad"), {"id": 7, "data": {}}, {"id": "x"}, None, task(5), 3, task(8)]
    results = predict(client, tasks)
    assert [bool(result.get("result")) for result in results] == [
        True,
        False,
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    assert [("result" in result) for result in results] == [True, True, True, False, False, True, False, True]
    assert all(isinstance(result["score"], float) for result in results if result)


@pytest.mark.parametrize(
    "id_", [{}, {"id": None}, {"id": 0}, {"id": "12"}, {"id": True}, {"id": 1.5}, {"id": 2**70}]
)
def test_a_task_without_an_id_that_we_know_is_drafted(client: FlaskClient, id_: dict[str, Any]) -> None:
    tasks = [
        {**id_, "data": task(5)["data"]},
        task(6),
        {**id_, "data": {"other": "x"}},
        {**id_, "data": task(7)["data"]},
    ]
    results = predict(client, tasks)
    assert [bool(result["result"]) for result in results] == [True, True, False, True]


@pytest.mark.parametrize("depth", [150, 5000, 100_000])
def test_a_task_that_is_nested_without_an_end_costs_only_itself(client: FlaskClient, depth: int) -> None:
    text = json.dumps(
        {"tasks": [task(5), task(6, "MARK]"), task(7)], "label_config": CONFIG, "project": "7.1"}
    )
    for deep in ("[" * depth + "1" + "]" * depth, '{"a[":' * depth + "1" + "}" * depth):
        body = text.replace('"MARK]"', f'"MARK]", "deep": {deep}')
        answer = client.post("/predict", data=body, content_type="application/json")
        assert answer.status_code == 200, answer.text
        results = answer.get_json()["results"]
        assert [bool(result["result"]) for result in results] == [True, False, True]


def test_a_lone_surrogate_anywhere_is_no_500(client: FlaskClient, capfd: pytest.CaptureFixture[str]) -> None:
    for path in ("/webhook", "/setup", "/predict"):
        body = {
            "action": "\ud83d",
            "project": "\ud83d",
            "schema": "\ud83d",
            "label_config": "\ud83d",
            "tasks": [],
        }
        assert client.post(path, json=body).status_code in (200, 400)
    structlog.get_logger("backend").info("\ud83d", title="half \ud83d")
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (last["event"], last["title"]) == ("\ud83d", "half \ud83d")


def test_a_model_server_that_is_down_leaves_items_that_are_asked_for_again(
    fake: FakeVllm, tmp_path: Path
) -> None:
    fake.fail = lambda _: 503
    for server in serve(fake, tmp_path, deadline_s=1):
        assert predict(logged_in(server), [task(1), task(2)]) == [{}, {}]


def test_reasons_are_shown_in_the_page_and_cleared_by_a_better_draft(fake: FakeVllm, tmp_path: Path) -> None:
    board = FakeBoard()
    for server in serve(fake, tmp_path, board):
        client = logged_in(server)
        fake.answer = lambda _: "no json"
        predict(client, [task(1), task(2)])
        assert sorted(task_id for task_id, _ in board.patched) == [1, 2]
        shown = board.patched[0][1]
        assert shown["text"] == "很好"
        assert "There is no draft" in shown["draft_status"]
        fake.answer = None
        predict(client, [{"id": 1, "data": shown}], CONFIG.replace("neutral", "mixed"))
        assert board.patched[2:] == [(1, {"text": "很好", "draft_status": ""})]


def test_an_unknown_tag_is_refused_at_setup_and_answered_n_times_at_predict(client: FlaskClient) -> None:
    answer = setup(client, None, UNSUPPORTED)
    assert answer.status_code == 400
    assert "Tag <Brush>" in answer.get_json()["error"]
    assert predict(client, [task(1), task(2)], UNSUPPORTED) == [{}, {}]


@pytest.mark.parametrize("action", ["START_TRAINING", "ANNOTATION_CREATED", "ANNOTATIONS_DELETED"])
def test_webhooks_are_noted(client: FlaskClient, action: str) -> None:
    assert client.post("/webhook", json={"action": action, "project": {"id": 1}}).status_code == 200


def test_the_button_and_enough_annotations_start_a_listed_training_job(
    server: WebApp, tmp_path: Path
) -> None:
    started: list[JobRecord] = []

    class Endless:
        def wait(self) -> int:
            threading.Event().wait(10)
            return 0

    def start(job: JobRecord) -> Endless:
        started.append(job)
        return Endless()

    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    client = logged_in(replace(server, jobs=Jobs(ledger, start, after=10)))
    assert client.get("/jobs").get_json() == {"jobs": []}
    project = {"id": 7, "title": "P", "total_annotations_number": 9}
    event = {"action": "ANNOTATION_CREATED", "project": project}
    assert client.post("/webhook", json=event).get_json() == {"status": "noted"}
    assert client.get("/jobs").get_json() == {"jobs": []}
    project["total_annotations_number"] = 10
    client.post("/webhook", json=event)
    (job,) = client.get("/jobs?project=7").get_json()["jobs"]
    assert (job["project"], job["state"], job["why"]) == (7, "running", "new annotations: 10")
    pressed = {"action": "START_TRAINING", "project": project}
    assert client.post("/webhook", json=pressed).get_json() == {"status": "running", "id": job["id"]}
    refused = client.post("/webhook", json={**pressed, "project": {"id": 8}})
    assert refused.status_code == 400
    assert "A training job of project 7 goes on" in refused.get_json()["error"]
    assert client.post("/webhook", json={"action": "START_TRAINING", "project": "7.17"}).status_code == 200
    assert client.post("/webhook", json={"action": "START_TRAINING"}).status_code == 400
    assert client.get("/jobs?project=8").get_json() == {"jobs": []}


def test_alive_is_not_ready(client: FlaskClient, fake: FakeVllm) -> None:
    fake.any_whitespace = True
    assert client.get("/health").get_json()["status"] == "UP"
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert "disable_any_whitespace" in answer.get_json()["error"]
    assert "--structured-outputs-config" in answer.get_json()["hint"]


def test_readiness_is_asked_of_the_model_once_in_a_while(client: FlaskClient, fake: FakeVllm) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(
            pool.map(lambda _: client.application.test_client().get("/ready").status_code, range(16))
        )
    assert codes == [200] * 16
    asked = len(fake.asked)
    assert asked < 15
    assert len([body for body in fake.asked if "dependentRequired" in str(body)]) == 1


def test_metrics_count_what_was_drafted(client: FlaskClient, fake: FakeVllm) -> None:
    predict(client, [task(1), task(2)])
    fake.answer = lambda _: "no json"
    predict(client, [task(3)])
    page = client.get("/metrics").text
    for line in (
        'draftloop_drafts_total{case="sentiment",status="ok"} 2.0',
        'draftloop_drafts_total{case="sentiment",status="undecodable"} 1.0',
        'draftloop_reasons_total{case="sentiment",kind="decode"} 1.0',
        'draftloop_model_request_seconds_count{outcome="answered"} 4.0',
        "draftloop_model_requests_in_flight 0.0",
        "draftloop_predicts_in_flight 0.0",
        "draftloop_predict_seconds_count 2.0",
        "draftloop_prompt_cached_tokens_total 0.0",
    ):
        assert line in page
    fake.fail = lambda _: 400
    predict(client, [task(4)])
    page = client.get("/metrics").text
    assert 'draftloop_model_request_seconds_count{outcome="refused"} 1.0' in page
    assert re.search(r"^draftloop_completion_tokens_total [1-9]", page, re.MULTILINE)


def test_the_log_says_what_was_done_and_never_what_was_read_or_written(
    client: FlaskClient, fake: FakeVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "投诉人林志远"
    replies = iter([None, lambda _: f"no json {secret}", None])
    fake.api_key = "sk-of-the-server"
    predict(client, [task(1, secret)])  # the key is refused
    fake.api_key = ""
    for fake.answer in replies:
        predict(client, [task(2, secret), {"id": 3, "data": {"other": secret}}])
    fake.answer, fake.fail = None, lambda _: 400
    predict(client, [task(4, secret)])
    client.post("/webhook", json={"action": "ANNOTATION_CREATED", "task": task(5, secret)})
    predict(client, [task(6, secret)], UNSUPPORTED)
    lines = [json.loads(line) for line in capsys.readouterr().out.strip().split("\n")]
    drafts = [line for line in lines if line["event"] == "draft"]
    assert [line["task"] for line in drafts] == [1, *(2, 3) * 3, 4]
    assert {line["status"] for line in drafts} == {"ok", "undecodable", "failed"}
    assert {"project", "version", "case", "ms", "attempts", "prompt_tokens", "timestamp"} <= set(drafts[1])
    assert next(line for line in lines if line["event"] == "predict")["ms"] >= 0
    everything = json.dumps(lines, ensure_ascii=False)
    for unwanted in (secret, "no json", "sk-of-the-server", CASES.get("sentiment").compact[:12], "páss"):
        assert unwanted not in everything


def test_a_defect_is_logged_by_place_without_the_words_of_the_exception(
    client: FlaskClient, server: WebApp, capsys: pytest.CaptureFixture[str]
) -> None:
    server.protocol.drafter.close()  # what is drafted now is a RuntimeError of the thread pool
    body = {"tasks": [task(1, "投诉人林志远")], "label_config": CONFIG}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    line = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert (line["event"], line["error"]) == ("request failed", "RuntimeError")
    assert any("drafter.py" in place for place in line["where"])
    assert "cannot schedule" not in json.dumps(line)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b'{"tasks": 1}', b'{"tasks": [], "label_config": 1}', b"\xff"]
)
@pytest.mark.parametrize("path", ["/setup", "/predict"])
def test_a_bad_body_is_refused_with_a_hint(client: FlaskClient, path: str, body: bytes) -> None:
    answer = client.post(path, data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.get_json()["error"]
    assert answer.get_json()["hint"]


@pytest.mark.parametrize(
    "tag",
    [
        *('Rating maxRating=""', 'Rating maxRating="abc"', 'TextArea maxSubmissions="unlimited"'),
        *(
            'Number min="1,5"',
            'Number max="1e999" min="1e999"',
            'Choices required="yes"',
            'DateTime only="year"',
        ),
        *(
            'Labels toName="text,text2"',
            'Choices value="$第一列"',
            'Choices visibleWhen="choice-selected" whenTagName="x"',
        ),
    ],
)
def test_set_up_refuses_an_unusable_config_with_a_hint(client: FlaskClient, tag: str) -> None:
    name, _, attributes = tag.partition(" ")
    if "toName" not in attributes:
        attributes += ' toName="text"'
    option = {"Choices": '<Choice value="x"/>', "Labels": '<Label value="x"/>'}.get(name, "")
    config = (
        '<View><Text name="text" value="$text"/><Text name="text2" value="$text"/>'
        f'<{name} name="field" {attributes}>{option}</{name}></View>'
    )
    answer = setup(client, None, config)
    assert answer.status_code == 400
    assert "'field'" in answer.get_json()["error"]
    assert answer.get_json()["hint"]
    assert predict(client, [task(1)], config) == [{}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
regions = st.fixed_dictionaries(
    {"from_name": st.sampled_from(["sentiment", "prompt", "gone"]), "value": json_values}
)
contexts = st.fixed_dictionaries({"result": st.lists(regions | json_values, max_size=3)})
PROMPTED = CONFIG.replace("</View>", '<TextArea name="prompt" toName="text"/></View>', 1)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "tasks": st.lists(
            st.fixed_dictionaries({}, optional={"id": json_values, "data": json_values}) | json_values,
            max_size=3,
        )
        | json_values,
        "project": json_values,
        "label_config": st.sampled_from([CONFIG, PROMPTED]) | json_values,
        "schema": st.just(CONFIG) | json_values,
        "extra_params": json_values
        | st.dictionaries(st.sampled_from(["case", "model", "instruction", "temperature"]), json_values),
        "params": json_values | st.fixed_dictionaries({"context": json_values | contexts}),
    },
)


def test_no_body_makes_a_500_or_a_traceback(client: FlaskClient) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.sampled_from(["/setup", "/predict", "/webhook"]), bodies | json_values)
    def fuzz(path: str, body: Any) -> None:
        answer = client.post(path, data=json.dumps(body), content_type="application/json")
        assert answer.status_code in (200, 400), answer.text
        assert "Traceback" not in answer.text
        if path == "/predict" and answer.status_code == 200:
            assert len(answer.get_json()["results"]) == len(body["tasks"])

    fuzz()


def test_an_unknown_path_or_method_is_no_traceback(client: FlaskClient) -> None:
    assert client.get("/nowhere").status_code == 404
    assert client.get("/predict").status_code == 405
