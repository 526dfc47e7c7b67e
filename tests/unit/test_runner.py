"""Runs: scripts that hang, fail and are mended, deadlines, what a model reads of them, and cleaning up."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from draftloop.errors import ServiceError, SetupError, TaskError, Unreachable
from draftloop.execution.runner import Runner, describe_attempt
from draftloop.prompting.prompt import Message
from draftloop.runs.job import Attempt, Limits, Refused, SandboxJob, Script, Step
from draftloop.runs.run import InputFile, run_key
from tests.code_runs import sha256
from tests.fake_sandbox import FakeLoop, FakeSandbox, FakeStore, python

GONE = Unreachable("The sandbox does not answer.")


@pytest.fixture
def sandbox() -> FakeSandbox:
    return FakeSandbox()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def runner(sandbox: FakeSandbox, store: FakeStore, tmp_path: Path) -> Runner:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "runs").mkdir()
    return Runner(
        sandbox, FakeLoop(), store, inputs_root=tmp_path / "inputs", folder=tmp_path / "runs", total_s=5
    )


def answers(
    *codes: str | None,
) -> tuple[list[Sequence[Message]], Callable[[Sequence[Message]], Script | None]]:
    """Make a model that answers with these scripts, and the list of what it is asked."""
    asked: list[Sequence[Message]] = []
    left = list(codes)

    def ask_again(messages: Sequence[Message]) -> Script | None:
        asked.append(messages)
        code = left.pop(0)
        return None if code is None else python(code)

    return asked, ask_again


def drafted(runner: Runner, first: str, *codes: str | None, **more: Any) -> Any:
    options: dict[str, Any] = {"limit_s": 30, "version": "v", **more}
    outputs = options.pop("outputs", ())
    return runner.draft("Count", (), outputs, python(first), answers(*codes)[1], **options)


def test_a_script_that_ends_well_is_the_last_and_the_model_is_not_asked(
    runner: Runner, store: FakeStore, sandbox: FakeSandbox
) -> None:
    run = drafted(runner, "# print 42\n# leave n.txt", outputs=["n.txt"])
    assert (run.ok, len(run.attempts), run.last.stdout, run.origin, run.version) == (
        True,
        1,
        "42\n",
        "draft",
        "v",
    )
    assert run.key == run_key([python("# print 42\n# leave n.txt")], ())
    assert store.runs == {run.key: run}
    assert list(store.contents.values()) == [b"content of n.txt"]
    assert [folder.exists() for folder in sandbox.folders] == [False]


def test_a_failure_is_reported_and_the_second_script_is_the_run(runner: Runner, store: FakeStore) -> None:
    asked, ask_again = answers("# print right")
    run = runner.draft("Count", (), (), python("# fail city"), ask_again, limit_s=30)
    assert [attempt.outcome for attempt in run.attempts] == ["failed", "ok"]
    assert run.script == python("# print right")
    assert list(store.runs) == [run_key([run.script], ())]
    assert [(message.role, message.content.splitlines()[0]) for message in asked[0]] == [
        ("assistant", "# fail city"),
        ("user", "exit status 1"),
    ]
    assert "KeyError: city" in asked[0][1].content


def test_a_missing_file_is_reported_though_the_script_ended_well(runner: Runner) -> None:
    asked, ask_again = answers("# leave report.md")
    run = runner.draft("Count", (), ["report.md"], python("# print done"), ask_again, limit_s=30)
    assert [attempt.outcome for attempt in run.attempts] == ["ok", "ok"]
    assert "Missing or empty: report.md" in asked[0][-1].content


def test_scripts_that_never_work_end_after_the_turns(runner: Runner) -> None:
    run = drafted(runner, "# fail 1", "# fail 2", "# fail 3", "# fail 4")
    assert [attempt.steps[0].script.code for attempt in run.attempts] == ["# fail 1", "# fail 2", "# fail 3"]
    assert not run.ok


def test_a_model_that_gives_up_leaves_the_last_attempt(runner: Runner) -> None:
    run = drafted(runner, "# exit 3", None)
    assert (len(run.attempts), run.last.exit_status, run.ok) == (1, 3, False)


def test_a_script_that_hangs_is_a_timeout_of_its_own(
    sandbox: FakeSandbox, store: FakeStore, tmp_path: Path
) -> None:
    runner = Runner(sandbox, FakeLoop(), store, inputs_root=tmp_path, limits=Limits(wall_s=0.1))
    run = drafted(runner, "# hang", "# print quick")
    assert [attempt.outcome for attempt in run.attempts] == ["timeout", "ok"]


def test_the_deadline_ends_what_runs_and_nothing_is_asked_after_it(runner: Runner) -> None:
    began = time.monotonic()
    run = drafted(runner, "# hang", "# print never", limit_s=0.3)
    assert time.monotonic() - began < 3
    assert [(attempt.outcome, attempt.reason) for attempt in run.attempts] == [
        ("timeout", "Stopped: the time for this task was over.")
    ]


def test_a_run_can_be_cancelled(runner: Runner) -> None:
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    run = drafted(runner, "# hang", "# print never", cancelled=cancelled)
    assert [attempt.outcome for attempt in run.attempts] == ["killed"]


def test_a_sandbox_that_is_gone_is_an_error_and_leaves_nothing(
    runner: Runner, sandbox: FakeSandbox, store: FakeStore, tmp_path: Path
) -> None:
    sandbox.trouble = GONE
    with pytest.raises(ServiceError):
        drafted(runner, "# print 1")
    with pytest.raises(ServiceError):
        runner.rerun([python("# print 1")], (), origin="human")
    assert store.runs == {}
    assert list((tmp_path / "runs").iterdir()) == []
    sandbox.trouble = None
    assert drafted(runner, "# print 1").ok


def test_a_loop_that_ends_in_the_middle_costs_no_attempt(
    sandbox: FakeSandbox, store: FakeStore, tmp_path: Path
) -> None:
    loop = FakeLoop(trouble=ServiceError("gone"), ends_after=1)
    run = drafted(Runner(sandbox, loop, store, inputs_root=tmp_path), "# print 1")
    assert run.ok
    with pytest.raises(ServiceError):
        drafted(
            Runner(sandbox, FakeLoop(trouble=ServiceError("gone")), store, inputs_root=tmp_path), "# print 1"
        )


def test_final_code_is_run_once_as_it_is(runner: Runner, sandbox: FakeSandbox, store: FakeStore) -> None:
    chain = [python("# fail first"), python("# print never")]
    run = runner.rerun(chain, (), origin="human", limits=Limits(wall_s=7), cold=True)
    assert (run.key, run.origin, len(run.attempts), run.ok) == (run_key(chain, ()), "human", 1, False)
    assert store.runs == {run.key: run}
    assert (sandbox.jobs[0].cold, sandbox.jobs[0].limits.wall_s) == (True, 7)


def test_a_gates_run_does_not_take_the_place_of_the_one_that_it_checks(
    runner: Runner, store: FakeStore
) -> None:
    run = drafted(runner, "# print 1")
    assert runner.rerun([run.script], (), origin="gate").ok
    assert store.runs == {run.key: run}


def test_programs_with_one_key_run_as_the_same_bytes_and_keep_their_text(
    runner: Runner, sandbox: FakeSandbox
) -> None:
    codes = ["# print 1", "# print 1\n", "# print 1 \r\n"]
    runs = [runner.rerun([python(code)], (), origin="human") for code in codes]
    assert len({run.key for run in runs}) == 1
    assert [job.scripts for job in sandbox.jobs] == [(python("# print 1"),)] * 3
    assert [run.script.code for run in runs] == codes
    assert drafted(runner, codes[2]).script.code == codes[2]


def test_inputs_are_those_of_the_project_and_what_they_were(
    runner: Runner, sandbox: FakeSandbox, tmp_path: Path
) -> None:
    own = tmp_path / "inputs" / "projects" / "7" / "销售"
    own.mkdir(parents=True)
    (own / "a.csv").write_text("x\n1\n")
    script, file = [python("# print 1")], InputFile("a.csv", "销售/a.csv", 4, sha256(b"x\n1\n"))
    runner.rerun(script, [file], origin="human", project=7)
    assert sandbox.jobs[0].inputs == {"a.csv": str(own / "a.csv")}
    for project in (8, 0):
        with pytest.raises(TaskError, match="not among the project's files"):
            runner.rerun(script, [file], origin="human", project=project)
        with pytest.raises(TaskError, match="not among the project's files"):
            runner.draft("x", [file], (), script[0], lambda _: None, limit_s=5, project=project)
    assert len(sandbox.jobs) == 1


class Changing(FakeSandbox):
    """Has somebody change an input while code runs."""

    path: Path
    content: str

    def run(self, job: SandboxJob, outputs: str, *, cancelled: threading.Event | None = None) -> Attempt:
        self.path.write_text(self.content)
        return super().run(job, outputs, cancelled=cancelled)


def test_an_input_that_changes_while_code_runs_spoils_the_run(store: FakeStore, tmp_path: Path) -> None:
    sandbox = Changing()
    sandbox.path, sandbox.content = tmp_path / "shared" / "a.csv", "2"
    sandbox.path.parent.mkdir()
    sandbox.path.write_text("1")
    runner = Runner(sandbox, FakeLoop(), store, inputs_root=tmp_path)
    file = InputFile("a.csv", "a.csv", 1, sha256(b"1"))
    with pytest.raises(TaskError, match="not what it was"):
        runner.rerun([python("# print 1")], [file], origin="human")
    assert store.runs == {}
    sandbox.path.write_text("1")
    sandbox.content = "1"
    assert runner.rerun([python("# print 1")], [file], origin="human").ok, "another time, the same content"


def test_where_code_cannot_be_contained_nothing_is_described(runner: Runner, sandbox: FakeSandbox) -> None:
    assert "pandas 3.0.0" in runner.describe()
    assert "2 GB of memory" in runner.describe()
    sandbox.trouble = SetupError("This kernel has no Landlock.")
    assert runner.describe() == ""
    with pytest.raises(SetupError, match="Landlock"):
        drafted(runner, "# print 1")


def test_the_description_of_a_run_is_bounded_and_keeps_the_ends() -> None:
    step = Step(Script("1"), 1, "x" * 100_000 + "LAST", "y" * 100_000 + "KeyError", 0.1)
    refused = tuple(Refused(f"{number}" * 300, "a link") for number in range(50))
    attempt = Attempt(
        "failed", "It failed.", (step,), 1, 1, 1, (), refused, tuple("n" * 999 for _ in range(50))
    )
    words = describe_attempt(attempt, [f"{number}.csv" for number in range(500)])
    assert len(words) < 10_000
    for part in ("exit status 1", "It failed.", "LAST", "KeyError", "0.csv", "the last 2000 of 100004"):
        assert part in words
