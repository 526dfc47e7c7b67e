"""Memory and disk of a job that belong to no visible process or file: measured in /proc, from outside.

Memory and disk that no process shows as its own: files that were unlinked while they are open, buffers of
sockets, record locks, page tables and the kernel's own records of mappings. Each has a limit; a job over it
is ended. Seccomp keeps out what could not be seen here: open files on their way through a socket, locks that
belong to no process, memory that is shared without a file.
"""

import json
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from draftloop.sandbox import kernel
from draftloop.sandbox.processes import ProcessStatus

MOST_SOCKETS = 256  # each buffers 208 KB at most, net.core.wmem_default
MOST_LOCKS = 10_000  # of ranges of files: 216 bytes each
_MAPPING_BYTES = 256  # struct vm_area_struct, with its share of the tree
_SCAN_S = 5.0
_LOCKS_S = 1.0


@dataclass(frozen=True)
class Holdings:
    """What the processes of a job hold together.

    `unlinked_bytes` are those of files without a name; `kernel_bytes` of page tables and mappings; `shared`
    says that one maps /dev/zero as shared memory; `hidden`, that one does not let us look.
    """

    unlinked_bytes: int = 0
    kernel_bytes: int = 0
    sockets: int = 0
    locks: int = 0
    shared: bool = False
    hidden: bool = False


def measure(pids: Collection[int], uid: int | None) -> Holdings:
    """Measure what processes hold.

    Args:
        pids: The processes.
        uid: Their user, where it is another one than ours.
    """
    answer = _seen_by(uid, lambda: asdict(_look(pids)))
    return Holdings(**answer) if answer is not None else Holdings(hidden=True)


def memory(processes: Collection[ProcessStatus], limit_bytes: int, uid: int | None) -> int:
    """Measure the memory of processes: resident, and where that is over the limit, shared pages once.

    Args:
        processes: The processes.
        limit_bytes: Up to which the quick measure will do.
        uid: As for `measure`.
    """
    resident_bytes = sum(process.resident_bytes for process in processes)
    if resident_bytes <= limit_bytes:
        return resident_bytes
    seen = _seen_by(uid, lambda: sum(map(_proportional_bytes, processes)))
    return resident_bytes if seen is None else int(seen)


def _proportional_bytes(process: ProcessStatus) -> int:
    try:
        rollup = _read(f"/proc/{process.pid}/smaps_rollup")
        return int(rollup.split(b"\nPss:")[1].split(None, 1)[0]) * 1024
    except (OSError, IndexError):  # it ended, or hides itself
        return process.resident_bytes


def _seen_by(uid: int | None, look: Callable[[], Any]) -> Any:
    """Measure a user's processes as that user; None where they prevent it.

    Without the capability SYS_PTRACE nobody else may look, so a child becomes that user for as long as it
    takes. Code can stop or end it there, where the kernel lets it: then nothing is known.
    """
    if uid is None or kernel.has_capabilities(kernel.CAP_SYS_PTRACE):
        return look()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kernel.become_user(uid)
            os.write(write, json.dumps(look()).encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], _SCAN_S)
        answer = os.read(read, 4096) if ready else b""
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return json.loads(answer) if answer else None


def _look(pids: Collection[int]) -> Holdings:
    files: dict[tuple[int, int], int] = {}
    sockets: set[tuple[int, int]] = set()
    kernel_bytes, shared, hidden = 0, False, False
    for pid in pids:
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError):
                    status = os.stat(entry.path)
                    key = status.st_dev, status.st_ino
                    if stat.S_ISSOCK(status.st_mode):
                        sockets.add(key)
                    elif stat.S_ISREG(status.st_mode) and not status.st_nlink:
                        files[key] = status.st_blocks * 512
            mapped = _read(f"/proc/{pid}/maps")
            kernel_bytes += mapped.count(b"\n") * _MAPPING_BYTES + _page_tables(_read(f"/proc/{pid}/status"))
            if b" (deleted)\n" in mapped:
                shared = shared or any(line.endswith(b"/dev/zero (deleted)") for line in mapped.split(b"\n"))
                files = _mapped_without_name(mapped) | files
        except (FileNotFoundError, ProcessLookupError):  # it ended
            continue
        except PermissionError:
            hidden = hidden or _has_memory(pid)
    if files:  # libraries that were replaced on the disk since the sandbox started are its own
        files = {
            key: held
            for key, held in files.items()
            if key not in _mapped_without_name(_read("/proc/self/maps"))
        }
    return Holdings(
        sum(files.values()), kernel_bytes, len(sockets), _count_locks(set(pids)), shared=shared, hidden=hidden
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _page_tables(status: bytes) -> int:
    at = status.find(b"VmPTE:")
    return int(status[at + 6 :].split(None, 1)[0]) * 1024 if at >= 0 else 0


def _mapped_without_name(mapped: bytes) -> dict[tuple[int, int], int]:
    """Return the mapped files without a name, by device and inode, each with the size of its mapping."""
    files = {}
    for line in mapped.split(b"\n"):
        if line.endswith(b" (deleted)"):
            addresses, _, offset, device, inode, _ = line.split(None, 5)
            begin, end = (int(one, 16) for one in addresses.split(b"-"))
            major, minor = (int(one, 16) for one in device.split(b":"))
            files[os.makedev(major, minor), int(inode)] = int(offset, 16) + end - begin
    return files


def _has_memory(pid: int) -> bool:
    """Return whether a process has memory of its own; an ending one has none, and cannot be read."""
    try:
        return b"VmSize:" in _read(f"/proc/{pid}/status")
    except OSError:
        return False


def _count_locks(pids: Collection[int]) -> int:
    """Count record locks in /proc/locks, at most one more than a job may have.

    The kernel stops whoever sets a lock while it lists them, page by page, and begins each by walking
    over all before it: where processes set locks as fast as they can, the list grows faster than it is read.
    So after `_LOCKS_S` a job is over the limit if a tenth of what was read is its own.
    """
    own, read, until, rest = 0, 0, time.monotonic() + _LOCKS_S, b""
    with suppress(OSError), open("/proc/locks", "rb", buffering=0) as locks:
        while own <= MOST_LOCKS and (page := locks.read(1 << 16)):
            *lines, rest = (rest + page).split(b"\n")
            for line in lines:
                columns = line.split()  # 1: POSIX ADVISORY WRITE 4711 08:01:123 0 EOF
                if len(columns) > 4 and columns[1] == b"POSIX" and columns[4].isdigit():
                    own += int(columns[4]) in pids
            read += len(lines)
            if time.monotonic() > until:
                return MOST_LOCKS + 1 if own * 10 > read else own
    return own
