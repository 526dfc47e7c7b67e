"""Previews of input files: as text for a model's prompt, as HTML for the annotator's page.

Knows what was read of a file (`Seen`) and how to write it within a limit of characters. Does not read files
(`heads`).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from draftloop.runs.job import size

TEXT_CHARS = 1500  # of one file in the prompt
_TABLE_CHARS = 200  # for each table at least; tables that get no room are counted
_REST_CHARS = 40  # "... and 12 more columns"
_SAMPLES = 3  # values of a column
_VALUE_CHARS = 40
_LINE_CHARS = 160
_HTML_ROWS, _HTML_COLUMNS, _HTML_LINES = 5, 20, 15
_CELL_CHARS = 80

# The first that a value matches is its type; what matches none is text. Digits that begin with 0 are a name.
_TYPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("integer", re.compile(r"[+-]?(0|[1-9]\d*)")),
    ("number", re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")),
    ("true or false", re.compile(r"true|false", re.IGNORECASE)),
    ("percent", re.compile(r"[+-]?\d+(\.\d+)?\s?%")),
    ("date", re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{4}年\d{1,2}月\d{1,2}日")),
    (
        "date and time",
        re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}[ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?"),
    ),
    ("time", re.compile(r"\d{1,2}:\d{2}(:\d{2})?")),
)
_NUMBERS = ("integer", "number", "percent")
# Label Studio's own font is forced on everything that does not say `!important` itself.
PRE_STYLE = (
    "max-height:30em;overflow:auto;white-space:pre;"
    "font:13px/1.5 ui-monospace,Menlo,Consolas,DejaVu Sans Mono,Noto Sans Mono CJK SC,monospace!important"
)
_MOST = 0.8  # of the values that have one type name the column's


@dataclass(frozen=True)
class Table:
    """The head of a table: column names, rows of the same length as text, and how many there are in all.

    `name` is that of a sheet or a key, empty where the file is one table. `count` is None where it cannot be
    known, an estimate where `estimated`.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    count: int | None = None
    estimated: bool = False


@dataclass(frozen=True)
class Seen:
    """What was read of a file: its kind in words, and the tables or the lines at its beginning.

    `count` is that of its lines; None where it has tables or cannot be known.
    """

    name: str
    size_bytes: int
    kind: str
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()
    count: int | None = None
    estimated: bool = False


