"""Deadlines, claims and late work: exactly one prediction per task, whatever is slow or dies."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.labelling.labelling import Task
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.serving.answers import Answers
from draftloop.serving.seams import Pace
from tests.fake_board import FakeBoard
from tests.fake_vllm import FakeVllm, fake_vllm

CASES = Cases(Path(__file__).parents[2] / "label_config")
CASE = CASES.get("sentiment")
PROJECT = 7
QUICK = Pace(patience_s=0.5, late_every_s=0.05, take_over_every_s=0.2)


def tasks(count: int) -> list[Task]:
    return [Task(number, {"text": f"text {number}", "draft_status": ""}) for number in range(1, count + 1)]


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        yield server


@pytest.fixture
def drafter(fake: FakeVllm) -> Iterator[Drafter]:
    with VllmModel(fake.url, fake.name) as model:
        made = Drafter(model, AskOptions(profile="compact"), concurrency=4)
        yield made
        made.close()


@pytest.fixture
def board() -> FakeBoard:
    held = {task.id: task.data for task in tasks(60)}
    return FakeBoard(config=CASES.config("sentiment"), case="sentiment", tasks=held, project=PROJECT)


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.sqlite3"


def until(true: Callable[[], bool], limit_s: float = 20) -> None:
    ends = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.05)


def stored(board: FakeBoard) -> list[int]:
    return sorted(prediction["task"] for prediction in board.predictions)


def test_what_is_late_is_written_behind_the_answer_once_each(
    fake: FakeVllm, drafter: Drafter, board: FakeBoard, ledger_url: str
) -> None:
    fake.delay_s = 0.1
    ledger = Ledger(ledger_url)
    answers = Answers(drafter, ledger, CASES.find, board, deadline_s=0.5, pace=QUICK)
    answers.start()
    drafts = answers.answer(PROJECT, CASE, tasks(60))
    ready = [draft.task_id for draft in drafts if draft]
    assert len(drafts) == 60
    assert len(ready) < 60
    until(lambda: answers.late() == 0)
    # What Label Studio was answered it stores itself; the rest was written, nothing twice.
    assert stored(board) == sorted({task.id for task in tasks(60)} - set(ready))
    assert len(fake.asked) == 60


def test_late_work_of_a_process_that_died_is_done_by_the_next(
    fake: FakeVllm, drafter: Drafter, board: FakeBoard, ledger_url: str
) -> None:
    dead = Ledger(ledger_url, owner="elsewhere:1:1")
    version = drafter.version(CASE).name
    dead.claim(PROJECT, [1, 2, 3, 99], version, 60)
    dead.extend([1, 2, 3, 99], version, -1, late=True)  # its lease ended; task 99 was deleted
    answers = Answers(drafter, Ledger(ledger_url), CASES.find, board, deadline_s=5, pace=QUICK)
    answers.start()
    until(lambda: answers.late() == 0)
    assert stored(board) == [1, 2, 3]


def test_a_mistake_of_ours_in_one_late_answer_costs_only_that_answer(
    fake: FakeVllm, drafter: Drafter, board: FakeBoard, ledger_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(FakeBoard):
        def write(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
            if any(prediction["task"] == 2 for prediction in predictions):
                raise RuntimeError("words of task 2")
            super().write(project, predictions)

    fake.delay_s = 0.3
    broken = Broken(config=board.config, case=board.case, tasks=board.tasks, project=PROJECT)
    answers = Answers(drafter, Ledger(ledger_url), CASES.find, broken, deadline_s=0.1, pace=QUICK)
    answers.start()
    for round_of_two in (tasks(3), tasks(5)[3:]):  # the thread goes on: what comes later is written too
        assert answers.answer(PROJECT, CASE, round_of_two) == [None] * len(round_of_two)
        until(lambda: answers.late() == 0)
    assert stored(broken) == [1, 3, 4, 5]
    log = capsys.readouterr().out
    assert "late answer broke" in log
    assert "test_answers.py" in log
    assert "words of task 2" not in log


def test_late_work_of_a_dead_process_waits_until_label_studio_is_back(
    drafter: Drafter, board: FakeBoard, ledger_url: str
) -> None:
    dead = Ledger(ledger_url, owner="elsewhere:1:1")
    version = drafter.version(CASE).name
    dead.claim(PROJECT, [1, 2], version, 60)
    dead.extend([1, 2], version, -1, late=True)
    board.down = True
    answers = Answers(drafter, Ledger(ledger_url), CASES.find, board, deadline_s=5, pace=QUICK)
    answers.start()
    time.sleep(1)
    assert answers.late() == 2
    board.down = False
    until(lambda: answers.late() == 0)
    assert stored(board) == [1, 2]


def test_late_work_in_an_older_version_is_left_to_whoever_drafts_the_newer_one(
    fake: FakeVllm, drafter: Drafter, board: FakeBoard, ledger_url: str
) -> None:
    dead, alive = Ledger(ledger_url, owner="elsewhere:1:1"), Ledger(ledger_url, owner="elsewhere:2:2")
    dead.claim(PROJECT, [1, 2], "older", 60)
    dead.extend([1, 2], "older", -1, late=True)
    alive.claim(PROJECT, [2], drafter.version(CASE).name, 60)
    answers = Answers(drafter, Ledger(ledger_url), CASES.find, board, deadline_s=5, pace=QUICK)
    answers.start()
    until(lambda: answers.late() == 0)
    assert stored(board) == [1]
    assert len(fake.asked) == 1


def test_late_work_waits_until_label_studio_is_back(
    fake: FakeVllm, drafter: Drafter, board: FakeBoard, ledger_url: str
) -> None:
    fake.delay_s = 0.3
    board.down = True
    answers = Answers(drafter, Ledger(ledger_url), CASES.find, board, deadline_s=0.1, pace=QUICK)
    answers.start()
    assert answers.answer(PROJECT, CASE, tasks(3)) == [None, None, None]
    until(lambda: len(fake.asked) == 3)
    time.sleep(1.5)
    assert answers.late() == 3
    board.down = False
    until(lambda: answers.late() == 0)
    assert stored(board) == [1, 2, 3]
    assert len(fake.asked) == 3


def test_two_pages_of_one_task_cost_one_model_call_and_leave_one_prediction(
    fake: FakeVllm, drafter: Drafter, board: FakeBoard, ledger_url: str
) -> None:
    fake.delay_s = 0.5
    # Two workers, each with a ledger object of its own on the same file.
    workers = [
        Answers(drafter, Ledger(ledger_url), CASES.find, board, deadline_s=10, pace=QUICK) for _ in range(2)
    ]
    begin = threading.Barrier(2)

    def page(worker: Answers) -> bool:
        begin.wait()
        draft = worker.answer(PROJECT, CASE, tasks(1))[0]
        if draft is not None:  # what Label Studio does with an answer
            board.write(PROJECT, [{"task": 1, **(draft.prediction() or {})}])
        # Whoever is answered, with a draft or with nothing, finds the prediction there.
        return board.has_prediction(1, drafter.version(CASE).name)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(page, workers)) == [True, True]
    assert len(fake.asked) == 1
    assert stored(board) == [1]


def test_a_second_caller_drafts_itself_when_the_first_one_failed(
    fake: FakeVllm, drafter: Drafter, ledger_url: str
) -> None:
    fake.delay_s = 0.3
    fake.fail = lambda _: 400 if len(fake.asked) == 1 else None
    answers = Answers(drafter, Ledger(ledger_url), CASES.find, None, deadline_s=5, pace=QUICK)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: answers.answer(PROJECT, CASE, tasks(1))[0], range(2)))
    assert {draft.status for draft in both if draft} == {"ok", "undecodable"}


def test_tasks_of_other_callers_are_waited_for_beside_each_other(
    fake: FakeVllm, drafter: Drafter, board: FakeBoard, ledger_url: str
) -> None:
    other, version = Ledger(ledger_url, owner="elsewhere:1:1"), drafter.version(CASE).name
    other.claim(PROJECT, [1, 2, 3], version, 60)
    answers = Answers(drafter, Ledger(ledger_url), CASES.find, board, deadline_s=5, pace=QUICK)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(answers.answer, PROJECT, CASE, tasks(4))
        until(lambda: len(fake.asked) == 1)
        other.release([2, 3], version)  # given up; task 1 stays the other caller's to the end
        drafts = call.result()
    assert [draft and draft.task_id for draft in drafts] == [None, 2, 3, 4]
    assert len(fake.asked) == 3


def test_a_page_does_not_wait_for_a_model_server_that_is_not_there(board: FakeBoard, ledger_url: str) -> None:
    with VllmModel("http://127.0.0.1:9/v1", "x", context_tokens=1) as model:
        drafter = Drafter(model, concurrency=2)
        answers = Answers(drafter, Ledger(ledger_url), CASES.find, board, deadline_s=60, pace=QUICK)
        started = time.monotonic()
        assert answers.answer(PROJECT, CASE, tasks(1)) == [None]
        assert time.monotonic() - started < 30, "it waited for the deadline"
        assert answers.late() == 1
        drafter.close()


def test_a_ledger_that_fails_costs_no_draft(drafter: Drafter, board: FakeBoard, tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    answers = Answers(drafter, ledger, CASES.find, board, deadline_s=5, pace=QUICK)
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as other:
        other.execute("DROP TABLE claims")
        other.execute("DROP TABLE versions")
    other.close()
    drafts = answers.answer(PROJECT, CASE, tasks(3))
    assert [draft.status for draft in drafts if draft] == ["ok"] * 3
