"""Remove folders whose content was written by code that is not trusted.

`shutil.rmtree` recurses: a thousand nested folders end it with a RecursionError. `remove_tree` needs no
recursion and no path that grows with the depth, never follows a link, and notices when a folder is moved
while it is being removed.
"""

import os
import stat
import time
from contextlib import suppress
from pathlib import Path

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT_ASIDE = "left-"


def remove_tree(folder: str) -> None:
    """Remove a folder and everything in it, however deep; do nothing where there is none.

    The walk goes down and comes back by `..` with one open folder. A folder that it comes back to must be
    the one that it came from: else somebody moved it, and what lies there is not ours to remove.

    Raises:
        OSError: Something cannot be removed, or was moved meanwhile; the rest may be gone.
    """
    try:
        here = os.open(folder, _OPEN_FOLDER)
    except FileNotFoundError:
        return
    way: list[tuple[str, tuple[int, int]]] = []  # name of each folder gone into, identity of its parent
    try:
        while True:
            if name := _unlink_files(here):
                below = _open_folder(name, here)
                way.append((name, _identity(here)))
            elif way:
                below = os.open("..", _OPEN_FOLDER, dir_fd=here)
                name, parent = way.pop()
                if _identity(below) != parent:
                    os.close(below)
                    raise OSError(f"a folder below {folder} was moved while it was being removed")
                os.rmdir(name, dir_fd=below)
            else:
                break
            os.close(here)
            here = below
    finally:
        os.close(here)
    os.rmdir(folder)


def remove_or_set_aside(folder: Path) -> str:
    """Remove a folder; where that fails, rename it, so that its name is free again.

    Returns:
        Why it is still there and under which name; empty where it is gone.
    Raises:
        OSError: It can be neither removed nor renamed.
    """
    try:
        remove_tree(str(folder))
    except OSError as error:
        aside = folder.with_name(f"{_LEFT_ASIDE}{folder.name}-{time.time_ns():x}")
        folder.rename(aside)
        return f"{folder} could not be removed ({error.strerror or error}); it was renamed to {aside}"
    return ""


def is_set_aside(folder: Path) -> bool:
    """Return whether `remove_or_set_aside` named this folder."""
    return folder.name.startswith(_LEFT_ASIDE)


def _open_folder(name: str, parent: int) -> int:
    """Open a folder in another one, changing its mode where that is needed; no link is followed."""
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=parent)
    except PermissionError:
        pass
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)  # exactly this folder, whatever its name means now
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def _unlink_files(folder: int) -> str:
    """Unlink what is not a folder, up to the first folder; return its name, empty where there is none."""
    with suppress(PermissionError):  # of another user's: unlinking says why it fails
        os.fchmod(folder, stat.S_IRWXU)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            os.unlink(entry.name, dir_fd=folder)
    return ""
