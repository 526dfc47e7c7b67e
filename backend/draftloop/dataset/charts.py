"""Charts as SVG that stands in a page: bars, bars by day and lines, for a screen and for paper.

Knows SVG. Does not know what is shown. Every text is escaped; colours and fonts that are not given here come
from the page's style (`templates/page.html`). docs/decisions/0009 says why no library draws them.
"""

from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#2a6fdb", "#3a9d6e", "#d1495b", "#b07aa1")
_LABEL_PX = 14


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


def day_chart(days: Sequence[tuple[str, int, int]]) -> str:
    """Draw a thin bar for each day, and write the first and the last day below.

    Args:
        days: Day, dark part and whole, in order; the day is "" where it is unknown.
    """
    most = max(whole for *_, whole in days)
    parts = []
    for place, (day, dark, whole) in enumerate(days):
        words = f"<title>{escape(day or 'unknown')}: {dark} of {whole}</title>"
        for count, kind in ((whole, ' class="b"'), (dark, "")):
            tall = count / most * 24
            where = f'x="{place * 5}" y="{24 - tall:.1f}" width="4" height="{tall:.1f}"'
            parts.append(f"<rect{kind} {where}>{words}</rect>")
    first, last = escape(days[0][0]), escape(days[-1][0])
    span = [first] if len(days) == 1 else [f"{first} to", last]
    below = " ".join(f'<span class="quiet">{part}</span>' for part in span)
    size = f'width="{len(days) * 5}" height="24" viewBox="0 0 {len(days) * 5} 24"'
    return f'<svg role="img" {size}>{"".join(parts)}</svg>{below}'


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
