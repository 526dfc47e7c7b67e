"""Load a dataset folder as TRL's users do, take one step with each trainer; run in the environment `train`.

    python tests/consumers/trl_rows.py FOLDER WORK CHECK...

Ends with 1 and a sentence where something is not as it should be.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

MODEL = str(Path(__file__).parents[2] / "demo" / "models" / "tiny-qwen3")
ON_CPU: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "model_init_kwargs": {"dtype": "float32"},
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-4,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
}


def rows(folder: Path, name: str) -> Any:
    """Load a format's train split by the folder's dataset card."""
    return load_dataset(str(folder), name)["train"]


def templates(folder: Path, work: Path) -> None:
    """Render every row with every Qwen chat template that TRL ships."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    shipped = sorted((Path(trl.__file__).parent / "chat_templates").glob("qwen*.jinja"))
    demand(len(shipped) >= 3, f"TRL ships {len(shipped)} templates for Qwen")
    for row in rows(folder, "messages"):
        answer = row["messages"][-1]["content"]
        for template in shipped:
            text = tokenizer.apply_chat_template(
                without_null(row["messages"]),
                tools=row.get("tools"),
                chat_template=template.read_text(encoding="utf-8"),
                tokenize=False,
            )
            demand(text.count(answer) == 1, f"{template.name}: the answer is not once in {text!r}")
            for message in row["messages"]:
                demand(message["content"].strip() in text, f"{template.name} lost {message['content']!r}")


def tokens(folder: Path, work: Path) -> None:
    """Count the tokens of every sample as Transformers does."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = (folder / "samples.jsonl").read_bytes().splitlines()
    records = [record for record in map(json.loads, lines) if record["split"] == "train"]
    # The rows, not the records: a template writes tools in the order of their keys, which records sort.
    for record, row in zip(records, rows(folder, "messages"), strict=True):
        text = tokenizer.apply_chat_template(
            without_null(row["messages"]), tools=row.get("tools"), tokenize=False, enable_thinking=False
        )
        counted = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        demand(counted == record["tokens"], f"{record['tokens']} tokens instead of {counted}")


def sft(folder: Path, work: Path) -> None:
    """Train one step; the loss covers the answer and what ends it, nothing else."""
    for name, how in (("messages", {"assistant_only_loss": True}), ("prompt-completion", {})):
        trained_rows = rows(folder, name)
        trainer = SFTTrainer(
            model=MODEL, args=SFTConfig(str(work), **ON_CPU, **how), train_dataset=trained_rows
        )
        batch = next(iter(trainer.get_train_dataloader()))
        tokenizer = trainer.processing_class
        answers = {
            (row["messages"] if name == "messages" else row["completion"])[-1]["content"]
            for row in trained_rows
        }
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = tokenizer.decode(ids[labels != -100]).replace("<think>\n\n</think>\n\n", "")
            parts = [part.strip() for part in trained.split("<|im_end|>") if part.strip()]
            demand(parts[-1] in answers, f"{name}: the loss covers {trained!r}")
            if not any("tool_calls" in str(row) for row in trained_rows):
                demand(len(parts) == 1, f"{name}: the loss covers {trained!r}")
            demand(bool((labels == -100).any()), f"{name}: the loss covers the prompt")
        step(trainer)
        demand(len(trainer.train_dataset) == len(trained_rows), f"{name}: rows were dropped")


def dpo(folder: Path, work: Path) -> None:
    """Train one step on pairs."""
    trained_rows = rows(folder, "trl-dpo")
    step(DPOTrainer(model=MODEL, args=DPOConfig(str(work), **ON_CPU), train_dataset=trained_rows))


def kto(folder: Path, work: Path) -> None:
    """Train one step on judged answers."""
    trained_rows = rows(folder, "trl-kto")
    demand(set(trained_rows["label"]) == {True, False}, "KTO has one label only")
    step(KTOTrainer(model=MODEL, args=KTOConfig(str(work), **ON_CPU), train_dataset=trained_rows))


def without_null(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the keys that Arrow adds, as TRL does."""
    return [{key: part for key, part in message.items() if part is not None} for message in messages]


def step(trainer: Any) -> None:
    """Take one step and look whether it changed the model."""
    before = [part.detach().clone() for part in trainer.model.parameters()]
    loss = trainer.train().training_loss
    demand(math.isfinite(loss), f"{type(trainer).__name__}: the loss is {loss}")
    moved = any(
        not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True)
    )
    demand(moved, f"{type(trainer).__name__} changed nothing")


def demand(holds: bool, words: str) -> None:
    """End here where something does not hold."""
    if not holds:
        raise SystemExit(words)


CHECKS: dict[str, Callable[[Path, Path], None]] = {
    "templates": templates,
    "tokens": tokens,
    "sft": sft,
    "dpo": dpo,
    "kto": kto,
}

if __name__ == "__main__":
    for wanted in sys.argv[3:]:
        CHECKS[wanted](Path(sys.argv[1]), Path(sys.argv[2]))
        sys.stdout.write(f"{wanted}: ok\n")
