"""The folder of a job: measured while code writes to it, collected and removed once nothing runs in it.

Whatever is found there was made by code that is not trusted: links are never followed, nothing is opened
that could block, no depth and no number of files is too many to remove.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from backend.core.execution import INPUT_FOLDER, Limits, OutputFile, Refused, size

_DEEPEST = 16
_REFUSED_LISTED = 20
_CHUNK_BYTES = 1 << 20
_LEFT_OUT = {"__pycache__"}


@dataclass(frozen=True)
class Usage:
    """What a folder holds: allocated bytes, files and folders, and whether some of it cannot be seen."""

    disk_bytes: int
    files: int
    hidden: bool = False


def usage(folder: str, most_files: int, inputs: AbstractSet[tuple[int, int]] = frozenset()) -> Usage:
    """Measure a folder, up to the first file over `most_files`; mounted inputs take nothing.

    Args:
        folder: The folder.
        most_files: Where to stop.
        inputs: Device and inode of files that are not the job's own.
    """
    disk_bytes, files, queue = 0, 0, [folder]
    while queue:
        try:
            entries = os.scandir(queue.pop())
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            return Usage(disk_bytes, files, hidden=True)  # too deep for a path, or closed to its own user
        with entries:
            for entry in entries:
                files += 1
                if files > most_files:
                    return Usage(disk_bytes, files)
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:
                    return Usage(disk_bytes, files, hidden=True)
                if (found.st_dev, found.st_ino) not in inputs:
                    disk_bytes += found.st_blocks * 512
                if stat.S_ISDIR(found.st_mode):
                    queue.append(entry.path)
    return Usage(disk_bytes, files)


def collect(work: str, outputs: str, limits: Limits) -> tuple[list[OutputFile], list[Refused], list[str]]:
    """Copy the regular files of a job to a folder of ours.

    Args:
        work: The job's folder; nothing may run in it any more.
        outputs: A folder of ours; made where there is something to put in.
        limits: How many bytes and files to take.
    Returns:
        The files, sorted by path; what was refused and why; notes on what was left out.
    """
    files: list[OutputFile] = []
    refused: list[Refused] = []
    total_bytes = 0
    root = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for path, found in _walk(root, "", refused):
            if isinstance(found, str):
                refused.append(Refused(path, found))
                continue
            try:
                length = os.fstat(found).st_size
                if length > limits.file_bytes:
                    refused.append(Refused(path, f"It has {size(length)}, more than one file may have."))
                elif total_bytes + length > limits.disk_bytes:
                    refused.append(Refused(path, f"All files together have over {size(limits.disk_bytes)}."))
                elif len(files) >= limits.files:
                    refused.append(Refused(path, f"There are over {limits.files} files."))
                else:
                    total_bytes += length
                    files.append(_copy(found, path, outputs, length))
            finally:
                os.close(found)
    finally:
        os.close(root)
    notes = []
    if len(refused) > _REFUSED_LISTED:
        notes.append(f"{len(refused)} files were refused; {_REFUSED_LISTED} of them are listed.")
    files.sort(key=lambda file: file.path)
    return files, sorted(refused[:_REFUSED_LISTED], key=lambda one: one.path), notes


def _walk(folder: int, prefix: str, refused: list[Refused]) -> Iterator[tuple[str, int | str]]:
    """Give every file as its path and an open descriptor, or as the reason why it is refused."""
    for name in sorted(os.listdir(folder)):
        path = prefix + name
        if name in _LEFT_OUT or path == INPUT_FOLDER:
            continue
        if not name.isprintable():  # control characters, and what is no UTF-8
            yield ascii(path), "Its name holds characters that cannot be shown."
            continue
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            kind = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if reason := _unfit(kind, path):
                yield path, reason
                continue
            if not kind.st_mode & stat.S_IRUSR:
                os.chmod(name, 0o700, dir_fd=folder)
            fd = os.open(name, flags, dir_fd=folder)
        except OSError as error:
            yield path, f"It cannot be opened: {error.strerror}."
            continue
        if stat.S_ISDIR(kind.st_mode):
            try:
                yield from _walk(fd, path + "/", refused)
            finally:
                os.close(fd)
        else:
            yield path, fd


def _unfit(kind: os.stat_result, path: str) -> str:
    if stat.S_ISLNK(kind.st_mode):
        return "It is a symbolic link."
    if stat.S_ISDIR(kind.st_mode):
        return f"Folders nest more than {_DEEPEST} deep." if path.count("/") + 1 >= _DEEPEST else ""
    if not stat.S_ISREG(kind.st_mode):
        return "It is not a regular file."
    return "It has more than one name (hard link)." if kind.st_nlink > 1 else ""


def _copy(source: int, path: str, outputs: str, length: int) -> OutputFile:
    target = os.path.join(outputs, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    digest, copied = hashlib.sha256(), 0
    with open(target, "xb") as file:
        while chunk := os.read(source, min(_CHUNK_BYTES, length - copied)):
            digest.update(chunk)
            file.write(chunk)
            copied += len(chunk)
    return OutputFile(path, copied, digest.hexdigest())


def remove(folder: str) -> None:
    """Remove a folder with all that is in it; nothing may run in it any more.

    Goes down and comes back by `..` with one open folder, so that no depth needs a longer path or more memory
    than its names.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        here = os.open(folder, flags)
    except FileNotFoundError:
        return
    names: list[str] = []  # from the folder down to here
    try:
        while True:
            if inner := _unlink_files(here):
                os.chmod(inner, 0o700, dir_fd=here)
                names.append(inner)
                there = os.open(inner, flags, dir_fd=here)
            elif names:
                there = os.open("..", flags, dir_fd=here)
                os.rmdir(names.pop(), dir_fd=there)
            else:
                break
            os.close(here)
            here = there
    finally:
        os.close(here)
    os.rmdir(folder)


def _unlink_files(folder: int) -> str:
    """Unlink what is no folder, up to the first folder; give its name, empty where there is none."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            os.unlink(entry.name, dir_fd=folder)
    return ""
