"""The dataset's folder: one process at a time, atomic writes, the manifest last.

Knows names, bytes and hashes, and that a file that does not match the manifest is invalid. Does not know what
is in the files. Memory holds one line at a time.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from draftloop.errors import SetupError
from draftloop.support.files import (
    AtomicFileWriter,
    disk_errors,
    hash_file,
    remove_unfinished,
    write_atomically,
    write_fully,
)

MANIFEST = "manifest.json"
_HINT = "Make room and run the sync again."  # where the disk fails
_UNWRITTEN_BYTES = 1 << 15  # of each file: lines wait for each other


@contextmanager
def locked(folder: Path, by: str = "sync") -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process.

    Args:
        folder: Made if missing.
        by: The activity that locks it, in a word, for the error of a second process.
    Raises:
        SetupError: The folder cannot be made, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SetupError(
            f"{folder} cannot be used: {error.strerror}.", hint="Choose another --out."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise SetupError(f"Another {by} is writing to {folder}.", hint="Wait until it has ended.") from error
    finally:
        os.close(handle)


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """Read the manifest; None where there is none.

    Raises:
        SetupError: It cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest["projects"], dict) or not isinstance(manifest["files"], dict):
            raise TypeError("no projects, no files")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{folder / MANIFEST} cannot be read.", hint="Remove it: the next sync makes the dataset anew."
        ) from error
    checked: dict[str, Any] = manifest
    return checked


def is_intact(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether all files match the manifest."""
    return damaged(folder, manifest) is None


def damaged(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Return the name of the first file that does not match the manifest; None where all do."""
    for name, entry in manifest["files"].items():
        try:
            if hash_file(folder / name) != entry["sha256"]:
                return str(name)
        except OSError:
            return str(name)
    return None


def lines_of(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, one at a time.

    Raises:
        ServiceError: It cannot be read.
    """
    with disk_errors(folder, _HINT, access="read"), (folder / name).open("rb") as stream:
        yield from map(orjson.loads, stream)


class LinePlace(NamedTuple):
    """The place of a line: the number of its file, its first byte and its length."""

    file: int
    start: int
    size_bytes: int

    @property
    def is_new(self) -> bool:
        """Whether the line was added in this run."""
        return self.file == 0


class Lines:
    """JSON lines on disk, read by their place: those of a folder's files, and lines added in this run.

    Added lines are in an unnamed file, which disappears when the process ends. The folder's files stay
    readable as they were at the start, also after they have been replaced.
    """

    def __init__(self, folder: Path) -> None:
        """Start without lines; remove unfinished files of a killed sync.

        Raises:
            ServiceError: The disk failed.
        """
        self._folder = folder
        self._end = 0
        self._unwritten = bytearray()
        with disk_errors(folder, _HINT):
            remove_unfinished(folder)
            new = tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".part", buffering=0)  # noqa: SIM115
        self._files: list[Any] = [new]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, line: bytes, beside: bytes = b"") -> LinePlace:
        """Write a new line, followed by bytes that are not part of it.

        Raises:
            ServiceError: The disk failed.
        """
        place = LinePlace(0, self._end, len(line))
        self._unwritten += line
        self._unwritten += beside
        self._end += len(line) + len(beside)
        if len(self._unwritten) > _UNWRITTEN_BYTES:
            self._flush()
        return place

    def _flush(self) -> None:
        content = bytes(self._unwritten)
        self._unwritten.clear()
        with disk_errors(self._folder, _HINT):
            write_fully(self._files[0].fileno(), content)

    def read(self, name: str) -> Iterator[tuple[LinePlace, dict[str, Any]]]:
        """Yield the lines of one of the folder's files, each with its place.

        Raises:
            ServiceError: It cannot be read.
        """
        with disk_errors(self._folder, _HINT, access="read"):
            stream = (self._folder / name).open("rb")  # stays open for `line`
            self._files.append(stream)
            number, start = len(self._files) - 1, 0
            for line in stream:
                yield LinePlace(number, start, len(line)), orjson.loads(line)
                start += len(line)

    def line(self, place: LinePlace) -> bytes:
        """Return the bytes of a line.

        Raises:
            ServiceError: The disk failed.
        """
        return self._bytes(place.file, place.start, place.size_bytes)

    def beside(self, place: LinePlace, size_bytes: int) -> bytes:
        """Return the bytes that were written after a new line.

        Raises:
            ServiceError: The disk failed.
        """
        return self._bytes(place.file, place.start + place.size_bytes, size_bytes)

    def _bytes(self, file: int, start: int, size_bytes: int) -> bytes:
        if file == 0 and self._unwritten:
            self._flush()
        with disk_errors(self._folder, _HINT, access="read"):
            return os.pread(self._files[file].fileno(), size_bytes, start)

    def get(self, place: LinePlace) -> dict[str, Any]:
        """Return a line, parsed as JSON.

        Raises:
            ServiceError: The disk failed.
        """
        record: dict[str, Any] = orjson.loads(self.line(place))
        return record


class DatasetFiles:
    """New files of a dataset: written under temporary names, renamed together, the manifest last."""

    def __init__(self, folder: Path) -> None:
        """Start without files."""
        self._folder = folder
        self._writers: dict[str, AtomicFileWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for writer in self._writers.values():
                writer.discard()

    def open(self, name: str) -> AtomicFileWriter:
        """Open a new file.

        Raises:
            ServiceError: The disk failed.
        """
        with disk_errors(self._folder, _HINT):
            self._writers[name] = AtomicFileWriter(self._folder / name)
        return self._writers[name]

    def add(self, name: str, content: bytes) -> None:
        """Write a whole file.

        Raises:
            ServiceError: The disk failed.
        """
        with disk_errors(self._folder, _HINT):
            self.open(name).write(content)

    def store(self, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        """Rename the files that differ, then write the manifest; remove other files of the old manifest.

        Returns:
            The names of the files that changed.
        Raises:
            ServiceError: The disk failed; the next sync completes the folder.
        """
        written = []
        described: dict[str, dict[str, Any]] = {}
        with disk_errors(self._folder, _HINT):
            before = manifest_of(self._folder) or {"files": {}}
            for writer in self._writers.values():
                writer.close()
            for name, writer in self._writers.items():
                described[name] = {"bytes": writer.size_bytes, "sha256": writer.sha256}
                if name.endswith(".jsonl"):
                    described[name]["rows"] = writer.rows
                if _is_same(writer.path, writer):
                    writer.discard()
                else:
                    writer.commit()
                    written.append(name)
            for name in before["files"].keys() - self._writers.keys():
                (self._folder / name).unlink(missing_ok=True)
        return (*written, *store_manifest(self._folder, {**manifest, "files": described}))


def store_manifest(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the manifest if it differs; return its name if it was written.

    Raises:
        ServiceError: The disk failed.
    """
    path = folder / MANIFEST
    content = orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"
    with disk_errors(folder, _HINT):
        if path.is_file() and path.read_bytes() == content:
            return ()
        write_atomically(path, content)
    return (MANIFEST,)


def _is_same(path: Path, writer: AtomicFileWriter) -> bool:
    """Return whether a file has the content that was just written."""
    return path.is_file() and path.stat().st_size == writer.size_bytes and hash_file(path) == writer.sha256
