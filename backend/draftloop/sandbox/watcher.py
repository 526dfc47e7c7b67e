"""Watches the scripts of one job: reads what they print, and ends one that passes a limit.

Knows every limit and the sentence that says it was passed. Does not know how a script was started.
"""

import os
import resource
import selectors
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from draftloop.runs.job import Limits, RunOutcome, Step, seconds, size
from draftloop.sandbox import files, holdings, processes
from draftloop.sandbox.cgroup import ControlGroup
from draftloop.sandbox.printed import PrintedText

CHUNK_BYTES = 1 << 16
_POLL_S = 0.05
_LOOK_EVERY = 4  # polls between two looks at what processes hold
_OUTPUT_FACTOR = 16  # a script that prints this many times what is kept is ended
_DISK_RESERVE_BYTES = 512 << 20  # jobs end before the disk is full


@dataclass(frozen=True)
class Ending:
    """Why the keeper ended a job."""

    outcome: RunOutcome
    reason: str


class Watcher:
    """Holds the scripts of one job to its limits, one script after another.

    began       since when the job's time counts
    peak_bytes  the most memory that was measured
    notes       what else happened, in words
    """

    def __init__(
        self, connection: socket.socket, folders: tuple[str, str], uid: int | None, group: ControlGroup | None
    ) -> None:
        """Prepare.

        Args:
            connection: The client's, who cancels the job by closing it.
            folders: Those that the job writes to, `work` first.
            uid: The job's user; None where it is the sandbox's own.
            group: The sandbox's control group.
        """
        self._connection = connection
        self._folders = folders
        self._uid = uid
        self._group = group
        self.began = time.monotonic()
        self.peak_bytes = 0
        self.notes: list[str] = []
        self._polls = 0
        self._held = holdings.Holdings()
        self._ended_before = group.count_ended() if group else 0

    def watch(self, limits: Limits, child: int, texts: dict[int, PrintedText]) -> tuple[Ending | None, int]:
        """Read what the child prints and hold it to its limits until it ends or is ended.

        Returns:
            Why it was ended, None where it ended by itself; its exit status.
        """
        end = self._follow(limits, child, texts)
        if end is not None:
            os.kill(child, signal.SIGKILL)
        elif left := len(processes.descendants(os.getpid())):
            # The child itself is dead but not yet waited for, so it is not counted.
            self.notes.append(f"{left} processes outlived their script and were ended.")
        _, status = os.waitpid(child, 0)
        if not processes.end(self._uid):
            raise OSError("a process could not be ended")
        self._held = holdings.Holdings()
        for fd, text in texts.items():
            with suppress(BlockingIOError):
                while chunk := os.read(fd, CHUNK_BYTES):
                    text.add(chunk)
        code = os.waitstatus_to_exitcode(status)
        return end or self._ended_by_kernel(code) or self._exceeded_files(limits), code

    def _ended_by_kernel(self, exit_status: int) -> Ending | None:
        group = self._group
        if exit_status != -signal.SIGKILL or group is None or group.count_ended() == self._ended_before:
            return None
        return Ending("killed", "Stopped by the kernel: the memory of all jobs together was used up.")

    def _follow(self, limits: Limits, child: int, texts: dict[int, PrintedText]) -> Ending | None:
        """Watch until the child ends (None) or has to be ended."""
        ended = os.pidfd_open(child)
        try:
            with selectors.DefaultSelector() as selector:
                for fd in (*texts, ended, self._connection.fileno()):
                    selector.register(fd, selectors.EVENT_READ)
                for fd in texts:
                    os.set_blocking(fd, False)
                next_poll = time.monotonic() + _POLL_S / 2
                while True:
                    ready = {key.fd for key, _ in selector.select(max(0.0, next_poll - time.monotonic()))}
                    for fd in texts.keys() & ready:
                        if end := self._take(selector, fd, texts[fd]):
                            return end
                    if ended in ready:
                        return None
                    if self._connection.fileno() in ready:
                        return Ending("killed", "Cancelled.")
                    if time.monotonic() >= next_poll:
                        if end := self._exceeded(limits):
                            return end
                        next_poll = time.monotonic() + _POLL_S
        finally:
            os.close(ended)

    def _take(self, selector: selectors.BaseSelector, fd: int, text: PrintedText) -> Ending | None:
        try:
            chunk = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return None
        if not chunk:
            selector.unregister(fd)
        text.add(chunk)
        if text.total > _OUTPUT_FACTOR * text.keep:
            return Ending(
                "killed", f"Stopped: it printed over {size(text.total)}, of which {size(text.keep)} are kept."
            )
        return None

    def _exceeded(self, limits: Limits) -> Ending | None:
        wall_s = time.monotonic() - self.began
        if wall_s > limits.wall_s:
            return Ending("timeout", f"Stopped after {seconds(limits.wall_s)}, the limit of a run.")
        below = processes.descendants(os.getpid())
        if self._polls % _LOOK_EVERY == 0:
            self._held = holdings.measure([process.pid for process in below], self._uid)
            if end := _exceeded_holding(self._held):
                return end
        self._polls += 1
        memory_bytes = holdings.memory(below, limits.memory_bytes, self._uid) + self._held.kernel_bytes
        self.peak_bytes = max(self.peak_bytes, memory_bytes)
        if memory_bytes > limits.memory_bytes:
            used, allowed = size(memory_bytes), size(limits.memory_bytes)
            return Ending("killed", f"Stopped at {used} of memory; the limit is {allowed}.")
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = sum(process.cpu_s for process in below) + spent.ru_utime + spent.ru_stime
        if cpu_s > limits.cpu_s + 1:
            return Ending("timeout", f"Stopped after {seconds(limits.cpu_s)} of processor time, the limit.")
        threads = sum(process.threads for process in below)
        if threads > limits.processes:
            return Ending("killed", f"Stopped with {threads} processes; the limit is {limits.processes}.")
        return self._exceeded_files(limits)

    def _exceeded_files(self, limits: Limits) -> Ending | None:
        disk_bytes, count = self._held.unlinked_bytes, 0
        for folder in self._folders:
            used = files.usage(folder, limits.files + 100)
            disk_bytes, count = disk_bytes + used.disk_bytes, count + used.files
            if used.hidden:
                return Ending("killed", "Stopped: a folder nests too deep or is closed to its own user.")
        if count > limits.files + 100:  # a hundred for what libraries and inputs need
            return Ending("killed", f"Stopped with over {limits.files} files, the limit.")
        if disk_bytes > limits.disk_bytes:
            written, allowed = size(disk_bytes), size(limits.disk_bytes)
            return Ending("killed", f"Stopped with {written} written to disk; the limit is {allowed}.")
        free = os.statvfs(self._folders[0])
        if free.f_bavail * free.f_frsize < _DISK_RESERVE_BYTES:
            return Ending("killed", "Stopped: the sandbox's disk is nearly full.")
        return None


