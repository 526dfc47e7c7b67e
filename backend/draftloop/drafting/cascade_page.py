"""The page of a cascade's calibration: what each threshold escalates, gets right and costs.

Knows which figures `templates/cascade.html` shows. Does not know how they are made (`cascade`). The same
figures give the same page; no text of a task stands in it.
"""

from collections.abc import Mapping
from typing import Any

from draftloop.dataset.charts import line_chart
from draftloop.drafting.cascade import Calibration, Point
from draftloop.support.templates import render

_ROWS = 10  # of the table of thresholds


def cascade_page(small: str, larger: str, calibrations: Mapping[str, Calibration]) -> str:
    """Return the page as one HTML document.

    Args:
        small: Name of the model that drafts first.
        larger: Name of the one that catches what it is not sure of.
        calibrations: By case.
    """
    cases = [
        {"name": name, "summary": _summarize(one), "plot": plot(one), "rows": _rows(one)}
        for name, one in calibrations.items()
    ]
    return render("drafting/templates/cascade.html", small=small, larger=larger, cases=cases)


def plot(one: Calibration) -> str:
    """Draw what each threshold escalates, gets right and costs, on documents it was not chosen on, as SVG."""
    whole = one.larger["prompt_tokens"] + one.larger["completion_tokens"]
    lines = {
        "right": [(point.threshold, point.accepted) for point in one.curve],
        "escalated": [(point.threshold, point.escalated) for point in one.curve],
        "harmed": [(point.threshold, point.harmed) for point in one.curve],
        "larger model's tokens": [
            (point.threshold, min(1.0, point.larger_tokens / whole)) for point in one.curve
        ],
    }
    return line_chart(lines, across="threshold of the small model's score", mark=one.threshold)


def _summarize(one: Calibration) -> str:
    if one.threshold is None or one.measured is None:
        return f"No threshold keeps a budget of {one.budget:.1%} on {one.chosen_on} documents."
    return (
        f"Threshold {one.threshold:g}, chosen on {one.chosen_on} documents for a budget of {one.budget:.1%}; "
        f"on {one.measured_on} others it escalates {one.measured.escalated:.0%} and harms "
        f"{one.measured.harmed:.1%} (at most {one.measured.harmed_at_most:.1%}, 95 %)."
    )


def _rows(one: Calibration) -> list[list[str]]:
    rows = [_alone("small model alone", one.small, larger=False), _alone("larger model alone", one.larger)]
    if one.measured is not None:
        rows.append(_row("the cascade", one.measured))
    every = max(1, (len(one.curve) - 1) // _ROWS)
    rows += [_row(f"at {point.threshold:g}", point) for point in one.curve[::every]]
    return rows


def _alone(name: str, figures: Mapping[str, Any], *, larger: bool = True) -> list[str]:
    tokens = f"{figures['prompt_tokens'] + figures['completion_tokens']:.0f}"
    return [
        name,
        "",
        f"{figures['accepted']:.1%}",
        f"{figures['quality']:.1%}",
        "",
        "",
        *(("", tokens) if larger else (tokens, "")),
        f"{figures['ms']['mean']:.0f}",
    ]


def _row(name: str, point: Point) -> list[str]:
    return [
        name,
        f"{point.escalated:.1%}",
        f"{point.accepted:.1%}",
        f"{point.quality:.1%}",
        f"{point.harmed:.1%}",
        f"{point.harmed_at_most:.1%}",
        f"{point.small_tokens:.0f}",
        f"{point.larger_tokens:.0f}",
        f"{point.ms:.0f}",
    ]
