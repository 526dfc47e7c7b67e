"""Flow 2: what humans submitted in Label Studio -> gates -> samples -> a folder of training files.

Knows the order of the steps, the folder's files and its manifest. Does not know what a sample is
(`core.dataset`, `core.corpus`), what rows are (`core.formats`), how Label Studio is asked
(`edge.labelstudio`) or how files are written (`edge.folder`).

The folder is a function of what Label Studio holds, of what the team decided, and of the splits that were
given before: the same state gives the same bytes, whatever was interrupted. So killing it at any moment
loses nothing and doubles nothing.

    samples.jsonl               canonical records, sorted by task and annotation
    sample.schema.json          what a line of it is
    held.jsonl                  samples that a gate holds back because of others, with the reason
    rejected.jsonl              annotations that are no samples, with the gate and the reason
    FORMAT.jsonl                training rows           FORMAT.test.jsonl      held out: never train on them
    README.md, dataset_info.json, FORMAT.yaml           lead `datasets` and trainers to the rows
    manifest.json               counts, hashes, cursors; written last: what it does not match is not valid
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from backend.core.companions import COMPANIONS, Written
from backend.core.corpus import Options, Settled, as_judged, settle, split_of
from backend.core.dataset import Rejected, annotations_of, fingerprint, group_of, judge
from backend.core.formats import FORMATS, rows
from backend.core.prompting import Case
from backend.core.sample import SAMPLE_VERSION, Note, Record, Sample, Split, canonical, conversation, tools
from backend.edge.cases import Cases
from backend.edge.folder import contents_of, locked, manifest_of, store, store_manifest
from backend.edge.labelstudio import LabelStudio, Project
from backend.edge.rowfiles import KINDS
from backend.edge.tokens import Tokens
from backend.errors import SetupError, TaskError

_SCHEMA = Path(__file__).parent / "core" / "sample.schema.json"
_SPLITS: tuple[Split, ...] = ("train", "test")
# Label Studio stamps a change before it commits it: a slow commit appears behind the newest stamp.
_OVERLAP = timedelta(minutes=5)

Rows = dict[int, Sample | Rejected]  # by annotation, as they were judged alone
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
    """A dataset folder's content; `tokenizer` is the hash of the one that counted its tokens."""

    sources: dict[int, Source] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)  # by group
    given: dict[int, Split] = field(default_factory=dict)  # by annotation
    options: Options = field(default_factory=Options)
    tokenizer: str | None = None
    manifest: Record | None = None

    def gives_the_rows_of(self, other: "State") -> bool:
        """Tell whether the files but the manifest would be those of another state that was stored."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("rows", "options", "tokenizer"))
        return other.manifest is not None and self.sources.keys() == other.sources.keys() and same


@dataclass(frozen=True)
class Report:
    """What a sync did: tasks looked at, annotations that came, changed or went, and the counts after it."""

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
    changes: Mapping[str, Any] | None = None,
    tell: Tell | None = None,
) -> Report:
    """Bring a dataset folder up to date with its projects.

    Args:
        label_studio: Where the annotations are.
        cases: Where the projects' cases are.
        folder: The dataset; made if there is none.
        project_ids: Projects to add; those that the folder has already are synced as well.
        wanted_case: Case of all these projects, where their backend connections do not say.
        changes: Options that are decided anew; the folder remembers the others.
        tell: Called after each task that was looked at.
    Returns:
        What was done; nothing is written where nothing changed.
    Raises:
        SetupError: No project, another Label Studio's folder, one that is being synced, or an option
            that there is not.
        ServiceError: Label Studio or the disk failed; the folder is as it was, or is completed next time.
    """
    with locked(folder):
        before = _load(folder)
        options = replace(before.options, **(changes or {}))
        counter = Tokens(Path(options.tokenizer)) if options.tokenizer else None
        ids = sorted({*before.sources, *project_ids})
        if not ids:
            raise SetupError(f"{folder} has no project yet.", hint="Say which with --project ID.")
        after = State(rows=dict(before.rows), options=options)
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
                case_hash=_fingerprint(case, options),
                config_hash=case.labelling.config_hash,
                cursor=cursor,
            )
            looked_at += _read_project(label_studio, project, case, old, after, tell)
        _count_tokens(after, counter, known=before.tokenizer)
        if before.manifest is not None and after.gives_the_rows_of(before):
            counts = before.manifest["counts"]
            written = store_manifest(folder, _with_cursors(before.manifest, after.sources))
        else:
            settled = settle(_samples(after.rows), options, _splits(before, after.rows))
            rejected = [row for row in after.rows.values() if isinstance(row, Rejected)]
            counts = _counts(settled, rejected)
            written = store(folder, *_files(after, settled, rejected, counts))
    return _report(before, after, looked_at, written, counts)


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
    if old is not None and old.cursor is not None and old.case_hash == _fingerprint(case, after.options):
        looked_at = _read_tasks(label_studio, project, case, _earlier(old.cursor), after, tell)
        # A deleted task leaves no trace in a listing by time, nor does a server whose clock went back.
        if len({row.task for row in _of(project.id, after.rows)}) == label_studio.count_annotated(project):
            return looked_at
    for row in list(_of(project.id, after.rows)):
        del after.rows[row.annotation]
    return looked_at + _read_tasks(label_studio, project, case, None, after, tell)


def _read_tasks(
    label_studio: LabelStudio,
    project: Project,
    case: Case,
    since: str | None,
    after: State,
    tell: Tell | None,
) -> int:
    found, options = after.rows, after.options
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
            found[annotation.id] = judge(
                annotation, case, group_by=options.group_by, mask=options.mask, region=options.region
            )
        looked_at += 1
        if tell is not None:
            tell()
    return looked_at


def _of(project_id: int, found: Rows) -> Iterator[Sample | Rejected]:
    return (row for row in found.values() if row.project == project_id)


def _samples(found: Rows) -> Iterator[Sample]:
    return (row for row in found.values() if isinstance(row, Sample))


def _splits(before: State, found: Rows) -> dict[str, Split]:
    """Give the splits that stay, by group; where groups are cut anew, by the first sample of each."""
    splits = dict(before.splits)
    for sample in sorted(_samples(found), key=lambda one: one.annotation):
        if sample.annotation in before.given:
            splits.setdefault(sample.group, before.given[sample.annotation])
    return splits


def _fingerprint(case: Case, options: Options) -> str:
    return fingerprint(case, options.group_by, options.mask, options.region)


def _remembered(old: Source | None, cases: Cases) -> str | None:
    return old.case if old is not None and old.case in cases.names() else None


def _earlier(cursor: str) -> str:
    # Label Studio leaves out the microseconds where they are 0, and demands them in a filter.
    return (datetime.fromisoformat(cursor) - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _count_tokens(after: State, counter: Tokens | None, known: str | None) -> None:
    """Count the samples that were not counted with this tokenizer yet."""
    after.tokenizer = counter.fingerprint if counter else None
    for sample in list(_samples(after.rows)):
        if counter is None:
            after.rows[sample.annotation] = replace(sample, tokens=None)
        elif sample.tokens is None or known != counter.fingerprint:
            try:
                counted = replace(sample, tokens=counter.count(conversation(sample), tools(sample)))
            except TaskError as error:
                note = Note(gate="fits_tokens", reason=str(error))
                counted = replace(sample, tokens=None, notes=(*sample.notes, note))
            after.rows[sample.annotation] = counted


# ---------------------------------------------------------------------------------- the story of a task


def explain(folder: Path, task: int) -> list[str]:
    """Tell from a dataset folder what became of a task's annotations, and why; Label Studio is not asked.

    Raises:
        SetupError: There is no dataset, or its files are not as its manifest says.
    """
    manifest = manifest_of(folder)
    found = contents_of(folder, manifest) if manifest else None
    if manifest is None or found is None or manifest.get("sample", {}).get("version") != SAMPLE_VERSION:
        raise SetupError(f"{folder} holds no dataset that can be read.", hint="Run the sync first.")
    names = ("samples.jsonl", "held.jsonl", "rejected.jsonl")
    records = [record for name in names for record in _lines(found[name]) if record["task"] == task]
    if not records:
        cursors = [entry["source"]["cursor"] for entry in manifest["projects"].values()]
        latest = max(filter(None, cursors), default="the beginning")
        return [
            f"Task {task} has no annotation that this dataset knows.",
            f"Its projects ({', '.join(manifest['projects'])}) were read up to {latest}.",
        ]
    told = [f"Task {task} of project {records[0]['project']}, case {records[0]['case']}:"]
    for record in sorted(records, key=lambda one: int(one["annotation"])):
        told += _story(record, Options(**_tuples(manifest["options"])))
    return told


def _story(record: Record, options: Options) -> Iterator[str]:
    by = record["metadata"]
    when = f" at {by['updated_at']}" if "updated_at" in by else ""
    yield f"Annotation {record['annotation']}, by annotator {by.get('human', 'unknown')}{when}:"
    if "gate" in record:
        yield f"  rejected by {record['gate']}: {record['reason']}"
        return
    if record["verdict"] == "written":
        yield "  written without a draft that can be read"
    else:
        score = f", score {by['draft_score']:.2f}" if "draft_score" in by else ""
        changed = f"corrected in {', '.join(record['changed'])}" if record["changed"] else "accepted"
        yield f"  draft by {by.get('draft_version', 'unknown')}{score}: {changed}"
    yield f"  it says {record['target']}"
    yield f"  passed {', '.join(record['gates'])}"
    yield from (f"  noted by {note['gate']}: {note['reason']}" for note in record["notes"])
    if "tokens" in record:
        yield f"  {record['tokens']} tokens of at most {options.max_tokens}"
    if "held" in record:
        yield f"  held back by {record['held']['gate']}: {record['held']['reason']}"
        return
    own = split_of(record["group"])
    kept = "by the hash of its group" if own == record["split"] else "as nearly the same text, or as before"
    yield f"  in {record['split']}, {kept} ({record['group']})"
    sample = Sample.from_record(record)
    written = {form.name: len(form.rows(sample)) for form in FORMATS if form.name in options.formats}
    yield "  rows: " + ", ".join(f"{count} in {name}" for name, count in written.items())


def _tuples(record: Record) -> Record:
    """Give options as they were before JSON, which has no tuples."""
    return {key: tuple(part) if isinstance(part, list) else part for key, part in record.items()}


# ---------------------------------------------------------------------------------- the folder


def _load(folder: Path) -> State:
    """Read the folder; where the manifest does not match the files, only its projects are known."""
    manifest = manifest_of(folder)
    if manifest is None:
        return State()
    try:
        sources = {int(key): Source(**entry["source"]) for key, entry in manifest["projects"].items()}
        options = Options(**_tuples(manifest.get("options", {})))  # the version before had none
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SetupError(
            f"The manifest of {folder} is not of this program.",
            hint="Remove it: the next sync makes the dataset anew.",
        ) from error
    found = contents_of(folder, manifest)
    unread = State({key: replace(source, cursor=None) for key, source in sources.items()}, options=options)
    if found is None:
        return unread
    samples = list(_lines(found["samples.jsonl"]))
    if manifest.get("sample", {}).get("version") != SAMPLE_VERSION:
        # Of the version before only the splits are kept: what was held out stays held out.
        return replace(unread, splits={group_of(record["input"]): record["split"] for record in samples})
    kept: Rows = {}
    for record in (*samples, *_lines(found["held.jsonl"])):
        kept[record["annotation"]] = as_judged(Sample.from_record(record))
    for record in _lines(found["rejected.jsonl"]):
        kept[record["annotation"]] = Rejected.from_record(record)
    splits: dict[str, Split] = {record["group"]: record["split"] for record in samples}
    given: dict[int, Split] = {record["annotation"]: record["split"] for record in samples}
    return State(sources, kept, splits, given, options, manifest["sample"].get("tokenizer"), manifest)


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    return (orjson.loads(line) for line in content.splitlines())


def _files(
    after: State, settled: Settled, rejected: Sequence[Rejected], counts: Mapping[str, Any]
) -> tuple[dict[str, bytes], Record]:
    """Give the content of every file but the manifest, and the manifest without hashes."""
    kind = next((kind for kind in KINDS if kind.name == after.options.files), None)
    if kind is None:
        names = ", ".join(kind.name for kind in KINDS)
        raise SetupError(f"There is no kind of files '{after.options.files}'.", hint=f"There are: {names}.")
    files: dict[str, bytes] = {
        "samples.jsonl": _jsonl(sample.record() for sample in settled.samples),
        "held.jsonl": _jsonl(held.record() for held in settled.held),
        "rejected.jsonl": _jsonl(
            row.record() for row in sorted(rejected, key=lambda row: (row.task, row.annotation))
        ),
        _SCHEMA.name: _SCHEMA.read_bytes(),
    }
    forms = []
    for form in (form for form in FORMATS if form.name in after.options.formats):
        by_split = {split: list(rows(settled.samples, form, split)) for split in _SPLITS}
        written = Written(form.name, kind.ending, {split: len(found) for split, found in by_split.items()})
        files |= {written.file(split): kind.content(found) for split, found in by_split.items()}
        forms.append(written)
    for companion in COMPANIONS:
        files |= {name: text.encode() for name, text in companion(forms, counts).items()}
    of_project = {
        key: (
            Settled(
                tuple(sample for sample in settled.samples if sample.project == key),
                tuple(held for held in settled.held if held.sample.project == key),
            ),
            [row for row in rejected if row.project == key],
        )
        for key in after.sources
    }
    manifest = {
        "sample": {"version": SAMPLE_VERSION, "schema": _SCHEMA.name, "tokenizer": after.tokenizer},
        "options": asdict(after.options),
        "counts": counts,
        "rows": {form.name: form.rows for form in forms},
        "projects": {
            str(key): {"source": asdict(source), "counts": _counts(*of_project[key])}
            for key, source in sorted(after.sources.items())
        },
    }
    return files, manifest


def _with_cursors(manifest: Record, sources: Mapping[int, Source]) -> Record:
    projects = {
        key: entry | {"source": asdict(sources[int(key)])} for key, entry in manifest["projects"].items()
    }
    return {**manifest, "projects": projects}


def _jsonl(records: Iterable[Record]) -> bytes:
    return b"".join(f"{canonical(record)}\n".encode() for record in records)


def _counts(settled: Settled, rejected: Iterable[Rejected]) -> dict[str, Any]:
    """Count: annotations = samples + held + rejected; samples = train + test.

    Samples are accepted + corrected + written as well, and stopped_by adds up to held + rejected.
    """
    samples = settled.samples
    refused = list(rejected)
    stopped = sorted([row.gate for row in refused] + [held.gate for held in settled.held])
    noted = sorted(note["gate"] for sample in samples for note in sample.notes)
    return {
        "tasks": len(
            {
                *(sample.task for sample in samples),
                *(held.sample.task for held in settled.held),
                *(row.task for row in refused),
            }
        ),
        "annotations": len(samples) + len(settled.held) + len(refused),
        "samples": len(samples),
        "held": len(settled.held),
        "rejected": len(refused),
        **{split: sum(sample.split == split for sample in samples) for split in _SPLITS},
        **{
            verdict: sum(row.verdict == verdict for row in samples)
            for verdict in ("accepted", "corrected", "written")
        },
        "stopped_by": {gate: stopped.count(gate) for gate in dict.fromkeys(stopped)},
        "noted_by": {gate: noted.count(gate) for gate in dict.fromkeys(noted)},
    }


def _report(
    before: State, after: State, looked_at: int, written: tuple[str, ...], counts: Mapping[str, Any]
) -> Report:
    common = before.rows.keys() & after.rows.keys()
    return Report(
        looked_at=looked_at,
        new=len(after.rows.keys() - before.rows.keys()),
        changed=sum(before.rows[key] != after.rows[key] for key in common),
        gone=len(before.rows.keys() - after.rows.keys()),
        written=written,
        counts=counts,
    )
