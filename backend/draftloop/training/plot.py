"""A plot of a run's loss: one curve for each stage, over all its steps.

Drawn with Pillow, which the environment contains already.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 960, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 56, 56
_FINE = 3  # the image is drawn this much larger and scaled down, for smooth lines
_COLOURS = {"sft": "#2563eb", "dpo": "#d97706"}
_GREY, _LIGHT, _BLACK = "#6b7280", "#e5e7eb", "#111827"


def draw_losses(losses: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the losses of a run.

    Args:
        losses: One mapping with `stage`, `step` and `loss` for each step, in order.
        title: Title of the plot.
        path: The PNG file to write.
    Raises:
        OSError: The disk failed.
    """
    image = Image.new("RGB", (_WIDTH * _FINE, _HEIGHT * _FINE), "white")
    pen = ImageDraw.Draw(image)
    font, small = (ImageFont.load_default(size * _FINE) for size in (17, 13))
    top = max((entry["loss"] for entry in losses if math.isfinite(entry["loss"])), default=1.0)
    grid = _round_step(top / 5)
    highest = grid * math.ceil(top / grid + 1e-9)

    def point(place: float, loss: float) -> tuple[float, float]:
        across = place / max(1, len(losses) - 1) * (_WIDTH - _LEFT - _RIGHT) + _LEFT
        up = (1 - loss / highest) * (_HEIGHT - _TOP - _BOTTOM) + _TOP
        return across * _FINE, up * _FINE

    pen.text((_LEFT * _FINE, 16 * _FINE), title, fill=_BLACK, font=font)
    for number in range(round(highest / grid) + 1):
        loss = number * grid
        (x, y), (end, _) = point(0, loss), point(len(losses) - 1 or 1, loss)
        pen.line((x, y, max(end, (_WIDTH - _RIGHT) * _FINE), y), fill=_LIGHT, width=_FINE)
        pen.text((x - 10 * _FINE, y), f"{loss:.3g}", fill=_GREY, font=small, anchor="rm")
    bottom = (_HEIGHT - _BOTTOM + 8) * _FINE
    for stage in dict.fromkeys(entry["stage"] for entry in losses):
        curve = [
            (place, entry)
            for place, entry in enumerate(losses)
            if entry["stage"] == stage and math.isfinite(entry["loss"])
        ]
        points = [point(place, entry["loss"]) for place, entry in curve]
        colour = _COLOURS.get(stage, _BLACK)
        if len(points) > 1:
            pen.line(points, fill=colour, width=2 * _FINE, joint="curve")
        for x, y in points[:1] + points[-1:]:
            pen.ellipse((x - 3 * _FINE, y - 3 * _FINE, x + 3 * _FINE, y + 3 * _FINE), fill=colour)
        if curve:
            place, first = curve[0]
            last = curve[-1][1]
            words = f"{stage}: loss {first['loss']:.3g} to {last['loss']:.3g} in {last['step']} steps"
            x = min(point(place, 0)[0], (_WIDTH - _RIGHT) * _FINE - pen.textlength(words, font=small))
            shift = 0 if stage == losses[0]["stage"] else 18 * _FINE
            pen.text((x, bottom + shift), words, fill=colour, font=small)
    image.reduce(_FINE).save(path)


def _round_step(step: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next((power * factor for factor in (1, 2, 5) if power * factor >= step), power * 10)
