"""Train the code model's recipe for some seconds, at a size of nothing; run in the environment `train`.

    python tests/code_training.py FOLDER

The rows are those of the recipe, the loss falls, and what comes out is a model folder that loads.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM

from demo.training.batches import Batches
from demo.training.model import CODE, tokenizer_of
from demo.training.trainer import Trainer

out = Path(sys.argv[1])
recipe = replace(
    CODE,
    layers=2,
    feed_forward=64,
    processes=1,
    chunk_texts=24,
    dev_programs=4,
    longest_at_first=600,
    tokens_per_step=1500,
)
tokenizer = tokenizer_of(recipe)
rows = Batches(recipe, tokenizer).rows(0)
if len(rows) < 20 or not any(tokenizer.decode(row.answer).startswith('{"code":"import') for row in rows):
    sys.exit("these are no rows of code tasks")
trainer = Trainer(recipe, out)
trainer._cpu_start = 0.0
losses = []
for _, batch in Batches(recipe, tokenizer).stream(0):
    losses.append(trainer._step(batch)[0])
    trainer.progress.step += 1
    if len(losses) == 24:
        break
if sum(losses[-4:]) > 0.7 * sum(losses[:4]):
    sys.exit(f"the loss does not fall: {losses}")
trainer.checkpoint("smoke")
model = AutoModelForCausalLM.from_pretrained(out / "model-smoke")
config = json.loads((out / "model-smoke" / "config.json").read_text())
if config["vocab_size"] != len(tokenizer) or config["architectures"] != ["Qwen3ForCausalLM"]:
    sys.exit(f"no model of this recipe: {config}")
if Batches(recipe, tokenizer).rows(0) != rows:
    sys.exit("measuring changed the rows")
