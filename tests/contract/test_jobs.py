"""Training jobs over one ledger: one at a time whoever asks, and what is said of one that dies."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from draftloop.errors import SetupError
from draftloop.flywheel.jobs import BUTTON, Jobs
from draftloop.ledger.sqlite import JobRecord, Ledger
from tests.fake_label_studio import fake_label_studio
from tests.verbs import run_here

GONE = f"{os.uname().nodename}:4194305:1"  # above the highest process number there can be


@dataclass
class Started:
    """The process of a job, as the test wants it: it does `work`, and ends with `code`."""

    jobs: queue.Queue[JobRecord] = field(default_factory=queue.Queue)
    ends: threading.Event = field(default_factory=threading.Event)
    work: Callable[[JobRecord], None] = lambda _: None
    code: int = 0

    def __call__(self, job: JobRecord) -> "Started":
        self.jobs.put(job)
        self.work(job)
        return self

    def wait(self) -> int:
        self.ends.wait(10)
        return self.code


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.sqlite3"


@pytest.fixture
def process() -> Iterator[Started]:
    started = Started()
    yield started
    started.ends.set()


def ended(ledger: Ledger) -> JobRecord:
    """Wait until the newest job has ended."""
    limit = time.monotonic() + 10
    while (job := ledger.jobs()[0]).state == "running":
        assert time.monotonic() < limit
        time.sleep(0.01)
    return job


def test_however_many_ask_at_once_in_however_many_workers_one_job_begins(url: str, process: Started) -> None:
    Ledger(url)
    barrier = threading.Barrier(8)

    def ask(_: int) -> tuple[JobRecord, bool]:
        jobs = Jobs(Ledger(url), process)
        barrier.wait()
        return jobs.ask(7, 3)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert [new for _, new in answers].count(True) == 1
    assert {job.id for job, _ in answers} == {1}
    assert process.jobs.get(timeout=10).why == BUTTON
    assert process.jobs.empty()


def test_a_job_of_another_project_has_to_end_first(url: str, process: Started) -> None:
    ledger = Ledger(url)
    jobs = Jobs(ledger, process)
    jobs.ask(7, 3)
    with pytest.raises(SetupError, match=r"job of project 7 goes on \(step: start\)"):
        jobs.ask(8, 3)
    ledger.end_job(1, "promoted", "It drafts.")
    job, new = jobs.ask(8, 3)
    assert (job.id, job.project, new) == (2, 8, True)
    assert [(one["id"], one["state"], one["told"]) for one in jobs.listed(None)] == [
        (2, "running", ""),
        (1, "promoted", "It drafts."),
    ]
    assert [one["id"] for one in jobs.listed(8)] == [2]


@pytest.mark.parametrize(("owner", "lease_s"), [(GONE, 60.0), ("elsewhere:1:1", -1.0)])
def test_a_job_that_died_is_listed_and_the_next_one_begins(
    url: str, process: Started, owner: str, lease_s: float
) -> None:
    died = Ledger(url, owner=owner)
    died.begin_job(7, BUTTON, 3, lease_s)
    jobs = Jobs(Ledger(url), process)
    (listed,) = jobs.listed(7)
    assert (listed["state"], listed["told"]) == ("killed", "Its process ended without a word.")
    assert listed["ended"] is not None
    assert jobs.ask(7, 3)[1]
    # Should it still run, it learns that it is not the owner any more, and changes nothing.
    assert not died.keep_job(1, "promote", 60)
    died.end_job(1, "promoted", "")
    with pytest.raises(SetupError, match="Job 1 does not run"):
        died.take_job(1, 60)
    assert [job.state for job in died.jobs()] == ["running", "killed"]


def test_a_job_is_the_process_s_that_took_it_over(url: str, process: Started) -> None:
    begun, taken = Ledger(url), Ledger(url, owner=f"{os.uname().nodename}:{os.getpid()}:x")
    taken_over = Ledger(url, owner="elsewhere:1:1")
    job, _ = begun.begin_job(7, BUTTON, 3, 60)
    assert taken_over.take_job(job.id, 60).owner == "elsewhere:1:1"
    assert taken_over.keep_job(job.id, "train", 60)
    begun.end_job(job.id, "failed", "not mine")
    assert [(one.state, one.step) for one in taken.jobs()] == [("running", "train")]
    taken_over.end_job(job.id, "refused", "Worse.")
    assert [(one.state, one.told) for one in taken.jobs()] == [("refused", "Worse.")]


def test_a_process_that_ends_before_it_took_its_job_over_has_failed(url: str, process: Started) -> None:
    ledger = Ledger(url)
    process.code = 1
    process.ends.set()
    Jobs(ledger, process).ask(7, 3)
    job = ended(ledger)
    assert (job.state, job.told) == ("failed", "It could not begin (exit status 1); see the log.")


def test_enough_new_annotations_start_a_job_and_count_from_then_on(url: str, process: Started) -> None:
    ledger = Ledger(url)
    jobs = Jobs(ledger, process, after=5)
    process.ends.set()
    jobs.note(7, 4)
    assert ledger.jobs() == []
    jobs.note(7, 5)
    assert ended(ledger).why == "new annotations: 5"
    for count in (5, 9):
        jobs.note(7, count)
    assert len(ledger.jobs()) == 1
    jobs.note(8, 5)
    ended(ledger)
    jobs.note(7, 10)
    ended(ledger)
    assert [(job.project, job.annotations) for job in ledger.jobs()] == [(7, 10), (8, 5), (7, 5)]
    Jobs(ledger, process).note(7, 1000)  # after=0: never
    assert len(ledger.jobs()) == 3


def test_missing_setup_is_an_error_and_trains_nothing(url: str, process: Started) -> None:
    def check() -> None:
        raise SetupError("There is no model to train on.", hint="Set FLYWHEEL_BASE.")

    ledger = Ledger(url)
    jobs = Jobs(ledger, process, after=1, check=check)
    with pytest.raises(SetupError, match="no model to train on"):
        jobs.ask(7, 3)
    jobs.note(7, 3)
    with pytest.raises(SetupError, match="does not say which project"):
        Jobs(ledger, process).ask(0, 3)
    assert ledger.jobs() == []
    assert process.jobs.empty()


def test_the_verb_begins_no_job_beside_another_and_lists_them(url: str, tmp_path: Path) -> None:
    ledger = Ledger(url)
    ledger.begin_job(7, BUTTON, 3, 60)
    with fake_label_studio("<View/>", 3, lambda number: {"text": str(number)}) as studio:
        env = {"LEDGER_URL": url, "LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": "a-token"}
        code, _, err = run_here(env, "retrain", "--project", 1)
        assert (code, "Job 1 goes on, of project 7 (step: start)." in err) == (1, True), err
        code, _, err = run_here({**env, "MODEL_NAME": "elsewhere"}, "retrain", "--project", 1)
        assert (code, "There is no model to train on" in err) == (1, True), err
        code, _, err = run_here({**env, "LABEL_STUDIO_API_KEY": ""}, "retrain", "--project", 1)
        assert (code, "LABEL_STUDIO_API_KEY is not set" in err) == (1, True), err
    ledger.end_job(1, "failed", "12 rows are too few.")
    code, out, _ = run_here({"LEDGER_URL": url}, "retrain", "--list")
    assert code == 0
    assert "project 7  failed (start), by Label Studio's button. 12 rows are too few." in out
    code, out, _ = run_here({"LEDGER_URL": url}, "retrain", "--list", "--project", 8)
    assert out == "there was no job yet\n"
    assert run_here({"LEDGER_URL": url}, "retrain")[0] == 2
    code, _, err = run_here({"LEDGER_URL": f"sqlite:///{tmp_path}/none"}, "retrain", "--list")
    assert (code, "There is no ledger" in err) == (1, True)
