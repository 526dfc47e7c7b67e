"""The dataset's folder: one process at a time, files written aside and renamed, the manifest last.

Knows names, bytes and hashes, and that what the manifest does not match is not valid. Does not know what
is in the files. Nothing here is held in memory but a line at a time.
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
    """Keep a second one away; the lock is on the folder itself and ends with the process.

    Args:
        folder: Made if missing.
        by: What it is locked by, in a word.
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
    found: dict[str, Any] = manifest
    return found


def is_intact(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Tell whether the files are all as the manifest says."""
    return damaged(folder, manifest) is None


def damaged(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Name the first file that is not as the manifest says; None where all are."""
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
    """Where a line lies: the file by its number, the first byte, and how many."""

    file: int
    start: int
    size_bytes: int

    @property
    def is_new(self) -> bool:
        """Tell whether the line is none of the folder's own."""
        return self.file == 0


class Lines:
    """JSON lines that lie on disk and are found by their place: a folder's own, and new ones.

    The new ones are in a file without a name, which is gone when the process ends, however it ends. The
    folder's files stay readable as they were at the start, also when others take their names.
    """

    def __init__(self, folder: Path) -> None:
        """Begin without a line; what a killed sync left is removed.

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
        """Write a new line, and something beside it that is no part of it.

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
        """Read one of the folder's files from its beginning, each line with its place.

        Raises:
            ServiceError: It cannot be read.
        """
        with disk_errors(self._folder, _HINT, access="read"):
            stream = (self._folder / name).open("rb")  # lives as long as its lines
            self._files.append(stream)
            number, start = len(self._files) - 1, 0
            for line in stream:
                yield LinePlace(number, start, len(line)), orjson.loads(line)
                start += len(line)

    def line(self, place: LinePlace) -> bytes:
        """Read a line again, as it lies there.

        Raises:
            ServiceError: The disk failed.
        """
        return self._bytes(place.file, place.start, place.size_bytes)

    def beside(self, place: LinePlace, size_bytes: int) -> bytes:
        """Read what was written beside a new line.

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
        """Read a line again, as JSON.

        Raises:
            ServiceError: The disk failed.
        """
        found: dict[str, Any] = orjson.loads(self.line(place))
        return found


class DatasetFiles:
    """The files of a dataset on their way: written aside, put in place together, the manifest last."""

    def __init__(self, folder: Path) -> None:
        """Begin without a file."""
        self._folder = folder
        self._writers: dict[str, AtomicFileWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for writer in self._writers.values():
                writer.discard()

    def open(self, name: str) -> AtomicFileWriter:
        """Begin a file.

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
        """Put in place what differs, then the manifest; remove what an older manifest named.

        Returns:
            The names of what was written.
        Raises:
            ServiceError: The disk failed; what is there is completed next time.
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
    """Write the manifest, if it differs; returns its name if it was written.

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
