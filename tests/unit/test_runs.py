"""A run belongs to exactly one code on exactly its inputs."""

import ast
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from draftloop.errors import TaskError
from draftloop.runs.job import Attempt, OutputFile, Script, Step
from draftloop.runs.run import (
    MAX_INPUTS,
    InputFile,
    Run,
    inputs_of,
    normalize_script,
    outputs_of,
    run_from_json,
    run_key,
    run_to_json,
)
from tests import code_runs

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
    assert normalize_script(boxed) == normalize_script(SCRIPT) == Script("print(1)\nprint(2)")


def test_keys_of_earlier_versions_find_their_runs() -> None:
    key = "5323fd6605fe3b1c5e36a0691490a50e461a6fd5e015f2fd7ee96ab1ba287694"
    assert run_key([SCRIPT], [SALES]) == key
    key = "bb164ba35674650184ced85e4e642ae817876d9a413c04aa943025db2628a2d5"
    assert run_key([Script("echo 1\n\necho 2", "shell")], []) == key


# What str.splitlines ends a line at, and what str.strip takes away.
@pytest.mark.parametrize("mark", [*"\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", *" \t\x1f\xa0\u3000\ufeff"])
def test_characters_that_a_program_may_print_are_part_of_its_key(mark: str) -> None:
    codes = [
        "print('''a\nb''')",
        f"print('''a{mark}b''')",
        f"print('''a{mark}\nb''')",
        f"print('''a\n{mark}b''')",
        f"{mark}print('''a\nb''')",
        f"print('''a\nb'''){mark}",
        f"print('''a\nb''')\n{mark}",
    ]
    assert len({run_key([Script(code)], []) for code in codes}) == len(codes)


@pytest.mark.parametrize("code", ['"""a \nb"""', "'a \\\n'", "1 + \\ \n1", "f'{a \n=}'", "rF'{a \n=}'"])
def test_blanks_that_a_string_may_hold_stay(code: str) -> None:
    assert normalize_script(Script(code)).code == code
    assert normalize_script(Script("`a \nb`", "javascript")).code == "`a \nb`"
    assert normalize_script(Script("echo a\\ \nb", "shell")).code == "echo a\\ \nb"


def test_a_carriage_return_is_part_of_a_shell_word() -> None:
    unix, dos = Script("echo a\necho b", "shell"), Script("echo a\r\necho b", "shell")
    assert run_key([unix], []) != run_key([dos], [])
    assert normalize_script(dos) == dos


def test_blank_lines_at_the_beginning_move_line_numbers() -> None:
    assert run_key([Script("\n1/0")], []) != run_key([Script("1/0")], [])


@settings(max_examples=1000)
@example("\\\r ")
@example("\\\n\n")
@given(st.text(st.sampled_from("ab=1 \n\r\t\\'\"#:()\x0c\u2028\u3000"), max_size=40))
def test_programs_with_one_key_are_one_program_to_python(code: str) -> None:
    script = normalize_script(Script(code))
    assert run_key([script], []) == run_key([Script(code)], [])
    assert _parsed(script.code) == _parsed(code)
    assert normalize_script(script) == script


def _parsed(code: str) -> str:
    try:
        return ast.dump(ast.parse(code.encode()))
    except SyntaxError as error:
        return type(error).__name__


@given(st.lists(st.text(max_size=6), min_size=2, max_size=2, unique=True))
def test_two_texts_have_one_key_only_where_they_settle_to_one(codes: list[str]) -> None:
    one, other = (Script(code) for code in codes)
    assert (run_key([one], []) == run_key([other], [])) == (normalize_script(one) == normalize_script(other))


def test_a_lone_surrogate_has_a_key() -> None:
    assert run_key([Script("print('\ud800')")], []) != run_key([Script("print('?')")], [])


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


ENTRY: dict[str, Any] = {"name": "a.csv", "path": "a.csv", "size_bytes": 1, "sha256": "0" * 64}


def test_inputs_are_read_from_task_data() -> None:
    assert inputs_of({"inputs": [ENTRY]}) == (InputFile(**ENTRY),)
    assert inputs_of({}) == inputs_of({"inputs": []}) == inputs_of({"inputs": None}) == ()


WRONG: dict[str, tuple[Any, ...]] = {
    "name": (5, None, "", ".", "..", "a/b", "a\0b", "\ud800", "a\nb", "字" * 86),
    "path": (5, None, [], "", ".", "/a", "../a", "a/../b", "a\0", "\udfff", "a" * 5000),
    "size_bytes": ("x", "1", None, -1, 1.0, True, 1e300, float("nan"), 2**63),
    "sha256": (5, None, "", "0" * 63, "A" * 64, "0" * 64 + "\n", "٠" * 64),
}


@pytest.mark.parametrize(
    "inputs",
    [
        "a.csv",
        5,
        True,
        {"name": "a.csv"},
        [None],
        [5],
        ["a.csv"],
        [[ENTRY]],
        [{}],
        [{**ENTRY, "more": 1}],
        [{key: ENTRY[key] for key in ("name", "path", "sha256")}],
        *([{**ENTRY, key: part}] for key, parts in WRONG.items() for part in parts),
        [ENTRY, ENTRY],
        [{**ENTRY, "name": f"{number}.csv"} for number in range(MAX_INPUTS + 1)],
        [ENTRY] * 10_000,
    ],
)
def test_inputs_that_no_import_wrote_are_a_reason(inputs: Any) -> None:
    with pytest.raises(TaskError, match="import-tasks"):
        inputs_of({"inputs": inputs})


@pytest.mark.parametrize(
    "outputs",
    [
        *(5, True, "a.csv", {"a.csv": 1}),
        *([5], [None], [""], [" "], [["a"]], ["a\0"], ["\ud800"], ["a" * 5000]),
        ["x"] * 10_000,
    ],
)
def test_outputs_that_are_no_names_are_a_reason(outputs: Any) -> None:
    with pytest.raises(TaskError, match="file names"):
        outputs_of({"output_files": outputs})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*ENTRY, "x"]) | st.text(), inner, max_size=5)
    ),
)


@given(JSON | st.lists(JSON | st.just(ENTRY), max_size=3))
def test_whatever_stands_in_a_tasks_data_is_files_or_a_reason(value: Any) -> None:
    for read, key in ((inputs_of, "inputs"), (outputs_of, "output_files")):
        try:
            files = read({key: value})
        except TaskError:
            continue
        assert not files or isinstance(value, list)


@given(st.fixed_dictionaries({key: st.just(part) | JSON for key, part in ENTRY.items()}))
def test_an_entry_that_is_read_has_a_key(entry: dict[str, Any]) -> None:
    try:
        inputs = inputs_of({"inputs": [entry]})
    except TaskError:
        return
    assert run_key([SCRIPT], inputs)


def test_stack_traces_that_an_earlier_version_kept_are_shortened_when_they_are_read() -> None:
    library = (
        '  File "/root/.cache/envs/sandbox-1/lib/python3.11/site-packages/pandas/core/{}.py", line 1, in f\n'
    )
    head = 'Traceback (most recent call last):\n  File "script.py", line 1, in <module>\n    f()\n'
    old = code_runs.run(
        code_runs.attempt(stderr=f"{head}{library.format('a')}    g()\n{library.format('b')}E: x\n")
    )
    read = run_from_json(json.loads(json.dumps(run_to_json(old))))
    assert read.last.stderr == f'{head}  File "pandas/core/b.py", line 1, in f\nE: x\n'
    assert read == replace(old, attempts=read.attempts)
