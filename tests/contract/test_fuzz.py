"""The wire protocol under nonsense: no request makes a 500 or a traceback, and tasks are answered one by one.

A thousand requests in every run (a fifth with `--fast`), ten thousand with `--scale`: methods, paths,
headers, bodies that are almost right, configs that are almost XML, tasks that are almost tasks, and a model
that says anything.
"""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import structlog
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

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
from tests.fake_vllm import FakeVllm, fake_vllm
from tests.families import FAMILIES

CASES = Cases(Path(__file__).parents[2] / "label_config")
PATHS = ("/", "/health", "/ready", "/setup", "/predict", "/webhook", "/versions", "/jobs", "/metrics")
RIGHTLY = (("POST", "/webhook"), *(("GET", path) for path in PATHS[:3]), ("GET", "/versions"))
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW")
RIGHT = "Basic " + base64.b64encode("ann:páss".encode()).decode()
# (config, a task's data) that fit each other
KNOWN = [
    *FAMILIES.values(),
    *(
        (
            CASES.config(name),
            {**dict.fromkeys(CASES.get(name).labelling.keys, "很好,谢谢"), "draft_status": ""},
        )
        for name in CASES.names()
    ),
]

any_text = st.text(st.characters(), max_size=12)  # lone surrogates and NUL included
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


class Call(NamedTuple):
    """One request, and what the model says and does meanwhile."""

    asks: tuple[str, str]  # method and path
    query: str
    headers: dict[str, str]
    body: bytes
    says: str | None
    status: int | None


def mostly(right: st.SearchStrategy[Any], *rarer: st.SearchStrategy[Any], of: int = 5) -> Any:
    """Draw something rarer once in so many times."""
    return st.sampled_from([right] * (of - 1) * len(rarer) + [*rarer]).flatmap(lambda chosen: chosen)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """Draw a text with a part of it removed, doubled or replaced."""
    start = draw(st.integers(0, len(text)))
    stop = draw(st.integers(start, min(len(text), start + 20)))
    return text[:start] + draw(any_text | st.just(text[start:stop] * 2)) + text[stop:]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    start = draw(st.integers(0, len(content)))
    return content[:start] + draw(st.binary(max_size=4)) + content[start + draw(st.integers(0, 9)) :]


