"""What input files hold: columns, types and first rows, read from their beginnings.

Knows CSV, Excel, JSON and text in the encodings that are met. A workbook, which may unpack to anything, is
read in a child process (`bounded_process`), which runs `main`. Does not know how a preview is written
(`preview`) or which files a task may have (`inputs`).
"""

import codecs
import csv
import io
import json
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime
from datetime import time as time_of_day
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from draftloop.execution.bounded_process import ProcessLimits, run_bounded
from draftloop.execution.preview import Seen, Table
from draftloop.runs.job import size

_HEAD_BYTES = 256 << 10
_ROWS = 200  # enough to tell a column's type
_LINES = 40
_COLUMNS = 500
# A workbook is an archive: of 4 MB that were 400 unpacked, and were read for 41 s.
_UNPACKED_BYTES = 200 << 20
_BOOK = ProcessLimits(memory_bytes=1 << 30, seconds=10)  # for reading one
_SHEETS = 20
_SHEET_CHARS = 1 << 20
_CELL_CHARS = 300
_TOO_LARGE = 3  # an exit status
_EXCEL = (".xlsx", ".xlsm")
_LINE_END = re.compile(r"\r\n|\r|\n")  # what ends a line: str.splitlines knows many more


class Head(NamedTuple):
    """The beginning of a text file, and whether that is all of it."""

    text: str
    encoding: str
    whole: bool
    length_bytes: int  # of the text in its encoding


def look(path: Path, name: str) -> Seen:
    """Preview a file from its beginning alone.

    Args:
        path: Its place on disk.
        name: The name that code opens it by; its ending selects the reader.
    Returns:
        Tables or lines; only the kind where it is neither, or cannot be read as its name claims.
    """
    size_bytes = path.stat().st_size
    suffix = PurePosixPath(name).suffix.lower()
    if not size_bytes:
        return Seen(name, 0, "empty file")
    if suffix in _EXCEL:
        return _excel(path, name, size_bytes)
    head = _head(path, size_bytes)
    if head is None:
        return Seen(name, size_bytes, f"{suffix[1:].upper() or 'binary'} file")
    readers: dict[str, Callable[[Head, str, int], Seen | None]] = {
        ".csv": _csv,
        ".tsv": _csv,
        ".json": _json,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
    }
    try:
        seen = readers[suffix](head, name, size_bytes) if suffix in readers else None
    except RecursionError:  # nested as deeply as can be read, and no deeper
        seen = None
    return seen or _lines(head, name, size_bytes)


def _head(path: Path, size_bytes: int) -> Head | None:
    """Decode the beginning of a file, whole lines only; None where it is not text."""
    with path.open("rb") as file:
        raw = file.read(_HEAD_BYTES)
    whole = len(raw) == size_bytes
    encodings = ("utf-8", "gb18030")
    if raw.startswith(codecs.BOM_UTF8):
        encodings = ("utf-8-sig", "utf-8-sig")
    elif raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ("utf-16", "utf-16")
    elif b"\0" in raw:
        return None
    for encoding in encodings:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(raw, final=whole)
        except UnicodeDecodeError:
            continue
        if not whole and "\n" in text:
            text = text[: text.rindex("\n") + 1]
        return Head(text, encoding, whole, len(text.encode(encoding)))
    return None


def _estimate(head: Head, count: int, size_bytes: int) -> int:
    """Extrapolate from the lines or rows of the head to the whole file."""
    return count if head.whole else max(count, round(count * size_bytes / head.length_bytes))


def _lines(head: Head, name: str, size_bytes: int) -> Seen:
    lines = _LINE_END.split(head.text)
    if not lines[-1]:
        lines.pop()
    suffix = PurePosixPath(name).suffix[1:].upper()
    kind = f"{suffix} text" if suffix and suffix != "TXT" else "text"
    count = _estimate(head, len(lines), size_bytes)
    shown = tuple(lines[:_LINES])
    return Seen(name, size_bytes, f"{kind} in {head.encoding}", (), shown, count, not head.whole)


def _csv(head: Head, name: str, size_bytes: int) -> Seen | None:
    delimiter = _delimiter(head.text, name)
    try:
        rows = [row for row in csv.reader(io.StringIO(head.text), delimiter=delimiter) if row]
    except csv.Error:
        return None
    if not rows:
        return None
    count = _estimate(head, len(rows), size_bytes) - 1
    table = _table("", rows[0], rows[1:], count=count, estimated=not head.whole)
    named = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'"}[delimiter]
    return Seen(name, size_bytes, f"CSV in {head.encoding}, separated by {named}", (table,))


def _delimiter(text: str, name: str) -> str:
    """Return the delimiter that gives most rows as many cells as the first one, and more than one."""
    sample = "\n".join(_LINE_END.split(text)[:50])
    best, chosen = 0.0, "\t" if name.lower().endswith(".tsv") else ","
    for delimiter in ",\t;|":
        try:
            rows = [row for row in csv.reader(io.StringIO(sample), delimiter=delimiter) if row]
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 1
        if width < 2:
            continue
        share = sum(len(row) == width for row in rows) / len(rows)
        if share > best:
            best, chosen = share, delimiter
    return chosen


def _table(
    name: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, count: int | None, estimated: bool
) -> Table:
    """Pad or cut the rows to the length of the header."""
    width = min(max(len(header), 1), _COLUMNS)
    even = ((*row[:width], *[""] * (width - len(row))) for row in rows[:_ROWS])
    return Table(name, tuple(header[:width]), tuple(even), count, estimated)


