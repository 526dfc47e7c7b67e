"""Rows of task data from CSV, JSON and JSONL files, one at a time, with the place where each stands.

A bad row is a sentence that says why, so that the others can go on; a bad file is an error.
"""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from draftloop.errors import SetupError, TaskError
from draftloop.labelling.labelling import Labelling, Task
from draftloop.runs.run import INPUTS_KEY, NO_RUN, PREVIEW_KEY, SCHEMA_KEY, inputs_of
from draftloop.support.text import has_lone_surrogate

Row = dict[str, Any]

# Keys that the import adds to the row of a code task.
MADE_KEYS = frozenset({INPUTS_KEY, PREVIEW_KEY, SCHEMA_KEY, *NO_RUN})

csv.field_size_limit(50_000_000)  # a cell is a whole text; the csv module stops at 131,072 characters


# Other things in a row of Label Studio's exports, which are not imported.
LEFT_OUT = ("predictions", "drafts", "completions")


class ReadRow(NamedTuple):
    """A row of a file: where it stands, its data or why it cannot be used, its annotations.

    annotations  as Label Studio exports them
    left_out     kinds of other things that are not imported
    """

    place: str
    data: Row | str
    annotations: tuple[Row, ...] = ()
    left_out: tuple[str, ...] = ()


def read_rows(
    file: Path,
    labelling: Labelling,
    *,
    code_tasks: bool = False,
    add_note: Callable[[str], None] = lambda _: None,
) -> Iterator[ReadRow]:
    """Read a file row by row.

    Args:
        file: CSV, JSON or JSONL.
        labelling: The project's, which says the columns that a CSV needs.
        code_tasks: Rows are code tasks; a CSV then lacks the keys that the import makes.
        add_note: Called with each part of the whole file that is left out.
    Raises:
        SetupError: Not UTF-8, not a kind of file that is read, a CSV without the needed columns, or with two
            of one name.
    """
    kind = file.suffix.lower()
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if kind == ".csv":
                needed = set(labelling.keys) - (MADE_KEYS if code_tasks else set())
                reader = csv.reader(
                    stream, delimiter=_delimiter(file, stream.readline(), needed), strict=True
                )
                stream.seek(0)
                try:
                    yield from _of_csv(file, reader, add_note)
                except csv.Error as error:
                    raise SetupError(
                        f"{file} cannot be read at line {reader.line_num}: {error}.", hint="Correct the line."
                    ) from error
            elif kind in {".jsonl", ".ndjson"}:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield _parsed(f"line {number}", line)
            elif kind == ".json":
                yield from _of_json(file, stream.read())
            else:
                raise SetupError(
                    f"{file} is neither CSV, JSON nor JSONL.", hint="The name's ending says the kind."
                )
    except UnicodeDecodeError as error:
        raise SetupError(f"{file} is not UTF-8 (byte {error.start}).", hint="Save it as UTF-8.") from error
    except ValueError as error:  # no JSON, or an integer of thousands of digits
        raise SetupError(f"{file} cannot be read: {error}.", hint="Correct the file.") from error
    except RecursionError as error:
        raise SetupError(
            f"{file} cannot be read: a row is nested without an end.",
            hint="Remove it; or write a row per line and call the file .jsonl: the others are imported then.",
        ) from error


def _of_csv(file: Path, reader: Any, add_note: Callable[[str], None]) -> Iterator[ReadRow]:
    header: list[str] = next(reader, [])
    named = [name for name in header if name.strip()]
    doubled = next((name for name in named if named.count(name) > 1), None)
    if doubled is not None:
        raise SetupError(
            f"{file} has the column '{doubled}' {named.count(doubled)} times.",
            hint="Rename or remove all but one of them.",
        )
    if len(named) < len(header):
        add_note(f"line 1: {len(header) - len(named)} of {len(header)} columns have no name and are left out")
    for cells in reader:
        place = f"line {reader.line_num}"
        if len(cells) == len(header):
            pairs = list(zip(header, cells, strict=True))
            stray = next((cell for name, cell in pairs if not name.strip() and cell.strip()), None)
            data = {name: cell for name, cell in pairs if name.strip()}
            yield ReadRow(
                place, data if stray is None else f"it has {stray[:80]!r} in a column without a name"
            )
        elif cells:
            yield ReadRow(place, f"it has {len(cells)} fields, the header has {len(header)}")


