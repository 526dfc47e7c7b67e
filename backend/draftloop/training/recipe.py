"""The recipe of a training: all settings that influence the adapter, besides the rows and the base model.

Knows names, limits and defaults, and reads them from YAML. An unknown key is an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from draftloop.errors import SetupError

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Recipe(BaseModel):
    """How to train. The field's description is its documentation; docs/reference/recipe.md shows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(default=8, ge=1, le=512, description="Rank of the adapter.")
    alpha: float = Field(
        default=32, gt=0, description="Scale of the adapter: its output counts alpha / r times."
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout before the adapter.")
    layers: tuple[str, ...] = Field(
        default=LINEAR_LAYERS,
        min_length=1,
        description="Linear layers that are adapted, by the end of their name.",
    )
    max_lora_rank: int = Field(
        default=16,
        ge=1,
        description="What vLLM is started with (`--max-lora-rank`): a higher `r` is refused.",
    )
    batch_rows: int = Field(default=4, ge=1, description="Rows at once, in each process.")
    accumulation: int = Field(default=4, ge=1, description="Batches of a step.")
    epochs: float = Field(default=3, gt=0, description="How often every row is seen.")
    learning_rate: float = Field(default=1e-4, gt=0, lt=1, description="Highest learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="How the learning rate falls."
    )
    warmup_share: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps in which it rises first."
    )
    weight_decay: float = Field(default=0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(default=1, gt=0, description="Longer gradients are shortened to this.")
    max_tokens: int = Field(
        default=1024, ge=16, description="Longer rows are left out and reported, never cut."
    )
    min_rows: int = Field(
        default=32,
        ge=1,
        description="Fewer rows (with `--dpo`: or pairs) are refused; two steps of the defaults.",
    )
    dpo_beta: float = Field(
        default=0.1, gt=0, description="`--dpo`: how much it costs to leave the first stage."
    )
    dpo_epochs: float = Field(default=1, gt=0, description="`--dpo`: how often every pair is seen.")
    dpo_learning_rate: float = Field(default=5e-6, gt=0, lt=1, description="`--dpo`: highest learning rate.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="`auto` is bfloat16 on a GPU that has it, else float16; float32 on the CPU, where "
        "bfloat16 takes fourteen times as long without AVX-512.",
    )
    gradient_checkpointing: bool = Field(
        default=True, description="Compute activations twice to save memory; a step takes a third longer."
    )
    checkpoint_steps: int = Field(
        default=25, ge=1, description="Steps between checkpoints: what kill -9 can cost."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of weights, order, dropout and replayed rows."
    )
    tracking: Literal["none", "tensorboard", "swanlab"] = Field(
        default="none", description="Curves for TensorBoard or SwanLab (local mode), in the run's `tracking`."
    )


def read(file: Path | None, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        file: YAML with some of the keys; None for the defaults.
        changes: `KEY=VALUE`, which override the file; values are YAML.
    Raises:
        SetupError: The file cannot be read, or a value is wrong.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            words = " ".join(str(error).split())[:200]
            raise SetupError(f"{file} cannot be read: {words}.", hint="Name a YAML file.") from error
        if not isinstance(content, Mapping | None):
            raise SetupError(f"{file} is no list of settings.", hint="Write lines like `epochs: 2`.")
        values |= content or {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise SetupError(f"'{change}' sets nothing.", hint="Write KEY=VALUE, as in epochs=2.")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SetupError(f"{key}: '{value}' is no YAML value.", hint="Write epochs=2.") from error
    try:
        recipe = Recipe(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        wrong = "; ".join(_words(item) for item in error.errors(include_url=False))
        raise SetupError(
            f"The recipe is wrong: {wrong}.", hint="docs/reference/recipe.md lists all keys."
        ) from error
    if recipe.r > recipe.max_lora_rank:
        raise SetupError(
            f"r is {recipe.r}, but vLLM is told to take ranks up to {recipe.max_lora_rank}.",
            hint="Lower r, or start vLLM with a higher --max-lora-rank and set max_lora_rank to the same.",
        )
    return recipe


def _words(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"there is no key '{key}'"
    words = str(item["msg"]).replace("tuple", "list")
    return f"{key}: {words[:1].lower()}{words[1:]} (is {item['input']!r})"
