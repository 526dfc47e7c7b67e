"""Runs are shown from the store alone, and one counts as used wherever its code stands."""

import json
from pathlib import Path

import pytest

from draftloop.cli.artifacts import runs_of
from draftloop.execution.artifacts import Artifacts
from draftloop.runs.job import Script
from draftloop.runs.run import run_key, run_to_json
from tests.code_runs import SALES, attempt, run
from tests.verbs import run_here

INPUTS = [{"name": SALES.name, "path": SALES.path, "size_bytes": SALES.size_bytes, "sha256": SALES.sha256}]


def artifacts(folder: Path, *arguments: str) -> tuple[int, str, str]:
    return run_here({"ARTIFACTS_URL": str(folder)}, "artifacts", *arguments)


def test_a_run_is_shown_as_it_was_kept(tmp_path: Path) -> None:
    one = run(attempt(stdout="合计[red] 12\n"))
    Artifacts(str(tmp_path)).put_run(one)
    code, out, err = artifacts(tmp_path, "show", one.key)
    assert code == 0, err
    assert json.loads(out) == json.loads(json.dumps(run_to_json(one)))
    assert "合计[red] 12" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show", "0" * 64], 1, "There is no run"),
        (["show", "../x"], 1, "This is no key of a run."),
        (["show"], 2, "draftloop artifacts show KEY"),
        (["collect", "0" * 64], 2, "draftloop artifacts show KEY"),
        (["collect", "--older-than", "0"], 2, "--older-than"),
    ],
)
def test_a_missing_run_is_an_error(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    exit_code, out, err = artifacts(tmp_path, *arguments)
    assert (exit_code, out) == (code, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_task_needs_the_run_it_shows_and_those_of_its_humans_code() -> None:
    code = {"from_name": "code", "value": {"text": ["print(2)\n"]}}
    odd = [
        {"value": {"choices": ["a"]}},
        {"type": "relation"},
        {"value": None},
        {"value": {"text": "print(3)"}},
        *(
            None,
            5,
            "text",
            {"value": "text"},
            {"value": {"text": [None, ["x"]]}},
            {"value": {"text": {"a": 1}}},
        ),
    ]
    task = {
        "data": {"run": "a" * 64, "inputs": INPUTS},
        "annotations": [{"result": [code, *odd]}, {"result": None}, {"result": {"a": 1}}, {"result": 5}],
        "predictions": [],
    }
    needed = runs_of(task)
    assert "a" * 64 in needed
    for text in ("print(2)", "print(3)"):
        assert run_key([Script(text)], [SALES]) in needed
    assert run_key([Script("print(2)")], []) not in needed


def test_a_task_without_code_needs_no_run() -> None:
    assert runs_of({"data": {"text": "x"}}) == set()
    assert runs_of({"data": {"run": "", "inputs": []}, "annotations": [], "predictions": []}) == set()
    assert runs_of({"data": {"run": 7, "inputs": "broken"}, "annotations": [{"result": [{}]}]}) == set()
