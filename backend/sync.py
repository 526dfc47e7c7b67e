"""Flow 2: what humans submitted in Label Studio -> gates -> samples -> a folder of training files.

Knows the order of the steps, the folder's files and its manifest. Does not know what a sample is
(`core.dataset`, `core.corpus`), what rows are (`core.formats`), how Label Studio is asked
(`edge.labelstudio`) or how files are written (`edge.folder`).

The folder is a function of what Label Studio holds, of what the team decided, and of the splits that were
given before: the same state gives the same bytes, whatever was interrupted. So killing it at any moment
loses nothing and doubles nothing. Samples lie on disk: memory holds less than 2 KB of each.

    samples.jsonl               canonical records, sorted by task and annotation
    sample.schema.json          what a line of it is
    held.jsonl                  samples that a gate holds back because of others, with the reason
    rejected.jsonl              annotations that are no samples, with the gate and the reason
    FORMAT.jsonl                training rows           FORMAT.test.jsonl      held out: never train on them
    README.md, dataset_info.json, FORMAT.yaml           lead `datasets` and trainers to the rows
    report.html                 for humans: what became of everything, and what to look at first
    manifest.json               counts, hashes, cursors; written last: what it does not match is not valid
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from backend.core.companions import COMPANIONS, Written
from backend.core.corpus import Options, Settled, as_judged, settle
from backend.core.dataset import Rejected, annotations_of, fingerprint, group_of, judge
from backend.core.formats import FORMATS, Format
from backend.core.personal import Mask
from backend.core.prompting import Case
from backend.core.report import report_page
from backend.core.sample import (
    SAMPLE_VERSION,
    Brief,
    Note,
    Record,
    Sample,
    Split,
    canonical,
    conversation,
    digest,
    tools,
)
from backend.core.spotcheck import Check, checks_of
from backend.core.story import story
from backend.core.tally import Counts, Tally
from backend.edge.cases import Cases
from backend.edge.folder import Files, Lines, Place, is_intact, lines_of, locked, manifest_of, store_manifest
from backend.edge.labelstudio import LabelStudio, Project
from backend.edge.rowfiles import KINDS, Kind, RowFile
from backend.edge.tokens import Tokens
from backend.errors import SetupError, TaskError

_SCHEMA = Path(__file__).parent / "core" / "sample.schema.json"
_RECORDS = ("samples.jsonl", "held.jsonl", "rejected.jsonl")
_SPLITS: tuple[Split, ...] = ("train", "test")
_SETTLED = {"split", "gates", "held", "review"}  # of a record: what depends on others
# Label Studio stamps a change before it commits it: a slow commit appears behind the newest stamp.
_OVERLAP = timedelta(minutes=5)

Tell = Callable[[], None]
Checks = Mapping[int, Sequence[Check]]  # by annotation


@dataclass(frozen=True)
class Source:
    """What the manifest keeps about a project: what it was read with, and how far."""

    title: str
    created_at: str
    case: str
    case_hash: str
    config_hash: str
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """Where an annotation's record lies, and its hash as it was judged alone; a rejected one has no brief."""

    project: int
    task: int
    annotation: int
    digest: bytes
    place: Place
    brief: Brief | None


Rows = dict[int, Row]  # by annotation


