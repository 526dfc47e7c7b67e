"""Load a dataset folder with LLaMA-Factory's own loader and template; run in the environment `llamafactory`.

    python tests/consumers/llamafactory_rows.py FOLDER WORK

Its loader drops what it does not like without an error, so rows are counted on both sides. Ends with 1 and
a sentence where something is not as it should be.
"""

import json
import sys
from pathlib import Path
from typing import Any

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

MODEL = str(Path(__file__).parents[2] / "demo" / "models" / "tiny-qwen3")
STAGES = {
    "alpaca": "sft",
    "llama-factory": "sft",
    "llama-factory-dpo": "rm",
    "llama-factory-kto": "kto",
}


def loaded(folder: Path, work: Path, name: str, stage: str) -> tuple[Any, Any]:
    """Load a dataset as `llamafactory-cli train` would; return tokenizer and tokenized rows."""
    model_args, data_args, training_args, *_ = get_train_args(
        {
            "model_name_or_path": MODEL,
            "stage": stage,
            "do_train": True,
            "finetuning_type": "lora",
            "dataset": name,
            "dataset_dir": str(folder),
            "template": "qwen3",
            "enable_thinking": False,
            "cutoff_len": 2048,
            "output_dir": str(work),
            "overwrite_cache": True,
            "report_to": "none",
            "use_cpu": True,
        }
    )
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    sets = get_dataset(template, model_args, data_args, training_args, stage=stage, **module)
    return module["tokenizer"], sets["train_dataset"]


def check(folder: Path, work: Path, name: str, stage: str) -> None:
    """Compare what the loader returns with what the file holds."""
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    rows = [json.loads(line) for line in (folder / info["file_name"]).read_bytes().splitlines()]
    tokenizer, tokenized_rows = loaded(folder, work, name, stage)
    demand(
        len(tokenized_rows) == len(rows) > 0,
        f"{name}: {len(tokenized_rows)} of {len(rows)} rows came through",
    )
    if stage != "sft":
        return
    for row, tokenized in zip(rows, tokenized_rows, strict=True):
        answer = row["output"] if name == "alpaca" else row["conversations"][-1]["value"]
        trained = tokenizer.decode([label for label in tokenized["labels"] if label != -100])
        parts = [part.replace("<think>\n\n</think>\n\n", "").strip() for part in trained.split("<|im_end|>")]
        demand(answer in parts, f"{name}: the loss covers {trained!r} instead of {answer!r}")
        everything = tokenizer.decode(tokenized["input_ids"])
        question = row["instruction"] if name == "alpaca" else row["conversations"][0]["value"]
        demand(row["system"] in everything and question in everything, f"{name}: {everything!r}")
        demand(question not in trained, f"{name}: the loss covers the question")


def demand(holds: bool, words: str) -> None:
    """End here where something does not hold."""
    if not holds:
        raise SystemExit(words)


if __name__ == "__main__":
    for wanted, how in STAGES.items():
        if (Path(sys.argv[1]) / "dataset_info.json").read_text().count(f'"{wanted}"'):
            check(Path(sys.argv[1]), Path(sys.argv[2]), wanted, how)
            sys.stdout.write(f"{wanted}: ok\n")