def _of_json(file: Path, text: str) -> Iterator[ReadRow]:
    rows = _loads(text)
    if not isinstance(rows, list):
        raise SetupError(f"{file} is not a list of rows.", hint="One object per line? Call it .jsonl.")
    yield from (_row(f"row {number}", row) for number, row in enumerate(rows, start=1))


def _delimiter(file: Path, first_line: str, needed: set[str]) -> str:
    """Return the delimiter with which the header has the needed columns: safer than a guess from cells."""
    for delimiter in ",;\t|":
        if needed <= set(next(csv.reader([first_line], delimiter=delimiter), [])):
            return delimiter
    raise SetupError(
        f"{file} has no column {', '.join(sorted(needed))} (its first line: {first_line.strip()[:80]!r}).",
        hint="The project's config shows these keys; name the columns so.",
    )


class _Doubled(dict[str, Any]):
    """An object in which a key stands twice."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    doubled, names = _Doubled(row), [name for name, _ in pairs]
    doubled.key = next(name for name in names if names.count(name) > 1)
    return doubled


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _parsed(place: str, line: str) -> ReadRow:
    try:
        return _row(place, _loads(line))
    except ValueError as error:
        return ReadRow(place, f"it is not JSON ({error})")
    except RecursionError:
        return ReadRow(place, "it is nested without an end")


def _row(place: str, row: Any) -> ReadRow:
    """Read a row, also in the form in which Label Studio exports tasks."""
    if not isinstance(row, dict):
        return ReadRow(place, "it is no JSON object")
    problem = f"it has the key {row.key!r} twice" if isinstance(row, _Doubled) else _json_problem(row)
    if problem is not None:
        return ReadRow(place, problem)
    if not isinstance(row.get("data"), dict):
        return ReadRow(place, row)
    listed = row.get("annotations")
    annotations = (
        tuple(entry for entry in listed if isinstance(entry, dict)) if isinstance(listed, list) else ()
    )
    return ReadRow(place, row["data"], annotations, tuple(name for name in LEFT_OUT if row.get(name)))


def _json_problem(row: Row) -> str | None:
    """Return why Label Studio would refuse a row, and the whole request with it; None where it would not."""
    for key, part in row.items():
        pending = [part]
        while pending:
            current = pending.pop()
            if isinstance(current, float) and not math.isfinite(current):
                written = "NaN" if math.isnan(current) else "Infinity, or a number that is too large"
                return f"{key!r} holds {written}, which is no JSON: write null, or leave the key out"
            if isinstance(current, _Doubled):
                return f"{key!r} holds an object with the key {current.key!r} twice"
            if isinstance(current, dict | list):
                pending.extend(current.values() if isinstance(current, dict) else current)
    return None


def fingerprint(labelling: Labelling, row: Row, *, code_task: bool = False) -> bytes:
    """Hash what the annotator reads of a row; of a code task also its input files, but not its runs.

    Raises:
        TaskError: A key that the config shows is missing, or all of them are empty.
    """
    shown = {**row, **{key: empty for key, empty in NO_RUN.items() if key in row}} if code_task else row
    texts = labelling.inputs(Task(0, shown))
    files = [[file.name, file.sha256] for file in inputs_of(row)] if code_task else []
    if code_task:
        texts = {key: text for key, text in texts.items() if key not in MADE_KEYS}
    if not any(text.strip() for text in texts.values()):
        raise TaskError(f"'{', '.join(texts)}' is empty.")
    if has_lone_surrogate(json.dumps(row, ensure_ascii=False)):
        raise TaskError("It holds half a character (a lone surrogate).")
    content = json.dumps([texts, files] if files else texts)
    return hashlib.sha256(content.encode()).digest()[:16]
