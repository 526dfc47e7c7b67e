"""A run's folder: made as NAME.part, renamed when it is complete; run.json is written last.

Knows names and order. During a run, NAME.part holds `plan.json` (what decides the outcome; only the same plan
can continue the run), and for each stage a folder with checkpoints and finally its adapter.

    adapter/     adapter_config.json, adapter_model.safetensors: the files that PEFT and vLLM load
    run.json     inputs, settings and losses; enough to repeat the run
    loss.png     a plot of the losses
    tracking/    curves for TensorBoard or SwanLab, where the recipe asks for them
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
CHECKPOINTS_ARE_KEPT = "Make room; checkpoints are kept."  # the hint where the disk fails
_WHOLE = "whole.json"  # written last into a folder that is complete


class TrainingRun:
    """A run's folder, during the run and afterwards."""

    def __init__(self, out: Path) -> None:
        """Set the paths; nothing is created."""
        self.out = out.resolve()
        self.part = self.out.with_name(f"{self.out.name}.part")

    @property
    def record(self) -> dict[str, Any] | None:
        """The content of run.json; None where there is no finished run."""
        return _load(self.out / RUN)

    def check(self, plan: Mapping[str, Any], *, resume: bool) -> bool:
        """Check that a run with this plan can start or continue; return True where it is finished already.

        Raises:
            SetupError: The folder holds something else, or an unfinished run, and `resume` is False.
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
        """Lock the folder for this process, and store the plan.

        Raises:
            SetupError: Another process has the lock, or the folder cannot be created.
            ServiceError: The disk failed.
        """
        with locked(self.part, "training"):
            if _load(self.part / _PLAN) is None:
                with disk_errors(self.part, CHECKPOINTS_ARE_KEPT):
                    write(self.part / _PLAN, plan)
            yield

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.part / name

    def finish(self, adapter: Path, record: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Write adapter and run.json, and rename the folder.

        Args:
            adapter: Folder of the last stage's adapter.
            record: Returns the content of run.json, from the hash of the adapter's weights.
        Returns:
            The content of run.json.
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
        """Remove checkpoints and rename the folder, where run.json is written.

        Also completes a run whose process was killed after it wrote run.json.

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
    """Mark a checkpoint's or stage's folder as complete, with a record.

    Raises:
        ServiceError: The disk failed.
    """
    with disk_errors(folder, CHECKPOINTS_ARE_KEPT):
        write(folder / _WHOLE, record)


def marked(folder: Path) -> dict[str, Any] | None:
    """Return the record of a complete checkpoint or stage; None where it is incomplete."""
    return _load(folder / _WHOLE)


def last_checkpoint(stage: Path) -> Path | None:
    """Return the last complete checkpoint of a stage; remove incomplete ones.

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
    """Write a record as JSON, atomically.

    Raises:
        OSError: The disk failed.
    """
    write_atomically(path, (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())


def _load(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} cannot be read: {error}.", hint="Name another --out.") from error
    return content if isinstance(content, dict) else None


def _same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], hint: str) -> None:
    changed = [
        f"{name}: {before.get(name)} before, {now.get(name)} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise SetupError(f"{folder} was made otherwise ({'; '.join(changed)}).", hint=hint)
