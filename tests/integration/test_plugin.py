"""The backend inside label-studio-ml's server, 1.0.9 and 2.x: what Label Studio meets, beside our own."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from draftloop.cli import servers
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT, find_environment
from tests.conftest import installed
from tests.fake_label_studio import fake_label_studio
from tests.fake_vllm import FakeVllm, fake_vllm

CASES = Cases(ROOT / "label_config")
JSON = {"Content-Type": "application/json"}
UNSUPPORTED = '<View><Image name="i" value="$i"/><Brush name="b" toName="i"/></View>'
MODEL_PY = "from draftloop.app import make_plugin\n\nDraftloop = make_plugin()\n"
WSGI_PY = """
from label_studio_ml.api import init_app
from model import Draftloop

app = init_app(model_class=Draftloop)
"""  # what 2.x's `create --script model.py:Draftloop` makes of them


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(context_tokens=4096) as server:
        yield server


def settings(fake: FakeVllm, ledger: Path) -> dict[str, str]:
    return {
        "BACKEND_DEADLINE_S": "20",
        "CACHE_URL": "",
        "LEDGER_URL": f"sqlite:///{ledger}",
        "MODEL_NAME": fake.name,
        "MODEL_PROFILE": "compact",
        "MODEL_URL": fake.url,
    }


@pytest.fixture(scope="module")
def ours(fake: FakeVllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ours")
    started = servers.start_backend(settings(fake, folder / "ledger.sqlite3"), log=folder / "log")
    with started as server:
        yield server.url


@dataclass(frozen=True)
class Theirs:
    """How label-studio-ml's server is made and started; docs/how-to/label-studio-ml.md says how.

    package   folder of a label-studio-ml in the place of the installed 1.0.9
    options   gunicorn's
    """

    application: str
    package: Path | None = None
    options: tuple[str, ...] = ()

    @contextmanager
    def start(self, environment: Mapping[str, str], folder: Path) -> Iterator[str]:
        variables = dict(environment)
        with installed():
            python = find_environment("label-studio-ml") / "bin"
            application, name = self.application, "label-studio-ml"
            if self.package is not None:
                name = "backend"
                (folder / "model.py").write_text(MODEL_PY)
                (folder / "_wsgi.py").write_text(WSGI_PY)
                (folder / "label_studio_ml").symlink_to(self.package / "label_studio_ml")
            elif application == "_wsgi:app":
                (folder / "model.py").write_text(MODEL_PY)
                command = [
                    str(python / "label-studio-ml"),
                    "init",
                    "drafts",
                    "--script",
                    "model.py:Draftloop",
                ]
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                folder = folder / "drafts"
            with servers.start_backend(
                variables,
                log=folder / "log",
                application=application,
                folder=folder,
                installed=name,
                options=self.options,
            ) as server:
                yield server.url


# As the container files of 2.x start it.
PRELOADED = ("--preload", "--worker-class", "gthread", "--threads", "8", "--timeout", "0")
SECOND = ROOT / "tests" / "label_studio_ml_2"
WAYS = {
    "mounted": Theirs("draftloop.app:create_plugin_app()"),
    "generated": Theirs("_wsgi:app"),
    "generated, preloaded": Theirs("_wsgi:app", options=PRELOADED),
    "2.x": Theirs("_wsgi:app", SECOND),
    "2.x, preloaded": Theirs("_wsgi:app", SECOND, PRELOADED),
}


@pytest.fixture(scope="module", params=WAYS)
def theirs(
    request: pytest.FixtureRequest, fake: FakeVllm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("theirs")
    # What the package's container files set.
    environment = {**settings(fake, folder / "ledger.sqlite3"), "MODEL_DIR": str(folder), "WORKERS": "1"}
    with WAYS[request.param].start(environment, folder) as url:
        yield url


def task(number: int) -> dict[str, Any]:
    data = {"text": f"您好,我叫王小明{number}。", "draft_status": ""}
    return {"id": number, "data": data, "annotations": [], "predictions": []}


def setup(url: str, project: int, config: str, extra_params: Any) -> httpx.Response:
    body = {
        "project": f"{project}.1700000000",
        "schema": config,
        "hostname": "http://ls",
        "access_token": "t",
        "extra_params": extra_params,
    }
    return httpx.post(f"{url}/setup", json=body, trust_env=False)


def predict(url: str, project: int, config: str, tasks: list[Any]) -> list[dict[str, Any]]:
    body = {
        "tasks": tasks,
        "project": f"{project}.1700000000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": None},
    }
    answer = httpx.post(f"{url}/predict", json=body, trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def without_ids(results: list[dict[str, Any]]) -> str:
    return json.dumps(
        [
            {**result, "result": [{**region, "id": ""} for region in result.get("result", ())]}
            for result in results
        ],
        sort_keys=True,
    )


def test_it_is_alive(theirs: str) -> None:
    assert httpx.get(f"{theirs}/health", trust_env=False).json()["status"] == "UP"


def test_two_projects_get_the_versions_and_results_of_our_own_server(ours: str, theirs: str) -> None:
    projects = {7: "complaint", 8: "sentiment"}
    versions = {}
    for url in (ours, theirs):
        for project, case in projects.items():
            answer = setup(url, project, CASES.config(case), json.dumps({"case": case}))
            versions[url, project] = answer.json()["model_version"]
    assert versions[theirs, 7] != versions[theirs, 8]
    for project, case in projects.items():
        assert versions[theirs, project] == versions[ours, project]
        tasks = [task(number) for number in range(5)]
        expected, actual = (predict(url, project, CASES.config(case), tasks) for url in (ours, theirs))
        assert without_ids(actual) == without_ids(expected)
        assert {result["model_version"] for result in actual} == {versions[theirs, project]}


def test_a_config_edited_since_the_set_up_keeps_its_case(ours: str, theirs: str) -> None:
    edited = CASES.config("sentiment").replace("neutral", "mixed")
    for url in (ours, theirs):
        setup(url, 9, CASES.config("sentiment"), {"case": "sentiment"})
    expected, actual = (predict(url, 9, edited, [task(1)]) for url in (ours, theirs))
    assert without_ids(actual) == without_ids(expected)


def test_what_cannot_be_drafted_is_answered_without_a_traceback(theirs: str, fake: FakeVllm) -> None:
    answer = setup(theirs, 10, UNSUPPORTED, None)
    assert answer.status_code == 400
    assert "Tag <Brush>" in answer.json()["error"]
    assert predict(theirs, 10, UNSUPPORTED, [task(1), task(2)]) == [{}, {}]
    for extra_params in ("{", "[]", {"case": "nobody"}):
        answer = setup(theirs, 11, CASES.config("sentiment"), extra_params)
        assert answer.status_code == 400
        assert "Traceback" not in answer.text
    fake.fail = lambda _: 401
    try:
        assert predict(theirs, 12, CASES.config("sentiment"), [task(1)]) == [{}]
    finally:
        fake.fail = lambda _: None


@pytest.mark.parametrize(
    "config", ["", " ", "no XML", "<View>", "<View/>", "\ud800", None, 5, {}, ["<View/>"]]
)
def test_a_config_that_is_none_is_a_sentence_and_no_traceback(theirs: str, config: Any) -> None:
    body = {"project": "21.1", "schema": config, "label_config": config, "tasks": [task(1)], "params": None}
    for path in ("/setup", "/predict"):
        answer = httpx.post(
            f"{theirs}{path}", content=json.dumps(body).encode(), headers=JSON, trust_env=False
        )
        if answer.is_success:
            assert path == "/predict"
            assert answer.json() == {"results": [{}]}
        else:
            assert answer.status_code == 400, answer.text
            assert set(answer.json()) == {"error", "hint"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"a"', b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_object_is_a_sentence(theirs: str, content: bytes) -> None:
    for path in ("/setup", "/predict", "/webhook"):
        answer = httpx.post(f"{theirs}{path}", content=content, headers=JSON, trust_env=False)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"] == "The body is not a JSON object."


def test_what_the_package_lacks_is_answered_as_by_our_own_server(theirs: str) -> None:
    version = setup(theirs, 31, CASES.config("sentiment"), None).json()["model_version"]
    with httpx.Client(base_url=theirs, trust_env=False) as client:
        assert client.get("/health").json()["status"] == "UP"
        assert client.get("/ready").json()["status"] == "ready"
        assert client.get("/versions?project=31").json() == {"versions": [version]}
        assert client.get("/jobs").json() == {"jobs": []}
        assert "draftloop_" in client.get("/metrics").text
        event = {"action": "ANNOTATION_CREATED", "project": {"id": 31, "label_config": "<View/>"}}
        assert client.post("/webhook", json=event).json() == {"status": "noted"}
        nothing = client.get("/nothing")
        assert (nothing.status_code, set(nothing.json())) == (404, {"error", "hint"})


def test_late_answers_are_written_and_the_deadline_holds(tmp_path: Path) -> None:
    """Threads that were started before a fork do nothing after it."""
    for number, way in enumerate(WAYS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with (
            fake_vllm(context_tokens=4096) as slow,
            fake_label_studio(CASES.config("sentiment"), 2, lambda row: task(row)["data"]) as board,
        ):
            slow.delay_s = 4
            environment = {
                **settings(slow, folder / "ledger.sqlite3"),
                "BACKEND_DEADLINE_S": "1",
                "LABEL_STUDIO_URL": board.url,
                "LABEL_STUDIO_API_KEY": "a-token",
            }
            with way.start(environment, folder) as url:
                begun = time.monotonic()
                assert predict(url, 1, CASES.config("sentiment"), [task(1), task(2)]) == [{}, {}]
                assert time.monotonic() - begun < 10  # ten times the deadline
                while not all(board.drafted[1:]) and time.monotonic() - begun < 60:
                    time.sleep(0.1)
                assert list(board.drafted[1:]) == [1, 1]


@pytest.mark.parametrize("way", ["2.x", "2.x, preloaded"])
def test_the_packages_login_guards_drafts_and_ours_the_rest(fake: FakeVllm, tmp_path: Path, way: str) -> None:
    environment = {
        **settings(fake, tmp_path / "ledger.sqlite3"),
        "BASIC_AUTH_USER": "theirs",
        "BASIC_AUTH_PASS": "of the package",
    }
    body = {"project": "1.1", "schema": CASES.config("sentiment")}
    with WAYS[way].start(environment, tmp_path) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.post("/setup", json=body).status_code == 401
        assert client.post("/predict", json=body).status_code == 401
        assert client.post("/setup", json=body, auth=("theirs", "wrong")).status_code == 401
        assert client.post("/setup", json=body, auth=("theirs", "of the package")).is_success
        assert client.get("/versions").is_success  # from this machine, without a login


def test_our_login_guards_everything_where_there_is_one(fake: FakeVllm, tmp_path: Path) -> None:
    environment = {
        **settings(fake, tmp_path / "ledger.sqlite3"),
        "BACKEND_USER": "ours",
        "BACKEND_PASSWORD": "of the backend",
    }
    body = {"project": "1.1", "schema": CASES.config("sentiment")}
    with (
        WAYS["generated"].start(environment, tmp_path) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        assert client.get("/health").is_success
        for path in ("/setup", "/predict", "/webhook"):
            assert client.post(path, json=body).status_code == 401
        for path in ("/versions", "/jobs", "/metrics"):
            assert client.get(path).status_code == 401
        assert client.post("/setup", json=body, auth=("ours", "of the backend")).is_success


def test_a_wrong_setting_stops_the_start_before_the_fork(fake: FakeVllm, tmp_path: Path) -> None:
    for name, value in (("CASES_DIR", "/nowhere"), ("BACKEND_DEADLINES", "3"), ("MODEL_TIMEOUT_S", "soon")):
        folder = tmp_path / name
        folder.mkdir()
        environment = {**settings(fake, folder / "ledger.sqlite3"), name: value}
        with pytest.raises(servers.ServerError, match=name if name != "CASES_DIR" else "/nowhere"):
            WAYS["2.x, preloaded"].start(environment, folder).__enter__()


def test_our_own_server_is_not_preloaded(fake: FakeVllm, tmp_path: Path) -> None:
    with installed(), pytest.raises(servers.ServerError, match="Start it without that option"):
        servers.start_backend(
            settings(fake, tmp_path / "ledger.sqlite3"), log=tmp_path / "log", options=("--preload",)
        )


def test_predict_works_when_setup_was_never_seen(fake: FakeVllm, tmp_path: Path) -> None:
    with (
        installed(),
        servers.start_backend(
            settings(fake, tmp_path / "ledger.sqlite3"),
            log=tmp_path / "log",
            application="draftloop.app:create_plugin_app()",
            installed="label-studio-ml",
        ) as server,
    ):
        results = predict(server.url, 7, CASES.config("sentiment"), [task(1)])
    assert results[0]["result"]
