"""The gates of code tasks, with a sandbox that answers what the test says; the checker runs for real."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from draftloop.dataset.code_gates import CodeTask, finalize_sample, run_again, submitted
from draftloop.dataset.file_check import checker
from draftloop.dataset.gates import Rejected, annotations_of, judge
from draftloop.dataset.sample import Sample, canonical
from draftloop.errors import TaskError
from draftloop.labelling.labelling import Task
from draftloop.prompting.cases import Cases
from draftloop.runs.job import Attempt, OutputFile, Script, Step
from draftloop.runs.run import NO_RUN, InputFile, Run
from draftloop.support.environments import ROOT
from tests.samples import written_out

SCHEMA = Draft202012Validator(
    json.loads((ROOT / "backend/draftloop/dataset/sample.schema.json").read_bytes())
)
CASE = Cases(ROOT / "label_config").get("code_analysis")
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
        files=tuple(OutputFile(path, 5, hashlib.sha256(path.encode()).hexdigest()) for path in files),
    )


def run(*attempts: Attempt) -> Run:
    return Run("e" * 64, "do it", INPUTS, attempts, "human", "2026-01-01T00:00:00Z")


def task(own: Attempt | None = None, draft: Attempt | None = None, **more: Any) -> CodeTask:
    known = {"run": own and run(own), "draft": draft and run(draft)}
    return CodeTask(**{"value": {}, "scripts": SCRIPTS, "inputs": INPUTS, **known, **more})


@dataclass
class FakeRerun:
    """Answers attempts, the last one again and again, and keeps what it was asked."""

    answers: list[Attempt]
    asked: list[tuple[tuple[Script, ...], tuple[InputFile, ...], float]] = field(default_factory=list)

    def __call__(self, scripts: Sequence[Script], inputs: Sequence[InputFile], limit_s: float) -> Attempt:
        self.asked.append((tuple(scripts), tuple(inputs), limit_s))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def stopped(task: CodeTask, *answers: Attempt) -> tuple[str, str] | None:
    return run_again(task, FakeRerun(list(answers))).stopped


def test_a_program_that_runs_again_and_leaves_its_files_passes() -> None:
    rerun = FakeRerun([attempt("1\n", "2\n", "{}", files=["out.csv"])])
    result = run_again(task(attempt("1\n", "2\n", files=["out.csv"])), rerun)
    assert (result.stopped, result.notes) == (None, ())
    assert result.attempt is not None
    assert [step.script for step in result.attempt.steps] == list(SCRIPTS), "without our own program"
    ((scripts, inputs, limit_s),) = rerun.asked
    assert scripts == (*SCRIPTS, checker(["out.csv"]))
    assert (inputs, limit_s) == (INPUTS, 30.0)


def test_the_limit_is_twice_the_drafts_time_and_at_least_half_a_minute() -> None:
    own = attempt("", "", wall_s=100.0)
    assert task(own).limit_s == 200.0
    assert task(own, attempt("", "", wall_s=16.0)).limit_s == 32.0
    assert task(own, attempt("", "", wall_s=1.0)).limit_s == 30.0
    assert task().limit_s == 30.0


def test_a_program_that_fails_again_is_stopped_with_the_reason_and_its_last_words() -> None:
    failing = attempt("1\n", "", exit_status=1)
    failed = replace(
        failing, steps=(*failing.steps[:1], replace(failing.steps[1], stderr="Trace\nKeyError: x\u2028y\n"))
    )
    result = run_again(task(attempt("1\n", "2\n", files=["out.csv"])), FakeRerun([failed]))
    assert result.stopped == ("code_runs", "It does not end well (failed): exit status 1 KeyError: x\u2028y")
    assert result.notes == ()
    assert stopped(task(), failing) == ("code_runs", "It does not end well (failed): exit status 1")


def test_files_that_are_missing_or_not_what_they_claim_are_named() -> None:
    declared = task(attempt("", ""), declared=("a.png", "b.csv"))
    wrong = {"b.csv": "is empty", "a.png": "is not there"}
    assert stopped(declared, attempt("", "", json.dumps(wrong))) == (
        "files_exist",
        "Run again: a.png is not there; b.csv is empty",
    )
    many = {f"{number}.txt": "is empty" for number in range(5)}
    result = stopped(declared, attempt("", "", json.dumps(many)))
    assert result is not None
    assert result[1].endswith("and 2 more")
    for broken in (attempt("", "", "no JSON"), attempt("", "", "[]"), attempt("", "", "{}", exit_status=-9)):
        result = stopped(declared, broken)
        assert result is not None
        assert result[0] == "files_exist"


def test_files_of_a_draft_that_ended_well_are_wanted_where_none_are_declared() -> None:
    own, draft = attempt("", "", files=["mine.txt"]), attempt("", "", files=["draft.txt"])
    assert task(own, draft).wanted == ("draft.txt",)
    assert task(own, replace(draft, outcome="failed")).wanted == ("mine.txt",)
    assert task(own).wanted == ("mine.txt",)
    assert task(own, draft, declared=("said.txt",)).wanted == ("said.txt",)
    assert task().wanted is None
    rerun = FakeRerun([attempt("", "")])
    assert run_again(task(attempt("", "")), rerun).stopped is None
    assert rerun.asked[0][0] == SCRIPTS  # nothing to look at, no checker


def test_a_program_without_a_run_must_write_the_files_of_its_first_run() -> None:
    rerun = FakeRerun([attempt("", "", files=["new.csv"]), attempt("", "", '{"new.csv": "is empty"}')])
    assert run_again(task(), rerun).stopped == ("files_exist", "Run again: new.csv is empty")
    assert [scripts for scripts, _, _ in rerun.asked] == [SCRIPTS, (*SCRIPTS, checker(["new.csv"]))]


def test_other_output_than_before_is_noted_and_stops_nothing() -> None:
    before = attempt("10:00\n", "2\n", files=["a.csv", "b.xlsx", "c.txt"])
    now = attempt("10:01\n", "2\n", "{}", files=["a.csv", "b.xlsx", "d.txt"])
    other = tuple(replace(file, sha256="0" * 64) for file in now.files)
    result = run_again(task(before), FakeRerun([replace(now, files=other)]))
    assert result.stopped is None
    assert result.notes == (
        {"gate": "same_output", "reason": "Run again, it is not what it was: stdout, a.csv, c.txt, d.txt."},
    )


def test_code_that_its_annotator_marked_wrong_is_not_run() -> None:
    rerun = FakeRerun([attempt("", "")])
    said = task(attempt("", ""), value={"verdict": "needs_fix", "comment": "wrong month"})
    assert run_again(said, rerun).stopped == ("verdict_passes", "The annotator says needs_fix: wrong month")
    assert rerun.asked == []
    assert run_again(task(attempt("", ""), value={"verdict": "pass"}), rerun).stopped is None


def test_inputs_that_are_gone_are_a_gate_of_their_own() -> None:
    def rerun(scripts: Sequence[Script], inputs: Sequence[InputFile], limit_s: float) -> Attempt:
        raise TaskError("Input 'a.csv' cannot be read.")

    assert run_again(task(), rerun).stopped == (
        "can_be_run",
        "It cannot be run again: Input 'a.csv' cannot be read.",
    )


def test_code_without_a_rerun_is_noted_and_judged_by_its_known_run() -> None:
    known, unknown = run_again(task(attempt("", "")), None), run_again(task(), None)
    assert [note["gate"] for note in (*known.notes, *unknown.notes)] == ["not_run_again"] * 2
    assert "nobody has run exactly this code" in unknown.notes[0]["reason"]
    failed = run_again(task(attempt("", "", exit_status=3)), None)
    assert failed.stopped is not None
    assert failed.stopped[0] == "code_runs"
    plain = written_out(code=False)[0]
    sample = finalize_sample(plain, task(), unknown, None)
    assert isinstance(sample, Sample)
    assert (sample.gates[-1], sample.attempts) == ("verdict_passes", ())
    assert unknown.notes[0] in sample.notes


def test_a_sample_tells_of_its_run_and_a_rejected_one_of_the_gate() -> None:
    plain = written_out(code=False)[0]
    own = attempt("1\n", "2\n", files=["out.csv"])
    one = task(own)
    checked = run_again(one, FakeRerun([attempt("1\n", "2\n", "{}", files=["out.csv"])]))
    result = finalize_sample(plain, one, checked, one.run)
    assert isinstance(result, Sample)
    assert [(file["path"], file["sha256"]) for file in result.output_files] == [
        ("out.csv", own.files[0].sha256)
    ]
    assert result.input_files == ({"path": "a.csv", "size_bytes": 3, "sha256": "0" * 64},)
    assert [step["stdout"] for step in result.attempts[0]["steps"]] == ["1\n", "2\n"]
    assert result.gates[-4:] == ("verdict_passes", "can_be_run", "code_runs", "files_exist")
    assert (result.metadata["run"], result.metadata["run_by"]) == ("e" * 64, "human")
    SCHEMA.validate(json.loads(canonical(result.record())))
    refused = finalize_sample(plain, one, run_again(one, FakeRerun([attempt("1\n", exit_status=1)])), None)
    assert isinstance(refused, Rejected)
    assert (refused.gate, refused.annotation) == ("code_runs", plain.annotation)


def test_with_stand_ins_the_program_and_what_it_printed_hold_no_personal_data() -> None:
    code = "print('ann@corp.cn', 'bob@corp.cn')"
    data = {**NO_RUN, "instruction": "Write to bob@corp.cn", "input_schema": "", "draft_status": ""}
    regions = CASE.labelling.to_regions({"code": code}, Task(1, data)).regions
    listed = {
        "id": 1,
        "data": {**data, "inputs": [], "input_preview": ""},
        "predictions": [],
        "annotations": [{"id": 2, "result": regions}],
    }
    (annotation,) = annotations_of(listed, 1)
    sample, one = judge(annotation, CASE, mask=True), submitted(annotation, CASE)
    assert isinstance(sample, Sample)
    assert one is not None
    assert one.scripts == (Script(code),), "what runs is what was submitted"
    printed = Attempt("ok", "", (Step(one.scripts[0], 0, "carl@corp.cn\n", "", 0.1),), 0.1, 0.1, 1)
    result = finalize_sample(sample, one, run_again(one, FakeRerun([printed])), run(printed), mask="CN")
    assert isinstance(result, Sample)
    assert result.attempts[0]["steps"][0]["code"] == result.value["code"]
    assert "person3@example.com" in result.attempts[0]["steps"][0]["stdout"]
    assert "corp.cn" not in canonical(result.record())


@pytest.mark.parametrize(
    ("name", "content", "is_right"),
    [
        ("a.json", b'{"a": 1}', True),
        ("a.json", b"{", False),
        ("b.jsonl", b"{}\n[]\n", True),
        ("b.jsonl", b"{}\nx\n", False),
        ("c.csv", "城市,数\n北京,1\n".encode(), True),
        ("c.csv", "城市,数\n北京,1\n".encode("gb18030"), True),
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
