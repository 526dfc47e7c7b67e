"""The flow under label-studio-ml 1.0.9's own server: what Label Studio measures of it, beside our own."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.edge.cases import Cases
from scripts import servers
from tests.conftest import installed
from tests.fake_vllm import FakeVllm, fake_vllm

CASES = Cases(servers.ROOT / "label_config")
UNSUPPORTED = '<View><Image name="i" value="$i"/><Brush name="b" toName="i"/></View>'
MODEL_PY = "from backend.app import make_plugin\n\nDraftloop = make_plugin()\n"


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


@pytest.fixture(scope="module", params=["mounted", "generated"])
def theirs(
    request: pytest.FixtureRequest, fake: FakeVllm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Start it as docs/label-studio-ml.md says: our application, or a folder that its `init` made."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = settings(fake, folder / "ledger.sqlite3")
    with installed():
        application = "backend.app:create_plugin_app()"
        if request.param == "generated":
            (folder / "model.py").write_text(MODEL_PY)
            verb = str(servers.environment("label-studio-ml") / "bin" / "label-studio-ml")
            command = [verb, "init", "drafts", "--script", "model.py:Draftloop"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            folder, application = folder / "drafts", "_wsgi:app"
        with servers.start_backend(
            environment,
            log=folder / "log",
            application=application,
            folder=folder,
            installed="label-studio-ml",
        ) as server:
            yield server.url


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
        expected, found = (predict(url, project, CASES.config(case), tasks) for url in (ours, theirs))
        assert without_ids(found) == without_ids(expected)
        assert {result["model_version"] for result in found} == {versions[theirs, project]}


def test_a_config_edited_since_the_set_up_keeps_its_case(ours: str, theirs: str) -> None:
    edited = CASES.config("sentiment").replace("neutral", "mixed")
    for url in (ours, theirs):
        setup(url, 9, CASES.config("sentiment"), {"case": "sentiment"})
    expected, found = (predict(url, 9, edited, [task(1)]) for url in (ours, theirs))
    assert without_ids(found) == without_ids(expected)


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


def test_predict_works_when_setup_was_never_seen(fake: FakeVllm, tmp_path: Path) -> None:
    with (
        installed(),
        servers.start_backend(
            settings(fake, tmp_path / "ledger.sqlite3"),
            log=tmp_path / "log",
            application="backend.app:create_plugin_app()",
            installed="label-studio-ml",
        ) as server,
    ):
        results = predict(server.url, 7, CASES.config("sentiment"), [task(1)])
    assert results[0]["result"]
