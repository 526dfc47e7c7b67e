"""The records of a dataset's folder: read back, explained, and written as all of its files.

Knows the folder's files and its manifest. Does not know Label Studio, nor how files are written safely
(`folder`). Records stay on disk; memory holds less than 2 KB for each.

    samples.jsonl               canonical records, sorted by task and annotation
    sample.schema.json          JSON Schema of a line of samples.jsonl
    held.jsonl                  samples that a corpus gate holds back, with the reason
    rejected.jsonl              rejected annotations, with the gate and the reason
    FORMAT.jsonl                training rows           FORMAT.test.jsonl      held out: never train on them
    README.md, dataset_info.json, FORMAT.yaml           tell `datasets` and trainers about the rows
    report.html                 for humans: figures of the dataset, and what to look at first
    manifest.json               counts, hashes, cursors; written last: files that do not match it are invalid
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import orjson

from draftloop.dataset.code_gates import CAN_BE_RUN
from draftloop.dataset.companions import COMPANIONS, Written
from draftloop.dataset.corpus import DatasetOptions, Held, Settled, as_judged
from draftloop.dataset.folder import (
    MANIFEST,
    DatasetFiles,
    LinePlace,
    Lines,
    is_intact,
    lines_of,
    manifest_of,
)
from draftloop.dataset.formats import FORMATS, Format
from draftloop.dataset.gates import Rejected, group_of
from draftloop.dataset.nearness import SKETCH_BYTES, sketch
from draftloop.dataset.report import report_page
from draftloop.dataset.row_files import KINDS, RowFile, RowFileKind, line_of
from draftloop.dataset.sample import SAMPLE_VERSION, Brief, Record, Sample, Split, canonical
from draftloop.dataset.story import story
from draftloop.dataset.tally import Counts, Tally
from draftloop.errors import SetupError
from draftloop.support.files import hash_file

_SCHEMA = Path(__file__).with_name("sample.schema.json")
_RECORDS = ("samples.jsonl", "held.jsonl", "rejected.jsonl")
_SPLITS: tuple[Split, ...] = ("train", "test")
# Keys of a record that depend on other samples, or that follow from other fields.
_DERIVED_KEYS = {"split", "gates", "held", "review", "drawn", "messages", "tools", "code", "stdout", "stderr"}


@dataclass(frozen=True)
class ProjectSource:
    """A project in the manifest: the case that it was read with, and the time of the last change read."""

    title: str
    created_at: str
    case: str
    case_hash: str
    config_hash: str
    cursor: str | None


@dataclass(frozen=True, slots=True)
class IndexRow:
    """Where an annotation's record is on disk, and its hash; a rejected one has no brief.

    digest  hash of the record without what depends on other samples; never stored
    """

    project: int
    task: int
    annotation: int
    digest: bytes
    place: LinePlace
    brief: Brief | None


IndexRows = dict[int, IndexRow]  # by annotation


class IndexedRecord(NamedTuple):
    """A record before the corpus gates: its line, and its row without a place yet.

    sketch  sketch of the sample's input; empty where it was rejected
    """

    line: bytes
    row: IndexRow
    sketch: bytes


Given = TypeVar("Given")
Made = TypeVar("Made")


class OrderedMap(Protocol):
    """Calls a function on many items, here or in other processes, and yields the results in order.

    `map` is one. Others pickle the function, items and results.
    """

    def __call__(self, function: Callable[[Given], Made], items: Iterable[Given], /) -> Iterator[Made]:
        """Yield the function's result for each item."""
        ...


