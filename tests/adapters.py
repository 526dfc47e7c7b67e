"""Runs of adapters: one that PEFT makes for a real server, one that only looks like it for stand-ins."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from draftloop.support.environments import MODELS, ROOT, find_environment


def run_of(folder: Path, *, rank: int = 8, weights: bytes = b"weights", **changes: Any) -> Path:
    """Write a run's folder without a training; its weights are no weights."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    about = {
        "base_model": "demo/models/tiny-qwen3",
        "case": "complaint",
        "profile": "compact",
        "adapter_sha256": hashlib.sha256(weights).hexdigest(),
        "dataset": {"path": str(folder.parent / "dataset"), "manifest_sha256": "0" * 64},
        "seed": 0,
    }
    (folder / "run.json").write_text(json.dumps({**about, **changes}))
    return folder


def peft_runs(folder: Path, *, rank: int = 8) -> dict[str, Path]:
    """Have PEFT make the runs of tests/consumers/peft_adapters.py, for the embedded model."""
    python = find_environment("train") / "bin" / "python"
    model = MODELS / "tiny-qwen3"
    command = [str(python), "-P", "tests/consumers/peft_adapters.py", str(model), str(folder), str(rank)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=offline, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: folder / name for name in ("zero", "worse")}


def pointed_at(run: Path, dataset: Path) -> Path:
    """Have a run say that it was trained on a dataset."""
    record = json.loads((run / "run.json").read_text())
    record["dataset"] = {"path": str(dataset), "manifest_sha256": ""}
    (run / "run.json").write_text(json.dumps(record))
    return run
