"""The training of the embedded model, as far as it can be shown in seconds."""

import os
import subprocess

from scripts import servers


def test_measuring_a_model_between_checkpoints_leaves_its_training_rows_alone() -> None:
    python = servers.environment("train") / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": str(servers.ROOT)}
    done = subprocess.run(
        [str(python), "tests/training_rows.py"], cwd=servers.ROOT, env=environment, check=False
    )
    assert done.returncode == 0
