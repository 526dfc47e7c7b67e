"""Run a module of ours on untrusted bytes in a child process with limits, and survive its death.

Knows limits of time, memory and output. Does not know what is read. The child gets no variable of the
environment that may be secret. It sets its limits before it imports the module, and the module's `main` gets
the arguments: as a program, this module is `python -m draftloop.execution.bounded_process`.
"""

import importlib
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessLimits:
    """What a child may use; it writes no file."""

    memory_bytes: int  # of address space
    seconds: int  # of processor time, and of time on the clock


@dataclass(frozen=True)
class Ended:
    """How a child ended: a negative status is a signal, None a child that was too slow or did not start."""

    status: int | None
    output: bytes = b""
    reason: str = ""  # why there is no status


def run_bounded(module: str, arguments: Sequence[str], limits: ProcessLimits, content: bytes = b"") -> Ended:
    """Run a module's `main` in a child process.

    Args:
        module: Its import name; `main` takes the arguments as a list and returns the exit status.
        arguments: Words for it.
        limits: What it may use.
        content: Its standard input.
    Returns:
        How it ended, with what it wrote to standard output; never an exception for what the child does.
    """
    command = [sys.executable, "-P", "-m", "draftloop.execution.bounded_process"]
    command += [str(limits.memory_bytes), str(limits.seconds), module, *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "LANG": "C.UTF-8"}
    try:
        ended = subprocess.run(  # noqa: S603  our own module
            command,
            env=environment,
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ended(None, reason=f"it takes more than {limits.seconds} s")
    except OSError as error:
        return Ended(None, reason=error.strerror or type(error).__name__)
    return Ended(ended.returncode, ended.stdout)


def _main(memory_bytes: int, seconds: int, module: str, arguments: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return int(importlib.import_module(module).main(arguments))


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
