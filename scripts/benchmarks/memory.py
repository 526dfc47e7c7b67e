"""Peak memory of `scripts/prelabel`, the real command, on small and large projects.

Against fakes of vLLM and of Label Studio that hold nothing per task (tests/, each beside a contract suite
that the real one passes too): a real Label Studio takes hours to store 100,000 predictions, and its memory
is not ours.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from scripts.benchmarks.commands import run
from tests.fake_label_studio import fake_label_studio
from tests.fake_vllm import fake_vllm

_CASE = "sentiment"
_PADDING = "客服态度很好，东西也不错，就是快递慢了一点。" * 8  # a text of usual length
_TELL_EVERY_S = 20.0

Tell = Callable[[str], None]


def measure(folder: Path, sizes: dict[str, int], tell: Tell) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure the peak of resident memory for each size.

    Args:
        folder: For ledgers and record files.
        sizes: Numbers of tasks, by the name that their figure gets.
        tell: Takes progress, in words.
    Returns:
        `prelabel_peak_mb_NAME` in MiB, and tasks per second beside them.
    Raises:
        RuntimeError: A run failed, or drafted another number of tasks.
    """
    figures: dict[str, float] = {}
    samples: dict[str, Any] = {}
    for name, tasks in sizes.items():
        started = time.monotonic()
        figures[f"prelabel_peak_mb_{name}"] = _peak_mb(folder / name, tasks, tell)
        samples[f"prelabel_tasks_per_s_{name}"] = tasks / (time.monotonic() - started)
    return figures, samples


def _peak_mb(folder: Path, tasks: int, tell: Tell) -> float:
    folder.mkdir(parents=True)
    config = Cases(ROOT / "label_config").config(_CASE)

    def data(number: int) -> dict[str, str]:
        return {"text": f"{number}号：{_PADDING}", "draft_status": ""}

    with fake_vllm(remembers=False) as vllm, fake_label_studio(config, tasks, data) as studio:
        environment = {
            "MODEL_URL": vllm.url,
            "MODEL_NAME": vllm.name,
            "LABEL_STUDIO_URL": studio.url,
            "LABEL_STUDIO_API_KEY": "a-token",
            "LEDGER_URL": f"sqlite:///{folder}/ledger.sqlite3",
            "CACHE_URL": f"sqlite:///{folder}/cache.sqlite3",
        }
        said = time.monotonic()

        def watch() -> None:
            nonlocal said
            if time.monotonic() - said > _TELL_EVERY_S:
                said = time.monotonic()
                tell(f"prelabel: {sum(studio.drafted)} of {tasks} tasks stored")

        command = [str(ROOT / "scripts" / "prelabel"), "--project", "1", "--case", _CASE]
        used = run(
            [*command, "--out", str(folder / "records.jsonl")], environment, folder / "log", watch=watch
        )
        stored = sum(studio.drafted)
    if stored != tasks:
        raise RuntimeError(f"prelabel stored drafts of {stored} of {tasks} tasks.")
    tell(f"prelabel of {tasks} tasks: peak {used.peak_mb:.0f} MiB")
    return used.peak_mb
