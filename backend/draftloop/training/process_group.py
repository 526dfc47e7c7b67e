"""The processes that train one adapter together, and what they run on.

Imports torch, as `fit` does; no other module of the package does.
"""

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import accelerate
import psutil
import torch
import torch.distributed as dist

from draftloop.errors import DraftloopError, SetupError

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")


class ProcessGroup:
    """The processes that train together; one where torchrun or accelerate started no others."""

    def __init__(self) -> None:
        """Join it."""
        self.has_gpu = torch.cuda.is_available()
        state = accelerate.PartialState(cpu=not self.has_gpu)  # on CPUs: gloo
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        if self.size == 1 and self.has_gpu and torch.cuda.device_count() > 1:
            raise SetupError(
                f"This machine shows {torch.cuda.device_count()} GPUs to one process.",
                hint="Start it with torchrun (docs/how-to/train.md), or set CUDA_VISIBLE_DEVICES=0.",
            )

    def first(self, do: Callable[[], Any]) -> Any:
        """Call a function in the first process only; return its result, or raise its error, in all of them.

        Raises:
            DraftloopError: The function raised it in the first process.
        """
        result: list[Any] = [None, None]  # and the error
        if self.rank == 0:
            try:
                result[0] = do()
            except DraftloopError as error:
                result[1] = error
        if self.size > 1:
            dist.broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def any(self, here: bool, device: Any) -> bool:  # noqa: FBT001  one value is the whole message
        """Return whether the flag is set in any of the processes."""
        if self.size == 1:
            return here
        flag = torch.tensor(int(here), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def leave(self) -> None:
        """End the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def describe_environment(group: ProcessGroup) -> dict[str, Any]:
    """Return versions and hardware, for the run's manifest."""
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "processes": group.size,
    }
    if group.has_gpu:
        hardware["gpu"] = torch.cuda.get_device_name()
        hardware["cuda"] = torch.version.cuda
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    return {"versions": versions, "hardware": hardware}