@dataclass
class State:
    """The content of a dataset folder.

    tokenizer  hash of the tokenizer that counted tokens
    checks     hash of the verdicts of reviewers
    unrun      annotations whose code could not be run again; the next sync tries again
    """

    sources: dict[int, ProjectSource] = field(default_factory=dict)
    rows: IndexRows = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)  # by group
    given: dict[int, Split] = field(default_factory=dict)  # by annotation
    options: DatasetOptions = field(default_factory=DatasetOptions)
    tokenizer: str | None = None
    checks: str = ""
    unrun: set[int] = field(default_factory=set)
    manifest: Record | None = None

    def gives_same_files_as(self, other: "State") -> bool:
        """Return whether equal rows give the same files as in another, stored state."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("options", "tokenizer", "checks"))
        return other.manifest is not None and same and self.sources.keys() == other.sources.keys()


def load(folder: Path, lines: Lines) -> State:
    """Read the folder; where files do not match the manifest, only projects and options."""
    manifest = manifest_of(folder)
    if manifest is None:
        return State()
    try:
        sources = {int(key): ProjectSource(**entry["source"]) for key, entry in manifest["projects"].items()}
        options = DatasetOptions(**_tuples(manifest.get("options", {})))  # the first version had none
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
        # Of an older version only the splits are kept, so that held-out samples stay held out.
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
            if record.get("gate") == CAN_BE_RUN.name:
                state.unrun.add(record["annotation"])
            if brief is not None and "split" in record:
                state.splits[brief.group] = state.given[brief.annotation] = record["split"]
    return state


def write(
    folder: Path, lines: Lines, after: State, settled: Settled, each: OrderedMap = map
) -> tuple[tuple[str, ...], Record]:
    """Write all files of a dataset, the manifest last; return the names of changed files, and the counts.

    Raises:
        SetupError: The options name an unknown kind of files.
        ServiceError: The disk failed.
    """
    options = after.options
    kind = next((kind for kind in KINDS if kind.name == options.files), None)
    if kind is None:
        names = ", ".join(kind.name for kind in KINDS)
        raise SetupError(f"There is no kind of files '{options.files}'.", hint=f"There are: {names}.")
    tally, by_project = Tally(), defaultdict[int, Counts](Counts)
    with DatasetFiles(folder) as files:
        samples, held, rejected = (files.open(name) for name in _RECORDS)
        wanted = tuple(form for form in FORMATS if form.name in options.formats)
        forms = [_FormFiles(form, split, kind, files) for form in wanted for split in _SPLITS]
        ordered = sorted(after.rows.values(), key=lambda row: (row.task, row.annotation))
        left = ((lines.line(row.place), settled.for_annotation(row.annotation)) for row in ordered)
        for _, finalized in groupby(each(_RecordFinalizer(wanted), left), key=lambda one: one.record.task):
            several = []
            for record, reason, line, rows in finalized:
                by_project[record.project].add(record, reason)
                if isinstance(record, Rejected):
                    rejected.write(line)
                    tally.rejected(record)
                    continue
                (samples if reason is None else held).write(line)
                for form in forms:
                    form.add(record, rows)
                tally.sample(record, reason)
                several.append(record)
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
        files.add("report.html", report_page(tally, settled.strata, options, settled.by_lot).encode())
        manifest = {
            "sample": {
                "version": SAMPLE_VERSION,
                "schema": _SCHEMA.name,
                "tokenizer": after.tokenizer,
                "checks": after.checks,
            },
            "options": asdict(options),
            "counts": counts,
            **_spot_check_entry(settled),
            "rows": {form.name: form.rows for form in written},
            "projects": {
                str(key): {"source": asdict(source), "counts": by_project[key].record()}
                for key, source in sorted(after.sources.items())
            },
        }
        return files.store(manifest), counts


def _spot_check_entry(settled: Settled) -> Record:
    """Return the manifest's entry about spot checks; empty where none are drawn."""
    if settled.by_lot is None:
        return {}
    low, high = settled.by_lot.interval
    return {"spot_check": {**settled.by_lot._asdict(), "wrong_at_least": low, "wrong_at_most": high}}


class _FinalizedRecord(NamedTuple):
    """A record as it is written: the reason if it is held, its line, and its rows in each format."""

    record: Sample | Rejected
    held: Held | None
    line: bytes
    rows: dict[str, list[bytes]]


@dataclass(frozen=True)
class _RecordFinalizer:
    """Makes all that is written of a record, from its line and the corpus gates' result. It is pickled."""

    forms: tuple[Format, ...]

    def __call__(self, item: tuple[bytes, Settled]) -> _FinalizedRecord:
        line, settled = item
        record = orjson.loads(line)
        if "gates" not in record:
            return _FinalizedRecord(Rejected.from_record(record), None, line, {})
        record = settled.finalize(record)
        sample = Sample.from_record(record)
        held = settled.held.get(sample.annotation)
        kept = self.forms if held is None else ()
        rows = {form.name: [line_of(row) for row in form.rows(sample)] for form in kept}
        return _FinalizedRecord(sample, held, _line(record), rows)


