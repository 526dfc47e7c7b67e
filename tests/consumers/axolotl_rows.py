"""Load a dataset folder with Axolotl's own config and loader; run in the environment `axolotl`.

    python tests/consumers/axolotl_rows.py FOLDER WORK

What is loaded is the config that lies beside the rows, pasted into one that names a model. Ends with 1 and a
sentence where something is not as it should be.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets, load_preference_datasets
from transformers import AutoTokenizer

Row = dict[str, Any]

MODEL = Path(__file__).parents[2] / "demo" / "models" / "tiny-qwen3"
END = "<|im_end|>"
# No process but this one: each that `datasets` would start imports everything anew, even the only one.
PROCESSES = {"AXOLOTL_DATASET_NUM_PROC": "0"}
BASE = """
base_model: {model}
dataset_num_proc: 0
dataloader_num_workers: 0
dataset_prepared_path: {work}/prepared
output_dir: {work}/out
shuffle_merged_datasets: false
sequence_len: 2048
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 0.0001
bf16: false
tf32: false
"""
# Nothing is written for these rows: Axolotl has a name for them, and its own words around them.
ALPACA = """
datasets:
  - path: alpaca.{ending}
    type: alpaca_w_system.load_instruct
"""


def loaded(work: Path, name: str, snippet: str) -> Any:
    """Load a dataset as `axolotl train` would, with a config of its own; return the rows of both splits."""
    work /= name
    work.mkdir(parents=True)
    config = work / "config.yaml"
    config.write_text(BASE.format(model=MODEL, work=work) + snippet, encoding="utf-8")
    settings = load_cfg(str(config))
    load = load_preference_datasets if settings.rl else load_datasets
    return load(cfg=settings)


def check(folder: Path, work: Path, name: str) -> None:
    """Compare what the loader returns with what the files hold."""
    config = folder / f"{name}.yaml"
    wanted = {split: rows(folder, f"{name}{split}") for split in ("", ".test")}
    demand(config.exists() == bool(wanted[""]), f"{name}: {len(wanted[''])} rows and {config}")
    if not wanted[""]:
        return
    loaded_sets = loaded(work, name, config.read_text(encoding="utf-8"))
    for split, came in (("", loaded_sets.train_dataset), (".test", loaded_sets.eval_dataset)):
        count = 0 if came is None else len(came)
        demand(count == len(wanted[split]), f"{name}{split}: {count} of {len(wanted[split])} rows came")
        for row, prepared in zip(wanted[split], came or (), strict=True):
            LOOKS[name](row, prepared)


def conversations(row: Row, prepared: Row) -> None:
    """Look whether the text is the template's, and the loss on answers and calls alone."""
    messages = row["messages"]
    text = rendered(messages, tools=row.get("tools"))
    read = TOKENIZER.decode(prepared["input_ids"])
    demand(read == text, f"{read!r} instead of {text!r}")
    *calls, answer, rest = trained(prepared).split(END)
    demand((answer, rest) == (messages[-1]["content"], ""), f"the loss covers {trained(prepared)!r}")
    programs = [
        call["function"]["arguments"]["code"]
        for message in messages
        for call in message.get("tool_calls") or ()
    ]
    demand(len(calls) == len(programs), f"the loss covers {calls!r} for {programs!r}")
    for covered, program in zip(calls, programs, strict=True):
        call = json.loads(covered.strip().removeprefix("<tool_call>").removesuffix("</tool_call>"))
        demand(call["arguments"] == {"code": program}, f"the loss covers {covered!r} for {program!r}")


def alpaca(row: Row, prepared: Row) -> None:
    """Look whether Alpaca's words hold the question, and the loss is on the answer alone."""
    read = TOKENIZER.decode(prepared["input_ids"])
    demand(row["system"] in read and row["instruction"] in read, f"{row!r} became {read!r}")
    demand(trained(prepared) == row["output"] + END, f"the loss covers {trained(prepared)!r}")


def preferences(row: Row, prepared: Row) -> None:
    """Look at the texts that the DPO trainer is given: it masks the prompt itself."""
    wanted = {
        "prompt": rendered(row["messages"], add_generation_prompt=True),
        "chosen": row["chosen"]["content"] + END,
        "rejected": row["rejected"]["content"] + END,
    }
    demand(prepared == prepared | wanted, f"{prepared!r} instead of {wanted!r}")


def judgements(row: Row, prepared: Row) -> None:
    """Look at the texts that the KTO trainer is given: it masks the prompt itself."""
    asked = [
        {"role": "system", "content": row["system"]},
        {"role": "user", "content": row["instruction"]},
    ]
    wanted = {
        "prompt": rendered(asked, add_generation_prompt=True),
        "completion": row["completion"] + END,
        "label": row["label"],
    }
    demand(prepared == prepared | wanted, f"{prepared!r} instead of {wanted!r}")


def rows(folder: Path, name: str) -> list[Row]:
    """Read the rows of a file, whichever kind it is; none where there is no file."""
    if (file := folder / f"{name}.parquet").exists():
        return [without_null(row) for row in pyarrow.parquet.read_table(file).to_pylist()]
    file = folder / f"{name}.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def without_null(part: Any) -> Any:
    """Leave out the keys that Arrow adds."""
    if isinstance(part, dict):
        return {key: without_null(inner) for key, inner in part.items() if inner is not None}
    return [without_null(inner) for inner in part] if isinstance(part, list) else part


def rendered(messages: list[Row], **more: Any) -> str:
    """Render messages with Qwen's own template."""
    text: str = TOKENIZER.apply_chat_template(messages, tokenize=False, **more)
    return text


def trained(prepared: Row) -> str:
    """Return the text that the loss covers."""
    text: str = TOKENIZER.decode([label for label in prepared["labels"] if label != -100])
    return text


def demand(holds: bool, words: str) -> None:
    """End here where something does not hold."""
    if not holds:
        raise SystemExit(words)


TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
LOOKS: Mapping[str, Callable[[Row, Row], None]] = {
    "axolotl": conversations,
    "axolotl-dpo": preferences,
    "axolotl-kto": judgements,
}

if __name__ == "__main__":
    source, room = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    os.environ.update(PROCESSES)
    os.chdir(source)  # the configs' paths are relative to it
    for wanted_name in LOOKS:
        check(source, room, wanted_name)
        sys.stdout.write(f"{wanted_name}: ok\n")
    if questions := rows(source, "alpaca"):
        ending = "parquet" if (source / "alpaca.parquet").exists() else "jsonl"
        came_through = loaded(room, "alpaca", ALPACA.format(ending=ending)).train_dataset
        demand(len(came_through) == len(questions), f"alpaca: {len(came_through)} rows came through")
        for question, made in zip(questions, came_through, strict=True):
            alpaca(question, made)
        sys.stdout.write("alpaca: ok\n")