# ---------------------------------------------------------------- JSON


def _json(head: Head, name: str, size_bytes: int) -> Seen | None:
    text = head.text.lstrip("\ufeff \t\r\n")
    kind = f"JSON in {head.encoding}"
    if text.startswith("["):
        values, end = _read_list(text)
        if values and all(isinstance(value, dict) for value in values):
            whole = head.whole and not text[end:].strip(" \t\r\n,]")
            read_bytes = len(text[:end].encode(head.encoding, "replace"))
            count = len(values) if whole else round(len(values) * size_bytes / max(1, read_bytes))
            objects = _objects("", values, count=count, estimated=not whole)
            return Seen(name, size_bytes, f"{kind}, a list of objects", (objects,))
    elif head.whole:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict):
            lists = {
                key: rows
                for key, rows in value.items()
                if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
            }
            tables = [_objects("", [value], count=None, estimated=False)]
            tables += [_objects(key, rows, count=len(rows), estimated=False) for key, rows in lists.items()]
            return Seen(name, size_bytes, f"{kind}, one object", tuple(tables))
    return None


def _read_list(text: str) -> tuple[list[Any], int]:
    """Parse the elements of a list until one is cut off; return them and the position after the last."""
    decoder, values, position = json.JSONDecoder(), [], 1
    separator = re.compile(r"[\s,]*")
    while match := separator.match(text, position):
        try:
            value, end = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break
        values.append(value)
        position = end
    return values, position


def _jsonl(head: Head, name: str, size_bytes: int) -> Seen | None:
    lines = [line for line in _LINE_END.split(head.text) if line.strip()]
    try:
        values = [json.loads(line) for line in lines[:_ROWS]]
    except (ValueError, RecursionError):
        return None
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    count = _estimate(head, len(lines), size_bytes)
    objects = _objects("", values, count=count, estimated=not head.whole)
    return Seen(name, size_bytes, f"JSON lines in {head.encoding}", (objects,))


def _objects(name: str, values: Sequence[dict[str, Any]], *, count: int | None, estimated: bool) -> Table:
    columns = list(dict.fromkeys(key for value in values[:_ROWS] for key in value))[:_COLUMNS]
    rows = [[_cell(value.get(key)) for key in columns] for value in values[:_ROWS]]
    return _table(name, columns, rows, count=count, estimated=estimated)


# ---------------------------------------------------------------- Excel


def _excel(path: Path, name: str, size_bytes: int) -> Seen:
    """Preview a workbook in a process of its own: a small file may unpack to any size."""
    unread = "Excel workbook that cannot be previewed"
    ended = run_bounded(__name__, [str(path.absolute())], _BOOK)
    if ended.status is None:
        return Seen(name, size_bytes, f"{unread}: {ended.reason}")
    if ended.status == _TOO_LARGE:
        return Seen(name, size_bytes, f"{unread}: it unpacks to more than {size(_UNPACKED_BYTES)}")
    try:
        tables = [
            Table(sheet["name"], tuple(sheet["columns"]), tuple(map(tuple, sheet["rows"])), *sheet["count"])
            for sheet in json.loads(ended.output)
        ]
    except ValueError:
        return Seen(
            name, size_bytes, f"{unread}: it takes too much memory or time" if ended.status < 0 else unread
        )
    return Seen(name, size_bytes, "Excel workbook", tuple(tables))


def main(arguments: Sequence[str]) -> int:
    """Write the sheets of a workbook as JSON to standard output, in a child process.

    Args:
        arguments: The path of the workbook.
    Returns:
        The exit status.
    Raises:
        Exception: What openpyxl raises on a broken file depends on what is broken.
    """
    path = Path(arguments[0])
    with zipfile.ZipFile(path) as archive:
        # A reader stops at the size that is declared here, whatever is packed.
        if sum(entry.file_size for entry in archive.infolist()) > _UNPACKED_BYTES:
            return _TOO_LARGE
    sheets = [
        {
            "name": table.name,
            "columns": table.columns,
            "rows": table.rows,
            "count": (table.count, table.estimated),
        }
        for table in _sheets(path)
    ]
    sys.stdout.write(json.dumps(sheets))
    return 0


def _sheets(path: Path) -> list[Table]:
    import openpyxl  # noqa: PLC0415  # 0.2 s that only workbooks need

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on styles and validations that it does not know
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            tables = []
            for sheet in book.worksheets[:_SHEETS]:
                title = f"Sheet {sheet.title}"
                read = sheet.iter_rows(max_row=_ROWS + 1, max_col=_COLUMNS, values_only=True)
                rows: list[list[str]] = []
                chars = 0
                for row in read:
                    rows.append([_cell(value)[:_CELL_CHARS] for value in row])
                    chars += sum(map(len, rows[-1]))
                    if chars > _SHEET_CHARS:
                        break
                ended = len(rows) <= _ROWS and chars <= _SHEET_CHARS
                while rows and not any(rows[-1]):
                    rows.pop()
                width = max((place for row in rows for place, cell in enumerate(row, 1) if cell), default=0)
                if not width:
                    tables.append(Table(title, (), (), 0))
                    continue
                rows = [row[:width] for row in rows]
                last = len(rows) if ended else sheet.max_row  # as the file declares it
                count = last - 1 if last else None
                tables.append(_table(title, rows[0], rows[1:], count=count, estimated=not ended))
            return tables
        finally:
            book.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, datetime) and value.time() == time_of_day():
        value = value.date()  # a workbook keeps dates as midnight
    return str(value)
