"""The processes of a job, found in /proc and ended for certain.

Every job has a keeper, which is a child subreaper: whatever the code starts stays among its descendants.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KILL_TIME_S = 10.0


@dataclass(frozen=True)
class Process:
    """One process as /proc shows it. `cpu_s` includes the children that it has waited for."""

    pid: int
    parent: int
    dead: bool
    cpu_s: float
    threads: int
    resident_bytes: int


class _Vanished(Exception):
    """A process ended between being listed and being looked at: one that it started may not be listed."""


def _all(*, strict: bool = False) -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text(errors="replace")
        except OSError as error:
            if strict:
                raise _Vanished from error
            continue
        # man proc: the state comes after the name, which may hold anything.
        row = text[text.rindex(")") + 2 :].split()
        ticks = sum(int(column) for column in row[11:15])
        yield Process(
            int(name),
            int(row[1]),
            row[0] in "ZX",
            ticks * _TICK_S,
            int(row[17]),
            int(row[21]) * _PAGE_BYTES,
        )


def descendants(root: int, *, strict: bool = False) -> list[Process]:
    """Give the living processes below `root`, in no order; raise _Vanished where one may be missing."""
    children: dict[int, list[Process]] = {}
    for process in _all(strict=strict):
        children.setdefault(process.parent, []).append(process)
    found, queue = [], [root]
    while queue:
        for process in children.get(queue.pop(), []):
            queue.append(process.pid)
            if not process.dead:
                found.append(process)
    return found


def dead_children(parent: int) -> list[int]:
    """Give the children that have ended and that nobody has waited for."""
    return [process.pid for process in _all() if process.dead and process.parent == parent]


def threads_of(uid: int) -> int:
    """Count the threads of a user, as RLIMIT_NPROC does."""
    count = 0
    for process in _all():
        with suppress(OSError):
            status = Path("/proc", str(process.pid), "status").read_text(errors="replace")
            count += process.threads if int(status.split("Uid:")[1].split()[0]) == uid else 0
    return count


def memory(processes: list[Process], limit_bytes: int) -> int:
    """Measure what processes hold: resident, and where that is over the limit, shared pages once."""
    resident = sum(process.resident_bytes for process in processes)
    if resident <= limit_bytes:
        return resident
    total = 0
    for process in processes:
        try:
            rollup = Path("/proc", str(process.pid), "smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0]) * 1024
        except (OSError, IndexError):  # ended, or not ours to look into
            total += process.resident_bytes
    return total


def reap() -> None:
    """Take notice of every child that has ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end(keeper: int, uid: int | None) -> bool:
    """End every descendant of the keeper, which must be this process.

    Args:
        keeper: The root of the job's processes.
        uid: The user that runs nothing but this job, None where there is none.
    Returns:
        Whether nothing was left; a process that hangs in the kernel can be.
    """
    deadline, signal_ = time.monotonic() + _KILL_TIME_S, signal.SIGSTOP
    while time.monotonic() < deadline:
        reap()
        try:
            found = descendants(keeper, strict=True)
            if not found:
                return True
        except _Vanished:
            found = descendants(keeper)
        if found and uid is not None:
            _kill_user(uid)
        for process in found:
            with suppress(OSError):
                os.kill(process.pid, signal_)
        if signal_ == signal.SIGKILL:
            time.sleep(0.001)
        signal_ = signal.SIGKILL  # first stop all, so that none forks while the others are killed
    return False


def _kill_user(uid: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)  # everything that this user may signal, at once
        finally:
            os._exit(0)
    os.waitpid(child, 0)
