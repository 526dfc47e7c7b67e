"""The base model's folder: what is asked of it before anything is loaded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftloop.errors import SetupError
from draftloop.model.tokens import Tokens
from draftloop.support.files import disk_errors, hash_file


@dataclass(frozen=True)
class Base:
    """A base model.

    stops       tokens at which its server stops writing
    positions   tokens that it was made for; None where its config does not say
    """

    folder: Path
    tokens: Tokens
    stops: frozenset[int]
    positions: int | None

    @property
    def name(self) -> str:
        """What it is called: the name of its folder."""
        return self.folder.name

    def sha256(self) -> str:
        """Hash all of its files but papers about it, each by name and content; in hex.

        Raises:
            ServiceError: One cannot be read.
        """
        with disk_errors(self.folder, "", access="read"):
            files = sorted(path for path in self.folder.iterdir() if path.is_file())
            told = [(path.name, hash_file(path)) for path in files if _is_model_file(path)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def open_base(folder: Path) -> Base:
    """Look at a model's folder; its weights are not read.

    Raises:
        SetupError: There is no model, or a part of it is missing.
    """
    folder = folder.resolve()
    config = _read(folder / "config.json")
    if config is None or not any(folder.glob("*.safetensors")):
        raise SetupError(
            f"There is no base model in {folder}.",
            hint="Name a folder with config.json and *.safetensors, the one that vLLM serves.",
        )
    generation = _read(folder / "generation_config.json") or {}
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    stops = frozenset(ends if isinstance(ends, list) else [ends] if ends is not None else [])
    positions = config.get("max_position_embeddings")
    return Base(folder, Tokens(folder), stops, positions)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from error
    return found if isinstance(found, Mapping) else None


def _is_model_file(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() != ".md" and path.name != "LICENSE"
