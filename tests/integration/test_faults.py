"""What can go wrong at the model, on real servers: what people see, and that nothing is lost or doubled."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from draftloop.labelstudio import LabelStudio
from draftloop.support.environments import ROOT
from tests.conftest import (
    BackendServer,
    LabelStudioServer,
    ModelServer,
    backend_settings,
    missing,
)
from tests.faults import (
    Gate,
    backend_with,
    connect,
    fill,
    gate_to,
    opened,
    project_of,
    stored,
    until,
)
from tests.verbs import environment, start


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as client:
        yield client


@pytest.fixture
def engine(vllm: ModelServer) -> Iterator[ModelServer]:
    """vLLM, which the test may take down."""
    yield vllm
    vllm.process.restart_if_down()


@pytest.fixture
def gate(engine: ModelServer) -> Iterator[Gate]:
    """A gate before vLLM; its `/v1` is what a model's URL is."""
    with gate_to(engine.url.removesuffix("/v1")) as made:
        yield made


def test_a_model_server_that_dies_during_prelabel_and_comes_back_costs_no_task(
    studio: LabelStudio, label_studio: LabelStudioServer, engine: ModelServer, gate: Gate, tmp_path: Path
) -> None:
    bulk, tasks = project_of(studio, "complaint", 120)
    single, (alone,) = project_of(studio, "sentiment", 1)
    at_gate = {"MODEL_URL": f"{gate.url}/v1", "MODEL_NAME": engine.name, "MODEL_PROFILE": "compact"}
    gate.hold_after(40)
    prelabel = start(
        environment(label_studio, tmp_path, **at_gate),
        *("prelabel", "--project", bulk.id, "--case", "complaint", "--out", tmp_path / "records.jsonl"),
    )
    until(lambda: gate.drafting() > 40)
    engine.process.kill()
    gate.release()

    # What a page and an admin see while nobody answers at the model.
    settings = backend_settings(label_studio, engine, tmp_path, **at_gate)
    with backend_with(settings, tmp_path) as backend:
        connect(studio, single, backend.server, "sentiment")
        began = time.monotonic()
        assert opened(studio, alone)["predictions"] == []
        assert time.monotonic() - began < 40, "the page waited for the deadline of 60 s"
        ready = backend.get("/ready")
        assert ready.status_code == 503
        assert "cannot be reached" in ready.json()["error"]
        assert "MODEL_URL" in ready.json()["hint"]
        assert backend.get("/health").status_code == 200
        assert backend.late() == 1
        assert prelabel.poll() is None

        engine.process.start()
        out, err = prelabel.communicate(timeout=240)
        assert prelabel.returncode == 0, err
        assert "120 drafted" in out
        assert "0 failed" in out
        assert "Traceback" not in err
        until(lambda: backend.late() == 0)
        assert "Traceback" not in backend.log()
    assert stored(studio, bulk) == {1: len(tasks)}
    assert stored(studio, single) == {1: 1}


def test_a_page_opens_though_the_model_server_stands_still_and_its_draft_follows(
    studio: LabelStudio, label_studio: LabelStudioServer, engine: ModelServer, tmp_path: Path
) -> None:
    project, tasks = project_of(studio, "sentiment", 3)
    settings = backend_settings(label_studio, engine, tmp_path, BACKEND_DEADLINE_S="3", MODEL_TIMEOUT_S="2")
    with backend_with(settings, tmp_path) as backend:
        connect(studio, project, backend.server, "sentiment")
        engine.process.signal(signal.SIGSTOP)
        with ThreadPoolExecutor(3) as pool:
            pages = list(pool.map(lambda task: opened(studio, task), tasks))
        assert [page["predictions"] for page in pages] == [[], [], []]
        assert backend.late() == 3
        time.sleep(3)  # past the time limit of a request: it is given up and asked again
        engine.process.signal(signal.SIGCONT)
        until(lambda: backend.late() == 0)
        assert stored(studio, project) == {1: 3}
        assert len(opened(studio, tasks[0])["predictions"]) == 1
        assert "Traceback" not in backend.log()