def judge_exit(step: Step, name: str, limits: Limits) -> Ending:
    """Return how a script ended by itself."""
    status = step.exit_status
    if status == 0:
        return Ending("ok", "")
    if status == -signal.SIGXCPU:
        return Ending("timeout", f"Stopped after {seconds(limits.cpu_s)} of processor time, the limit.")
    if status == -signal.SIGXFSZ:
        return Ending("killed", f"Stopped: a file may have {size(limits.file_bytes)} at most.")
    if status == -signal.SIGKILL and step.wall_s >= limits.cpu_s:
        return Ending("timeout", f"Stopped after {seconds(limits.cpu_s)} of processor time, the limit.")
    if status < 0:
        return Ending("killed", f"{name} was ended by {_signal_name(-status)}.")
    return Ending("failed", f"{name} ended with exit status {status}.")


def _signal_name(number: int) -> str:
    """Return a signal's name; those between SIGRTMIN and SIGRTMAX have none but their distance."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"signal {number}"


def _exceeded_holding(held: holdings.Holdings) -> Ending | None:
    if held.hidden:
        return Ending("killed", "Stopped: one of its processes does not let the sandbox see what it holds.")
    if held.shared:
        return Ending("killed", "Stopped: it maps /dev/zero as shared memory; map a file instead.")
    if held.sockets > holdings.MOST_SOCKETS:
        return Ending("killed", f"Stopped with {held.sockets} sockets; the limit is {holdings.MOST_SOCKETS}.")
    if held.locks > holdings.MOST_LOCKS:
        return Ending(
            "killed", f"Stopped with too many locks of parts of files; the limit is {holdings.MOST_LOCKS}."
        )
    return None
