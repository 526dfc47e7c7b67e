"""The training of the embedded model, as far as it can be shown in seconds."""

import os
import subprocess

from scripts import servers


def in_train(script: str) -> int:
    python = servers.environment("train") / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": str(servers.ROOT)}
    return subprocess.run([str(python), script], cwd=servers.ROOT, env=environment, check=False).returncode


def test_measuring_a_model_between_checkpoints_leaves_its_training_rows_alone() -> None:
    assert in_train("tests/training_rows.py") == 0


def test_the_shipped_tokenizer_is_the_one_that_the_trainer_builds() -> None:
    assert in_train("tests/shipped_tokenizer.py") == 0
