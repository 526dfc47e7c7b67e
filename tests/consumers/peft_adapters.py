"""Make adapters with PEFT whose effect is known without training; runs in the environment `train`.

zero     adds nothing: it drafts as its base does
worse    adds noise to what each layer's MLP says: it drafts worse than its base

peft_adapters.py MODEL FOLDER RANK      writes the runs FOLDER/zero and FOLDER/worse
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

NOISE = 0.1  # times a weight's own size
SEED = 20_260_101


def main(model: Path, folder: Path, rank: int) -> None:
    """Write the runs as draftloop train does."""
    torch.manual_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["down_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(base, config)
    for name, noise in (("zero", 0.0), ("worse", NOISE)):
        for layer in tuned.modules():
            if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
                weight = layer.base_layer.weight
                layer.lora_A["default"].weight.data = (
                    torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5
                )
                layer.lora_B["default"].weight.data = (
                    torch.randn(weight.shape[0], rank) * weight.norm() * noise
                )
        tuned.save_pretrained(folder / name / "adapter")
        content = (folder / name / "adapter" / "adapter_model.safetensors").read_bytes()
        record = {
            "base_model": str(model),
            "case": "complaint",
            "profile": "compact",
            "adapter_sha256": hashlib.sha256(content).hexdigest(),
            "dataset": {"path": "", "manifest_sha256": ""},
            "arguments": {},
            "versions": {"torch": torch.__version__},
            "seed": SEED,
            "seconds": 0.0,
        }
        (folder / name / "run.json").write_text(json.dumps(record, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
