"""Steps of the server's start: a guard process above it, an empty folder, namespaces of its own.

Each step forks or changes the whole process, so they run once, in the order of `server.main`.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftloop.errors import SetupError
from draftloop.sandbox import cgroup, kernel, processes, view
from draftloop.sandbox.containment import DEVICES, SYSTEM, python_paths
from draftloop.support.trees import remove_or_set_aside

SOCKET = "socket"
PACKAGE = Path(__file__).parents[1]
# Where it is imported from may be a link.
_CODE = tuple(dict.fromkeys((str(PACKAGE), str(PACKAGE.resolve()))))


def stand_guard(memory_bytes: int) -> cgroup.ControlGroup | None:
    """Fork, and return in the child; the parent waits for it, ends what it left, and exits with its status.

    Code that outlives its keeper and the server becomes a child of this process, which no job can reach.

    Returns:
        The control group of the sandbox, which the guard removes; None where it may not make one.
    """
    group = cgroup.make_group(memory_bytes) if memory_bytes else None
    child = os.fork()
    if child == 0:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            if group is not None:
                group.enter()
        except OSError as error:  # the report says that the kernel sets no limit
            print(f"no control group: {error}", file=sys.stderr, flush=True)
            return None
        return group
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    status = _wait(child)
    processes.end(None)
    if group is not None:
        group.remove()
    os._exit(status)


def send_line(words: dict[str, Any]) -> None:
    """Write a line of JSON to whoever started the sandbox."""
    print(json.dumps(words), flush=True)


def prepare_folder(path: str) -> Path:
    """Empty the sandbox's folder; other users may pass through it, but not list it."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("jobs", "matplotlib", "root"):
            if os.path.lexists(folder / name) and (why := remove_or_set_aside(folder / name)):
                print(f"{why}; remove it by hand", file=sys.stderr, flush=True)
            (folder / name).mkdir(mode=0o711)
        folder.chmod(0o711)
        (folder / "matplotlib").chmod(0o755)
        (folder / SOCKET).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(f"The sandbox's folder {path} cannot be used: {error.strerror}.") from error
    return folder


def enter_namespaces(folder: Path, inputs: Sequence[str]) -> bool:
    """Fork, and return as process 1 of new namespaces, which show only what jobs need.

    Returns:
        False where the machine has none for us. Where it has, this returns in a child alone; its parent waits
        and ends as it does.
    """
    read, write = os.pipe()
    child = os.fork()  # a failure half-way leaves a process that nobody can use
    if child == 0:
        os.close(read)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            kernel.unshare(user=not kernel.has_capabilities(kernel.CAP_SYS_ADMIN))
            inner = os.fork()
            if inner == 0:
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
                paths = (*SYSTEM, *python_paths(), *_CODE, *inputs)
                view.enter_sandbox_view(
                    str(folder / "root"), read=paths, write=(str(folder),), devices=DEVICES
                )
                os.write(write, b"1")
                os.close(write)
                return True
            os.close(write)
            os._exit(_wait(inner))
        except BaseException as error:
            print(f"no namespaces: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os.close(write)
    with open(read, "rb") as entered:
        if not entered.read():
            os.waitpid(child, 0)
            return False
    os._exit(_wait(child))


def _wait(child: int) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
    os.closerange(0, 2)  # the child alone holds them
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF
