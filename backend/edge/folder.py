"""The dataset's folder: one process at a time, files written aside and renamed, the manifest last.

Knows names, bytes and hashes, and that what the manifest does not match is not valid. Does not know what
is in the files.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from backend.errors import ServiceError, SetupError

MANIFEST = "manifest.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second sync away; the lock is on the folder itself and ends with the process.

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
        raise SetupError(f"Another sync is writing to {folder}.", hint="Wait until it has ended.") from error
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


def contents_of(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes] | None:
    """Read the files; None where they are not all as the manifest says."""
    try:
        found = {name: (folder / name).read_bytes() for name in manifest["files"]}
    except OSError:
        return None
    matches = all(_sha256(content) == manifest["files"][name]["sha256"] for name, content in found.items())
    return found if matches else None


def store(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the files that differ and then the manifest; remove what an older manifest named.

    Returns:
        The names of what was written.
    Raises:
        ServiceError: The disk failed; what is there is completed next time.
    """
    described = {
        name: {"bytes": len(content), "sha256": _sha256(content)}
        | ({"rows": content.count(b"\n")} if name.endswith(".jsonl") else {})
        for name, content in files.items()
    }
    try:
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        before = manifest_of(folder) or {"files": {}}
        written = [name for name, content in files.items() if _replaced(folder / name, content)]
        for name in before["files"].keys() - files.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritten(folder, error) from error
    return (*written, *store_manifest(folder, {**manifest, "files": described}))


def store_manifest(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the manifest, if it differs; returns its name if it was written.

    Raises:
        ServiceError: The disk failed.
    """
    try:
        content = orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"
        return (MANIFEST,) if _replaced(folder / MANIFEST, content) else ()
    except OSError as error:
        raise _unwritten(folder, error) from error


def _unwritten(folder: Path, error: OSError) -> ServiceError:
    return ServiceError(
        f"{folder} cannot be written: {error.strerror}.", hint="Make room and run the sync again."
    )


def _replaced(path: Path, content: bytes) -> bool:
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return False
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
    return True


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
