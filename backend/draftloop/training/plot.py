"""A plot of a run's loss: one curve for each stage, over all its steps.

Knows matplotlib, without its global state (`pyplot`). Does not know how a run is trained.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_INCHES, _DOTS_PER_INCH = (9.6, 5.4), 100
_COLOURS = {"sft": "#2563eb", "dpo": "#d97706"}
_GREY, _LIGHT, _BLACK = "#6b7280", "#e5e7eb", "#111827"


def draw_losses(losses: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the losses of a run.

    Args:
        losses: One mapping with `stage`, `step` and `loss` for each step, in order; a loss that is not finite
            is left out.
        title: Written above.
        path: A PNG.
    Raises:
        OSError: The disk failed.
    """
    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for stage in dict.fromkeys(entry["stage"] for entry in losses):
        curve = [
            (number, entry)
            for number, entry in enumerate(losses, 1)
            if entry["stage"] == stage and math.isfinite(entry["loss"])
        ]
        if not curve:
            continue
        first, last = curve[0][1], curve[-1][1]
        axes.plot(
            [number for number, _ in curve],
            [entry["loss"] for _, entry in curve],
            color=_COLOURS.get(stage, _BLACK),
            linewidth=2,
            marker="o",
            markevery=[0, len(curve) - 1],
            label=f"{stage}: loss {first['loss']:.3g} to {last['loss']:.3g} in {last['step']} steps",
        )
    axes.set_title(title, loc="left", color=_BLACK, parse_math=False)
    axes.set_xlabel("step", color=_GREY)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=_GREY, length=0)
    axes.grid(axis="y", color=_LIGHT)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    if axes.lines:
        figure.legend(loc="outside lower left", frameon=False, labelcolor="linecolor")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a title; a box is drawn
        figure.savefig(path, format="png")
