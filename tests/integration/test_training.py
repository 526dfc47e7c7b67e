"""The training of the embedded model, as far as it can be shown in seconds."""

import os
import subprocess
from pathlib import Path

from draftloop.cli import servers
from draftloop.support.environments import ROOT, find_environment


def in_train(script: str, *arguments: str) -> int:
    python = find_environment("train") / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": servers.PYTHONPATH}
    command = [str(python), script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def test_measuring_a_model_between_checkpoints_leaves_its_training_rows_alone() -> None:
    assert in_train("tests/training_rows.py") == 0


def test_the_shipped_tokenizer_is_the_one_that_the_trainer_builds() -> None:
    assert in_train("tests/shipped_tokenizer.py") == 0


def test_the_recipe_of_the_code_model_trains(tmp_path: Path) -> None:
    assert in_train("tests/code_training.py", str(tmp_path)) == 0


def test_muon_is_near_orthogonal_and_a_run_begins_from_a_model_or_a_checkpoint(tmp_path: Path) -> None:
    assert in_train("tests/muon_training.py", str(tmp_path)) == 0