@st.composite
def nested(draw: st.DrawFn) -> Any:
    """Draw nested lists, up to depths at which parsers fail."""
    value: Any = draw(st.booleans())
    for _ in range(draw(st.sampled_from([50, 200, 300]))):
        value = [value]
    return value


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw the body of a call: valid, almost valid, or anything."""
    config, data = draw(st.sampled_from(KNOWN))
    xml = draw(mostly(st.just(config), damaged(config), json_values))
    datum = mostly(
        st.just(data),
        st.fixed_dictionaries({}, optional={key: st.just(part) | json_values for key, part in data.items()}),
        st.dictionaries(st.sampled_from(sorted(data)), nested(), max_size=1),
        json_values,
        of=2,
    )
    task = st.fixed_dictionaries(
        {"id": mostly(st.integers(1, 9), json_values), "data": datum},
        optional={"annotations": json_values, "predictions": json_values, "meta": json_values},
    )
    right = st.fixed_dictionaries(
        {
            "tasks": mostly(st.lists(mostly(task, json_values), max_size=3), json_values),
            "label_config": st.just(xml),
            "schema": st.just(xml),
        },
        optional={
            "project": st.sampled_from(["7.1700000000", 7, "0", None]) | json_values,
            "extra_params": st.sampled_from(["", '{"case": "complaint"}', {"case": "x"}])
            | st.fixed_dictionaries({"case": any_text})
            | nested()
            | json_values
            | any_text,
            "params": json_values | st.fixed_dictionaries({"context": json_values}),
            "hostname": json_values,
            "access_token": json_values,
            "action": json_values,
        },
    )
    body = draw(mostly(right, json_values, of=10))
    content = json.dumps(body).encode()
    deep = b"[" * draw(st.sampled_from([900, 100_000]))
    rarer = (damaged_bytes(content), st.binary(max_size=30), st.just(deep + content))
    return bytes(draw(mostly(st.just(content), *rarer)))


header_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
calls = st.builds(
    Call,
    asks=mostly(
        st.sampled_from([("POST", "/predict")] * 8 + [("POST", "/setup")] * 4 + [*RIGHTLY]),
        st.tuples(st.sampled_from(METHODS), st.sampled_from(PATHS)),
        st.tuples(st.just("POST"), any_text.map(lambda text: "/" + quote(text, safe="", errors="replace"))),
        of=10,
    ),
    query=st.sampled_from(["", "", "project=7", "project=99999999999999999999"])
    | any_text.map(lambda text: "project=" + quote(text, safe="&=", errors="replace")),
    headers=st.fixed_dictionaries(
        {
            "Content-Type": mostly(
                st.just("application/json"), st.sampled_from(["text/plain", ""]), header_text, of=10
            ),
            "Authorization": mostly(
                st.just(RIGHT),
                header_text,
                header_text.map(lambda text: f"Basic {text}"),
                st.binary(max_size=12).map(lambda pair: "Basic " + base64.b64encode(pair).decode()),
                of=10,
            ),
        },
        optional={
            "Content-Encoding": st.sampled_from(["gzip", "x"]),
            "Accept": header_text,
            "X-Forwarded-For": header_text,
            "Host": mostly(st.just("localhost"), st.sampled_from(["[", "a:b:c"]), header_text, of=10),
            "Origin": mostly(st.just("http://localhost"), st.just("null"), header_text, of=10),
            "Sec-Fetch-Site": mostly(st.just("none"), st.just("cross-site"), header_text, of=10),
        },
    ),
    body=bodies(),
    # None lets the model say what satisfies its schema.
    says=mostly(st.none(), json_values.map(json.dumps), nested().map(json.dumps), any_text, of=2),
    status=mostly(st.none(), st.sampled_from([400, 401, 404, 422]), of=8),
)


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
def client(fake: FakeVllm, tmp_path: Path) -> Iterator[FlaskClient]:
    with VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="compact", temperature=0), concurrency=4)
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
        answers = Answers(drafter, ledger, CASES.find, None, deadline_s=60)
        server = WebApp(
            ProtocolServer(drafter, CASES, ledger, answers),
            Logins("ann", "páss", wrong_logins=10**6),
            ModelCheck(model).check,
        )
        yield server.wsgi().test_client()
        drafter.close()


@pytest.mark.timeout(1800)
def test_no_request_makes_a_500_or_a_traceback(
    client: FlaskClient,
    fake: FakeVllm,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: Counter[int] = Counter()
    drafted = 0
    wanted = 10_000 if request.config.getoption("--scale") else max(200, settings().max_examples ** 2 // 10)

    @settings(
        max_examples=wanted,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(calls)
    def fuzz(call: Call) -> None:
        fake.answer = (
            None if call.says is None else lambda _: str(call.says).encode(errors="replace").decode()
        )
        fake.fail = lambda _: call.status
        method, path = call.asks
        answer = client.open(
            path,
            method=method,
            query_string=call.query,
            headers=call.headers,
            data=call.body,
        )
        nonlocal drafted
        seen[answer.status_code] += 1
        assert answer.status_code < 500 or (path, answer.status_code) == ("/ready", 503), answer.text
        if path != "/metrics" and method not in ("HEAD", "OPTIONS"):
            assert_plain(answer)
        if (method, path, answer.status_code) == ("POST", "/predict", 200):
            results = answer.get_json()["results"]
            assert_one_item_per_task(json.loads(call.body), results)
            drafted += sum(bool(item.get("result")) for item in results)

    fuzz()
    assert seen.total() >= wanted
    assert seen[200] > wanted / 4, seen  # not all bounce off the first check
    if wanted >= 1000:
        assert drafted > wanted / 100  # three in a hundred, give or take; of two hundred perhaps none
    logged = capfd.readouterr()
    assert "Traceback" not in logged.out + logged.err
    assert "request failed" not in logged.out


def assert_plain(answer: TestResponse) -> None:
    """Assert that an answer is strict JSON, and a sentence where something was wrong."""
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in an answer")

    reply = json.loads(answer.text, parse_constant=refuse)
    if answer.status_code >= 400:
        assert reply.get("error") or reply == {"status": "not ready"}


def assert_one_item_per_task(body: Any, results: list[Any]) -> None:
    assert len(results) == len(body["tasks"])
    for item in results:
        if item:
            assert set(item) == {"result", "score", "model_version"}
            assert isinstance(item["result"], list)
            assert math.isfinite(item["score"])
            assert 0 <= item["score"] <= 1
            json.dumps(item, ensure_ascii=False).encode()  # no lone surrogate reaches a page
