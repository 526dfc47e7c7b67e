"""Warm-up of the Python that jobs are forked from: packages imported, fonts listed, a chart drawn.

Chinese labels work by name and by accident: the CJK face that is installed also answers to the names that
scripts written elsewhere ask for, and stands behind every other font.
"""

import gc
import importlib
import io
import os
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

from draftloop.runs.job import Package

PACKAGES = (
    "numpy", "pandas", "matplotlib.pyplot", "openpyxl", "seaborn", "plotly.graph_objects", "plotly.express",
    "PIL.Image", "reportlab.pdfgen.canvas", "reportlab.platypus", "json", "csv", "sqlite3", "zipfile",
)  # fmt: skip
CJK_FAMILIES = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei")
# Asked for by scripts that were written on other systems, and by seaborn's themes.
_ALIASES = (
    "SimHei", "SimSun", "Microsoft YaHei", "Microsoft YaHei UI", "PingFang SC", "Heiti SC", "STHeiti",
    "STSong", "KaiTi", "FangSong", "Arial Unicode MS", "Noto Sans CJK JP", "Noto Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Arial", "Helvetica",
)  # fmt: skip


def prepare_fonts(folder: Path) -> str:
    """Write matplotlib's configuration and font list, with a CJK face behind every name.

    Args:
        folder: Where; jobs read it as MPLCONFIGDIR.
    Returns:
        The CJK family in use, empty if there is none.
    """
    font_manager = importlib.import_module("matplotlib.font_manager")
    manager = font_manager.fontManager
    known = {entry.name for entry in manager.ttflist}
    family = next((name for name in CJK_FAMILIES if name in known), "")
    if family:
        faces = [entry for entry in manager.ttflist if entry.name == family]
        for alias in _ALIASES:
            if alias not in known:
                manager.ttflist += [replace(entry, name=alias) for entry in faces]
    lines = ["backend: agg"]
    if family:
        # Only names stand in for each other, glyph by glyph; of a generic family the first face is all.
        lines += [f"font.family: DejaVu Sans, {family}", f"font.sans-serif: {family}, DejaVu Sans"]
        lines += [
            f"font.{kind}: {name}"
            for kind, name in (("serif", "Noto Serif CJK SC"), ("monospace", "Noto Sans Mono CJK SC"))
            if name in known
        ]
    (folder / "matplotlibrc").write_text("\n".join(lines) + "\n")
    version = font_manager.FontManager.__version__
    font_manager.json_dump(manager, folder / f"fontlist-v{version}.json")
    return family


def warm_up(configuration: Path) -> str:
    """Import the packages and draw a chart; skip missing ones.

    Returns:
        The CJK font family that charts use, empty if there is none.
    """
    family = ""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        if name == "matplotlib.pyplot":
            family = prepare_fonts(configuration)
            matplotlib = importlib.import_module("matplotlib")
            matplotlib.rc_file(configuration / "matplotlibrc")
            matplotlib.rcParamsDefault.update(matplotlib.rc_params_from_file(configuration / "matplotlibrc"))
    _draw()
    gc.collect()
    gc.freeze()  # what is shared with the jobs stays shared
    return family


def _draw() -> None:
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
        pandas = importlib.import_module("pandas")
    except ImportError:
        return
    pandas.DataFrame({"值": [1, 2]}).plot.bar(title="图")
    pyplot.savefig(io.BytesIO())
    pyplot.close("all")


def installed() -> tuple[Package, ...]:
    """List the packages of this environment, sorted by name."""
    versions = {package.metadata["Name"]: package.version for package in distributions()}
    return tuple(Package(name, versions[name]) for name in sorted(versions, key=str.lower))


def single_threaded() -> bool:
    """Check that this process has one thread, as a process that is forked should."""
    return len(os.listdir("/proc/self/task")) == 1
