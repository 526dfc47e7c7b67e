"""Flow 2: what humans submitted in Label Studio -> gates -> samples -> a folder of training files.

Knows the order of the steps, the folder's files and its manifest. Does not know what a sample is
(`core.dataset`) or how Label Studio is asked (`edge.labelstudio`).

The folder is a function of what Label Studio holds: the same state gives the same bytes, whatever was
interrupted before. So killing it at any moment loses nothing and doubles nothing.

    samples.jsonl               canonical records, all of them, sorted by task and annotation
    sample.schema.json          what a line of it is
    rejected.jsonl              annotations that are no samples, with the gate and the reason
    alpaca.jsonl                training rows           alpaca.test.jsonl      held out: never train on them
    messages.jsonl              training rows           messages.test.jsonl    held out
    manifest.json               counts, hashes, cursors; written last: what it does not match is not valid
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from backend.core.dataset import (
    FORMATS,
    Rejected,
    annotations_of,
    fingerprint,
    judge,
    rows,
)
from backend.core.prompting import Case
from backend.core.sample import SAMPLE_VERSION, Sample, canonical
from backend.edge.cases import Cases
from backend.edge.labelstudio import LabelStudio, Project
from backend.errors import ServiceError, SetupError

_MANIFEST = "manifest.json"
_SCHEMA = Path(__file__).parent / "core" / "sample.schema.json"
# Label Studio stamps a change before it commits it: a slow commit appears behind the newest stamp.
_OVERLAP = timedelta(minutes=5)

Rows = dict[int, Sample | Rejected]  # by annotation
Tell = Callable[[], None]


@dataclass(frozen=True)
class Source:
    """What the manifest keeps about a project: what it was read with, and how far."""

    title: str
    created_at: str
    case: str
    case_hash: str
    config_hash: str
    cursor: str | None


@dataclass
class State:
    """A dataset folder's content."""

    sources: dict[int, Source] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a sync did: tasks looked at, rows that came, changed or went, and the counts after it."""

    looked_at: int
    new: int
    changed: int
    gone: int
    written: tuple[str, ...]
    counts: Mapping[str, Any]


def sync(
    label_studio: LabelStudio,
    cases: Cases,
    folder: Path,
    project_ids: Sequence[int] = (),
    *,
    wanted_case: str | None = None,
    tell: Tell | None = None,
) -> Report:
    """Bring a dataset folder up to date with its projects.

    Args:
        label_studio: Where the annotations are.
        cases: Where the projects' cases are.
        folder: The dataset; made if there is none.
        project_ids: Projects to add; those that the folder has already are synced as well.
        wanted_case: Case of all these projects, where their backend connections do not say.
        tell: Called after each task that was looked at.
    Returns:
        What was done; nothing is written where nothing changed.
    Raises:
        SetupError: No project, another Label Studio's folder, or one that is being synced.
        ServiceError: Label Studio or the disk failed; the folder is as it was, or is completed next time.
    """
    with _locked(folder):
        before = _load(folder)
        ids = sorted({*before.sources, *project_ids})
        if not ids:
            raise SetupError(f"{folder} has no project yet.", hint="Say which with --project ID.")
        after = State(rows=dict(before.rows))
        looked_at = 0
        for project_id in ids:
            project = label_studio.project(project_id)
            old = before.sources.get(project_id)
            if old is not None and old.created_at != project.created_at:
                raise SetupError(
                    f"{folder} holds project {project_id} of another Label Studio ('{old.title}').",
                    hint="Use a folder of its own for each server.",
                )
            case = cases.find(project.label_config, wanted_case or project.case or _remembered(old, cases))
            # Asked before the listing: what changes while it runs is newer than this and seen next time.
            cursor = label_studio.newest_change(project)
            after.sources[project_id] = Source(
                title=project.title,
                created_at=project.created_at,
                case=case.name,
                case_hash=fingerprint(case),
                config_hash=case.labelling.config_hash,
                cursor=cursor,
            )
            looked_at += _read_project(label_studio, project, case, old, after, tell)
        written = _store(folder, after)
    return _report(before, after, looked_at, written)


def _read_project(
    label_studio: LabelStudio,
    project: Project,
    case: Case,
    old: Source | None,
    after: State,
    tell: Tell | None,
) -> int:
    """Read what changed in a project, or all of it where that is not enough; returns tasks looked at."""
    looked_at = 0
    if old is not None and old.cursor is not None and old.case_hash == fingerprint(case):
        looked_at = _read_tasks(label_studio, project, case, _earlier(old.cursor), after.rows, tell)
        # A deleted task leaves no trace in a listing by time, nor does a server whose clock went back.
        if len({row.task for row in _of(project.id, after.rows)}) == label_studio.count_annotated(project):
            return looked_at
    for row in list(_of(project.id, after.rows)):
        del after.rows[row.annotation]
    return looked_at + _read_tasks(label_studio, project, case, None, after.rows, tell)


def _read_tasks(
    label_studio: LabelStudio, project: Project, case: Case, since: str | None, found: Rows, tell: Tell | None
) -> int:
    known: dict[int, list[int]] = {}
    for row in _of(project.id, found):
        known.setdefault(row.task, []).append(row.annotation)
    looked_at = 0
    if since is None:
        listed = label_studio.annotated_tasks(project)
    else:
        listed = label_studio.tasks(project, since=since, full=True)  # also those whose annotation went
    for task in listed:
        for annotation_id in known.pop(task["id"], []):
            del found[annotation_id]
        for annotation in annotations_of(task, project.id):
            found[annotation.id] = judge(annotation, case)
        looked_at += 1
        if tell is not None:
            tell()
    return looked_at


def _of(project_id: int, found: Rows) -> Iterator[Sample | Rejected]:
    return (row for row in found.values() if row.project == project_id)


def _remembered(old: Source | None, cases: Cases) -> str | None:
    return old.case if old is not None and old.case in cases.names() else None


def _earlier(cursor: str) -> str:
    # Label Studio leaves out the microseconds where they are 0, and demands them in a filter.
    return (datetime.fromisoformat(cursor) - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# ---------------------------------------------------------------------------------- the folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second sync away; the lock is on the folder itself and ends with the process."""
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


