"""The folder of a job: measured while code writes to it, collected once nothing runs in it.

Whatever is there was made by code that is not trusted: links are never followed, and nothing is opened that
could block. `draftloop.support.trees` removes it.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from draftloop.runs.job import INPUT_FOLDER, Limits, OutputFile, Refused, size

_DEEPEST, _DEEPEST_MEASURED = 16, 100
_REFUSED_LISTED = 20
_CHUNK_BYTES = 1 << 20
_LEFT_OUT = {"__pycache__"}


@dataclass(frozen=True)
class Usage:
    """What a folder holds: allocated bytes, files and folders, and whether some of it cannot be seen."""

    disk_bytes: int
    files: int
    hidden: bool = False


def usage(folder: str, most_files: int) -> Usage:
    """Measure a folder, up to the first file over `most_files`, while code writes to it.

    Every folder is opened in the one above it, and never through a link: what code renames meanwhile cannot
    lead the look elsewhere.
    """
    disk_bytes, files = 0, 0
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    stack: list[tuple[int, Any]] = []  # open folder, its entries (os.scandir has no public type)
    try:
        stack.append(_open_listing(os.open(folder, flags)))
        while stack:
            here, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                _close(*stack.pop())
                continue
            files += 1
            if files > most_files:
                return Usage(disk_bytes, files)
            try:
                status = os.stat(entry.name, dir_fd=here, follow_symlinks=False)
                disk_bytes += status.st_blocks * 512
                if stat.S_ISDIR(status.st_mode):
                    if len(stack) == _DEEPEST_MEASURED:
                        return Usage(disk_bytes, files, hidden=True)
                    stack.append(_open_listing(os.open(entry.name, flags, dir_fd=here)))
            except OSError as error:
                if _was_replaced(error):
                    continue
                return Usage(disk_bytes, files, hidden=True)  # closed to its own user
    except FileNotFoundError:
        return Usage(0, 0)
    finally:
        for opened in stack:
            _close(*opened)
    return Usage(disk_bytes, files)


def _was_replaced(error: OSError) -> bool:
    """Return whether an entry is gone, or is no folder any more."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ELOOP


def _open_listing(folder: int) -> tuple[int, Any]:
    return folder, os.scandir(folder)


def _close(folder: int, entries: Any) -> None:
    entries.close()
    os.close(folder)


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
        for path, opened in _walk(root, "", refused):
            if isinstance(opened, str):
                refused.append(Refused(path, opened))
                continue
            try:
                length = os.fstat(opened).st_size
                if length > limits.file_bytes:
                    refused.append(Refused(path, f"It has {size(length)}, more than one file may have."))
                elif total_bytes + length > limits.disk_bytes:
                    refused.append(Refused(path, f"All files together have over {size(limits.disk_bytes)}."))
                elif len(files) >= limits.files:
                    refused.append(Refused(path, f"There are over {limits.files} files."))
                else:
                    total_bytes += length
                    files.append(_copy(opened, path, outputs, length))
            finally:
                os.close(opened)
    finally:
        os.close(root)
    notes = []
    if len(refused) > _REFUSED_LISTED:
        notes.append(f"{len(refused)} files were refused; {_REFUSED_LISTED} of them are listed.")
    files.sort(key=lambda file: file.path)
    return files, sorted(refused[:_REFUSED_LISTED], key=lambda one: one.path), notes


def _walk(folder: int, prefix: str, refused: list[Refused]) -> Iterator[tuple[str, int | str]]:
    """Yield the path of every file, with an open descriptor or the reason why it is refused."""
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
            fd = _open(name, flags, folder, kind)
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


def _open(name: str, flags: int, folder: int, kind: os.stat_result) -> int:
    """Open a file that its mode may close to its own user; no link is followed."""
    if kind.st_mode & stat.S_IRUSR:
        return os.open(name, flags, dir_fd=folder)
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
        return os.open(f"/proc/self/fd/{handle}", flags & ~os.O_NOFOLLOW)
    finally:
        os.close(handle)


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
