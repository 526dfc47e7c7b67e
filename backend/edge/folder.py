"""The dataset's folder: one process at a time, files written aside and renamed, the manifest last.

Knows names, bytes and hashes, and that what the manifest does not match is not valid. Does not know what
is in the files. Nothing here is held in memory but a line at a time.
"""

import fcntl
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from backend.errors import ServiceError, SetupError

MANIFEST = "manifest.json"
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
            if sha256_of(folder / name) != entry["sha256"]:
                return str(name)
        except OSError:
            return str(name)
    return None


def lines_of(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, one at a time.

    Raises:
        ServiceError: It cannot be read.
    """
    try:
        with (folder / name).open("rb") as stream:
            yield from map(orjson.loads, stream)
    except OSError as error:
        raise _failed(folder, "read", error) from error


class Place(NamedTuple):
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
        try:
            for leftover in folder.glob(".*.part"):
                leftover.unlink()
            new = tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".part", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _failed(folder, "written", error) from error
        self._files: list[Any] = [new]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, line: bytes, beside: bytes = b"") -> Place:
        """Write a new line, and something beside it that is no part of it.

        Raises:
            ServiceError: The disk failed.
        """
        place = Place(0, self._end, len(line))
        self._unwritten += line
        self._unwritten += beside
        self._end += len(line) + len(beside)
        if len(self._unwritten) > _UNWRITTEN_BYTES:
            self._flush()
        return place

    def _flush(self) -> None:
        content = bytes(self._unwritten)
        self._unwritten.clear()
        try:
            _write_all(self._files[0].fileno(), content)
        except OSError as error:
            raise _failed(self._folder, "written", error) from error

    def read(self, name: str) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Read one of the folder's files from its beginning, each line with its place.

        Raises:
            ServiceError: It cannot be read.
        """
        try:
            stream = (self._folder / name).open("rb")  # lives as long as its lines
            self._files.append(stream)
            number, start = len(self._files) - 1, 0
            for line in stream:
                yield Place(number, start, len(line)), orjson.loads(line)
                start += len(line)
        except OSError as error:
            raise _failed(self._folder, "read", error) from error

    def line(self, place: Place) -> bytes:
        """Read a line again, as it lies there.

        Raises:
            ServiceError: The disk failed.
        """
        return self._bytes(place.file, place.start, place.size_bytes)

    def beside(self, place: Place, size_bytes: int) -> bytes:
        """Read what was written beside a new line.

        Raises:
            ServiceError: The disk failed.
        """
        return self._bytes(place.file, place.start + place.size_bytes, size_bytes)

    def _bytes(self, file: int, start: int, size_bytes: int) -> bytes:
        if file == 0 and self._unwritten:
            self._flush()
        try:
            return os.pread(self._files[file].fileno(), size_bytes, start)
        except OSError as error:
            raise _failed(self._folder, "read", error) from error

    def get(self, place: Place) -> dict[str, Any]:
        """Read a line again, as JSON.

        Raises:
            ServiceError: The disk failed.
        """
        found: dict[str, Any] = orjson.loads(self.line(place))
        return found


class Aside(io.RawIOBase):
    """A file that is being written aside; when it is closed, its bytes and lines are counted and hashed."""

    def __init__(self, path: Path) -> None:
        """Begin it."""
        self._file = path.open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._unwritten = bytearray()
        self.size_bytes = 0
        self.rows = 0

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, content: Any) -> int:
        """Append some bytes."""
        self._unwritten += content
        if len(self._unwritten) > _UNWRITTEN_BYTES:
            self._flush()
        return len(content)

    def close(self) -> None:
        """End it."""
        if self.closed:
            return
        try:
            self._flush()
        finally:
            self._file.close()
            super().close()

    def _flush(self) -> None:
        content = bytes(self._unwritten)
        self._unwritten.clear()
        self._sha256.update(content)
        self.size_bytes += len(content)
        self.rows += content.count(b"\n")
        _write_all(self._file.fileno(), content)

    @property
    def sha256(self) -> str:
        """Hash of what was written, in hex."""
        return self._sha256.hexdigest()


class Files:
    """The files of a dataset on their way: written aside, put in place together, the manifest last."""

    def __init__(self, folder: Path) -> None:
        """Begin without a file."""
        self._folder = folder
        self._asides: dict[str, Aside] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for name, aside in self._asides.items():
                with suppress(OSError):
                    aside.close()
                    self._aside(name).unlink(missing_ok=True)

    def open(self, name: str) -> Aside:
        """Begin a file.

        Raises:
            ServiceError: The disk failed.
        """
        with self._told():
            self._asides[name] = Aside(self._aside(name))
        return self._asides[name]

    def add(self, name: str, content: bytes) -> None:
        """Write a whole file.

        Raises:
            ServiceError: The disk failed.
        """
        with self._told():
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
        with self._told():
            before = manifest_of(self._folder) or {"files": {}}
            for aside in self._asides.values():
                aside.close()
            for name, aside in self._asides.items():
                described[name] = {"bytes": aside.size_bytes, "sha256": aside.sha256}
                if name.endswith(".jsonl"):
                    described[name]["rows"] = aside.rows
                if _is(self._folder / name, aside):
                    self._aside(name).unlink()
                else:
                    _put(self._aside(name), self._folder / name)
                    written.append(name)
            for name in before["files"].keys() - self._asides.keys():
                (self._folder / name).unlink(missing_ok=True)
        return (*written, *store_manifest(self._folder, {**manifest, "files": described}))

    def _aside(self, name: str) -> Path:
        return self._folder / f".{name}.part"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _failed(self._folder, "written", error) from error


def store_manifest(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the manifest, if it differs; returns its name if it was written.

    Raises:
        ServiceError: The disk failed.
    """
    path, part = folder / MANIFEST, folder / f".{MANIFEST}.part"
    content = orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"
    try:
        if path.is_file() and path.read_bytes() == content:
            return ()
        with Aside(part) as aside:
            aside.write(content)
        _put(part, path)
    except OSError as error:
        raise _failed(folder, "written", error) from error
    return (MANIFEST,)


def _write_all(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def _failed(folder: Path, done: str, error: OSError) -> ServiceError:
    return ServiceError(
        f"{folder} cannot be {done}: {error.strerror}.", hint="Make room and run the sync again."
    )


def _is(path: Path, aside: Aside) -> bool:
    return path.is_file() and path.stat().st_size == aside.size_bytes and sha256_of(path) == aside.sha256


def _put(part: Path, path: Path) -> None:
    on_disk(part)
    part.replace(path)
    on_disk(path.parent)  # the rename itself


def on_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would outlive a power cut.

    Raises:
        OSError: The disk failed.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Hash a file, in hex.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
