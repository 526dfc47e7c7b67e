"""Stack traces, shortened: the script's frames, the last library frame, no path of a machine."""

import json
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.runs.tracebacks import shorten

HOMES = (
    "/home/ann/.cache/draftloop/envs/sandbox-5034f7367d/lib/python3.11/site-packages",
    "/opt/venv/lib64/python3.12/site-packages",
    "/usr/lib/python3/dist-packages",
)
PANDAS = """\
Traceback (most recent call last):
  File "pandas/_libs/lib.pyx", line 2766, in pandas._libs.lib.maybe_convert_numeric
ValueError: Unable to parse string 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "script.py", line 4, in <module>
    f()
  File "script.py", line 3, in f
    return pd.to_numeric(pd.Series(['1','x']))
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "{home}/pandas/core/tools/numeric.py", line 259, in to_numeric
    values, new_mask = lib.maybe_convert_numeric(  # type: ignore[call-overload]
                       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "pandas/_libs/lib.pyx", line 2816, in pandas._libs.lib.maybe_convert_numeric
ValueError: Unable to parse string 'x' at position 1
"""
CALLBACK = """\
before
Traceback (most recent call last):
  File "script.py", line 4, in <module>
    frame.apply(lambda r: 1/0)
  File "{home}/pandas/core/frame.py", line 15427, in apply
    return op.apply().__finalize__(self, method="apply")
           ^^^^^^^^^^
  File "{home}/pandas/core/apply.py", line 1350, in apply_series_generator
    results[i] = self.func(v, *self.args, **self.kwargs)
  File "rules/check.py", line 4, in <lambda>
    frame.apply(lambda r: 1/0)
                          ~^~
ZeroDivisionError: division by zero
after
"""


@pytest.mark.parametrize("home", HOMES)
def test_the_scripts_frames_and_the_last_library_frame_stay(home: str) -> None:
    pandas, callback = (shorten(text.replace("{home}", home)) for text in (PANDAS, CALLBACK))
    dropped = PANDAS.index('  File "{home}'), PANDAS.index('  File "pandas/_libs/lib.pyx", line 2816')
    assert pandas == PANDAS[: dropped[0]] + PANDAS[dropped[1] :]
    start, end = CALLBACK.index('  File "{home}'), CALLBACK.index('  File "{home}/pandas/core/apply.py"')
    assert callback == (CALLBACK[:start] + CALLBACK[end:]).replace("{home}/", "")
    assert home not in pandas + callback


def test_recursion_keeps_what_python_left_out() -> None:
    frame = '  File "script.py", line 2, in f\n    return f(n)\n'
    text = (
        f"Traceback (most recent call last):\n{frame * 3}  [Previous line repeated 982 more times]\nE: deep\n"
    )
    assert shorten(text) == text


def test_frames_of_every_exception_of_a_group_are_chosen() -> None:
    library = '|   File "/usr/lib/python3.11/json/{}.py", line 3, in loads\n'
    text = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "script.py", line 2, in <module>\n'
        "  |     raise ExceptionGroup('g', errors)\n"
        "  | ExceptionGroup: g (1 sub-exception)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "script.py", line 1, in <module>\n'
        f"    {library.format('__init__')}    {library.format('decoder')}"
        "    |     obj = self.scan_once(s, idx)\n"
        "    | ValueError: bad\n"
        "    +------------------------------------\n"
    )
    short = library.format("decoder").replace("/usr/lib/python3.11/", "")
    assert shorten(text) == text.replace(library.format("__init__") + "    ", "").replace(
        library.format("decoder"), short
    )


def test_a_syntax_error_keeps_its_place() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "script.py", line 1, in <module>\n'
        "    compile(text, '/x/lib/python3.11/site-packages/a.py', 'exec')\n"
        '  File "/x/lib/python3.11/site-packages/a.py", line 1\n'
        "    1 +\n"
        "      ^\n"
        "SyntaxError: invalid syntax\n"
    )
    assert shorten(text) == text.replace('"/x/lib/python3.11/site-packages/a.py"', '"a.py"')
    assert shorten(text.partition("\n")[2]) == text.partition("\n")[2], "no traceback"


def test_what_a_real_traceback_says_last_is_kept() -> None:
    with pytest.raises(ValueError, match="property") as failed:
        json.loads("{")
    text = "".join(traceback.format_exception(failed.value))
    lines = shorten(text).splitlines()
    assert lines[-1] == text.splitlines()[-1]
    assert sum(line.startswith("  File") for line in lines) == 1, "this file is absolute: a library's"
    assert 'File "json/decoder.py"' in "\n".join(lines)


NODE = """\
node:fs:573
  return binding.open(
                 ^

Error: ENOENT: no such file or directory, open 'nope.csv'
    at Object.openSync (node:fs:573:18)
    at Object.readFileSync (node:fs:452:35)
    at f (script.js:2:17)
    at Object.<anonymous> (script.js:3:1)
    at Module._compile (node:internal/modules/cjs/loader:1521:14)
    at node:internal/main/run_main_module:28:49 {
  errno: -2,
}

Node.js v20.20.2
"""


def test_a_stack_of_node_is_shortened_too() -> None:
    lines = NODE.splitlines(keepends=True)
    expected = [*lines[:6], lines[7], lines[8].replace("\n", " {\n"), *lines[11:]]
    assert shorten(NODE) == "".join(expected)
    frame = "    at Module._compile (node:internal/b:1:2)\n"
    parse = f"SyntaxError: bad\n    at wrapSafe (node:internal/a:1:2)\n{frame}\n"
    assert shorten(parse) == parse.replace(frame, "")


_LINES = st.sampled_from(
    [
        *PANDAS.splitlines(),
        *NODE.splitlines(),
        *CALLBACK.replace("{home}", HOMES[0]).splitlines(),
        "",
        "  x",
        "| y",
    ]
)


@given(st.lists(_LINES, max_size=30), st.text(max_size=20))
def test_shortening_twice_is_shortening_once_and_only_lines_go(lines: list[str], more: str) -> None:
    text = "\n".join([*lines, more])
    once = shorten(text)
    assert shorten(once) == once
    assert len(once) <= len(text) + 2 * text.count(" {")


def test_a_long_output_takes_no_long_time() -> None:
    text = (PANDAS.replace("{home}", HOMES[0]) + "    at " + "(" * 1000 + "\n" + " " * 5000 + "\n") * 200
    began = time.monotonic()
    shorten(text)
    shorten("Traceback (most recent call last):\n" + "  " * 500_000 + NODE)
    assert time.monotonic() - began < 20  # a bound against hanging