class _FormFiles:
    """The file of one format and split; written even without a row."""

    def __init__(self, form: Format, split: Split, kind: RowFileKind, files: DatasetFiles) -> None:
        self.name, self.split, self.count = form.name, split, 0
        name = Written(form.name, kind.ending, {}).file(split)
        self._rows: RowFile = kind.writer(files.open(name))

    def add(self, sample: Sample, rows: Mapping[str, Sequence[bytes]]) -> None:
        """Write the sample's rows, if it is in this split."""
        if sample.split == self.split:
            for line in rows.get(self.name, ()):
                self._rows.write(line)
                self.count += 1

    def close(self) -> None:
        """Write the rest of the file."""
        self._rows.close()


def _line(record: Record) -> bytes:
    return f"{canonical(record)}\n".encode()


def index_record(judged: Sample | Rejected) -> IndexedRecord:
    """Return the record of a sample or rejected annotation, before the corpus gates."""
    record = judged.record()
    line = _line(record)
    if isinstance(judged, Rejected):
        return IndexedRecord(line, _row(LinePlace(0, 0, 0), record, None), b"")
    return IndexedRecord(
        line, _row(LinePlace(0, 0, 0), record, Brief.of(judged)), sketch(_joined_texts(judged.input))
    )


def append_record(lines: Lines, record: IndexedRecord) -> IndexRow:
    """Write a record; return its row with its place."""
    return replace(record.row, place=lines.add(record.line, record.sketch))


def sketches(lines: Lines, places: Iterable[LinePlace]) -> Iterator[bytes]:
    """Yield the sketches of samples: stored ones for lines added in this run, computed for the others."""
    for place in places:
        known = place.is_new
        yield lines.beside(place, SKETCH_BYTES) if known else sketch(_joined_texts(lines.get(place)["input"]))


def _joined_texts(texts: Mapping[str, str]) -> str:
    return " ".join(texts.values())


def _row(place: LinePlace, record: Record, brief: Brief | None) -> IndexRow:
    own = {key: part for key, part in record.items() if key not in _DERIVED_KEYS}
    return IndexRow(record["project"], record["task"], record["annotation"], _hash_record(own), place, brief)


def _hash_record(record: Record) -> bytes:
    """Hash a record for comparisons within one sync; the hash is never stored."""
    try:
        content = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # rare: numbers of more than 64 bits
        content = canonical(record).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def parse_judged(line: bytes) -> Sample:
    """Parse a sample's line, without what the corpus gates added."""
    return Sample.from_record(as_judged(orjson.loads(line)))


# ---------------------------------------------------------------------------------- without a sync


def manifest_and_options(folder: Path) -> tuple[Record, DatasetOptions]:
    """Return a folder's manifest and options, after checking its files against the manifest.

    Raises:
        SetupError: There is no dataset, or its files do not match its manifest.
    """
    manifest = manifest_of(folder)
    if (
        manifest is None
        or manifest.get("sample", {}).get("version") != SAMPLE_VERSION
        or not is_intact(folder, manifest)
    ):
        raise SetupError(f"{folder} holds no dataset that can be read.", hint="Run the sync first.")
    return manifest, DatasetOptions(**_tuples(manifest["options"]))


def samples_of(folder: Path) -> tuple[dict[str, str], Iterator[Sample]]:
    """Return what identifies a dataset in manifests (path, hash, key of source documents), and its samples.

    Raises:
        SetupError: There is no dataset, or its files do not match its manifest.
    """
    _, options = manifest_and_options(folder)
    about = {
        "path": str(folder.absolute()),
        "manifest_sha256": hash_file(folder / MANIFEST),
        "group_by": options.group_by,
    }
    return about, map(Sample.from_record, lines_of(folder, "samples.jsonl"))


def explain(folder: Path, task: int) -> list[str]:
    """Return the history of a task's annotations, from a dataset folder only; Label Studio is not asked.

    Raises:
        SetupError: There is no dataset, or its files do not match its manifest.
    """
    manifest, options = manifest_and_options(folder)
    records = [record for name in _RECORDS for record in lines_of(folder, name) if record["task"] == task]
    if not records:
        cursors = [entry["source"]["cursor"] for entry in manifest["projects"].values()]
        latest = max(filter(None, cursors), default="the beginning")
        return [
            f"Task {task} has no annotation that this dataset knows.",
            f"Its projects ({', '.join(manifest['projects'])}) were read up to {latest}.",
        ]
    return list(story(records, options))


def _tuples(record: Record) -> Record:
    """Turn lists back into tuples, which JSON does not have."""
    return {key: tuple(part) if isinstance(part, list) else part for key, part in record.items()}
