"""Plot the measurements."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

_OURS, _THEIRS = "#2a6fdb", "#8a8f98"


def engine(samples: Mapping[str, Any], file: Path) -> None:
    """Draw requests per second through /predict and straight to vLLM; the share of the engine above.

    Args:
        samples: What `engine.measure` gave.
        file: A PNG; replaced.
    """
    widths = sorted(int(name.removeprefix("engine_")) for name in samples if name.startswith("engine_"))
    rates = {
        side: [statistics.median(pair[side] for pair in samples[f"engine_{width}"]) for width in widths]
        for side in ("ours", "engine")
    }
    shares = [
        statistics.median(pair["ours"] / pair["engine"] for pair in samples[f"engine_{width}"])
        for width in widths
    ]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    places = range(len(widths))
    axes.bar([p - 0.2 for p in places], rates["engine"], 0.38, color=_THEIRS, label="straight to vLLM")
    axes.bar([p + 0.2 for p in places], rates["ours"], 0.38, color=_OURS, label="through /predict")
    for place, rate, share in zip(places, rates["ours"], shares, strict=True):
        axes.annotate(f"{share:.2f}", (place + 0.2, rate), ha="center", va="bottom", fontsize=10)
    axes.set_xticks(list(places), [str(width) for width in widths])
    axes.set_xlabel("tasks at once")
    axes.set_ylabel("requests per second (median)")
    axes.set_title("Same prompts through the backend and straight to the engine")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(file, dpi=130)
    plt.close(figure)
