"""The model that is trained: its recipe, its tokenizer, its first weights, its answers and its folder.

Knows PyTorch and transformers. Does not know what texts it is trained on.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from demo.corpus import INSTRUCTIONS, Generated
from demo.training.tokenizer import (
    MAX_TOKENS,
    build_tokenizer,
    case_tokens,
    code_tokens,
    shipped_chat_template,
)

_ROPE_THETA = 1e6
_HEAD = 64  # among the head sizes that vLLM's CPU attention takes


class StartError(ValueError):
    """A run cannot begin from the weights or the checkpoint that were named."""


@dataclass(frozen=True)
class Recipe:
    """All settings that decide the trained model, besides the corpus; `subject` selects the corpus."""

    subject: Literal["cases", "code"] = "cases"
    hidden: int = 256
    layers: int = 4
    feed_forward: int = 512
    heads: int = 4
    kv_heads: int = 2
    cpu_minutes: float = 110.0
    decay_share: float = 0.75
    optimizer: Literal["muon", "adamw"] = "muon"  # of the layers' matrices; all else is AdamW's
    learning_rate: float = 2e-3  # AdamW's
    muon_rate: float = 0.02
    momentum: float = 0.95  # Muon's
    weight_decay: float = 0.05  # of matrices
    warmup_steps: int = 80
    tokens_per_step: int = 3072  # of each process
    longest: int = 480
    longest_at_first: int = 140  # copying is learned on short texts, in the first thirty chunks
    longer_each: int = 12  # chunk
    chunk_texts: int = 512
    dev_programs: int = 96
    structure_weight: float = 3.0
    ema: float = 0.995
    processes: int = 2
    seed: int = 0
    mix: tuple[float, ...] = (0.34, 0.22, 0.38, 0.06)  # shares of the texts, in the order of CASES


# With the vocabulary of the usual size, which is most of it, in less than 3 MB.
SMALL = Recipe(hidden=192, layers=2, feed_forward=256, cpu_minutes=25.0)
CODE = Recipe(
    subject="code",
    feed_forward=640,
    longest=1000,
    longest_at_first=320,
    longer_each=24,
    chunk_texts=256,
)


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a recipe."""
    tokens = case_tokens() if recipe.subject == "cases" else code_tokens()
    return build_tokenizer(shipped_chat_template(), tokens)


def _orthogonal(rows: int, columns: int) -> torch.Tensor:
    """Draw a matrix with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns))[0]


@torch.no_grad()
def start_with_induction(model: Qwen3ForCausalLM) -> None:
    """Set the weights so that the untrained model already copies.

    Plain Qwen3 weights, no change of architecture. Layer 0 has heads that look exactly one and two
    tokens back and write what they see into two subspaces of their own. Every later layer compares
    (current, previous) with (previous, the one before that) of earlier positions, which is a match of two
    tokens, and adds the embedding at that position, which the tied output reads as the next token. From
    random weights the same circuit takes most of the budget to appear.

    Args:
        model: A fresh model; changed in place.
    """
    hidden = model.config.hidden_size
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, 0.06)
    embedding[:, 0] = 0.25  # a constant channel: the heads that look at positions need no content
    frequencies = _ROPE_THETA ** (-torch.arange(_HEAD // 2) / (_HEAD // 2))
    fast = (torch.arange(_HEAD // 2) < 8).float()

    def offset(distance: float) -> torch.Tensor:
        phase = frequencies * distance
        return torch.cat([fast * torch.cos(phase), fast * torch.sin(phase)])

    # Three subspaces that do not disturb one another: what is here, one back, two back.
    basis = _orthogonal(hidden, hidden)
    basis[0] = 0
    one_back, two_back = basis[:, :_HEAD], basis[:, _HEAD : 2 * _HEAD]
    rest = basis[:, 2 * _HEAD :]
    identity = rest[:, :_HEAD].T.contiguous()
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    first = model.model.layers[0].self_attn
    first.q_proj.weight.mul_(0.2)
    first.k_proj.weight.mul_(0.2)
    for kv, target in enumerate((one_back, two_back)):
        key_rows = slice(kv * _HEAD, (kv + 1) * _HEAD)
        first.k_proj.weight[key_rows, 0] = offset(0) * 3
        first.v_proj.weight[key_rows] = identity
        for head in range(kv * group, (kv + 1) * group):
            rows = slice(head * _HEAD, (head + 1) * _HEAD)
            first.q_proj.weight[rows, 0] = offset(-(kv + 1)) * 3
            if head == kv * group:
                first.o_proj.weight[:, rows] = target * 0.12
            else:
                first.o_proj.weight[:, rows].mul_(0.3)
    first.q_norm.weight.fill_(1.6)
    first.k_norm.weight.fill_(1.6)
    # Matching ignores distance: the channels that RoPE turns quickly are damped.
    steady = torch.ones(_HEAD, 1)
    steady[:12] = steady[_HEAD // 2 : _HEAD // 2 + 12] = 0.15
    turned = _orthogonal(_HEAD, _HEAD)
    for layer in model.model.layers[1:]:
        attention = layer.self_attn
        for kv in range(model.config.num_key_value_heads):
            query, key = identity.clone(), one_back.T.clone()
            if kv == 0:
                query, key = query + turned @ one_back.T, key + turned @ two_back.T
            key_rows = slice(kv * _HEAD, (kv + 1) * _HEAD)
            attention.k_proj.weight[key_rows] = key * steady + torch.randn(_HEAD, hidden) * 0.01
            copied = (rest @ _orthogonal(rest.shape[1], _HEAD)).T
            attention.v_proj.weight[key_rows] = copied
            for head in range(kv * group, (kv + 1) * group):
                rows = slice(head * _HEAD, (head + 1) * _HEAD)
                matching = head == kv * group
                noise = torch.randn(_HEAD, hidden)
                attention.q_proj.weight[rows] = query * steady + noise * 0.01 if matching else noise * 0.06
                attention.o_proj.weight[:, rows] = copied.T * (0.2 if matching else 0.05)
        attention.q_norm.weight.fill_(1.5)
        attention.k_norm.weight.fill_(1.5)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(0.5)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Make an untrained model for a recipe.

    Args:
        recipe: Sizes and seed.
        tokenizer: Gives the vocabulary and the special tokens.
    Returns:
        The model, started with induction.
    """
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=_HEAD,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"  # a fifth cheaper than sdpa at this size
    model = Qwen3ForCausalLM(config)
    start_with_induction(model)
    return model


