r"""What a first program ends with that meets a fault deep in its file, as a model is told of it.

The words are those of `backend.runner.told` on a run in the sandbox; a test there holds them against the
real ones. They are those of the pandas that the sandbox's environment pins. Where that environment is
installed stands in them, too, and is drawn at random.
"""

import random
import re
import unicodedata
from collections.abc import Iterator, Sequence

from models.corpus.code_kinds import Fault
from models.corpus.code_tasks import SYSTEM, CodeTask, generate, target, user_text
from models.corpus.words import Draw, Split

TOLD_CHARS = 2000  # as in backend/runner.py
_ENDED = "exit status 1\nscript.py ended with exit status 1."
_ASKED = "The code was run:\n{output}\nAnswer with the whole JSON object, its code corrected."
_PACKAGES = "@home@/lib/python3.11/site-packages/"
_FRAME = f'  File "{_PACKAGES}pandas/'
_NUMBERS = f"""\
Traceback (most recent call last):
  File "pandas/_libs/lib.pyx", line 2766, in pandas._libs.lib.maybe_convert_numeric
ValueError: Unable to parse string '@value@'

During handling of the above exception, another exception occurred:

@here@{_FRAME}core/tools/numeric.py", line 259, in to_numeric
    values, new_mask = lib.maybe_convert_numeric(  # type: ignore[call-overload]
                       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "pandas/_libs/lib.pyx", line 2816, in pandas._libs.lib.maybe_convert_numeric
ValueError: Unable to parse string '@value@' at position @position@
"""
_CACHED_DATES = f"""\
{_FRAME}core/tools/datetimes.py", line 1234, in to_datetime
    cache_array = _maybe_cache(arg, format, cache, convert_listlike, unit)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
{_FRAME}core/tools/datetimes.py", line 298, in _maybe_cache
    cache_dates = convert_listlike(unique_dates, format)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""
_UNCACHED_DATES = f"""\
{_FRAME}core/tools/datetimes.py", line 1239, in to_datetime
    values = convert_listlike(arg._values, format)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""
_DATES = f"""\
@here@@dates@{_FRAME}core/tools/datetimes.py", line 484, in _convert_listlike_datetimes
    return _array_strptime_with_fallback(arg, name, utc, format, exact, errors)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
{_FRAME}core/tools/datetimes.py", line 518, in _array_strptime_with_fallback
    result, tz_out = array_strptime(arg, fmt, exact=exact, errors=errors, utc=utc)
                     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "pandas/_libs/tslibs/strptime.pyx", line 644, in pandas._libs.tslibs.strptime.array_strptime
  File "pandas/_libs/tslibs/strptime.pyx", line 561, in pandas._libs.tslibs.strptime.array_strptime
  File "pandas/_libs/tslibs/strptime.pyx", line 701, in pandas._libs.tslibs.strptime._parse_with_format
ValueError: time data "@value@" doesn't match format "@format@". You might want to try:
    - passing `format` if your strings have a consistent format;
    - passing `format='ISO8601'` if your strings are all ISO8601 but not necessarily in exactly \
the same format;
    - passing `format='mixed'`, and the format will be inferred for each element individually. \
You might want to use `dayfirst` alongside this.
"""
_READING = f"""\
@here@{_FRAME}io/parsers/readers.py", line 1866, in read_csv
    return _read(filepath_or_buffer, kwds)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
{_FRAME}io/parsers/readers.py", line 429, in _read
    return parser.read(nrows)
           ^^^^^^^^^^^^^^^^^^
{_FRAME}io/parsers/readers.py", line 3061, in read
    ) = self._engine.read(  # type: ignore[attr-defined]
        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
{_FRAME}io/parsers/c_parser_wrapper.py", line 297, in read
    chunks = self._reader.read_low_memory(nrows)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "pandas/_libs/parsers.pyx", line 1041, in pandas._libs.parsers.TextReader.read_low_memory
"""
_LONG_ROW = f"""\
{_READING}  File "pandas/_libs/parsers.pyx", line 1182, in pandas._libs.parsers.TextReader._read_rows
  File "pandas/_libs/parsers.pyx", line 1149, in pandas._libs.parsers.TextReader._tokenize_rows
  File "pandas/_libs/parsers.pyx", line 1170, in pandas._libs.parsers.TextReader._check_tokenize_status
  File "pandas/_libs/parsers.pyx", line 4400, in pandas._libs.parsers.raise_parser_error
pandas.errors.ParserError: Error tokenizing data. C error: \
Expected @columns@ fields in line @position@, saw @found@
"""
_NOT_UTF8 = f"""\
{_READING}  File "pandas/_libs/parsers.pyx", line 1196, in pandas._libs.parsers.TextReader._read_rows
  File "pandas/_libs/parsers.pyx", line 1262, in pandas._libs.parsers.TextReader._convert_column_data
  File "pandas/_libs/parsers.pyx", line 1348, in pandas._libs.parsers.TextReader._convert_columns
  File "pandas/_libs/parsers.pyx", line 1600, in pandas._libs.parsers.TextReader._convert_tokens
  File "pandas/_libs/parsers.pyx", line 1907, in pandas._libs.parsers.TextReader._string_convert
  File "pandas/_libs/parsers.pyx", line 1923, in pandas._libs.parsers.TextReader._string_convert_single
  File "pandas/_libs/parsers.pyx", line 2452, in pandas._libs.parsers._string_box_utf8
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
    """Write the user's message that tells of a run, as `core.prompting.told_runs` does."""
    return _ASKED.format(output=output)