@dataclass
class State:
    """What is known of a dataset folder's content.

    tokenizer  hash of the one that counted its tokens
    checks     hash of the verdicts of reviewers
    """

    sources: dict[int, Source] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)  # by group
    given: dict[int, Split] = field(default_factory=dict)  # by annotation
    options: Options = field(default_factory=Options)
    tokenizer: str | None = None
    checks: str = ""
    manifest: Record | None = None

    def is_made_like(self, other: "State") -> bool:
        """Tell whether the same rows would give the same files as those of another state that was stored."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("options", "tokenizer", "checks"))
        return other.manifest is not None and same and self.sources.keys() == other.sources.keys()


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
    with locked(folder), Lines(folder) as lines:
        before = _load(folder, lines)
        options = replace(before.options, **(changes or {}))
        counter = Tokens(Path(options.tokenizer)) if options.tokenizer else None
        ids = sorted({*before.sources, *project_ids})
        if not ids:
            raise SetupError(f"{folder} has no project yet.", hint="Say which with --project ID.")
        old_digests = {annotation: row.digest for annotation, row in before.rows.items()}
        # The same table goes on: two of them would take memory.
        reading = _Reading(label_studio, options, counter, lines, before.rows, tell)
        after = State(options=options, rows=reading.rows, tokenizer=counter.fingerprint if counter else None)
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
            reading.read(project, case, old)
        if before.tokenizer != after.tokenizer:
            reading.count_again()
        checks = _checks(label_studio, options)
        after.checks = digest(canonical([asdict(check) for all_ in checks.values() for check in all_])).hex()
        new, changed, gone = _difference(old_digests, after.rows)
        if before.manifest is not None and after.is_made_like(before) and not new + changed + gone:
            counts = before.manifest["counts"]
            written = store_manifest(folder, _with_cursors(before.manifest, after.sources))
        else:
            briefs = (row.brief for row in after.rows.values() if row.brief is not None)
            settled = settle(briefs, options, _splits(before, after.rows), reading.texts, checks)
            written, counts = write(folder, lines, after, settled)
    return Report(reading.looked_at, new, changed, gone, written, counts)


@dataclass
class _Reading:
    """Reads projects; `rows` are those of the folder until something newer comes."""

    label_studio: LabelStudio
    options: Options
    counter: Tokens | None
    lines: Lines
    rows: Rows
    tell: Tell | None
    looked_at: int = 0

    def read(self, project: Project, case: Case, old: Source | None) -> None:
        """Read what changed in a project, or all of it where that is not enough."""
        if old is not None and old.cursor is not None and old.case_hash == _fingerprint(case, self.options):
            self._tasks(project, case, _earlier(old.cursor))
            # A deleted task leaves no trace in a listing by time, nor does a server whose clock went back.
            tasks = {row.task for row in self._of(project)}
            if len(tasks) == self.label_studio.count_annotated(project):
                return
        for row in list(self._of(project)):
            del self.rows[row.annotation]
        self._tasks(project, case, None)

    def _tasks(self, project: Project, case: Case, since: str | None) -> None:
        options = self.options
        known: dict[int, list[int]] = {}
        for row in self._of(project):
            known.setdefault(row.task, []).append(row.annotation)
        if since is None:
            listed = self.label_studio.annotated_tasks(project)
        else:
            listed = self.label_studio.tasks(project, since=since, full=True)  # also those whose one went
        for task in listed:
            for annotation_id in known.pop(task["id"], []):
                del self.rows[annotation_id]
            for annotation in annotations_of(task, project.id):
                judged = judge(
                    annotation, case, group_by=options.group_by, mask=options.mask, region=options.region
                )
                self.add(counted(judged, self.counter) if isinstance(judged, Sample) else judged)
            self.looked_at += 1
            if self.tell is not None:
                self.tell()

    def add(self, judged: Sample | Rejected) -> None:
        """Write down what was judged."""
        self.rows[judged.annotation] = put(self.lines, judged)

    def count_again(self) -> None:
        """Count the tokens of every sample with the tokenizer of now; some are counted already."""
        for row in list(self.rows.values()):
            if row.brief is not None:
                self.add(counted(_sample(self.lines, row), self.counter))

    def texts(self, briefs: Sequence[Brief]) -> Iterator[str]:
        """Give what annotators read of samples."""
        places = (self.rows[brief.annotation].place for brief in briefs)
        return (" ".join(self.lines.get(place)["input"].values()) for place in places)

    def _of(self, project: Project) -> Iterator[Row]:
        return (row for row in self.rows.values() if row.project == project.id)


def put(lines: Lines, judged: Sample | Rejected) -> Row:
    """Write down a record as it was judged alone; gives where it lies."""
    record = judged.record()
    return _row(lines.add(_line(record)), record, Brief.of(judged) if isinstance(judged, Sample) else None)


def _row(place: Place, record: Record, brief: Brief | None) -> Row:
    own = digest(canonical({key: part for key, part in record.items() if key not in _SETTLED}))
    return Row(record["project"], record["task"], record["annotation"], own, place, brief)


def _sample(lines: Lines, row: Row) -> Sample:
    return as_judged(Sample.from_record(lines.get(row.place)))


def counted(sample: Sample, counter: Tokens | None) -> Sample:
    """Give a sample with its length in tokens; without, where nothing counts or the template refuses."""
    notes = tuple(note for note in sample.notes if note["gate"] != "fits_tokens")
    if counter is None:
        return replace(sample, tokens=None, notes=notes)
    try:
        return replace(sample, tokens=counter.count(conversation(sample), tools(sample)), notes=notes)
    except TaskError as error:
        return replace(sample, tokens=None, notes=(*notes, Note(gate="fits_tokens", reason=str(error))))


def _checks(label_studio: LabelStudio, options: Options) -> Checks:
    """Read the verdicts of reviewers; there are as many as were drawn, a few of a hundred."""
    found: dict[int, list[Check]] = {}
    if options.reviews:
        for task in label_studio.annotated_tasks(label_studio.project(options.reviews)):
            for check in checks_of(task):
                comment = check.review.get("comment")
                if comment is not None and options.mask:
                    check.review["comment"] = Mask([comment], options.region)(comment)
                found.setdefault(check.annotation, []).append(check)
    return found


def _difference(before: Mapping[int, bytes], rows: Rows) -> tuple[int, int, int]:
    """Count rows that are new, that differ, and that are gone."""
    new = sum(annotation not in before for annotation in rows)
    changed = sum(before.get(annotation, row.digest) != row.digest for annotation, row in rows.items())
    return new, changed, len(before) - (len(rows) - new)


def _splits(before: State, found: Rows) -> dict[str, Split]:
    """Give the splits that stay, by group; where groups are cut anew, by the first sample of each.

    What is known of splits before is used up: two tables of them would take memory.
    """
    splits = before.splits
    for annotation in sorted(found.keys() & before.given.keys()):
        brief = found[annotation].brief
        if brief is not None:
            splits.setdefault(brief.group, before.given[annotation])
    before.given.clear()
    return splits


def _fingerprint(case: Case, options: Options) -> str:
    return fingerprint(case, options.group_by, options.mask, options.region)


def _remembered(old: Source | None, cases: Cases) -> str | None:
    return old.case if old is not None and old.case in cases.names() else None


def _earlier(cursor: str) -> str:
    # Label Studio leaves out the microseconds where they are 0, and demands them in a filter.
    return (datetime.fromisoformat(cursor) - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# ---------------------------------------------------------------------------------- the story of a task


def explain(folder: Path, task: int) -> list[str]:
    """Tell from a dataset folder what became of a task's annotations, and why; Label Studio is not asked.

    Raises:
        SetupError: There is no dataset, or its files are not as its manifest says.
    """
    manifest = manifest_of(folder)
    if (
        manifest is None
        or not is_intact(folder, manifest)
        or manifest.get("sample", {}).get("version") != SAMPLE_VERSION
    ):
        raise SetupError(f"{folder} holds no dataset that can be read.", hint="Run the sync first.")
    records = [record for name in _RECORDS for record in lines_of(folder, name) if record["task"] == task]
    if not records:
        cursors = [entry["source"]["cursor"] for entry in manifest["projects"].values()]
        latest = max(filter(None, cursors), default="the beginning")
        return [
            f"Task {task} has no annotation that this dataset knows.",
            f"Its projects ({', '.join(manifest['projects'])}) were read up to {latest}.",
        ]
    return list(story(records, Options(**_tuples(manifest["options"]))))


def _tuples(record: Record) -> Record:
    """Give options as they were before JSON, which has no tuples."""
    return {key: tuple(part) if isinstance(part, list) else part for key, part in record.items()}


# ---------------------------------------------------------------------------------- the folder


def _load(folder: Path, lines: Lines) -> State:
    """Read the folder; where the manifest does not match the files, only its projects are known."""
    manifest = manifest_of(folder)
    if manifest is None:
        return State()
    try:
        sources = {int(key): Source(**entry["source"]) for key, entry in manifest["projects"].items()}
        options = Options(**_tuples(manifest.get("options", {})))  # the first version had none
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SetupError(
            f"The manifest of {folder} is not of this program.",
            hint="Remove it: the next sync makes the dataset anew.",
        ) from error
    unread = State({key: replace(source, cursor=None) for key, source in sources.items()}, options=options)
    if not is_intact(folder, manifest):
        return unread
    about = manifest.get("sample", {})
    if about.get("version") != SAMPLE_VERSION:
        # Of a version before only the splits are kept: what was held out stays held out.
        for record in lines_of(folder, "samples.jsonl"):
            unread.splits[record.get("group") or group_of(record["input"])] = record["split"]
        return unread
    state = State(
        sources,
        options=options,
        tokenizer=about.get("tokenizer"),
        checks=about.get("checks", ""),
        manifest=manifest,
    )
    for name in _RECORDS:
        for place, record in lines.read(name):
            brief = Brief.of(Sample.from_record(record)) if "gates" in record else None
            state.rows[record["annotation"]] = _row(place, record, brief)
            if brief is not None and "split" in record:
                state.splits[brief.group] = state.given[brief.annotation] = record["split"]
    return state


def write(folder: Path, lines: Lines, after: State, settled: Settled) -> tuple[tuple[str, ...], Record]:
    """Write all files of a dataset, the manifest last; gives the names of what differed, and the counts.

    Raises:
        SetupError: There is no such kind of files.
        ServiceError: The disk failed.
    """
    options = after.options
    kind = next((kind for kind in KINDS if kind.name == options.files), None)
    if kind is None:
        names = ", ".join(kind.name for kind in KINDS)
        raise SetupError(f"There is no kind of files '{options.files}'.", hint=f"There are: {names}.")
    tally, by_project = Tally(), defaultdict[int, Counts](Counts)
    with Files(folder) as files:
        samples, held, rejected = (files.open(name) for name in _RECORDS)
        forms = [
            _FormFiles(form, split, kind, files)
            for form in FORMATS
            if form.name in options.formats
            for split in _SPLITS
        ]
        ordered = sorted(after.rows.values(), key=lambda row: (row.task, row.annotation))
        for _, rows in groupby(ordered, key=lambda row: row.task):
            several = []
            for row in rows:
                if row.brief is None:
                    refused = Rejected.from_record(lines.get(row.place))
                    rejected.write(_line(refused.record()))
                    tally.rejected(refused)
                    by_project[row.project].add(refused)
                    continue
                sample = settled.finished(_sample(lines, row))
                reason = settled.held.get(row.annotation)
                if reason is None:
                    samples.write(_line(sample.record()))
                    for form in forms:
                        form.add(sample)
                else:
                    held.write(_line(sample.record() | {"held": reason._asdict()}))
                tally.sample(sample, reason)
                by_project[row.project].add(sample, reason)
                several.append(sample)
            tally.overlap(several)
        counts = tally.counts.record()
        for form in forms:
            form.close()
        files.add(_SCHEMA.name, _SCHEMA.read_bytes())
        written = [
            Written(name, kind.ending, {form.split: form.count for form in forms if form.name == name})
            for name in dict.fromkeys(form.name for form in forms)
        ]
        for companion in COMPANIONS:
            for name, text in companion(written, counts).items():
                files.add(name, text.encode())
        files.add("report.html", report_page(tally, settled.strata, options).encode())
        manifest = {
            "sample": {
                "version": SAMPLE_VERSION,
                "schema": _SCHEMA.name,
                "tokenizer": after.tokenizer,
                "checks": after.checks,
            },
            "options": asdict(options),
            "counts": counts,
            "rows": {form.name: form.rows for form in written},
            "projects": {
                str(key): {"source": asdict(source), "counts": by_project[key].record()}
                for key, source in sorted(after.sources.items())
            },
        }
        return files.store(manifest), counts


class _FormFiles:
    """The file of one format and split; one without a row is there too."""

    def __init__(self, form: Format, split: Split, kind: Kind, files: Files) -> None:
        self.name, self.split, self.count = form.name, split, 0
        self._form = form
        name = Written(form.name, kind.ending, {}).file(split)
        self._rows: RowFile = kind.writer(files.open(name))

    def add(self, sample: Sample) -> None:
        """Write the sample's rows, if it belongs here."""
        if sample.split == self.split:
            for row in self._form.rows(sample):
                self._rows.write(row)
                self.count += 1

    def close(self) -> None:
        """Write what is left."""
        self._rows.close()


def _line(record: Record) -> bytes:
    return f"{canonical(record)}\n".encode()


def _with_cursors(manifest: Record, sources: Mapping[int, Source]) -> Record:
    projects = {
        key: entry | {"source": asdict(sources[int(key)])} for key, entry in manifest["projects"].items()
    }
    return {**manifest, "projects": projects}
