"""Load a run's adapter with PEFT, as its users do, and look whether its losses are those of the answers.

    python tests/consumers/peft_adapter.py MODEL RUN DATASET

Runs in the environment `train`. The run saw all rows in every step. Ends with 1 and a sentence where the
adapter is none of the usual kind, where the first step's loss is not the base model's on the answers alone,
or where the losses on held-out rows are others than the run says.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
folder, run, dataset = map(Path, sys.argv[1:])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def mean_loss(name: str) -> float:
    """Return the mean loss on the answers' tokens, each with the token that ends it."""
    losses: list[float] = []
    for line in (dataset / name).read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        rendered: dict[str, Any] = {"tokenize": False, "enable_thinking": False}
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **rendered)
        whole = f"{prompt}{messages[-1]['content']}<|im_end|>"
        if tokenizer.apply_chat_template(messages, **rendered) != f"{whole}\n":
            raise SystemExit("the template writes an answered question otherwise")
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(whole, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            likely = model(ids).logits[0].log_softmax(-1)
        losses += [-likely[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])]
    return sum(losses) / len(losses)


def demand(recorded: float, measured: float, what: str) -> None:
    """End here where a loss is another one."""
    if not math.isclose(recorded, measured, rel_tol=2e-3):
        raise SystemExit(f"{what}: {recorded} is recorded, {measured} is measured")


record = json.loads((run / "run.json").read_bytes())
demand(record["loss"][0]["loss"], mean_loss("messages.jsonl"), "the first step's loss")
demand(record["held_out"]["base_loss"], mean_loss("messages.test.jsonl"), "the base model's loss")
model = PeftModel.from_pretrained(model, run / "adapter").eval()
demand(record["held_out"]["loss"], mean_loss("messages.test.jsonl"), "the adapter's loss")
config = model.peft_config["default"]
if (config.r, config.lora_alpha, config.lora_dropout, set(config.target_modules)) != (8, 32, 0.1, LAYERS):
    raise SystemExit(f"another adapter: {config}")
changed = [name for name, part in model.named_parameters() if "lora_B" in name and part.abs().sum() > 0]
layers = model.config.num_hidden_layers
if len(changed) != layers * len(LAYERS):
    raise SystemExit(f"{len(changed)} layers learned something, of {layers * len(LAYERS)}")
