"""Write tables as files, always with the same bytes, and the previews of them that the import writes.

Previews come from `draftloop.execution.heads.look` and `execution.preview.to_text`, which need only the
standard library. Reading a workbook needs openpyxl, which the training environment lacks, so the preview
of a workbook is made here from its rows; a test compares it with the real one.
"""

import csv
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from draftloop.execution.heads import look
from draftloop.execution.preview import Seen, to_text
from draftloop.execution.preview import Table as SeenTable

_ROWS_SEEN = 200  # of a workbook, as in backend/draftloop/execution/heads.py
_CONTENT = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_PARTS = {
    "[Content_Types].xml": f'{_HEAD}<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_CONTENT}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_CONTENT}.worksheet+xml"/></Types>',
    "_rels/.rels": f'{_HEAD}<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
    f'Type="{_OFFICE}/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'{_HEAD}<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}/relationships"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'{_HEAD}<Relationships xmlns="{_PACKAGE}/relationships"><Relationship '
    f'Id="rId1" Type="{_OFFICE}/relationships/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}
_EPOCH = (2025, 1, 1, 0, 0, 0)

Row = list[Any]


@dataclass(frozen=True)
class Sheet:
    """A table and how it is written: `kind` is csv, xlsx, json, jsonl or log.

    A log has one column of lines. A row of a CSV may be longer than the others: no reader expects that.
    """

    stem: str
    kind: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    encoding: str = "utf-8"
    separator: str = ","

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.stem}.{self.kind}"

    def column(self, name: str) -> list[Any]:
        """Return a column's values."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def content(self) -> bytes:
        """Return the file's content."""
        if self.kind == "xlsx":
            return _workbook([self.columns, *self.rows])
        if self.kind == "log":
            text = "".join(f"{row[0]}\n" for row in self.rows)
        elif self.kind == "csv":
            stream = io.StringIO()
            writer = csv.writer(stream, delimiter=self.separator, lineterminator="\n")
            writer.writerows([self.columns, *self.rows])
            text = stream.getvalue()
        else:
            objects = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
            if self.kind == "json":
                text = json.dumps(objects, ensure_ascii=False, indent=1)
            else:
                text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
        return text.encode(self.encoding)

    def preview(self, content: bytes) -> str:
        """Return the preview of the file that the import writes into a prompt."""
        if self.kind == "xlsx":
            rows = tuple(tuple(map(str, row)) for row in self.rows[:_ROWS_SEEN])
            estimated = len(self.rows) >= _ROWS_SEEN + 1
            table = SeenTable("Sheet Sheet1", self.columns, rows, len(self.rows), estimated)
            return to_text(Seen(self.name, len(content), "Excel workbook", (table,)))
        return preview_files({self.name: content})


def preview_files(files: Mapping[str, bytes]) -> str:
    """Return the previews of files as the import writes them into a prompt, with its own code.

    Args:
        files: Contents by name; workbooks need openpyxl.
    Returns:
        The value of `input_schema`.
    """
    parts = []
    for name, content in files.items():
        # `look` needs a path; a file in memory has one.
        with os.fdopen(os.memfd_create("preview"), "w+b") as file:
            file.write(content)
            file.flush()
            parts.append(to_text(look(Path(f"/proc/self/fd/{file.fileno()}"), name)))
    return "\n\n".join(parts)


def _workbook(rows: Sequence[Sequence[Any]]) -> bytes:
    """Return the smallest workbook that Excel, openpyxl and pandas read: one sheet, strings in place."""

    def cell(value: Any) -> str:
        if isinstance(value, int | float):
            return f"<c><v>{value}</v></c>"
        return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'

    lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    last = f"{chr(ord('A') + len(rows[0]) - 1)}{len(rows)}"
    sheet = f'{_HEAD}<worksheet xmlns="{_MAIN}"><dimension ref="A1:{last}"/><sheetData>{lines}</sheetData>'
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**_PARTS, "xl/worksheets/sheet1.xml": f"{sheet}</worksheet>"}.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    return stream.getvalue()
