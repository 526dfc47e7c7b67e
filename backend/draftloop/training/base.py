"""The base model's folder: the checks before anything is loaded."""

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

    stops       tokens that end its server's answers
    positions   maximum length in tokens; None where its config has none
    """

    folder: Path
    tokens: Tokens
    stops: frozenset[int]
    positions: int | None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def sha256(self) -> str:
        """Hash the names and contents of the model's files, without docs and licence; in hex.

        Raises:
            ServiceError: A file cannot be read.
        """
        with disk_errors(self.folder, "", access="read"):
            files = sorted(path for path in self.folder.iterdir() if path.is_file())
            hashes = [(path.name, hash_file(path)) for path in files if _is_model_file(path)]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def open_base(folder: Path) -> Base:
    """Check a model's folder and read its settings; its weights are not read.

    Raises:
        SetupError: There is no model, or a file of it is missing.
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
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from error
    return content if isinstance(content, Mapping) else None


def _is_model_file(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() != ".md" and path.name != "LICENSE"