def invented_home(draw: Draw) -> str:
    """Invent the folder of a sandbox's environment."""
    user = draw.letters(3, 8)
    start = draw.of(("/root/.cache", "/opt", "/srv", f"/home/{user}", f"/{user}"))
    inner = draw.of(("/draftloop/envs", "", "/envs", f"/{draw.letters(3, 8)}"))
    digits = "".join(draw.of("0123456789abcdef") for _ in range(10))
    return f"{start}{inner}/{draw.of((f'sandbox-{digits}', f'sandbox-{digits}', 'sandbox', 'venv'))}"


def failure(task: CodeTask, home: str) -> str:
    """Say what a model is told of the first program of a task with a fault.

    Args:
        task: One with a fault.
        home: Folder of the sandbox's environment, in which pandas is.
    Returns:
        What `backend.runner.told` says of that run.
    Raises:
        ValueError: The task has none.
    """
    if task.fault is None:
        raise ValueError("The first program of this task does not fail.")
    call, frames = _OF[task.fault]
    slots = _seen_by_pandas(task)
    lines = task.first.splitlines()
    at = next(number for number, line in enumerate(lines) if call in line and slots.get("where", "") in line)
    start = lines[at].index(call)
    slots |= {
        "here": _HERE.rstrip(" "),
        "line": str(at + 1),
        "code": lines[at],
        "carets": " " * _width(lines[at][:start]) + "^" * _width(lines[at][start:]),
        "home": home,
    }
    text = frames
    while re.search(r"@\w+@", text):
        text = re.sub(r"@(\w+)@", lambda match: slots[match[1]], text)
    mark = f" (the last {TOLD_CHARS} of {len(text)} characters)" if len(text) > TOLD_CHARS else ""
    missing = "".join(f"\nMissing or empty: {name}" for name in task.outputs)
    return f"{_ENDED}{missing}\nstderr{mark}:\n{text[-TOLD_CHARS:].rstrip()}"


def conversations(split: Split, count: int, seed: int) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Give what a model is asked and what it is to answer, for the tasks that `generate` draws.

    Args:
        split: Which word lists to draw from.
        count: How many tasks; one with a fault gives a second conversation, on the failure of its program.
        seed: Start of the random sequence.
    Returns:
        Messages up to the answer, and the answer.
    """
    homes = Draw(split, random.Random(f"homes/{split}/{seed}"))
    for task in generate(split, count, seed):
        asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user_text(task)}]
        yield asked, target(task.first)
        if task.fault:
            said = answered(failure(task, invented_home(homes)))
            told = [{"role": "assistant", "content": target(task.first)}, {"role": "user", "content": said}]
            yield asked + told, target(task.program)


def fixed_words() -> list[str]:
    """List the stretches of these messages that never change, line by line where they are long."""
    found = [*_ASKED.split("{output}"), f"{_ENDED}\nMissing or empty: ", "\nstderr:\n"]
    found += [f"\nstderr (the last {TOLD_CHARS} of ", " characters):\n"]
    for text in (_HERE, _CACHED_DATES, _UNCACHED_DATES, *(frames for _, frames in _OF.values())):
        lines = re.findall(r"[^\n]*\n+", text)
        found += [part for line in lines for part in re.split(r"@\w+@", line) if len(part) > 3]
    return list(dict.fromkeys([*found, *("^" * width for width in (2, 4, 8, 16))]))


def _seen_by_pandas(task: CodeTask) -> dict[str, str]:
    """Give what the traceback says of the first row that has the fault."""
    sheet, scene = task.scene.sheets[0], task.scene
    if task.fault == "long_row":
        width = len(sheet.columns)
        at, row = next((at, row) for at, row in enumerate(sheet.rows) if len(row) > width)
        return {"columns": str(width), "position": str(at + 2), "found": str(len(row))}
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
        told = {"value": wrong, "format": separator.join(("%Y", "%m", "%d")), "where": f'"{name}"'}
        return {**told, "dates": _CACHED_DATES if _cached(shown) else _UNCACHED_DATES}
    at, cell = next((at, one) for at, one in enumerate(shown) if isinstance(one, str))
    return {"value": cell, "position": str(at), "where": f'"{name}"'}


def _cached(dates: Sequence[str]) -> bool:
    """Say whether pandas remembers the dates that it has read: where its first ones repeat.

    Source:
        pandas 3.1, should_cache of core/tools/datetimes.py
    """
    first = min(len(dates) // 10, 500)
    return len(set(dates[:first])) <= 0.7 * first


def _width(text: str) -> int:
    """Give the columns that a text takes, as the carets of a traceback do."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)
