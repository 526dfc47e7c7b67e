"""The registry of adapters: a folder that the model server can read, and that only grows.

    NAME/              adapter_config.json, adapter_model.safetensors, run.json of its training
    evidence/HASH.json measurements of an adapter
    journal.jsonl      decisions, one a line: who decided what, when, on which evidence

A name is `<model>-<case>-<hash of its content>`, so each content has one name. A server can never answer
under a name with other weights that it has cached.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from draftloop.errors import SetupError
from draftloop.support.files import append_to_disk, creating_folder, disk_errors, hash_file, write_atomically

_CONFIG, _WEIGHTS, _RUN = "adapter_config.json", "adapter_model.safetensors", "run.json"
_EVIDENCE, _JOURNAL = "evidence", "journal.jsonl"
_HASH = 12  # hex digits in a name
_NAME = re.compile(rf".+-[0-9a-f]{{{_HASH}}}")
_HOW = "A run is a folder that draftloop train wrote: run.json, and adapter/ with PEFT's two files."


@dataclass(frozen=True)
class Adapter:
    """An adapter of the registry. `run` is the run.json of its training."""

    name: str
    folder: Path
    rank: int
    run: Mapping[str, Any]


class Adapters:
    """The registry in a folder, created with the first adapter. Safe to read while it is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def register(self, run: Path, model: str) -> Adapter:
        """Copy a run's adapter into the registry, unless it is there already.

        Args:
            run: The run's folder.
            model: The name under which its base model is served.
        Raises:
            SetupError: It is no run, or its adapter is not the one that was trained.
            ServiceError: The disk failed; the registry is unchanged.
        """
        record, config = _json(run / _RUN), _json(run / "adapter" / _CONFIG)
        hashes = {name: _sha256(run / "adapter" / name) for name in (_CONFIG, _WEIGHTS)}
        if record.get("adapter_sha256") not in (None, hashes[_WEIGHTS]):
            raise SetupError(
                f"The adapter of {run} is not the one that its run.json names.",
                hint="Its training was stopped or its files were changed; train again.",
            )
        if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
            raise SetupError(f"The adapter of {run} is no LoRA adapter.", hint=_HOW)
        case, profile = record.get("case"), record.get("profile")
        if not isinstance(case, str) or profile not in ("full", "compact"):
            raise SetupError(f"{run / _RUN} does not say case and profile.", hint=_HOW)
        name = f"{_plain(model)}-{_plain(case)}-{_digest(hashes)}"
        folder = self.folder / name
        if not folder.is_dir():
            self._copy(run, folder)
        self._check(folder)
        return Adapter(name, folder, config["r"], record)

    def get(self, name: str) -> Adapter:
        """Return a registered adapter.

        Raises:
            SetupError: There is none of this name, or its files have changed.
        """
        folder = self.find(name)
        if folder is None:
            raise SetupError(
                f"There is no adapter '{name}' in {self.folder}.", hint="ADAPTERS_DIR must be the registry."
            )
        return Adapter(name, folder, _json(folder / _CONFIG)["r"], _json(folder / _RUN))

    def find(self, name: str) -> Path | None:
        """Return the folder of a registered adapter; None where the registry has none of this name.

        Raises:
            SetupError: The adapter's files have changed.
        """
        folder = self.folder / name
        if not _NAME.fullmatch(name) or Path(name).name != name or not folder.is_dir():
            return None
        self._check(folder)
        return folder

    def keep_evidence(self, evidence: Mapping[str, Any]) -> str:
        """Write measurements to the registry; return their hash, the key for `evidence`.

        Raises:
            ServiceError: The disk failed.
        """
        content = orjson.dumps(evidence, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
        name = hashlib.sha256(content).hexdigest()
        with self._disk_errors():
            (self.folder / _EVIDENCE).mkdir(parents=True, exist_ok=True)
            path = self.evidence(name)
            write_atomically(path, content)
        return name

    def evidence(self, name: str) -> Path:
        """Return the path of an evidence file."""
        return self.folder / _EVIDENCE / f"{name}.json"

    def note(self, entry: Mapping[str, Any]) -> None:
        """Append a decision to the journal, after ending a line that a crash cut off.

        Raises:
            ServiceError: The disk failed.
        """
        with self._disk_errors():
            path = self.folder / _JOURNAL
            self.folder.mkdir(parents=True, exist_ok=True)
            before = path.read_bytes() if path.is_file() else b""
            line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
            append_to_disk(path, line if before.endswith(b"\n") or not before else b"\n" + line)

    def journal(self) -> list[dict[str, Any]]:
        """Return the decisions, oldest first."""
        path = self.folder / _JOURNAL
        entries = []
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            with suppress(orjson.JSONDecodeError):  # cut off by a crash: the decision was not carried out
                entries.append(orjson.loads(line))
        return entries

    def _copy(self, run: Path, folder: Path) -> None:
        with self._disk_errors(), creating_folder(folder) as part:
            for source in (run / "adapter" / _CONFIG, run / "adapter" / _WEIGHTS, run / _RUN):
                shutil.copyfile(source, part / source.name)

    def _check(self, folder: Path) -> None:
        digest = _digest({name: _sha256(folder / name) for name in (_CONFIG, _WEIGHTS)})
        if not folder.name.endswith(f"-{digest}"):
            raise SetupError(
                f"The adapter in {folder} is not what was registered.",
                hint="Bring the folder back from a copy, or remove it and promote its run again.",
            )

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(f"The registry of adapters {self.folder}", "Make room, or correct ADAPTERS_DIR.")


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(orjson.dumps(hashes, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_HASH]


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise SetupError(f"{path} cannot be read.", hint=_HOW) from error
    if not isinstance(content, dict):
        raise SetupError(f"{path} is no JSON object.", hint=_HOW)
    return content


def _sha256(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}.", hint=_HOW) from error
