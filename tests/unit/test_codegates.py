"""The gates of code tasks, with a sandbox that answers what the test says; the checker runs for real."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from backend.core.codegates import CodeTask, checker, judged_again, run_again
from backend.core.dataset import Rejected
from backend.core.execution import Attempt, OutputFile, Script, Step
from backend.core.runs import InputFile, Run
from backend.core.sample import Sample, canonical
from scripts.servers import ROOT
from tests.samples import written_out

SCHEMA = Draft202012Validator(json.loads((ROOT / "backend/core/sample.schema.json").read_bytes()))
SCRIPTS = (Script("print(1)"), Script("echo 2", "shell"))
INPUTS = (InputFile("a.csv", "a.csv", 3, "0" * 64),)


def attempt(*outputs: str, exit_status: int = 0, files: Sequence[str] = (), wall_s: float = 1.0) -> Attempt:
    """An attempt at SCRIPTS, and what comes after them, with what each printed."""
    scripts = (*SCRIPTS, Script(""))[: len(outputs)]
    steps = [Step(script, 0, text, "", 0.1) for script, text in zip(scripts, outputs, strict=True)]
    steps[-1] = replace(steps[-1], exit_status=exit_status)
    return Attempt(
        outcome="failed" if exit_status else "ok",
        reason=f"exit status {exit_status}" if exit_status else "",
        steps=tuple(steps),
        wall_s=wall_s,
        cpu_s=0.1,
        peak_memory_bytes=1,
        files=tuple(OutputFile(path, 5, "f" * 64) for path in files),
    )


def run(one: Attempt) -> Run:
    return Run("k", "do it", INPUTS, (one,), "human", "2026-01-01T00:00:00Z")


@dataclass
class FakeRerun:
    """Answers one attempt and keeps what it was asked."""

    answer: Attempt
    asked: list[tuple[tuple[Script, ...], tuple[InputFile, ...], float]] = field(default_factory=list)

    def __call__(self, scripts: Sequence[Script], inputs: Sequence[InputFile], limit_s: float) -> Run:
        self.asked.append((tuple(scripts), tuple(inputs), limit_s))
        return run(self.answer)


def test_a_program_that_runs_again_and_leaves_its_files_passes() -> None:
    task = CodeTask({"code": "x"}, run(attempt("1\n", "2\n", files=["out.csv"])))
    rerun = FakeRerun(attempt("1\n", "2\n", "{}"))
    assert run_again(task, rerun) == (None, ())
    ((scripts, inputs, limit_s),) = rerun.asked
    assert scripts == (*SCRIPTS, checker(["out.csv"]))
    assert (inputs, limit_s) == (INPUTS, 30.0)


def test_the_limit_is_twice_the_drafts_time_and_at_least_half_a_minute() -> None:
    own = run(attempt("", "", wall_s=100.0))
    assert CodeTask({}, own).limit_s == 200.0
    assert CodeTask({}, own, draft=run(attempt("", "", wall_s=16.0))).limit_s == 32.0
    assert CodeTask({}, own, draft=run(attempt("", "", wall_s=1.0))).limit_s == 30.0


def test_a_program_that_fails_again_is_stopped_with_the_reason() -> None:
    task = CodeTask({}, run(attempt("1\n", "2\n", files=["out.csv"])))
    stopped, notes = run_again(task, FakeRerun(attempt("1\n", "", exit_status=1)))
    assert stopped == ("code_runs", "Run again, it does not end well (failed): exit status 1")
    assert notes == ()


def test_files_that_are_missing_or_not_what_they_claim_are_named() -> None:
    task = CodeTask({}, run(attempt("", "")), declared=("a.png", "b.csv"))
    wrong = {"b.csv": "is empty", "a.png": "is not there"}
    stopped, _ = run_again(task, FakeRerun(attempt("", "", json.dumps(wrong))))
    assert stopped == ("files_exist", "Run again: a.png is not there; b.csv is empty")
    many = {f"{number}.txt": "is empty" for number in range(5)}
    stopped, _ = run_again(task, FakeRerun(attempt("", "", json.dumps(many))))
    assert stopped is not None
    assert stopped[1].endswith("and 2 more")
    for broken in (attempt("", "", "no JSON"), attempt("", "", "[]"), attempt("", "", "{}", exit_status=-9)):
        stopped, _ = run_again(task, FakeRerun(broken))
        assert stopped is not None
        assert stopped[0] == "files_exist"


def test_files_of_the_draft_are_wanted_where_none_are_declared() -> None:
    own, draft = run(attempt("", "", files=["mine.txt"])), run(attempt("", "", files=["draft.txt"]))
    assert CodeTask({}, own, draft=draft).wanted == ("draft.txt",)
    assert CodeTask({}, own).wanted == ("mine.txt",)
    assert CodeTask({}, own, declared=("said.txt",), draft=draft).wanted == ("said.txt",)
    rerun = FakeRerun(attempt("", ""))
    assert run_again(CodeTask({}, run(attempt("", ""))), rerun) == (None, ())
    assert rerun.asked[0][0] == SCRIPTS  # nothing to look at, no checker


def test_other_output_than_before_is_noted_and_stops_nothing() -> None:
    task = CodeTask({}, run(attempt("10:00\n", "2\n")))
    stopped, notes = run_again(task, FakeRerun(attempt("10:01\n", "2\n")))
    assert stopped is None
    assert [note["gate"] for note in notes] == ["same_output"]


def test_what_the_annotator_says_is_not_right_is_not_run_at_all() -> None:
    rerun = FakeRerun(attempt("", ""))
    value = {"verdict": "needs_fix", "comment": "wrong month"}
    stopped, _ = run_again(CodeTask(value, run(attempt("", ""))), rerun)
    assert stopped == ("verdict_passes", "The annotator says needs_fix: wrong month")
    assert rerun.asked == []
    assert run_again(CodeTask({"verdict": "pass"}, run(attempt("", ""))), rerun)[0] is None


def test_a_sample_tells_of_its_run_and_a_rejected_one_of_the_gate() -> None:
    plain = written_out(code=False)[0]
    task = CodeTask({}, run(attempt("1\n", "2\n", files=["out.csv"])))
    found = judged_again(plain, task, FakeRerun(attempt("1\n", "2\n", "{}")))
    assert isinstance(found, Sample)
    assert found.output_files == ({"path": "out.csv", "size_bytes": 5, "sha256": "f" * 64},)
    assert found.input_files == ({"path": "a.csv", "size_bytes": 3, "sha256": "0" * 64},)
    assert [step["stdout"] for step in found.attempts[0]["steps"]] == ["1\n", "2\n"]
    assert found.gates[-3:] == ("verdict_passes", "code_runs", "files_exist")
    SCHEMA.validate(json.loads(canonical(found.record())))
    stopped = judged_again(plain, task, FakeRerun(attempt("1\n", exit_status=1)))
    assert isinstance(stopped, Rejected)
    assert (stopped.gate, stopped.annotation) == ("code_runs", plain.annotation)


@pytest.mark.parametrize(
    ("name", "content", "is_right"),
    [
        ("a.json", b'{"a": 1}', True),
        ("a.json", b"{", False),
        ("b.jsonl", b"{}\n[]\n", True),
        ("b.jsonl", b"{}\nx\n", False),
        ("c.csv", "城市,数\n北京,1\n".encode(), True),
        ("c.csv", b"\xff\xfe\x00", False),
        ("d.txt", b"", False),
        ("e.bin", b"anything", True),
    ],
)
def test_the_checker_opens_files_as_what_they_claim(
    tmp_path: Path, name: str, content: bytes, is_right: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the job, not the module')")
    done = subprocess.run(
        [sys.executable, "-c", checker([name, "gone.txt"]).code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    wrong = json.loads(done.stdout)
    assert wrong.pop("gone.txt") == "is not there"
    assert (not wrong) == is_right
