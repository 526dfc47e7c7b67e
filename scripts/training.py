"""Train from a process of another environment: what the demo and whoever starts trainings call."""

import json
import os
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from draftloop.cli.servers import PYTHONPATH
from draftloop.errors import ServiceError
from draftloop.support.environments import MODELS, find_environment

EMBEDDED = MODELS / "tiny-qwen3.yaml"


def train(
    dataset: Path, out: Path, *options: str | Path, config: Path | None = EMBEDDED, log: Path | None = None
) -> dict[str, Any]:
    """Train an adapter as `scripts/train` does, or go on where a stopped or killed training is.

    Args:
        dataset: Folder that scripts/sync wrote.
        out: The run's folder.
        options: More of the verb's options.
        config: YAML of a recipe; None for the defaults.
        log: Where its progress goes; stderr if not given.
    Returns:
        What the run says of itself: run.json.
    Raises:
        NotInstalledError: The environment `train` is not there.
        ServiceError: It did not come to its end; where there is a log, with its last words.
    """
    python = find_environment("train") / "bin" / "python"
    command = [
        str(python),
        "-P",
        "-m",
        "draftloop.cli",
        "train",
        "--dataset",
        str(dataset),
        "--out",
        str(out),
    ]
    command += ["--resume", *(["--config", str(config)] if config else []), *map(str, options)]
    surroundings = {**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONNOUSERSITE": "1"}
    with log.open("ab") if log else nullcontext() as stream:
        process = subprocess.Popen(
            command, env=surroundings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it ends after the step, with a checkpoint
            process.wait()
            raise
    if code:
        words = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:] if log else []
        raise ServiceError(
            f"scripts/train ended with {code}: {' '.join(words) or 'its words are above.'}",
            hint="Begun again, it goes on where it stopped.",
        )
    record: dict[str, Any] = json.loads((out / "run.json").read_bytes())
    return record
