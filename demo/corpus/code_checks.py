"""Compare the files and the output of a program with what is expected. Needs openpyxl for workbooks.

Tables are compared as rows: numbers within half a cent, in any order unless the task asks for one; names of
columns do not count. A chart must decode and not be blank, and its figures must be printed.
"""

import csv
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from demo.corpus.code_files import Row
from demo.corpus.code_tasks import CodeTask

_NEAR = 0.0101  # two ways to round a half
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def mistakes(task: CodeTask, folder: Path, printed: str) -> list[str]:
    """List the mistakes in the files and the output of a program.

    Args:
        task: What was asked.
        folder: Where its files are.
        printed: Its standard output.
    Returns:
        One sentence for each mistake; empty if there is none.
    """
    missing = [name for name in task.outputs if not (folder / name).is_file()]
    if missing:
        return [f"{name} is missing" for name in missing]
    expected = task.expected()
    contents = {name: (folder / name).read_bytes() for name in task.outputs}
    try:
        if len(contents) > 1 or not task.kind.outs[0]:
            return [said for name in contents for said in _table(name, contents[name], expected[name])]
        [(name, content)] = contents.items()
        return _one(task, name, content, expected, printed)
    except (ValueError, KeyError, IndexError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        return [f"{', '.join(contents)} cannot be read: {error}"]


def _one(task: CodeTask, name: str, content: bytes, expected: Any, printed: str) -> list[str]:
    kind = PurePosixPath(name).suffix
    if kind == ".png":
        return _picture(name, content) + _printed(printed, expected)
    if kind == ".pdf":
        good = content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
        return ([] if good else [f"{name} is no PDF"]) + _printed(printed, expected)
    if kind == ".zip":
        return _archive(name, content, expected)
    if kind == ".txt":
        lines = content.decode().rstrip("\n").split("\n")
        return [] if lines == expected.rstrip("\n").split("\n") else [f"{name} has other lines: {lines[:3]}"]
    if kind == ".md" and task.kind.titled:
        title = f"# {task.scene.slots['title']}"
        if content.decode().split("\n")[0].strip() != title:
            return [f"{name} does not begin with {title!r}"]
    return _table(name, content, expected, ordered=task.kind.ordered)


def _table(name: str, content: bytes, expected: Sequence[Row], *, ordered: bool = False) -> list[str]:
    actual = [[_settled(cell) for cell in row] for row in _rows(PurePosixPath(name).suffix, content)]
    wanted = [[_settled(cell) for cell in row] for row in expected]
    if not ordered:
        actual, wanted = sorted(actual, key=_order), sorted(wanted, key=_order)
    if len(actual) != len(wanted):
        return [f"{name} has {len(actual)} rows, expected {len(wanted)}"]
    for got, want in zip(actual, wanted, strict=True):
        if len(got) != len(want) or not all(map(_same, got, want)):
            return [f"{name} has the row {got}, expected {want}"]
    return []


def _rows(kind: str, content: bytes) -> list[Row]:
    """Read the rows of a table, without its header."""
    if kind == ".csv":
        return list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))[1:]
    if kind == ".json":
        return [list(one.values()) for one in json.loads(content)]
    if kind == ".xlsx":
        import openpyxl

        sheet = openpyxl.load_workbook(io.BytesIO(content), data_only=True).active
        return [list(row) for row in sheet.iter_rows(min_row=2, values_only=True)]
    if kind == ".md":
        lines = [line for line in content.decode().split("\n") if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    raise ValueError(f"no table: {kind}")


def _archive(name: str, content: bytes, expected: dict[str, Any]) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sorted(archive.namelist()) != sorted(expected):
            return [f"{name} holds {archive.namelist()}, expected {sorted(expected)}"]
        wrong = []
        for member, want in expected.items():
            data = archive.read(member)
            if isinstance(want, bytes):
                wrong += [] if data == want else [f"{member} in {name} was changed"]
            else:
                wrong += _table(member, data, want)
        return wrong


def _picture(name: str, content: bytes) -> list[str]:
    if not content.startswith(_PNG):
        return [f"{name} is no PNG"]
    packed, place = b"", len(_PNG)
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        packed += content[place + 8 : place + 8 + size] if kind == b"IDAT" else b""
        place += size + 12
    drawn = len(set(zlib.decompress(packed)))
    return [] if drawn > 30 else [f"{name} is blank"]  # an empty page has three: a filter, white, nothing


def _printed(printed: str, expected: Iterable[Any]) -> list[str]:
    numbers = [float(one) for one in _NUMBER.findall(printed)]
    missing = [
        one
        for one in expected
        if (one not in printed if isinstance(one, str) else not any(_same(one, number) for number in numbers))
    ]
    return [f"{missing[:3]} are not printed"] if missing else []


def _settled(cell: Any) -> float | str:
    """Return a cell as a number if it is one in any notation, otherwise as stripped text."""
    if cell is None:
        return ""
    text = str(cell).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _order(row: Sequence[float | str]) -> list[tuple[bool, float, str]]:
    return [
        (isinstance(cell, str), 0.0, cell) if isinstance(cell, str) else (False, round(cell, 1), "")
        for cell in row
    ]


def _same(got: Any, want: Any) -> bool:
    if isinstance(got, int | float) and isinstance(want, int | float):
        return abs(got - want) <= max(_NEAR, 1e-6 * abs(want))
    return bool(got == want)
