"""The store of runs: files under their SHA-256, runs under their key; in a folder or on S3.

Knows fsspec, and how to write so that nobody reads half a file. Does not know what is in a file, how it is
shown or who may see it. Safe to use from several threads, processes and machines at once.

    files/ab/ab12...     the bytes whose SHA-256 is ab12...
    runs/cd34....json    the run whose key is cd34...
"""

import json
import math
import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote

import fsspec

from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.runs.job import OutputFile, size
from draftloop.runs.run import Run, run_from_json, run_to_json
from draftloop.support.files import hash_file, replacing_file

_HOW = "Set ARTIFACTS_URL to a folder, file:///folder or s3://bucket/prefix."
_NAME = re.compile(r"[0-9a-f]{64}")  # of a file and of a run: never a path
_CHUNK = 1 << 20
# A file that is stored again after this long is rewritten, so that `collect` counts it as new.
_FRESH_S = 3600.0
# How long a count of the whole store is reused; the second, near the limit, before it is counted once more.
_COUNT_S = 900.0
_RECOUNT_S = 30.0


@dataclass(frozen=True)
class Collected:
    """How much was removed, or would be in a dry run, and how much stays; `size_bytes` is what goes."""

    runs: int
    files: int
    size_bytes: int
    kept_runs: int
    kept_files: int


