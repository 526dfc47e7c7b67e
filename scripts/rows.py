"""Rows of task data from CSV, JSON and JSONL files, one at a time, with the place where each stands.

A bad row is a sentence that says why, so that the others can go on; a bad file is an error.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.core.labelling import Labelling, Task
from backend.core.runs import INPUTS_KEY, NO_RUN, PREVIEW_KEY, SCHEMA_KEY, inputs_of
from backend.errors import SetupError, TaskError

Row = dict[str, Any]

# What the import makes of a row of a code task.
MADE_KEYS = frozenset({INPUTS_KEY, PREVIEW_KEY, SCHEMA_KEY, *NO_RUN})

csv.field_size_limit(50_000_000)  # a cell is a whole text; the csv module stops at 131,072 characters


def read_rows(
    file: Path, labelling: Labelling, *, code_tasks: bool = False
) -> Iterator[tuple[str, Row | str]]:
    """Read a file row by row: where the row stands, and what it holds or why it cannot be used.

    Args:
        file: CSV, JSON or JSONL.
        labelling: The project's, which says the columns that a CSV needs.
        code_tasks: Rows are code tasks; a CSV then lacks the keys that the import makes.
    Raises:
        SetupError: Not UTF-8, not a kind of file that is read, or a CSV without the needed columns.
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
                header = next(reader)
                for cells in reader:
                    place = f"line {reader.line_num}"
                    if len(cells) == len(header):
                        yield place, dict(zip(header, cells, strict=True))
                    elif cells:
                        yield place, f"it has {len(cells)} fields, the header has {len(header)}"
            elif kind in {".jsonl", ".ndjson"}:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield f"line {number}", _parsed(line)
            elif kind == ".json":
                rows = json.load(stream)
                if not isinstance(rows, list):
                    raise SetupError(
                        f"{file} is not a list of rows.", hint="One object per line? Call it .jsonl."
                    )
                yield from ((f"row {number}", _data(row)) for number, row in enumerate(rows, start=1))
            else:
                raise SetupError(
                    f"{file} is neither CSV, JSON nor JSONL.", hint="The name's ending says the kind."
                )
    except UnicodeDecodeError as error:
        raise SetupError(f"{file} is not UTF-8 (byte {error.start}).", hint="Save it as UTF-8.") from error
    except (json.JSONDecodeError, csv.Error) as error:
        raise SetupError(f"{file} cannot be read: {error}.", hint="Correct the file.") from error


def _delimiter(file: Path, first_line: str, needed: set[str]) -> str:
    """Take the delimiter under which the header has the needed columns: surer than guessing from cells."""
    for delimiter in ",;\t|":
        if needed <= set(next(csv.reader([first_line], delimiter=delimiter), [])):
            return delimiter
    raise SetupError(
        f"{file} has no column {', '.join(sorted(needed))} (its first line: {first_line.strip()[:80]!r}).",
        hint="The project's config shows these keys; name the columns so.",
    )


def _parsed(line: str) -> Row | str:
    try:
        return _data(json.loads(line))
    except ValueError as error:
        return f"it is not JSON ({error})"


def _data(row: Any) -> Row | str:
    """Take a row's own data, also from a row in the form in which Label Studio exports tasks."""
    if isinstance(row, dict):
        return row["data"] if isinstance(row.get("data"), dict) else row
    return "it is no JSON object"


def fingerprint(labelling: Labelling, row: Row, *, code_task: bool = False) -> bytes:
    """Hash what the annotator reads of a row, and of a code task its input files, not what came of runs.

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
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise TaskError("It holds half a character (a lone surrogate).") from error
    told = json.dumps([texts, files] if files else texts)
    return hashlib.sha256(told.encode()).digest()[:16]
