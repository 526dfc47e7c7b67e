"""Load an adapter with PEFT, as its users do; run in the environment `train`.

    python tests/consumers/peft_adapter.py MODEL ADAPTER

Ends with 1 and a sentence where it is not an adapter of the usual kind that changes what the model says.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
ids = AutoTokenizer.from_pretrained(sys.argv[1])("领导您好", return_tensors="pt")["input_ids"]
with torch.no_grad():
    before = model(ids).logits
    adapted = PeftModel.from_pretrained(model, sys.argv[2]).eval()
    after = adapted(ids).logits
config = adapted.peft_config["default"]
if (config.r, config.lora_alpha, config.lora_dropout, set(config.target_modules)) != (8, 32, 0.1, LAYERS):
    raise SystemExit(f"another adapter: {config}")
changed = [name for name, part in adapted.named_parameters() if "lora_B" in name and part.abs().sum() > 0]
layers = model.config.num_hidden_layers
if len(changed) != layers * len(LAYERS):
    raise SystemExit(f"{len(changed)} layers learned something, of {layers * len(LAYERS)}")
if torch.allclose(before, after):
    raise SystemExit("the adapter changes nothing")