class Artifacts:
    """A store of files and runs."""

    def __init__(self, url: str, *, max_bytes: int = 0) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            url: Path of a folder, `file:///folder`, or `s3://bucket/prefix`, whose endpoint and keys
                are those that AWS's own tools read (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
            max_bytes: What it may hold; 0 is no limit. Runs themselves are small and always kept.
        Raises:
            SetupError: Another kind of address, or S3 without its library.
        """
        scheme, marked, rest = url.partition("://")
        kind = scheme if marked else "file"
        if not (rest.strip("/") if marked else url) or kind not in ("file", "s3", "memory"):
            raise SetupError(f"ARTIFACTS_URL is {url!r}.", hint=_HOW)
        self.url = url
        self._max_bytes = max_bytes
        self._counting = threading.Lock()
        self._held_bytes = 0
        self._counted = -math.inf  # when, on the monotonic clock
        self._local = kind == "file"
        # Others write there too, so listings must not be cached.
        options: dict[str, Any] = {"use_listings_cache": False} if kind == "s3" else {}
        try:
            located: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise SetupError(
                "ARTIFACTS_URL is on S3, and s3fs is not installed.", hint="Install draftloop[s3]."
            ) from error
        self._foreign = _errors_of_s3() if kind == "s3" else (OSError,)
        self._fs = located[0]
        self._root = located[1].rstrip("/")

    def keep(self, folder: Path, files: Sequence[OutputFile]) -> None:
        """Store files that code left, without those that the store has.

        Args:
            folder: Where they lie.
            files: Paths below it, sizes and SHA-256.
        Raises:
            TaskError: A file is not what its SHA-256 says, or does not lie in the folder.
            SetupError: The store is full: nothing is removed, and none of these files is stored.
            ServiceError: The store did not do its part.
        """
        self._demand_room(files)
        for file in files:
            path = self._file(file.sha256)
            source = Path(folder, file.path)
            if source.is_symlink() or not source.resolve().is_relative_to(Path(folder).resolve()):
                raise TaskError(f"{file.path!r} does not lie in the run's folder.")
            if _digest(source) != file.sha256:
                raise TaskError(f"{file.path!r} has changed since its run.", hint="Run the code again.")
            with self._ours(f"{file.path!r}"):
                if self._is_fresh(path, source.stat().st_size):
                    continue
                with self._aside(path) as aside:
                    self._fs.put_file(str(source), aside)

    def open(self, sha256: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            TaskError: There is none, or this is no SHA-256.
            ServiceError: The store did not do its part.
        """
        path = self._file(sha256)
        with self._ours(sha256), self._there(sha256):
            options = {} if self._local else {"block_size": _CHUNK}
            return cast("BinaryIO", self._fs.open(path, "rb", **options))

    def size(self, sha256: str) -> int:
        """Return a file's size in bytes.

        Raises:
            TaskError: There is none, or this is no SHA-256.
            ServiceError: The store did not do its part.
        """
        path = self._file(sha256)
        with self._ours(sha256), self._there(sha256):
            return int(self._fs.size(path))

    def put_run(self, run: Run) -> None:
        """Keep a run, in place of an earlier one of its key; its files must be there already.

        Raises:
            ServiceError: The store did not do its part.
        """
        path = self._run(run.key)
        with self._ours(f"run {run.key}"), self._aside(path) as aside:
            # ASCII, because programs print lone surrogates too.
            self._fs.pipe_file(aside, json.dumps(run_to_json(run)).encode())

    def run(self, key: str) -> Run | None:
        """Return the run of a key; None where there is none.

        Raises:
            TaskError: This is no key.
            ServiceError: The store did not do its part, or what it holds is no run.
        """
        path = self._run(key)
        with self._ours(f"run {key}"):
            try:
                content = self._fs.cat_file(path)
            except FileNotFoundError:
                return None
            return _run_of(content)

    def address(self, sha256: str, media_type: str, name: str, seconds: int) -> str | None:
        """Sign an address under which a browser gets a file from the store itself; None where it cannot.

        Args:
            sha256: The file.
            media_type: What it is sent as.
            name: What a browser saves it as.
            seconds: How long the address is good for.
        Raises:
            TaskError: This is no SHA-256.
            ServiceError: The store did not do its part.
        """
        path = self._file(sha256)
        if self._local or not hasattr(self._fs, "sign"):
            return None
        how = {
            "ResponseContentType": media_type,
            "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        }
        with self._ours(sha256):
            try:
                return str(self._fs.sign(path, expiration=seconds, **how))
            except NotImplementedError:
                return None

    def collect(self, keep: Collection[str], older_than_s: float, *, dry_run: bool) -> Collected:
        """Remove runs that nobody needs, then files that no remaining run refers to.

        Whatever is younger stays, so that a run being written loses nothing.

        Args:
            keep: Keys of the runs in use.
            older_than_s: Least age, in seconds, of what is removed.
            dry_run: Remove nothing, only count.
        Raises:
            ServiceError: The store did not do its part; what was not removed is the next call's.
        """
        before = time.time() - older_than_s
        with self._ours("what to remove"):
            files = dict(self._listed("files"))
            runs = dict(self._listed("runs"))
            gone = {path for path, (_, at) in runs.items() if Path(path).stem not in keep and at < before}
            kept = [path for path in runs if path not in gone and path.endswith(".json")]
            needed = {self._file(sha256) for path in kept for sha256 in self._files_of(path)}
            unneeded = {path for path, (_, at) in files.items() if path not in needed and at < before}
            size_bytes = sum(runs[path][0] for path in gone) + sum(files[path][0] for path in unneeded)
            if not dry_run:
                for path in [*sorted(gone), *sorted(unneeded)]:
                    self._remove(path, before)
                self._counted = -math.inf
        return Collected(
            runs=sum(path.endswith(".json") for path in gone),
            files=len(unneeded),
            size_bytes=size_bytes,
            kept_runs=len(kept),
            kept_files=len(files) - len(unneeded),
        )

    def _demand_room(self, files: Sequence[OutputFile]) -> None:
        """Check the limit: what was counted last, and what is to be stored.

        Others write there too, and what they write is known after the next count: the limit may be passed by
        what they store in between.
        """
        if not self._max_bytes:
            return
        with self._ours("what it holds"):
            new = {file.sha256: file for file in files if not self._is_there(file)}
            new_bytes = sum(file.size_bytes for file in new.values())
            if not new_bytes:
                return
            with self._counting:
                for good_s in (_COUNT_S, _RECOUNT_S):  # something may have been collected since
                    if time.monotonic() - self._counted > good_s:
                        everything = self._fs.find(self._root, detail=True) if self._exists() else {}
                        self._held_bytes = sum(int(info["size"] or 0) for info in everything.values())
                        self._counted = time.monotonic()
                    if self._held_bytes + new_bytes <= self._max_bytes:
                        self._held_bytes += new_bytes
                        return
        raise SetupError(
            f"The store of artifacts holds {size(self._held_bytes)} of {size(self._max_bytes)}, and the run "
            f"left {size(new_bytes)} of files.",
            hint="Remove what nobody needs with draftloop artifacts collect, or raise ARTIFACTS_MAX_MB.",
        )

    def _exists(self) -> bool:
        return bool(self._fs.exists(self._root))

    def _is_there(self, file: OutputFile) -> bool:
        try:
            return bool(self._fs.info(self._file(file.sha256))["size"] == file.size_bytes)
        except FileNotFoundError:
            return False

    def _remove(self, path: str, before: float) -> None:
        try:
            if _changed(self._fs.info(path)) < before:  # not stored again meanwhile
                self._fs.rm_file(path)
        except FileNotFoundError:
            pass  # another collection removed it

    def _listed(self, folder: str) -> Iterator[tuple[str, tuple[int, float]]]:
        """Yield path, size and time of every file in a folder, half-written ones included."""
        try:
            entries = self._fs.find(f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return
        for path, info in entries.items():
            yield path.rstrip("/"), (int(info["size"] or 0), _changed(info))

    def _files_of(self, path: str) -> set[str]:
        try:
            run = _run_of(self._fs.cat_file(path))
        except FileNotFoundError:
            return set()
        return {file.sha256 for attempt in run.attempts for file in attempt.files}

    def _is_fresh(self, path: str, size_bytes: int) -> bool:
        try:
            info = self._fs.info(path)
        except FileNotFoundError:
            return False
        # A file of another size was left by a crash of the machine.
        return bool(info["size"] == size_bytes and time.time() - _changed(info) < _FRESH_S)

    @contextmanager
    def _aside(self, path: str) -> Iterator[str]:
        """Return the path to write to: a temporary one where readers could see half of a file."""
        if not self._local:
            yield path  # an object appears when it is whole
            return
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        # A file that a power cut damaged has another size, and is stored again.
        with replacing_file(final, by_several=True, durable=False) as part:
            yield str(part)

    def _file(self, sha256: str) -> str:
        if not _NAME.fullmatch(sha256):
            raise TaskError("This is no SHA-256.", hint="It has 64 digits, 0 to 9 and a to f.")
        return f"{self._root}/files/{sha256[:2]}/{sha256}"

    def _run(self, key: str) -> str:
        if not _NAME.fullmatch(key):
            raise TaskError("This is no key of a run.", hint="It has 64 digits, 0 to 9 and a to f.")
        return f"{self._root}/runs/{key}.json"

    @contextmanager
    def _there(self, sha256: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise TaskError(f"There is no file {sha256}.", hint="It may have been collected.") from error

    @contextmanager
    def _ours(self, what: str) -> Iterator[None]:
        """Convert errors of the file systems to ours."""
        try:
            yield
        except self._foreign as error:
            raise ServiceError(
                f"The store of artifacts at {self.url} fails on {what} ({_said(error)}).",
                hint="See whether it is there and may be written; ARTIFACTS_URL says where.",
            ) from error


def _errors_of_s3() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # comes with the extra s3

    return (OSError, BotoCoreError, ClientError)


def _said(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _digest(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise TaskError(f"The run's file {path.name!r} cannot be read: {error.strerror}.") from error


def _changed(info: Mapping[str, Any]) -> float:
    """Return when a file was written, in seconds since 1970, from the entry of any file system."""
    moment = next(info[key] for key in ("mtime", "LastModified", "created") if key in info)
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)


def _run_of(content: bytes) -> Run:
    try:
        return run_from_json(json.loads(content))
    except (ValueError, TypeError, KeyError) as error:
        raise ServiceError("What the store of artifacts holds is no run.", hint="Remove it.") from error
