"""Bad input at the wire protocol is refused with one sentence; other tasks are not affected."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask.testing import FlaskClient

from draftloop.app.log import log_as_json
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.serving.answers import Answers
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.readiness import ModelCheck
from draftloop.serving.web import WebApp
from draftloop.support.logins import Logins
from tests.fake_board import FakeBoard
from tests.fake_vllm import Body, FakeVllm, fake_vllm

CASES = Cases(Path(__file__).parents[2] / "label_config")
CONFIG = CASES.config("sentiment")
FORM = """<View><HyperText name="why" value="$draft_status"/><Text name="text" value="$text"/>
<TextArea name="words" toName="text" maxSubmissions="1"/><Number name="count" toName="text"/></View>"""
LAUGHS = "".join(
    f'<!ENTITY lol{number} "{("&lol%s;" % (number - 1 or "")) * 10}">' for number in range(1, 10)
)
BOMB = f'<!DOCTYPE x [<!ENTITY lol "lol">{LAUGHS}]><View><Text name="t" value="$t"/>&lol9;</View>'
OPEN = ("/", "/health", "/ready")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    log_as_json("error")
    yield
    structlog.reset_defaults()


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(context_tokens=4096) as server:
        yield server


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard()


@pytest.fixture
def anybody(fake: FakeVllm, board: FakeBoard, tmp_path: Path) -> Iterator[FlaskClient]:
    """A client without a password."""
    with VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="compact", temperature=0), concurrency=4)
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
        answers = Answers(drafter, ledger, CASES.find, board, deadline_s=60)
        yield (
            WebApp(
                ProtocolServer(drafter, CASES, ledger, answers),
                Logins("ann", "páss", wrong_logins=10**6),
                ModelCheck(model).check,
            )
            .wsgi()
            .test_client()
        )
        drafter.close()


@pytest.fixture
def client(anybody: FlaskClient) -> FlaskClient:
    anybody.environ_base["HTTP_AUTHORIZATION"] = basic("ann:páss")
    return anybody


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


def predict(client: FlaskClient, texts: list[str], config: str = CONFIG) -> list[dict[str, Any]]:
    tasks = [
        {"id": number, "data": {"text": text, "draft_status": ""}} for number, text in enumerate(texts, 1)
    ]
    answer = client.post("/predict", json={"tasks": tasks, "label_config": config, "project": "7.1"})
    assert answer.status_code == 200
    results: list[dict[str, Any]] = answer.get_json()["results"]
    assert len(results) == len(texts)
    return results


@pytest.mark.parametrize("bad", ["nobody:páss", "ann:wrong", "ann:", ":", "páss", "ann:páss\x00"])
def test_wrong_credentials_are_refused_alike_at_every_endpoint_and_say_nothing(
    anybody: FlaskClient, fake: FakeVllm, bad: str
) -> None:
    answers = set()
    paths = {str(rule) for rule in anybody.application.url_map.iter_rules()}
    assert {"/setup", "/predict", "/webhook", "/versions", "/jobs", "/metrics"} < paths
    for path in {*paths, "/nowhere"} - {*OPEN}:
        for method in ("GET", "POST", "PUT", "DELETE"):
            for header in (None, basic(bad), bad.replace("\x00", ""), "Basic ???", "Bearer x", "Digest x"):
                headers = {} if header is None else {"Authorization": header}
                answer = anybody.open(path, method=method, headers=headers, json={"tasks": [1]})
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (
                    401,
                    'Basic realm="draftloop"',
                )
                answers.add(answer.text)
    (only,) = answers
    assert set(json.loads(only)) == {"error", "hint"}
    for secret in ("páss", "nobody", "ann", "sentiment", fake.name, fake.url):
        assert secret not in only
    assert fake.asked == []


def test_what_an_orchestrator_asks_needs_no_password(anybody: FlaskClient) -> None:
    assert [anybody.get(path).status_code for path in OPEN] == [200, 200, 200]


@pytest.mark.parametrize(
    "config",
    [
        "",
        "no xml",
        "{}",
        "<View>",
        "<View/><View/>",
        BOMB,
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><View><Header value="&e;"/></View>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><View/>',
        "<View>\ud83d</View>",
        "<View>&#xD83D;</View>",
        "<View>" * 9_000 + "</View>" * 9_000,
    ],
)
def test_a_config_of_unsafe_xml_is_refused_at_once(client: FlaskClient, config: str) -> None:
    began = time.monotonic()
    answer = client.post("/setup", json={"schema": config, "project": "7.1"})
    assert answer.status_code == 400
    assert "The labelling config is n" in answer.get_json()["error"]
    assert answer.get_json()["hint"]
    assert predict(client, ["a", "b"], config) == [{}, {}]
    assert time.monotonic() - began < 10  # a bomb that goes off takes gigabytes and minutes


def test_two_thousand_labels_are_served(client: FlaskClient, fake: FakeVllm) -> None:
    labels = "".join(f'<Label value="label {number}"/>' for number in range(2000))
    config = (
        f'<View><Text name="text" value="$text"/><Labels name="spans" toName="text">{labels}</Labels></View>'
    )
    assert client.post("/setup", json={"schema": config, "project": "7.1"}).status_code == 200
    fake.answer = lambda _: '{"spans":[{"text":"北京","nth":0,"label":"label 1999"}]}'
    (item,) = predict(client, ["在北京"], config)
    assert item["result"][0]["value"] == {"start": 1, "end": 3, "text": "北京", "labels": ["label 1999"]}


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (r'{"words":"\ud83d","count":null}', "half a character"),
        ('{"words":"x","count":1e999}', "too large a number"),
        ('{"words":"x","count":123456789012345678901234567890}', "too large a number"),
        ('{"words":' + "[" * 2000, "not JSON"),
        ('{"words":' + "[" * 500 + "]" * 500 + ',"count":1}', "nested deeper"),
    ],
)
def test_an_answer_that_no_page_can_show_costs_only_its_own_task(
    client: FlaskClient, fake: FakeVllm, board: FakeBoard, says: str, words: str
) -> None:
    def answer(body: Body) -> str:
        bad = any("bad" in message["content"] for message in body["messages"])
        return says if bad else '{"words":"good","count":2}'

    fake.answer = answer
    results = predict(client, ["good", "bad", "good"], FORM)
    assert [len(item["result"]) for item in results] == [2, 0, 2]
    assert [item["score"] > 0 for item in results] == [True, False, True]
    ((task, data),) = board.patched
    assert task == 2
    assert words in data["draft_status"]


def test_a_task_whose_number_no_database_holds_is_drafted_as_one_without(
    client: FlaskClient, fake: FakeVllm
) -> None:
    fake.answer = lambda body: json.dumps({"words": body["messages"][-1]["content"][-6:], "count": 2})
    numbers = (1, 2**63, True, -(2**70), 2)
    tasks = [{"id": number, "data": {"text": f"text {at}"}} for at, number in enumerate(numbers)]
    answer = client.post("/predict", json={"tasks": tasks, "label_config": FORM})
    drafted = [item["result"][0]["value"]["text"][0] for item in answer.get_json()["results"]]
    assert drafted == [f"text {at}" for at in range(5)]
    assert client.get(f"/versions?project={2**63}").status_code == 200


def test_a_lone_surrogate_in_extra_params_is_refused(client: FlaskClient) -> None:
    body = {"schema": CONFIG, "project": "7.1", "extra_params": {"case": "\ud83d"}}
    answer = client.post("/setup", json=body)
    assert answer.status_code == 400
    assert "extra_params.case is no text" in answer.get_json()["error"]


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
def test_a_body_nested_without_end_is_refused(client: FlaskClient, path: str) -> None:
    for body in (b"[" * 100_000, b'{"tasks":' + b"[" * 100_000, b'{"a":' * 50_000):
        answer = client.post(path, data=body, content_type="application/json")
        assert (answer.status_code, answer.get_json()["error"]) == (400, "The body is not a JSON object.")
    answer = client.post("/setup", json={"schema": CONFIG, "extra_params": "[" * 100_000})
    assert answer.status_code == 400
    assert "extra_params is not JSON" in answer.get_json()["error"]