def to_text(seen: Seen, most_chars: int = TEXT_CHARS) -> str:
    """Describe a file for a model's prompt.

    Args:
        seen: What was read of the file.
        most_chars: The limit, in code points; what does not fit is left out and counted.
    Returns:
        Lines, the first of which names the file, its kind and size.
    """
    lines = _BoundedLines(most_chars)
    lines.add(_headline(seen))
    for place, table in enumerate(seen.tables):
        others = len(seen.tables) - place
        if lines.left < _TABLE_CHARS + _REST_CHARS:
            lines.add(f"... and {others} more tables")
            break
        share = lines.left if others == 1 else max(_TABLE_CHARS, lines.left // others) - _REST_CHARS
        part = _BoundedLines(share)
        if table.name:
            part.add(f"{_short(table.name, _VALUE_CHARS)}: {_rows(table)}")
        columns = [_column(table, column) for column in range(len(table.columns))]
        part.add_all(columns, "columns", names=table.columns)
        if columns_text := part.text():
            lines.add(columns_text)
    if seen.lines:
        lines.add_all([f"| {_short(line, _LINE_CHARS)}" for line in seen.lines], "lines seen")
    return lines.text()


def to_html(seen: Seen) -> str:
    """Return a preview for the annotator's page, as HTML; all text of the file is escaped."""
    parts = [f"<p><b>{escape(_clean(seen.name))}</b> {escape(_about(seen))}</p>"]
    for table in seen.tables:
        if table.name:
            parts.append(f"<p>{escape(_short(table.name, _CELL_CHARS))}: {escape(_rows(table))}</p>")
        parts.append(_html_table(table))
    if seen.lines:
        lines = "\n".join(escape(_short(line, _LINE_CHARS)) for line in seen.lines[:_HTML_LINES])
        more = "\n…" if len(seen.lines) > _HTML_LINES or _more(seen) else ""
        parts.append(f"<pre style='{PRE_STYLE}'>{lines}{more}</pre>")
    return "".join(parts)


def type_of(values: Sequence[str]) -> str:
    """Name the type of a column from some of its values, and what does not fit it."""
    filled = [value.strip() for value in values if value.strip()]
    if not filled:
        return "empty"
    kinds = [_kind(value) for value in filled]
    if set(kinds) <= {"integer", "number"}:
        kinds = ["number" if "number" in kinds else "integer"] * len(kinds)
    most = max(dict.fromkeys(kinds), key=kinds.count)
    if kinds.count(most) < _MOST * len(kinds):
        most = "text"
    words = [most]
    if most != "text" and kinds.count(most) < len(kinds):
        words.append("some other")
    if len(filled) < len(values):
        words.append("some empty")
    return ", ".join(words)


class _BoundedLines:
    """Lines up to a limit of characters."""

    def __init__(self, most_chars: int) -> None:
        self.left = most_chars
        self._lines: list[str] = []

    def add(self, line: str) -> bool:
        if len(line) + 1 > self.left:
            return False
        self._lines.append(line)
        self.left -= len(line) + 1
        return True

    def add_all(self, lines: Sequence[str], what: str, names: Sequence[str] = ()) -> None:
        """Add the lines that fit; a last line counts the others and names some of them."""
        self.left -= _REST_CHARS
        done = 0
        for line in lines:
            if not self.add(line):
                break
            done += 1
        self.left += _REST_CHARS
        if done < len(lines):
            rest = f"... and {len(lines) - done} more {what}"
            while done < len(names) and len(rest) + len(names[done]) + 3 < self.left:
                rest += (", " if ": " in rest else ": ") + _short(names[done], _VALUE_CHARS)
                done += 1
            self.add(rest)

    def text(self) -> str:
        return "\n".join(self._lines)


def _headline(seen: Seen) -> str:
    return f"{_clean(seen.name)}: {_about(seen)}"


def _about(seen: Seen) -> str:
    words = [seen.kind, size(seen.size_bytes)]
    if len(seen.tables) == 1 and not seen.tables[0].name:
        words.append(_rows(seen.tables[0]))
    if seen.count is not None:
        words.append(_counted(seen.count, "line", estimated=seen.estimated))
    return ", ".join(words)


def _rows(table: Table) -> str:
    columns = _counted(len(table.columns), "column")
    if table.count is None:
        return columns
    return f"{_counted(table.count, 'row', estimated=table.estimated)}, {columns}"


def _counted(count: int, what: str, *, estimated: bool = False) -> str:
    if estimated:
        digits = max(0, len(str(count)) - 2)  # two figures: an estimate has no more
        return f"about {round(count, -digits):,} {what}s (estimated)"
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _more(seen: Seen) -> bool:
    return seen.count is None or seen.count > len(seen.lines)


def _column(table: Table, place: int) -> str:
    values = [row[place] for row in table.rows]
    filled = (_short(value, _VALUE_CHARS) for value in values if value.strip())
    samples = list(dict.fromkeys(filled))[:_SAMPLES]
    name = _short(table.columns[place], 2 * _VALUE_CHARS) or f"column {place + 1} (no name)"
    said = f": {', '.join(samples)}" if samples else ""
    return f"- {name} ({type_of(values)}){said}"


def _kind(value: str) -> str:
    return next((name for name, pattern in _TYPES if pattern.fullmatch(value)), "text")


def _html_table(table: Table) -> str:
    shown = slice(0, _HTML_COLUMNS)
    more = "<td>…</td>" if len(table.columns) > _HTML_COLUMNS else ""
    right = [_is_number(table, place) for place in range(len(table.columns))]

    def row(cells: Iterable[str], tag: str) -> str:
        marks = (' align="right"' if number else "" for number in right)
        parts = (
            f"<{tag}{mark}>{escape(_short(cell, _CELL_CHARS))}</{tag}>"
            for cell, mark in zip(cells, marks, strict=False)
        )
        return "".join(parts) + more

    lines = [f"<tr>{row(table.columns[shown], 'th')}</tr>"]
    lines += [f"<tr>{row(cells[shown], 'td')}</tr>" for cells in table.rows[:_HTML_ROWS]]
    if rest := _rest(table, min(len(table.rows), _HTML_ROWS)):
        lines.append(f'<tr><td colspan="{len(table.columns[shown]) + bool(more)}">{rest}</td></tr>')
    return f'<table border="1" style="white-space:nowrap">{"".join(lines)}</table>'


def _rest(table: Table, shown: int) -> str:
    """Return how many rows are not shown."""
    if table.count is None:
        return "…"
    left = table.count - shown
    return f"… and {_counted(left, 'more row', estimated=table.estimated)}" if left > 0 else ""


def _is_number(table: Table, place: int) -> bool:
    """Check whether a column holds numbers, which are read by their right ends."""
    return type_of([row[place] for row in table.rows]).partition(",")[0] in _NUMBERS


def _short(text: str, most_chars: int) -> str:
    clean = _clean(text)
    return clean if len(clean) <= most_chars else f"{clean[: most_chars - 1]}…"


def _clean(text: str) -> str:
    """Replace what is not printable by a space: control characters, lone surrogates, line ends."""
    return "".join(one if one.isprintable() else " " for one in text).strip()
