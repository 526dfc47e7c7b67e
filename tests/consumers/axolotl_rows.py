"""Load a dataset folder with Axolotl's own loader, by the configs beside it; in the environment `axolotl`.

    python tests/consumers/axolotl_rows.py FOLDER WORK

Ends with 1 and a sentence where something is not as it should be.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"  # it would send the config to its makers

import yaml
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets, load_preference_datasets
from axolotl.loaders import load_tokenizer

MODEL = str(Path(__file__).parents[2] / "models" / "tiny-qwen3")
ON_CPU: dict[str, Any] = {
    "base_model": MODEL,
    "sequence_len": 2048,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "learning_rate": 1e-4,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "dataset_num_proc": 1,
    "val_set_size": 0,
}


def check(folder: Path, work: Path, name: str) -> None:
    """Paste the folder's part into a config, as its first line says, and load what it names."""
    own = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    places = {"output_dir": str(work / name), "dataset_prepared_path": str(work / f"{name}-prepared")}
    config = work / f"{name}.yaml"
    config.write_text(yaml.safe_dump({**ON_CPU, **places, **own}), encoding="utf-8")
    os.chdir(folder)  # paths are relative to where axolotl is started
    cfg = load_cfg(str(config))
    tokenizer = load_tokenizer(cfg)
    found = (load_preference_datasets if "rl" in own else load_datasets)(cfg=cfg)
    for split, loaded in (("datasets", found.train_dataset), ("test_datasets", found.eval_dataset)):
        rows = read(folder / own[split][0]["path"])
        demand(len(loaded) == len(rows) > 0, f"{name}: {len(loaded)} of {len(rows)} rows came through")
        told = sorted(map(key, rows))
        demand(
            sorted(answers(loaded, tokenizer, name)) == told, f"{name}: {answers(loaded, tokenizer, name)}"
        )


def answers(loaded: Any, tokenizer: Any, name: str) -> list[tuple[str, ...]]:
    """Give what is trained of each row that came through."""
    found: list[tuple[str, ...]] = []
    for row in loaded:
        if name == "axolotl":
            trained = tokenizer.decode([label for label in row["labels"] if label != -100])
            whole = tokenizer.decode(row["input_ids"])
            parts = [
                part.replace("<think>\n\n</think>\n\n", "").strip() for part in trained.split("<|im_end|>")
            ]
            question = whole.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            demand(question not in trained, f"{name}: the loss covers the question: {trained!r}")
            found.append((question, [part for part in parts if part][-1]))
        else:
            question = row["prompt"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            keys = ("chosen", "rejected") if name == "axolotl-dpo" else ("completion",)
            right = () if name == "axolotl-dpo" else (str(row["label"]),)
            found.append((question, *(row[one].removesuffix("<|im_end|>") for one in keys), *right))
    return found


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """Give the same of a row as it is in the file."""
    if "instruction" in row:
        return row["instruction"], row["completion"], str(row["label"])
    question = next(message["content"] for message in row["messages"] if message["role"] == "user")
    if "chosen" in row:
        return question, row["chosen"]["content"], row["rejected"]["content"]
    return question, row["messages"][-1]["content"]


def read(path: Path) -> list[dict[str, Any]]:
    """Read rows."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def demand(holds: bool, words: str) -> None:
    """End here where something does not hold."""
    if not holds:
        raise SystemExit(words)


if __name__ == "__main__":
    for wanted in ("axolotl", "axolotl-dpo", "axolotl-kto"):
        folder, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if read(folder / f"{wanted}.jsonl"):  # of code tasks some formats have no rows
            check(folder, work, wanted)
            sys.stdout.write(f"{wanted}: ok\n")