def test_a_wrong_model_name_is_reported_and_tasks_are_drafted_once_corrected(
    studio: LabelStudio,
    label_studio: LabelStudioServer,
    vllm: ModelServer,
    backend: BackendServer,
    tmp_path: Path,
) -> None:
    project, tasks = project_of(studio, "sentiment", 4)
    settings = backend_settings(label_studio, vllm, tmp_path, MODEL_NAME="Qwen3-4B")
    with backend_with(settings, tmp_path) as wrong:
        connect(studio, project, wrong.server, "sentiment")
        studio.retrieve_predictions(project, tasks)
        assert stored(studio, project) == {0: 4}
        ready = wrong.get("/ready")
        assert ready.status_code == 503
        assert "does not serve 'Qwen3-4B'; it serves: tiny-qwen3" in ready.json()["error"]
        assert "MODEL_NAME" in ready.json()["hint"]
        assert wrong.late() == 0
        assert "the model cannot draft yet" in wrong.log()
        assert "Traceback" not in wrong.log()
    connect(studio, project, backend, "sentiment")
    studio.retrieve_predictions(project, tasks)
    until(lambda: stored(studio, project) == {1: 4})


def test_an_answer_that_is_cut_is_an_empty_draft_with_its_reason_in_the_page(
    studio: LabelStudio, label_studio: LabelStudioServer, vllm: ModelServer, tmp_path: Path
) -> None:
    project, tasks = project_of(studio, "complaint", 3)
    with backend_with(backend_settings(label_studio, vllm, tmp_path, MODEL_MAX_TOKENS="6"), tmp_path) as cut:
        connect(studio, project, cut.server, "complaint")
        studio.retrieve_predictions(project, tasks)
        until(lambda: stored(studio, project) == {1: len(tasks)})
        for page in studio.tasks(project, full=True):
            (prediction,) = page["predictions"]
            assert (prediction["result"], prediction["score"]) == ([], 0)
            assert "There is no draft" in page["data"]["draft_status"]
            assert "The answer was cut at 6 tokens." in page["data"]["draft_status"]
        assert "Traceback" not in cut.log()


def test_a_schema_that_the_engine_refuses_is_checked_after_decoding(
    studio: LabelStudio, label_studio: LabelStudioServer, vllm: ModelServer, tmp_path: Path
) -> None:
    cases = tmp_path / "cases"
    shutil.copytree(ROOT / "label_config" / "complaint", cases / "complaint")
    schema = json.loads((cases / "complaint" / "schema.json").read_text(encoding="utf-8"))
    schema["properties"]["question"]["pattern"] = (
        "^(?!no)"  # a look-ahead: Python knows it, guidance does not
    )
    (cases / "complaint" / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    project, tasks = project_of(studio, "complaint", 2)
    settings = backend_settings(label_studio, vllm, tmp_path, CASES_DIR=str(cases))
    with backend_with(settings, tmp_path) as backend:
        connect(studio, project, backend.server, "complaint")
        studio.retrieve_predictions(project, tasks)
        until(lambda: stored(studio, project) == {1: len(tasks)})
        for page in studio.tasks(project, full=True):
            (prediction,) = page["predictions"]
            assert prediction["result"]
            assert "refused" not in page["data"]["draft_status"]
        assert "schema not enforced while decoding" in backend.log()
        assert "Traceback" not in backend.log()


def test_a_full_disk_costs_no_draft(
    studio: LabelStudio, label_studio: LabelStudioServer, vllm: ModelServer, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        missing("A full disk is tried on a small file system of its own, which only root may mount.")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        # Cache and ledger on it, as their defaults share a disk.
        settings = backend_settings(label_studio, vllm, disk)
        project, tasks = project_of(studio, "complaint", 24)
        with backend_with(settings, tmp_path) as backend:
            connect(studio, project, backend.server, "complaint")
            studio.retrieve_predictions(project, tasks[:8])
            until(lambda: stored(studio, project) == {1: 8, 0: 16})  # a slow machine answers late
            assert "cache not written" not in backend.log()
            fill(disk / "filler")
            studio.retrieve_predictions(project, tasks[:16])
            until(lambda: stored(studio, project) == {1: 16, 0: 8})
            assert "cache not written" in backend.log()
            assert "full" in backend.log()
            assert backend.get("/versions").status_code == 200
            (disk / "filler").unlink()
            log_length = len(backend.log())
            studio.retrieve_predictions(project, tasks)
            until(lambda: stored(studio, project) == {1: 24})
            assert "cache not written" not in backend.log()[log_length:]
            assert "Traceback" not in backend.log()
    finally:
        subprocess.run(["umount", disk], check=True)