def _load(folder: Path) -> State:
    """Read the folder; where the manifest does not match the files, only its projects are known."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        sources = {int(key): Source(**entry["source"]) for key, entry in manifest["projects"].items()}
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{folder / _MANIFEST} cannot be read.", hint="Remove it: the next sync makes the dataset anew."
        ) from error
    try:
        found = {name: (folder / name).read_bytes() for name in manifest["files"]}
    except OSError:
        return _unread(sources)
    as_promised = all(
        _sha256(content) == manifest["files"][name]["sha256"] for name, content in found.items()
    )
    # A folder of another version is made anew; the oldest had no "sample" in its manifest.
    if not as_promised or manifest.get("sample", {}).get("version") != SAMPLE_VERSION:
        return _unread(sources)
    kept: Rows = {}
    for record in _lines(found["samples.jsonl"]):
        kept[record["annotation"]] = Sample.from_record(record)
    for record in _lines(found["rejected.jsonl"]):
        kept[record["annotation"]] = Rejected.from_record(record)
    return State(sources, kept)


def _unread(sources: Mapping[int, Source]) -> State:
    return State({key: Source(**{**asdict(source), "cursor": None}) for key, source in sources.items()})


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    return (orjson.loads(line) for line in content.splitlines())


def _store(folder: Path, after: State) -> tuple[str, ...]:
    """Write the files that differ, each aside and then renamed, the manifest last."""
    ordered = sorted(after.rows.values(), key=lambda row: (row.task, row.annotation))
    samples = [row for row in ordered if isinstance(row, Sample)]
    rejected = [row for row in ordered if isinstance(row, Rejected)]
    files: dict[str, bytes] = {
        "samples.jsonl": _jsonl(sample.record() for sample in samples),
        "rejected.jsonl": _jsonl(row.record() for row in rejected),
        _SCHEMA.name: _SCHEMA.read_bytes(),
    }
    for form in FORMATS:
        files[f"{form.name}.jsonl"] = _jsonl(rows(samples, form, "train"))
        files[f"{form.name}.test.jsonl"] = _jsonl(rows(samples, form, "test"))
    manifest = {
        "sample": {"version": SAMPLE_VERSION, "schema": _SCHEMA.name},
        "counts": _counts(ordered),
        "projects": {
            str(key): {"source": asdict(source), "counts": _counts(_of(key, after.rows))}
            for key, source in sorted(after.sources.items())
        },
        "files": {
            name: {
                "rows": content.count(b"\n") * name.endswith(".jsonl"),
                "bytes": len(content),
                "sha256": _sha256(content),
            }
            for name, content in files.items()
        },
    }
    files[_MANIFEST] = orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"
    try:
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        return tuple(name for name, content in files.items() if _replaced(folder / name, content))
    except OSError as error:
        raise ServiceError(
            f"{folder} cannot be written: {error.strerror}.", hint="Make room and run the sync again."
        ) from error


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


def _jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(f"{canonical(record)}\n".encode() for record in records)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _counts(found: Iterable[Sample | Rejected]) -> dict[str, Any]:
    """Count; annotations = samples + rejected, samples = train + test = accepted + corrected + written."""
    everything = list(found)
    samples = [row for row in everything if isinstance(row, Sample)]
    gates = sorted(row.gate for row in everything if isinstance(row, Rejected))
    return {
        "tasks": len({row.task for row in everything}),
        "annotations": len(everything),
        "samples": len(samples),
        "rejected": len(gates),
        **{split: sum(sample.split == split for sample in samples) for split in ("train", "test")},
        **{
            verdict: sum(row.verdict == verdict for row in samples)
            for verdict in ("accepted", "corrected", "written")
        },
        "rejected_by": {gate: gates.count(gate) for gate in dict.fromkeys(gates)},
    }


def _report(before: State, after: State, looked_at: int, written: tuple[str, ...]) -> Report:
    common = before.rows.keys() & after.rows.keys()
    return Report(
        looked_at=looked_at,
        new=len(after.rows.keys() - before.rows.keys()),
        changed=sum(before.rows[key] != after.rows[key] for key in common),
        gone=len(before.rows.keys() - after.rows.keys()),
        written=written,
        counts=_counts(after.rows.values()),
    )
