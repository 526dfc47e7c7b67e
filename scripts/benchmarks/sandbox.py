"""Runs in the sandbox compared with the plain way, a subprocess of the same Python for each.

Both run the same scripts with the same packages on the same machine; pairs change order. The plain way
contains nothing, collects nothing and cleans nothing up.

    start    import pandas and matplotlib.pyplot, print
    plot     a bar chart of a small table with Chinese labels, to PNG
    re-runs  cold runs of the plot, as a check of final code does them: all cores against one after another
"""

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftloop.execution.sandbox import SandboxProcess
from draftloop.runs.job import SandboxJob, Script
from draftloop.support.environments import find_environment

START = "import pandas, matplotlib.pyplot\nprint(pandas.__version__)"
PLOT = """
import pandas as pd
import matplotlib.pyplot as plt
frame = pd.DataFrame({"城市": ["北京", "上海", "广州"], "销售额": [120, 30, 90]})
frame.plot.bar(x="城市", y="销售额", title="各城市销售额")
plt.tight_layout()
plt.savefig("chart.png")
"""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """How often each is done in one pair."""

    starts: int = 5
    plots: int = 5
    reruns: int = 12


def measure(
    folder: Path, pairs: int, tell: Tell, sizes: Sizes = Sizes()
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure starts, plots and re-runs.

    Args:
        folder: For the sandbox; jobs have users of their own, who must be able to pass through it.
        pairs: Interleaved pairs; the median of their ratios counts.
        tell: Takes progress, in words.
        sizes: How often each is done in one pair.
    Returns:
        `warm_start_vs_subprocess`, `plot_vs_subprocess`: seconds of the plain way over ours.
        `rerun_vs_subprocess`: re-runs per minute of ours over the plain way's. The seconds of one run of each
        side, pair by pair.
    Raises:
        NotInstalledError: The environment `sandbox` is missing.
        SetupError: This machine cannot contain code.
        RuntimeError: A run failed.
    """
    python = find_environment("sandbox") / "bin" / "python"
    folder.chmod(0o755)
    samples: dict[str, list[dict[str, float]]] = {"start": [], "plot": [], "rerun": []}
    with SandboxProcess(python, folder / "sandbox") as sandbox:
        bench = _Bench(folder, python, sandbox)
        for pair in range(pairs):
            samples["start"].append(bench.pair(START, sizes.starts, pair))
            samples["plot"].append(bench.pair(PLOT, sizes.plots, pair))
            samples["rerun"].append(bench.pair(PLOT, sizes.reruns, pair, cold=True))
            for name, measured in samples.items():
                ours, plain = (1000 * measured[-1][side] for side in ("ours", "plain"))
                tell(f"{name}: {ours:.0f} ms, a subprocess {plain:.0f} ms")
    ratios = {
        name: statistics.median(one["plain"] / one["ours"] for one in measured)
        for name, measured in samples.items()
    }
    figures = {
        "warm_start_vs_subprocess": ratios["start"],
        "plot_vs_subprocess": ratios["plot"],
        "rerun_vs_subprocess": ratios["rerun"],
    }
    return figures, {"seconds_of_one": samples}


class _Bench:
    def __init__(self, folder: Path, python: Path, sandbox: SandboxProcess) -> None:
        self._folder = folder
        self._python = python
        self._sandbox = sandbox

    def pair(self, code: str, count: int, pair: int, *, cold: bool = False) -> dict[str, float]:
        """Return the mean seconds of a run on each side, over `count` runs."""
        outputs = self._folder / "outputs"
        outputs.mkdir(exist_ok=True)
        job = SandboxJob((Script(code),), cold=cold)

        def ours() -> None:
            if cold:
                with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                    list(pool.map(self._run, [job] * count, [self._own(number) for number in range(count)]))
            else:
                for _ in range(count):
                    self._run(job, outputs)

        def plain() -> None:
            environment = {"PATH": "/usr/bin:/bin", "MPLBACKEND": "Agg", "HOME": str(outputs)}
            for _ in range(count):
                subprocess.run(
                    [str(self._python), "-c", code],
                    cwd=outputs,
                    env=environment,
                    check=True,
                    capture_output=True,
                )

        sides = {"ours": ours, "plain": plain}
        seconds: dict[str, float] = {}
        for side in sides if pair % 2 else reversed(sides):
            began = time.perf_counter()
            sides[side]()
            seconds[side] = (time.perf_counter() - began) / count
        return seconds

    def _own(self, number: int) -> Path:
        folder = self._folder / f"outputs-{number}"
        folder.mkdir(exist_ok=True)
        return folder

    def _run(self, job: SandboxJob, outputs: Path) -> None:
        attempt = self._sandbox.run(job, str(outputs))
        if attempt.outcome != "ok":
            raise RuntimeError(f"A run ended as {attempt.outcome}: {attempt.reason} {attempt.stderr[-500:]}")
