"""Atomic writes of files and folders, and the hashes of files.

Knows names, bytes and hashes, not what is in a file. Imports the standard library alone, because the sandbox
and the training import it. What is being written lies beside its place, as `.NAME.part`, and takes its name
in one step: whoever reads NAME sees all of the old content or all of the new one, and what a killed process
leaves behind has a name that nobody reads.
"""

import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from draftloop.errors import ServiceError

_UNWRITTEN_BYTES = 1 << 15  # of each file: lines wait for each other
_UNFINISHED = ".*.part"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex.

    Raises:
        OSError: The file cannot be read.
    """
    return size_and_hash(path)[1]


def size_and_hash(path: Path) -> tuple[int, str]:
    """Return how many bytes a file has and their SHA-256, in hex, from one reading.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut.

    Raises:
        OSError: The disk failed.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_fully(descriptor: int, content: bytes) -> None:
    """Write all of some bytes to an open file: the kernel may take a part of them at a time.

    Raises:
        OSError: The disk failed.
    """
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def append_to_disk(path: Path, content: bytes) -> None:
    """Append some bytes to a file, made if missing, and wait until they would survive a power cut.

    Raises:
        OSError: The disk failed; a part of the bytes may have been appended.
    """
    with path.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def unfinished_path(path: Path) -> Path:
    """Return where a file or folder lies while it is being made."""
    return path.with_name(f".{path.name}.part")


def remove_unfinished(folder: Path) -> None:
    """Remove the files and folders that killed processes left unfinished in a folder.

    The caller holds the folder's lock: nothing there may still be in the making.

    Raises:
        OSError: One cannot be removed.
    """
    for leftover in folder.glob(_UNFINISHED):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


@contextmanager
def disk_errors(
    place: Path | str, hint: str, *, access: Literal["read", "written"] = "written"
) -> Iterator[None]:
    """Convert errors of the disk in the block to ours.

    Args:
        place: What is read or written, as people know it.
        hint: What they can do.
        access: What the block does.
    Raises:
        ServiceError: The disk failed.
    """
    try:
        yield
    except OSError as error:
        raise ServiceError(f"{place} cannot be {access}: {error.strerror or error}.", hint=hint) from error


@contextmanager
def replacing_file(path: Path, *, by_several: bool = False, durable: bool = True) -> Iterator[Path]:
    """Yield where to write a file; at the end of the block it takes its name, after an error it is removed.

    Args:
        path: Where the file belongs; an older file there is replaced.
        by_several: Several processes or threads may write this file at once, so each needs a name of its own
            for what it writes; the last one counts.
        durable: Wait for the disk before and after the renaming. Without it a power cut may leave the file
            empty or cut short, which is enough where readers notice that or the file can be made again.
    Raises:
        OSError: The disk failed; the older file is as it was.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part") if by_several else unfinished_path(path)
    try:
        yield part
        if durable:
            sync_to_disk(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if durable:
        sync_to_disk(path.parent)  # the renaming itself


@contextmanager
def creating_folder(folder: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end of the block it takes its name, after an error it is removed.

    Args:
        folder: What it will be called; there must be none yet, or an empty one. Missing parents are made.
        durable: As in `replacing_file`, for all files in the folder.
    Raises:
        OSError: The disk failed, or the name is taken.
    """
    part = unfinished_path(folder)
    if part.is_dir():
        shutil.rmtree(part)  # what a killed process left
    try:
        part.mkdir(parents=True)
        yield part
        if durable:
            for path in (*part.rglob("*"), part):
                sync_to_disk(path)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if durable:
        sync_to_disk(folder.parent)  # the renaming itself


def write_atomically(path: Path, content: bytes, *, keep_access: bool = False) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Args:
        path: The file; an older one is replaced.
        content: All of its bytes.
        keep_access: It holds secrets and exists: the new file gets the mode of the old one, and its owner
            where this process may give files away; until then nobody else can read it. Where `path` is a
            link, the file that it leads to is replaced.
    Raises:
        OSError: The disk failed; an older file is as it was.
    """
    if not keep_access:
        with replacing_file(path) as part:
            part.write_bytes(content)
        return
    path = path.resolve()
    before = path.stat()
    unfinished_path(path).unlink(missing_ok=True)  # may be readable by others, and O_EXCL takes no old file
    with replacing_file(path) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        if os.geteuid() == 0:
            os.chown(part, before.st_uid, before.st_gid)
        part.chmod(before.st_mode & 0o7777)


class AtomicFileWriter(io.RawIOBase):
    """A file written piece by piece, then put in place or discarded; bytes and lines are counted and hashed.

    As a context manager it is put in place at the end of the block, and discarded after an error.

    path         where the file belongs
    size_bytes   how many bytes were written; final when it is closed, as are the next two
    rows         how many lines were written
    """

    def __init__(self, path: Path) -> None:
        """Begin the file, as `.NAME.part`.

        Raises:
            OSError: It cannot be made.
        """
        self.path = path
        self.size_bytes = 0
        self.rows = 0
        self._part = unfinished_path(path)
        self._sha256 = hashlib.sha256()
        self._unwritten = bytearray()
        self._file = self._part.open("wb", buffering=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    @property
    def sha256(self) -> str:
        """Hash of what was written, in hex."""
        return self._sha256.hexdigest()

    def writable(self) -> bool:
        """Return True: it can be written to."""
        return True

    def write(self, content: Any, /) -> int:
        """Append some bytes; return how many.

        Raises:
            OSError: The disk failed.
        """
        before = len(self._unwritten)
        self._unwritten += content
        count = len(self._unwritten) - before
        if len(self._unwritten) > _UNWRITTEN_BYTES:
            self._flush()
        return count

    def close(self) -> None:
        """End the file; it still has to be put in place.

        Raises:
            OSError: The disk failed.
        """
        if self.closed:
            return
        try:
            self._flush()
        finally:
            self._file.close()
            super().close()

    def commit(self) -> None:
        """Put the file in place: it survives a power cut from then on.

        Raises:
            OSError: The disk failed; what was written is removed, and an older file is as it was.
        """
        try:
            self.close()
            sync_to_disk(self._part)
            self._part.replace(self.path)
        except OSError:
            self.discard()
            raise
        sync_to_disk(self.path.parent)  # the renaming itself

    def discard(self) -> None:
        """Remove what was written; nothing happens where that is not possible."""
        with suppress(OSError):
            self.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        content = bytes(self._unwritten)
        self._unwritten.clear()
        self._sha256.update(content)
        self.size_bytes += len(content)
        self.rows += content.count(b"\n")
        write_fully(self._file.fileno(), content)
