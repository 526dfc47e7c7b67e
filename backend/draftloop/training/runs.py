"""A run's folder: made aside as NAME.part, renamed when it is whole; run.json is written last.

Knows names and order. While a run is on, NAME.part holds `plan.json` (what decides the outcome: only the
same plan goes on), and for each stage a folder with checkpoints, at its end with its adapter.

    adapter/     adapter_config.json, adapter_model.safetensors: what PEFT and vLLM load
    run.json     what it was made from and with, and the losses; enough to make it again
    loss.png     the losses as a curve
    tracking/    curves for TensorBoard or SwanLab, where wanted
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draftloop.dataset.folder import locked
from draftloop.errors import SetupError
from draftloop.support.files import disk_errors, hash_file, sync_to_disk, write_atomically

RUN = "run.json"
ADAPTER = "adapter"
WEIGHTS = "adapter_model.safetensors"
_PLAN = "plan.json"
_CHECKPOINT = "checkpoint-"
CHECKPOINTS_ARE_KEPT = "Make room; checkpoints are kept."  # what to do where the disk fails
_WHOLE = "whole.json"  # in a folder: everything before it was written to the end


class TrainingRun:
    """A run's folder, while it is made and afterwards."""

    def __init__(self, out: Path) -> None:
        """Name it; nothing is made yet."""
        self.out = out.resolve()
        self.part = self.out.with_name(f"{self.out.name}.part")

    @property
    def record(self) -> dict[str, Any] | None:
        """What a finished run says of itself; None where there is none."""
        return _load(self.out / RUN)

    def check(self, plan: Mapping[str, Any], *, resume: bool) -> bool:
        """Look whether a run with this plan can begin or go on; True where it is finished already.

        Raises:
            SetupError: Something else is there, or a run was begun and `resume` is not wanted.
        """
        done = self.record
        if done is not None:
            _same(self.out, done.get("plan", {}), plan, "Name another --out.")
            return True
        if self.out.exists():
            raise SetupError(f"{self.out} is there and is no run.", hint="Name another --out.")
        begun = _load(self.part / _PLAN)
        if begun is not None:
            remove = f"remove {self.part} to begin anew"
            if not resume:
                raise SetupError(f"{self.out} was begun before.", hint=f"--resume goes on; or {remove}.")
            _same(self.part, begun, plan, f"Give the same options to go on, or {remove}.")
        return False

    @contextmanager
    def making(self, plan: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder for one process.

        Raises:
            SetupError: Another one has it, or it cannot be made.
            ServiceError: The disk failed.
        """
        with locked(self.part, "training"):
            if _load(self.part / _PLAN) is None:
                with disk_errors(self.part, CHECKPOINTS_ARE_KEPT):
                    write(self.part / _PLAN, plan)
            yield

    def stage(self, name: str) -> Path:
        """Give the folder of a stage."""
        return self.part / name

    def finish(self, adapter: Path, record: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Put everything in place.

        Args:
            adapter: Folder of the last stage's adapter.
            record: Gives what run.json says, from the hash of the adapter's weights.
        Returns:
            What run.json says.
        Raises:
            ServiceError: The disk failed.
        """
        with disk_errors(self.part, CHECKPOINTS_ARE_KEPT):
            final = self.part / ADAPTER
            shutil.rmtree(final, ignore_errors=True)
            final.mkdir()
            for name in ("adapter_config.json", WEIGHTS):
                shutil.copyfile(adapter / name, final / name)
                sync_to_disk(final / name)
            whole = record(hash_file(final / WEIGHTS))
            write(self.part / RUN, whole)
        self.settle()
        return whole

    def settle(self) -> bool:
        """Put a run in place whose run.json is written, perhaps by a process that was killed after that.

        Returns:
            Whether there was such a run.
        Raises:
            ServiceError: The disk failed.
        """
        if _load(self.part / RUN) is None or self.out.exists():
            return False
        with disk_errors(self.part, CHECKPOINTS_ARE_KEPT):
            for entry in self.part.iterdir():
                if entry.is_dir() and entry.name not in {ADAPTER, "tracking"}:
                    shutil.rmtree(entry)
            (self.part / _PLAN).unlink(missing_ok=True)
            self.part.rename(self.out)
            sync_to_disk(self.out.parent)
        return True


def mark(folder: Path, record: Mapping[str, Any]) -> None:
    """Say that a checkpoint or a stage was written to its end.

    Raises:
        ServiceError: The disk failed.
    """
    with disk_errors(folder, CHECKPOINTS_ARE_KEPT):
        write(folder / _WHOLE, record)


def marked(folder: Path) -> dict[str, Any] | None:
    """Read what a whole checkpoint or stage says of itself; None where it was not written to its end."""
    return _load(folder / _WHOLE)


def last_checkpoint(stage: Path) -> Path | None:
    """Give the last whole checkpoint of a stage; what was cut short is removed.

    Raises:
        ServiceError: The disk failed.
    """
    whole: list[tuple[int, Path]] = []
    with disk_errors(stage, CHECKPOINTS_ARE_KEPT):
        for folder in stage.glob(f"{_CHECKPOINT}*"):
            if marked(folder) is None:
                shutil.rmtree(folder)
            else:
                whole.append((int(folder.name.removeprefix(_CHECKPOINT)), folder))
    return max(whole)[1] if whole else None


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record so that it is there whole or not at all.

    Raises:
        OSError: The disk failed.
    """
    write_atomically(path, (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())


def _load(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} cannot be read: {error}.", hint="Name another --out.") from error
    return found if isinstance(found, dict) else None


def _same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], hint: str) -> None:
    changed = [
        f"{name}: {before.get(name)} before, {now.get(name)} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise SetupError(f"{folder} was made otherwise ({'; '.join(changed)}).", hint=hint)