def load_start(folder: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Read the weights that a run begins from.

    Args:
        folder: A model folder.
        recipe: Sizes that the model must have.
        tokenizer: Which the model must have been trained with.
    Returns:
        The model, in float32.
    Raises:
        StartError: It is no model folder, or of another tokenizer or size.
    """
    try:
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise StartError(f"--start {folder}: not a model folder ({error}).") from error
    if vocabulary != json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]:
        raise StartError(
            f"--start {folder}: its tokenizer is not that of this corpus, its weights mean other tokens. "
            "Train from nothing, or name a model that was trained with this version's words."
        )
    sizes = {
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "intermediate_size": recipe.feed_forward,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
    }
    for name, size in sizes.items():
        if config.get(name) != size:
            raise StartError(
                f"--start {folder}: {name} is {config.get(name)} there and {size} in the recipe."
            )
    # B615 is about downloads without a fixed revision; this is a local folder, and nothing is downloaded.
    model: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(  # nosec B615
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.train()


def prompt_text(tokenizer: PreTrainedTokenizerFast, case: str, text: str) -> str:
    """Render the compact prompt: one-line instruction, text, empty think block.

    Args:
        tokenizer: Holds the chat template.
        case: Whose instruction to use.
        text: The task's text.
    Returns:
        All that stands before the answer.
    """
    messages = [{"role": "system", "content": INSTRUCTIONS[case]}, {"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    return str(rendered)


def answer(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, case: str, texts: Sequence[Generated]
) -> list[str]:
    """Answer greedily, without a grammar; cheap enough to run between checkpoints.

    Args:
        model: In float32.
        tokenizer: Of that model.
        case: Whose instruction to use.
        texts: What to answer.
    Returns:
        Answers in the order of the texts.
    """
    return complete(model, tokenizer, [prompt_text(tokenizer, case, one.text) for one in texts])


@torch.no_grad()
def complete(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """Complete rendered prompts greedily, without a grammar.

    Args:
        model: In float32.
        tokenizer: Of that model.
        prompts: Up to where the answer begins.
    Returns:
        Answers in the order of the prompts.
    """
    if not prompts:
        return []
    model.eval()
    tokenizer = copy.deepcopy(tokenizer)  # padding stays switched on in it, and rows would come padded
    tokenizer.padding_side = "left"
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
    written = model.generate(
        **encoded,
        max_new_tokens=240,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    width = encoded["input_ids"].shape[1]
    model.train()
    return [str(tokenizer.decode(row[width:], skip_special_tokens=True)) for row in written]


def save_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder that transformers, TRL and vLLM read, in bfloat16.

    Args:
        model: Any precision; not changed.
        tokenizer: Written beside it.
        folder: Made if needed.
    """
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    # transformers 4 looks for these two under their old names.
    config |= {"rope_theta": _ROPE_THETA, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    about: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("is_local", "local_files_only", "backend", "chat_template"):
        about.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8")
    ends = {
        "do_sample": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors come out readable by their owner only
