"""The users that jobs run as: a block of ids for each sandbox of a machine, taken by a lock on a file."""

import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from draftloop.errors import SetupError
from draftloop.sandbox import kernel, processes

MOST_USERS = 32  # of one sandbox
# Between Debian's ranges for people and systemd's for services; a block for each sandbox of the machine.
_FIRST_UID, _BLOCKS = 60720, 14
_LEFT_OVER_S = 2.0  # for ending what a killed sandbox left


def take_users(*, left_out: bool) -> tuple[list[int], IO[str]]:
    """Take users that no other sandbox of this machine has; none where this is not root."""
    if os.geteuid() != 0:
        return [], Path(os.devnull).open()
    missing = [name for name, one in kernel.OTHER_USERS.items() if not kernel.has_capabilities(one)]
    if missing or left_out:
        reason = f"it lacks the capabilities {', '.join(missing)}" if missing else "the layer was left out"
        raise SetupError(
            "The sandbox is root, which has no limit on processes, and cannot give runs to other users: "
            f"{reason}.",
            hint=f"Run it as a plain user, or as root with {', '.join(kernel.OTHER_USERS)}.",
        )
    for block in range(_BLOCKS):
        first = _FIRST_UID + block * MOST_USERS
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        path = f"{tempfile.gettempdir()}/draftloop-sandbox-{first}.lock"
        lock = open(os.open(path, flags, 0o600), "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if uids := _free_uids(range(first, first + MOST_USERS)):
            return uids, lock
        lock.close()
    raise SetupError(
        f"No users are left to run jobs as: {_BLOCKS} sandboxes run on this machine, or processes of earlier "
        "ones cannot be ended.",
        hint=f"Look for processes of the users {_FIRST_UID} to {_FIRST_UID + _BLOCKS * MOST_USERS - 1}.",
    )


def _free_uids(uids: Sequence[int]) -> list[int]:
    """Return the users that run nothing, after ending what a killed sandbox left of theirs."""
    deadline = time.monotonic() + _LEFT_OVER_S
    while (left_over := processes.of_users(uids)) and time.monotonic() < deadline:
        for pid in left_over:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    busy = set(processes.threads_of_users())
    if left := sorted(busy & set(uids)):
        print(f"users {left} run processes of others; no job gets them", file=sys.stderr, flush=True)
    return [uid for uid in uids if uid not in busy]


def check_open_to_others(*paths: str | Path) -> None:
    """Check that other users can reach these paths.

    Raises:
        SetupError: A folder on the way is closed to them.
    """
    for path in map(Path, paths):
        for one in (path, *path.parents):
            if not one.stat().st_mode & 0o001:
                raise SetupError(
                    f"Jobs run as users of their own, and {one} on the way to {path} is closed to them.",
                    hint=f"chmod o+x {one}, or another folder.",
                )
