"""What can go wrong at Label Studio and at the backend itself: nothing is lost, nothing is doubled."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from draftloop.labelling.labelling import Task
from draftloop.labelstudio import LabelStudio
from tests.conftest import LabelStudioServer, ModelServer, backend_settings
from tests.faults import (
    CASES,
    Backend,
    Call,
    Gate,
    backend_with,
    connect,
    gate_to,
    opened,
    project_of,
    results_of,
    stored,
    until,
)
from tests.verbs import environment, run, start

DEADLINE_S = 8


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as client:
        yield client
    label_studio.process.restart_if_down()


@pytest.fixture
def gate(vllm: ModelServer) -> Iterator[Gate]:
    with gate_to(vllm.url.removesuffix("/v1")) as made:
        yield made


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    """Tasks in one call: as many as Label Studio sends at once, or a sample of that."""
    return 500 if request.config.getoption("--scale") else 160


@pytest.fixture
def workers(
    label_studio: LabelStudioServer, vllm: ModelServer, gate: Gate, tmp_path: Path
) -> Iterator[Backend]:
    """A backend of two processes, with a short deadline and a gate before its model."""
    settings = backend_settings(
        label_studio, vllm, tmp_path, BACKEND_DEADLINE_S=str(DEADLINE_S), MODEL_URL=f"{gate.url}/v1"
    )
    with backend_with(settings, tmp_path, workers=2) as started:
        yield started


def owners(backend: Backend, *, late: bool) -> list[int]:
    """Return the ids of the processes that hold claims."""
    with sqlite3.connect(backend.server.ledger) as ledger:
        rows = ledger.execute("SELECT DISTINCT owner FROM claims WHERE late = ?", (int(late),)).fetchall()
    ledger.close()
    return [int(owner.split(":")[1]) for (owner,) in rows]


def test_two_people_who_open_one_task_at_two_workers_cost_one_call_and_both_see_its_draft(
    studio: LabelStudio, workers: Backend, gate: Gate
) -> None:
    project, (task,) = project_of(studio, "sentiment", 1)
    with gate_to(workers.server.url) as front, ThreadPoolExecutor(2) as people:
        connect(studio, project, workers.server, "sentiment", url=front.url)
        gate.hold_after(0)
        first = people.submit(opened, studio, task)
        until(lambda: gate.drafting() == 1)
        (worker,) = owners(workers, late=False)
        os.kill(worker, signal.SIGSTOP)  # so that the second page is answered by the other one
        try:
            second = people.submit(opened, studio, task)
            until(lambda: len(front.asked("/predict")) == 2)
            time.sleep(1)
            assert not second.done()
        finally:
            os.kill(worker, signal.SIGCONT)
        gate.release()
        assert [len(page.result()["predictions"]) for page in (first, second)] == [1, 1]
        answers = [results_of(call) for call in front.asked("/predict")]
    assert sorted(bool(items[0]) for items in answers) == [False, True]
    assert gate.drafting() == 1
    assert stored(studio, project) == {1: 1}
    assert workers.late() == 0


def test_many_tasks_in_one_call_are_answered_in_time_and_the_late_ones_follow_through_two_kills(
    studio: LabelStudio, workers: Backend, gate: Gate, count: int
) -> None:
    # What was drafted once before is in the cache: ready in time, however slow the machine is.
    before, earlier = project_of(studio, "complaint", count // 8)
    connect(studio, before, workers.server, "complaint")
    studio.retrieve_predictions(before, earlier)
    until(lambda: stored(studio, before) == {1: len(earlier)})
    known = sum(task["predictions"][0]["score"] > 0 for task in studio.tasks(before, full=True))
    assert known > 0

    project, tasks = project_of(studio, "complaint", count)
    labelling = CASES.get("complaint").labelling
    texts = {row["id"]: row["data"] for row in studio.tasks(project)}
    answered: list[float] = []
    with gate_to(workers.server.url) as front:
        front.on_answer = lambda call: answered.append(time.monotonic()) if call.path == "/predict" else None
        connect(studio, project, workers.server, "complaint", url=front.url)
        gate.hold_after(0)  # however fast the engine is, it is slower than the deadline
        asked = time.monotonic()
        studio.retrieve_predictions(project, tasks)
        (call,) = front.asked("/predict")
    # Label Studio waits 100 s where the deadline is 90.
    assert answered[0] - asked < DEADLINE_S + 10
    in_time = assert_answered_in_order(call, tasks, texts)
    assert in_time == known
    assert stored(studio, project) == {1: in_time, 0: count - in_time}
    assert workers.late() == count - in_time

    # The process that promised them dies: its sibling, or the one that follows it, keeps the promise.
    (worker,) = owners(workers, late=True)
    gate.release()
    gate.hold_after(count // 4)
    os.kill(worker, signal.SIGKILL)
    until(lambda: owners(workers, late=True) not in ([], [worker]))
    until(lambda: stored(studio, project)[1] > in_time)
    # Then all of them die, with late work in every state.
    workers.process.kill()
    assert set(stored(studio, project)) == {0, 1}
    gate.release()
    workers.process.start()
    until(lambda: workers.late() == 0, limit_s=280)
    assert stored(studio, project) == {1: count}
    for task in studio.tasks(project, full=True):
        (prediction,) = task["predictions"]
        labelling.from_regions(prediction["result"], Task(task["id"], task["data"]))
    until(lambda: all(status_matches_score(task) for task in studio.tasks(project, full=True)))
    log = workers.log()
    assert "late work taken over" in log
    assert "Traceback" not in log


def status_matches_score(task: dict[str, Any]) -> bool:
    """Check that a task shows a reason if and only if its draft needs a human."""
    needs_one = task["predictions"][0]["score"] == 0
    return bool(needs_one) == bool(task["data"]["draft_status"])


def assert_answered_in_order(call: Call, tasks: list[int], texts: dict[int, dict[str, str]]) -> int:
    """Assert that each item belongs to its task; return how many hold a draft."""
    results = results_of(call)
    assert len(results) == len(tasks)
    quoted = 0
    for task, item in zip(tasks, results, strict=True):
        if item and item["score"] > 0:  # it passed its rules: every value is quoted from the text
            for region in item["result"]:
                assert all(part in texts[task]["text"] for part in region["value"]["text"])
                quoted += 1
    assert quoted > 0
    return sum(bool(item) for item in results)


def test_label_studio_goes_down_during_prelabel_and_sync_and_the_next_runs_complete_them(
    studio: LabelStudio, label_studio: LabelStudioServer, vllm: ModelServer, gate: Gate, tmp_path: Path
) -> None:
    drafted, tasks = project_of(studio, "complaint", 260)
    corrected, submitted = project_of(studio, "sentiment", 12)
    region = {
        "from_name": "sentiment",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": ["neutral"]},
    }
    for task in submitted:
        studio.submit_annotation(task, [region])
    env = environment(
        label_studio,
        tmp_path,
        MODEL_URL=f"{gate.url}/v1",
        MODEL_NAME=vllm.name,
        MODEL_PROFILE="compact",
    )
    prelabel = ("prelabel", "--project", drafted.id, "--case", "complaint", "--out", tmp_path / "records")
    sync = ("sync", "--project", corrected.id, "--case", "sentiment", "--out", tmp_path / "dataset")
    gate.hold_after(230)  # a batch is stored once it has 200 drafts
    drafting = start(env, *prelabel)
    until(lambda: stored(studio, drafted)[1] >= 100)  # the first batch
    with gate_to(label_studio.url) as front:

        def stop(call: Call) -> None:
            if call.path == "/api/tasks/":  # in the middle of reading
                label_studio.process.kill()

        front.on_answer = stop
        syncing = start(env, *sync, "--url", front.url)
        until(lambda: bool(front.asked("/api/tasks/")))
        gate.release()
        for process in (drafting, syncing):
            out, err = process.communicate(timeout=120)
            assert process.returncode == 1, out
            assert "does not answer" in err
            assert "LABEL_STUDIO_URL" in err
            assert "Run the same command again" in err
            assert "Traceback" not in err
    assert not (tmp_path / "dataset" / "manifest.json").exists()

    label_studio.process.start()
    half = stored(studio, drafted)
    assert half[1] >= 100
    assert half[0] > 0
    code, _, err = run(env, *prelabel)
    assert code == 0, err
    code, out, err = run(env, *sync)
    assert code == 0, err
    assert "12 samples" in out
    assert stored(studio, drafted) == {1: len(tasks)}
    assert len((tmp_path / "records").read_text(encoding="utf-8").splitlines()) == len(tasks)
    assert "nothing new" in run(env, *sync)[1]
