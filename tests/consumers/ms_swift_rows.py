"""Load a dataset folder with ms-swift's own loader and template; run in the environment `ms-swift`.

    python tests/consumers/ms_swift_rows.py FOLDER WORK

Ends with 1 and a sentence where something is not as it should be.
"""

import json
import sys
from pathlib import Path
from typing import Any

from swift.dataset import load_dataset
from swift.model import get_processor
from swift.template import get_template

MODEL = str(Path(__file__).parents[2] / "demo" / "models" / "tiny-qwen3")
MODES = {"ms-swift": "train", "ms-swift-dpo": "rlhf", "ms-swift-kto": "kto"}


def check(folder: Path, name: str, mode: str) -> None:
    """Load every row strictly, encode it as the trainer would, and look at what is trained."""
    file = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    loaded_rows, _ = load_dataset(str(file), strict=True, load_from_cache_file=False)
    demand(len(loaded_rows) == len(rows) > 0, f"{name}: {len(loaded_rows)} of {len(rows)} rows came through")
    processor = get_processor(MODEL, model_type="qwen3")
    template = get_template(processor, template_type="qwen3", max_length=2048, enable_thinking=False)
    template.set_mode(mode)
    for row, loaded in zip(rows, loaded_rows, strict=True):
        encoded = template.encode(dict(loaded))
        expected = {
            "ms-swift": {"": row["messages"][-1]["content"]},
            "ms-swift-dpo": {
                "chosen_": row["messages"][-1]["content"],
                "rejected_": row.get("rejected_response"),
            },
            "ms-swift-kto": {"chosen_": row["messages"][-1]["content"]},
        }[name]
        for prefix, answer in expected.items():
            trained = decoded(processor, [label for label in encoded[f"{prefix}labels"] if label != -100])
            parts = [
                part.replace("<think>\n\n</think>\n\n", "").strip() for part in trained.split("<|im_end|>")
            ]
            demand(answer in parts, f"{name}: the loss covers {trained!r} instead of {answer!r}")
            question = row["messages"][1]["content"]
            demand(question in decoded(processor, encoded[f"{prefix}input_ids"]), f"{name}: no question")
            demand(question not in trained, f"{name}: the loss covers the question")
        if mode == "kto":
            demand(bool(encoded["label"]) == row["label"], f"{name}: the label is {encoded['label']}")


def decoded(processor: Any, ids: list[int]) -> str:
    """Decode tokens."""
    text: str = processor.decode(ids)
    return text


def demand(holds: bool, words: str) -> None:
    """End here where something does not hold."""
    if not holds:
        raise SystemExit(words)


if __name__ == "__main__":
    for wanted, how in MODES.items():
        check(Path(sys.argv[1]), wanted, how)
        sys.stdout.write(f"{wanted}: ok\n")
