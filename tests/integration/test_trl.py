"""TRL loads the rows unchanged, renders them with every Qwen template and learns from the answers alone."""

from pathlib import Path

from tests import datasets


def test_trl_trains_on_rows_with_programs_and_the_loss_covers_answers_alone(tmp_path: Path) -> None:
    folder = datasets.write(tmp_path / "dataset", code=True)
    datasets.load_with("train", "trl_rows.py", folder, tmp_path / "work", "templates", "tokens", "sft")
