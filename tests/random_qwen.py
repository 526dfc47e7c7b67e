"""Make a Qwen model with random weights and a real chat template; run in the environment `train`.

    python tests/random_qwen.py qwen2 FOLDER      the shape of Qwen2.5
    python tests/random_qwen.py qwen3 FOLDER      the shape of Qwen3

Its answers mean nothing; what it shows is that prompts of general models, with the templates that such
models really have, reach vLLM and come back as values.
"""

import sys
from pathlib import Path

import torch
import trl
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SHAPES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, "qwen2_5.jinja"),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, "qwen3.jinja"),
}


def main(shape: str, folder: Path) -> None:
    """Write config, weights and tokenizer; the tokenizer is the embedded model's."""
    config_class, model_class, template = SHAPES[shape]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-qwen3")
    tokenizer.chat_template = (TEMPLATES / template).read_text(encoding="utf-8")
    head = {"head_dim": 64} if shape == "qwen3" else {}
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        **head,
    )
    model_class(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
