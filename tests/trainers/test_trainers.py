"""Every trainer's own loader takes the rows unchanged: as many out as in, the loss on the answers alone."""

from pathlib import Path

import pytest

from tests import datasets


@pytest.mark.parametrize("files", ["jsonl", "parquet"])
@pytest.mark.parametrize("code", [False, True], ids=["text", "code"])
def test_trl_takes_a_step_of_sft_dpo_and_kto(tmp_path: Path, code: bool, files: str) -> None:
    folder = datasets.write(tmp_path / "dataset", code=code, files=files)
    datasets.load_with(
        "train", "trl_rows.py", folder, tmp_path / "work", "templates", "tokens", "sft", "dpo", "kto"
    )


@pytest.mark.parametrize("code", [False, True], ids=["text", "code"])
def test_llama_factory_drops_no_row(tmp_path: Path, code: bool) -> None:
    folder = datasets.write(tmp_path / "dataset", code=code)
    datasets.load_with("llamafactory", "llamafactory_rows.py", folder, tmp_path / "work")


@pytest.mark.parametrize("code", [False, True], ids=["text", "code"])
def test_ms_swift_reads_every_row(tmp_path: Path, code: bool) -> None:
    folder = datasets.write(tmp_path / "dataset", code=code)
    datasets.load_with("ms-swift", "ms_swift_rows.py", folder, tmp_path / "work")


@pytest.mark.parametrize(("code", "files"), [(False, "jsonl"), (True, "parquet")], ids=["text", "code"])
def test_axolotl_reads_every_row_by_the_config_that_lies_beside_it(
    tmp_path: Path, code: bool, files: str
) -> None:
    folder = datasets.write(tmp_path / "dataset", code=code, files=files)
    datasets.load_with("axolotl", "axolotl_rows.py", folder, tmp_path / "work")
