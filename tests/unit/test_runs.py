"""A run belongs to exactly one code on exactly its inputs."""

import json

import pytest

from backend.core.execution import Attempt, OutputFile, Script, Step
from backend.core.runs import InputFile, Run, inputs_of, run_from_json, run_key, run_to_json
from backend.errors import TaskError

SALES = InputFile("销售.csv", "2026/销售.csv", 12, "a" * 64)
SCRIPT = Script("print(1)\nprint(2)\n")


def test_a_run_survives_json() -> None:
    step = Step(SCRIPT, 0, "1\n2\n", "", 0.1)
    attempt = Attempt("ok", "", (step,), 0.1, 0.1, 1 << 20, (OutputFile("图.png", 3, "b" * 64),))
    run = Run(
        run_key([SCRIPT], [SALES]), "汇总", (SALES,), (attempt,), "draft", "2026-01-01T00:00:00Z", "m-0"
    )
    assert run_from_json(json.loads(json.dumps(run_to_json(run)))) == run
    assert run.ok
    assert run.script == SCRIPT


def test_what_a_text_box_does_to_code_keeps_its_run() -> None:
    boxed = Script("print(1)  \r\nprint(2)\n\n\n")
    assert run_key([boxed], [SALES]) == run_key([SCRIPT], [SALES])


@pytest.mark.parametrize(
    ("script", "inputs"),
    [
        (Script("print(1)\nprint(3)\n"), [SALES]),
        (Script(" print(1)\n  print(2)\n"), [SALES]),
        (Script(SCRIPT.code, "shell"), [SALES]),
        (SCRIPT, []),
        (SCRIPT, [InputFile("销售.csv", "2026/销售.csv", 12, "c" * 64)]),
        (SCRIPT, [InputFile("sales.csv", "2026/销售.csv", 12, "a" * 64)]),
    ],
)
def test_other_code_or_inputs_are_another_run(script: Script, inputs: list[InputFile]) -> None:
    assert run_key([script], inputs) != run_key([SCRIPT], [SALES])


def test_where_a_file_lies_does_not_matter() -> None:
    moved = InputFile("销售.csv", "2027/销售.csv", 12, "a" * 64)
    assert run_key([SCRIPT], [moved]) == run_key([SCRIPT], [SALES])


def test_inputs_are_read_from_task_data() -> None:
    entry = {"name": "a.csv", "path": "a.csv", "size_bytes": 1, "sha256": "0" * 64}
    assert inputs_of({"inputs": [entry]}) == (InputFile(**entry),)  # type: ignore[arg-type]
    assert inputs_of({}) == ()
    with pytest.raises(TaskError, match="import_tasks"):
        inputs_of({"inputs": ["a.csv"]})
