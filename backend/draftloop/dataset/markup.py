"""HTML and SVG for pages of figures: paragraphs, tables, bar charts and line charts, for screen and print.

Does not know what the figures mean. A page has no script and loads nothing; all text is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p { margin: .4rem 0 } .sum { font-size: 1.1rem } .quiet { color: #59636e }
table { border-collapse: collapse; margin: .5rem 0 } caption { text-align: left; color: #59636e }
th, td { text-align: left; vertical-align: top; padding: .25rem 1.2rem .25rem 0;
  border-bottom: 1px solid #d1d9e0 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } td.n { white-space: nowrap }
td:last-child { overflow-wrap: anywhere } td .quiet { white-space: nowrap }
svg { display: block; margin: .3rem 0; max-width: 100% }
svg text { font: 11px system-ui, sans-serif; fill: #59636e } rect { fill: #4c78a8 } rect.b { fill: #b8c4d0 }
ul.first { border-left: 4px solid #bc4c00; padding: .3rem 0 .3rem 1.6rem; margin: .5rem 0 }
@media (max-width: 48rem) { th, td { padding-right: .6rem } }
@media print { body { margin: 0; max-width: none; font-size: 10pt } h2, tr, svg { break-inside: avoid }
  h2 { break-after: avoid } }
"""
_COLOURS = ("#2a6fdb", "#3a9d6e", "#d1495b", "#b07aa1")
_LABEL_PX = 14

Cell = str | int


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph; `kind` is a CSS class of STYLE."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    numbers: set[int],
    html: frozenset[int] | set[int] = frozenset(),
) -> str:
    """Return a table; the columns in `html` contain markup and are not escaped."""

    def cell(tag: str, place: int, part: Cell, *, is_html: bool = False) -> str:
        kind = ' class="n"' if place in numbers else ""
        return f"<{tag}{kind}>{part if is_html else escape(str(part))}</{tag}>"

    top = "".join(cell("th", place, part) for place, part in enumerate(head))
    lines = (
        "".join(cell("td", place, part, is_html=place in html) for place, part in enumerate(row))
        for row in rows
    )
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>"


def bar_chart(bars: Sequence[tuple[str, int, int]]) -> str:
    """Return a bar chart of (label, dark part, whole); the whole is written above each bar."""
    width, height, most = 46, 90, max(whole for *_, whole in bars) or 1
    parts = []
    for place, (label, dark, whole) in enumerate(bars):
        left = place * width
        for count, kind in ((whole, ' class="b"'), (dark, "")):
            tall = count / most * height
            parts.append(
                f'<rect{kind} x="{left + 4}" y="{16 + height - tall:.1f}" width="{width - 8}" '
                f'height="{tall:.1f}"/>'
            )
        middle = left + width // 2
        above = 12 + height - whole / most * height
        parts.append(f'<text x="{middle}" y="{above:.1f}" text-anchor="middle">{whole}</text>')
        parts.append(f'<text x="{middle}" y="{height + 30}" text-anchor="middle">{escape(label)}</text>')
    size = (
        f'width="{len(bars) * width}" height="{height + 36}" viewBox="0 0 {len(bars) * width} {height + 36}"'
    )
    return f'<svg role="img" {size}>{"".join(parts)}</svg>'


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]], *, across: str, mark: float | None = None
) -> str:
    """Return a line chart with both axes from 0 to 1; each line's name is written at its end.

    Args:
        lines: Points by name, from left to right; at most four lines.
        across: Label of the horizontal axis.
        mark: Position of a vertical line.
    """
    width, height, left, top = 460, 240, 48, 12
    parts = []
    for tenth in range(0, 11, 2):
        x, y = left + tenth / 10 * width, top + height - tenth / 10 * height
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#d1d9e0" fill="none"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tenth * 10} %</text>')
        parts.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle">{tenth / 10:g}</text>')
    parts.append(
        f'<text x="{left + width / 2:g}" y="{top + height + 34}" text-anchor="middle">{escape(across)}</text>'
    )
    if mark is not None:
        x = left + mark * width
        parts.append(
            f'<path d="M{x:.1f} {top}v{height}" stroke="#bc4c00" stroke-dasharray="4 3" fill="none"/>'
        )
    labels = _spread([top + height - points[-1][1] * height for points in lines.values()])
    for (name, points), colour, label in zip(lines.items(), _COLOURS, labels, strict=False):
        path = "L".join(f"{left + x * width:.1f} {top + height - y * height:.1f}" for x, y in points)
        dashed = ' stroke-dasharray="5 4"' if colour == _COLOURS[-1] else ""  # it may cover another line
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2"{dashed} fill="none"/>')
        parts.append(
            f'<text x="{left + width + 8}" y="{label + 4:.1f}" style="fill: {colour}">{escape(name)}</text>'
        )
    whole, tall = left + width + 190, top + height + 42
    size = f'width="{whole}" height="{tall}" viewBox="0 0 {whole} {tall}"'
    about = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" fill="#59636e"'
    return f'<svg role="img" {about} {size}>{"".join(parts)}</svg>'


def _spread(places: Sequence[float]) -> list[float]:
    """Move labels down where they would overlap."""
    moved = list(places)
    above = float("-inf")
    for place in sorted(range(len(places)), key=lambda one: places[one]):
        above = moved[place] = max(moved[place], above + _LABEL_PX)
    return moved
