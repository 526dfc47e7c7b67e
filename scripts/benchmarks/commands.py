"""Run commands as a user types them, and measure their time and peak memory."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 0.05
_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class Used:
    """The time of a command, and its peak of resident memory in MiB."""

    wall_s: float
    peak_mb: float


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    watch: Callable[[], None] = lambda: None,
) -> Used:
    """Run a command, its output in a file.

    Args:
        command: The command.
        environment: What is set besides what is set here.
        log: Its file.
        watch: Called many times while it runs.
    Raises:
        RuntimeError: It failed; with the end of its output.
    """
    started, peak_kib = time.perf_counter(), 0
    with log.open("w+b") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=stream, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            # Not ru_maxrss of wait4: that begins with the memory of whoever started the command.
            with suppress(OSError):
                peak_kib = max(peak_kib, _peak_kib(process.pid))
            watch()
            time.sleep(_LOOK_S)
        wall_s = time.perf_counter() - started
        if process.returncode:
            stream.seek(0)
            end = stream.read().decode(errors="replace")[-_SHOWN_CHARS:]
            raise RuntimeError(f"{Path(command[0]).name} ended with {process.returncode}.\n{end}")
    return Used(wall_s, peak_kib / 1024)


def _peak_kib(pid: int) -> int:
    """Return the peak memory of a process in KiB; 0 while it ends."""
    rows = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(row.split()[1]) for row in rows if row.startswith("VmHWM:")), 0)
