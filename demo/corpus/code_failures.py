r"""Write the message that a model gets after its first program failed on a fault deep in the input file.

The text equals that of `draftloop.execution.runner.describe_attempt` for a run in the sandbox with the pinned
version of pandas; a test in tests/sandbox compares the two.
"""

import re
import unicodedata
from collections.abc import Iterator

from demo.corpus.code_kinds import Fault
from demo.corpus.code_tasks import SYSTEM, CodeTask, generate, target, user_text
from demo.corpus.words import Split

SHOWN_CHARS = 2000  # as in backend/draftloop/execution/runner.py
_ENDED = "exit status 1\nscript.py ended with exit status 1."
_ASKED = "The code was run:\n{output}\nAnswer with the whole JSON object, its code corrected."
_NUMBERS = """\
Traceback (most recent call last):
  File "pandas/_libs/lib.pyx", line 2766, in pandas._libs.lib.maybe_convert_numeric
ValueError: Unable to parse string '@value@'

During handling of the above exception, another exception occurred:

@here@  File "pandas/_libs/lib.pyx", line 2816, in pandas._libs.lib.maybe_convert_numeric
ValueError: Unable to parse string '@value@' at position @position@
"""
_DATES = """\
@here@  File "pandas/_libs/tslibs/strptime.pyx", line 701, in pandas._libs.tslibs.strptime._parse_with_format
ValueError: time data "@value@" doesn't match format "@format@". You might want to try:
    - passing `format` if your strings have a consistent format;
    - passing `format='ISO8601'` if your strings are all ISO8601 but not necessarily in exactly \
the same format;
    - passing `format='mixed'`, and the format will be inferred for each element individually. \
You might want to use `dayfirst` alongside this.
"""
_LONG_ROW = """\
@here@  File "pandas/_libs/parsers.pyx", line 4400, in pandas._libs.parsers.raise_parser_error
pandas.errors.ParserError: Error tokenizing data. C error: \
Expected @columns@ fields in line @position@, saw @fields@
"""
_NOT_UTF8 = """\
@here@  File "pandas/_libs/parsers.pyx", line 2452, in pandas._libs.parsers._string_box_utf8
UnicodeDecodeError: @value@
"""
_HERE = """\
Traceback (most recent call last):
  File "script.py", line @line@, in <module>
    @code@
    @carets@
"""
_OF: dict[Fault, tuple[str, str]] = {
    "unit": ("pd.to_numeric(", _NUMBERS),
    "comma": ("pd.to_numeric(", _NUMBERS),
    "gap": ("pd.to_numeric(", _NUMBERS),
    "date_gap": ("pd.to_datetime(", _DATES),
    "date_form": ("pd.to_datetime(", _DATES),
    "long_row": ("pd.read_csv(", _LONG_ROW),
    "late_gb18030": ("pd.read_csv(", _NOT_UTF8),
}


def answered(output: str) -> str:
    """Write the user message that describes a run, as `draftloop.prompting.prompt.render_runs` does."""
    return _ASKED.format(output=output)


def failure(task: CodeTask) -> str:
    """Describe the failed run of the first program of a task with a fault.

    Args:
        task: A task with a fault.
    Returns:
        The text that `draftloop.execution.runner.describe_attempt` writes for that run.
    Raises:
        ValueError: The task has none.
    """
    if task.fault is None:
        raise ValueError("The first program of this task does not fail.")
    call, frames = _OF[task.fault]
    slots = _seen_by_pandas(task)
    lines = task.first.split("\n")
    at = next(number for number, line in enumerate(lines) if call in line and slots.get("where", "") in line)
    start = lines[at].index(call)
    slots |= {
        "here": _HERE.rstrip(" "),
        "line": str(at + 1),
        "code": lines[at],
        "carets": " " * _width(lines[at][:start]) + "^" * _width(lines[at][start:]),
    }
    text = frames
    while re.search(r"@\w+@", text):
        text = re.sub(r"@(\w+)@", lambda match: slots[match[1]], text)
    mark = f" (the last {SHOWN_CHARS} of {len(text)} characters)" if len(text) > SHOWN_CHARS else ""
    missing = "".join(f"\nMissing or empty: {name}" for name in task.outputs)
    return f"{_ENDED}{missing}\nstderr{mark}:\n{text[-SHOWN_CHARS:].rstrip()}"


def conversations(split: Split, count: int, seed: int) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Yield messages and the right answer, for the tasks that `generate` draws.

    Args:
        split: Which word lists to draw from.
        count: How many tasks; one with a fault gives a second conversation, on the failure of its program.
        seed: Start of the random sequence.
    Returns:
        Messages up to the answer, and the answer.
    """
    for task in generate(split, count, seed):
        asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user_text(task)}]
        yield asked, target(task.first)
        if task.fault:
            run = answered(failure(task))
            retry = [{"role": "assistant", "content": target(task.first)}, {"role": "user", "content": run}]
            yield asked + retry, target(task.program)


def fixed_words() -> list[str]:
    """List the stretches of these messages that never change, line by line where they are long."""
    parts = [*_ASKED.split("{output}"), f"{_ENDED}\nMissing or empty: ", "\nstderr:\n"]
    parts += [f"\nstderr (the last {SHOWN_CHARS} of ", " characters):\n"]
    for text in (_HERE, *(frames for _, frames in _OF.values())):
        lines = re.findall(r"[^\n]*\n+", text)
        parts += [part for line in lines for part in re.split(r"@\w+@", line) if len(part) > 3]
    return list(dict.fromkeys([*parts, *("^" * width for width in (2, 4, 8, 16))]))


def _seen_by_pandas(task: CodeTask) -> dict[str, str]:
    """Return the values of the slots of the traceback: those of the first row that has the fault."""
    sheet, scene = task.scene.sheets[0], task.scene
    if task.fault == "long_row":
        width = len(sheet.columns)
        at, row = next((at, row) for at, row in enumerate(sheet.rows) if len(row) > width)
        return {"columns": str(width), "position": str(at + 2), "fields": str(len(row))}
    if task.fault == "late_gb18030":
        late = next(str(c) for row in sheet.rows for c in row if not str(c).isascii())
        try:
            late.encode("gb18030").decode()
        except UnicodeDecodeError as error:
            return {"value": str(error)}
        raise ValueError(f"{late!r} in gb18030 is UTF-8 as well")
    name = scene.slots["date" if task.fault in ("date_gap", "date_form") else "value"]
    shown = sheet.column(name)
    if task.fault in ("date_gap", "date_form"):
        separator = re.sub(r"\d", "", shown[0])[0]
        right = re.compile(rf"\d{{4}}{separator}\d\d{separator}\d\d")
        wrong = next(cell for cell in shown if not right.fullmatch(cell))
        return {"value": wrong, "format": separator.join(("%Y", "%m", "%d")), "where": f'"{name}"'}
    at, cell = next((at, one) for at, one in enumerate(shown) if isinstance(one, str))
    return {"value": cell, "position": str(at), "where": f'"{name}"'}


def _width(text: str) -> int:
    """Return the width of a text in terminal columns, as the carets of a traceback count it."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)
