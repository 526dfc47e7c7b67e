"""Run draftloop train as its users do, in the environment `train`."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftloop.cli import servers
from draftloop.support.environments import ROOT, find_environment
from draftloop.training.runs import marked
from tests.conftest import installed

# Two rows a step, a checkpoint after each.
FEW = {
    "batch_rows": 2,
    "accumulation": 1,
    "epochs": 1,
    "min_rows": 8,
    "checkpoint_steps": 1,
    "learning_rate": 1e-3,
}


def command(dataset: Path, out: Path, *more: str | Path, **changes: Any) -> list[str]:
    """Return the verb's arguments, with few steps unless the changes set more."""
    sets = [word for key, value in {**FEW, **changes}.items() for word in ("--set", f"{key}={value}")]
    return [
        "-m",
        "draftloop.cli",
        "train",
        "--dataset",
        str(dataset),
        "--out",
        str(out),
        *sets,
        *map(str, more),
    ]


def start(
    arguments: Sequence[str], program: str = "python", below: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a program of the environment, perhaps below another one."""
    with installed():
        binary = find_environment("train") / "bin" / program
    return subprocess.Popen(
        [*below, str(binary), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": servers.PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for its end."""
    out, err = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(dataset: Path, out: Path, *more: str | Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Train to the end, or to an error."""
    return finished(start(command(dataset, out, *more, **changes)))


def checkpoint_after(out: Path, step: int, process: subprocess.Popen[str]) -> int:
    """Wait for a whole checkpoint after that step, and give its own."""
    stage = out.with_name(f"{out.name}.part") / "sft"
    while process.poll() is None:
        steps = [
            int(folder.name.rpartition("-")[2]) for folder in stage.glob("checkpoint-*") if marked(folder)
        ]
        if steps and max(steps) > step:
            return max(steps)
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def record(out: Path) -> dict[str, Any]:
    """Read what a run says of itself."""
    content: dict[str, Any] = json.loads((out / "run.json").read_bytes())
    return content
