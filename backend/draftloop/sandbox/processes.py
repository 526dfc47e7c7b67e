"""The processes of a job, read from /proc and ended for certain.

Every job has a keeper, which is a child subreaper: whatever the code starts stays among its descendants.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from draftloop.sandbox import kernel

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KILL_TIME_S = 10.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.001, 0.1


@dataclass(frozen=True)
class ProcessStatus:
    """One process as /proc shows it. `cpu_s` includes the children that it has waited for."""

    pid: int
    parent: int
    dead: bool
    cpu_s: float
    threads: int
    resident_bytes: int


def _all() -> Iterator[ProcessStatus]:
    names = os.listdir("/proc")
    if str(os.getpid()) not in names:  # else no process would be seen, whatever runs
        raise OSError("/proc does not show this process: processes can be neither seen nor ended")
    for name in names:
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text(errors="replace")
        except OSError:
            continue
        # man proc: the state comes after the name, which may hold anything.
        row = text[text.rindex(")") + 2 :].split()
        ticks = sum(int(column) for column in row[11:15])
        yield ProcessStatus(
            int(name),
            int(row[1]),
            row[0] in "ZX",
            ticks * _TICK_S,
            int(row[17]),
            int(row[21]) * _PAGE_BYTES,
        )


def descendants(root: int) -> list[ProcessStatus]:
    """Return the living processes below `root`, in no order."""
    return [process for process in _below(root) if not process.dead]


def _below(root: int, spared: Collection[int] = ()) -> Iterator[ProcessStatus]:
    """Yield the processes below `root`, dead ones too, without spared ones and those below them.

    As long as nobody waits for the dead, this misses nothing: whatever lives when the look begins is listed,
    as dead at the worst, and so its child may be what is not listed.
    """
    children: dict[int, list[ProcessStatus]] = {}
    for process in _all():
        children.setdefault(process.parent, []).append(process)
    queue = [root]
    while queue:
        for process in children.get(queue.pop(), []):
            if process.pid not in spared:
                queue.append(process.pid)
                yield process


def threads_of(uid: int) -> int:
    """Count the threads of a user, as RLIMIT_NPROC does."""
    return threads_of_users()[uid]


def threads_of_users() -> Counter[int]:
    """Count the threads of every user, by real uid."""
    counts: Counter[int] = Counter()
    for process in _all():
        with suppress(OSError):
            status = Path("/proc", str(process.pid), "status").read_text(errors="replace")
            counts[int(status.split("Uid:")[1].split()[0])] += process.threads
    return counts


def of_users(uids: Collection[int]) -> list[int]:
    """Return the processes of users in this PID namespace itself; those of containers are in one below it."""
    depth = len(_status_field(os.getpid(), "NStgid"))
    pids = []
    for process in _all():
        with suppress(OSError, IndexError):
            uid = int(_status_field(process.pid, "Uid")[0])
            if uid in uids and len(_status_field(process.pid, "NStgid")) == depth:
                pids.append(process.pid)
    return pids


def _status_field(pid: int, name: str) -> list[str]:
    text = Path("/proc", str(pid), "status").read_text(errors="replace")
    return text.split(f"\n{name}:")[1].split("\n", 1)[0].split()


def end(uid: int | None, spared: Collection[int] = ()) -> bool:
    """End every descendant of this process, which must be their subreaper, and wait for them.

    Processes that fork and end at once are gone when a signal comes. But the dead count as their user's until
    somebody waits for them, which is done here only when none is seen alive, after ever longer pauses: such a
    chain comes to the limit of processes and stops by itself.

    Args:
        uid: The user that runs nothing else, None where there is none.
        spared: Children that stay, with what is below them.
    Returns:
        Whether nothing was left; a process that hangs in the kernel can be.
    """
    deadline, signal_, pause_s = time.monotonic() + _KILL_TIME_S, signal.SIGSTOP, _FIRST_PAUSE_S
    while time.monotonic() < deadline:
        below = list(_below(os.getpid(), spared))
        if not below:
            return True
        if uid is not None:
            kill_user(uid)
        living = [process.pid for process in below if not process.dead]
        for pid in living:
            with suppress(OSError):
                os.kill(pid, signal_)
        if signal_ == signal.SIGKILL:
            time.sleep(pause_s)
        signal_ = signal.SIGKILL  # first stop all, so that none forks while the others are killed
        if not living:
            for process in below:
                with suppress(ChildProcessError):  # of a parent that has ended since
                    os.waitpid(process.pid, os.WNOHANG)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    return False


def kill_user(uid: int) -> None:
    """Send SIGKILL to every process of a user that runs nothing else, all at once."""
    child = os.fork()
    if child == 0:
        try:
            kernel.become_user(uid)
            os.kill(-1, signal.SIGKILL)  # everything that this user may signal, at once
        finally:
            os._exit(0)
    os.waitpid(child, 0)
