"""Flow 2: annotations in Label Studio -> gates -> samples -> a folder of training files.

Knows the order of the steps, and which tasks of a project must be read. Does not know what a sample is
(`gates`, `corpus`), how Label Studio is called (`labelstudio`), how submitted code is run again (`reruns`) or
what files the folder has (`records`).

The folder is a function of the annotations in Label Studio, of the options, and of the splits that were
assigned before: the same state gives the same bytes, even after an interruption. Killing a sync at any moment
loses nothing and doubles nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from draftloop.dataset.code_gates import submitted, unrunnable
from draftloop.dataset.corpus import FITS_TOKENS, DatasetOptions, settle
from draftloop.dataset.folder import LinePlace, Lines, locked, store_manifest
from draftloop.dataset.gates import Annotation, Rejected, annotations_of, fingerprint, judge
from draftloop.dataset.personal import Mask
from draftloop.dataset.records import (
    IndexedRecord,
    IndexRow,
    IndexRows,
    OrderedMap,
    ProjectSource,
    State,
    append_record,
    index_record,
    load,
    parse_judged,
    sketches,
    write,
)
from draftloop.dataset.reruns import Reruns, Work
from draftloop.dataset.sample import (
    Brief,
    ChatMessage,
    Note,
    Record,
    Sample,
    Split,
    canonical,
    conversation,
    digest,
    tools,
)
from draftloop.dataset.spot_check import Check, checks_of
from draftloop.errors import SetupError, TaskError
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import LabelStudio, Project
from draftloop.model.control_tokens import DRAFT_NOTE, QWEN, control_tokens_in
from draftloop.model.tokens import Tokens
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case
from draftloop.support.progress import UNWATCHED, Progress

# Label Studio stamps a change before it commits it, so a slow commit has an older stamp than the newest.
_OVERLAP = timedelta(minutes=5)
_COUNTING_GATES = (FITS_TOKENS.name, DRAFT_NOTE)  # of notes that `count_tokens` makes
_QWEN_TOKENS = digest(*QWEN).hex()  # the control tokens that are checked without a tokenizer

Checks = Mapping[int, Sequence[Check]]  # by annotation


@dataclass(frozen=True)
class Report:
    """What a sync did: tasks read, annotations that are new, changed or gone, and the counts after it.

    programs   samples whose code passed through the gates of code tasks
    ran        programs that this sync ran for that
    """

    looked_at: int
    new: int
    changed: int
    gone: int
    written: tuple[str, ...]
    counts: Mapping[str, Any]
    programs: int = 0
    ran: int = 0


def sync(  # noqa: PLR0913  # sources, options and workers
    label_studio: LabelStudio,
    cases: Cases,
    folder: Path,
    project_ids: Sequence[int] = (),
    *,
    wanted_case: str | None = None,
    changes: Mapping[str, Any] | None = None,
    make_reruns: Callable[[], Reruns] | None = None,
    progress: Progress = UNWATCHED,
    each: OrderedMap = map,
) -> Report:
    """Bring a dataset folder up to date with its projects.

    Args:
        label_studio: The server with the annotations.
        cases: The projects' cases.
        folder: The dataset; made if there is none.
        project_ids: Projects to add; projects of earlier syncs are synced too.
        wanted_case: Case of all these projects, where their backend connections do not name one.
        changes: New values of options; the folder stores the others.
        make_reruns: Makes the `Reruns` that run submitted code; needed where a case has code.
        progress: Shows the steps.
        each: Maps a function over tasks and samples, here or in other processes; runs code too, where
            `Reruns.remote_runner` is set.
    Returns:
        What was done; nothing is written where nothing changed.
    Raises:
        SetupError: No project, a folder of another Label Studio, a folder that another sync writes to, an
            unknown option, or submitted code and no sandbox that can contain it.
        ServiceError: Label Studio or the disk failed; the folder is unchanged, or the next sync completes it.
    """
    with locked(folder), Lines(folder) as lines:
        before = load(folder, lines)
        options = replace(before.options, **(changes or {}))
        counter = Tokens(Path(options.tokenizer)) if options.tokenizer else None
        ids = sorted({*before.sources, *project_ids})
        if not ids:
            raise SetupError(f"{folder} has no project yet.", hint="Say which with --project ID.")
        old_digests = {annotation: row.digest for annotation, row in before.rows.items()}
        reading = _ProjectReader(label_studio, before, options, counter, lines, each, progress)
        tokenizer = counter.fingerprint if counter else _QWEN_TOKENS
        after = State(options=options, rows=reading.rows, tokenizer=tokenizer)
        progress.begin("reading tasks")
        for project_id in ids:
            project = label_studio.project(project_id)
            old = before.sources.get(project_id)
            if old is not None and old.created_at != project.created_at:
                raise SetupError(
                    f"{folder} holds project {project_id} of another Label Studio ('{old.title}').",
                    hint="Use a folder of its own for each server.",
                )
            known = wanted_case or project.case or _known_case(old, cases)
            case = cases.find(project.label_config, known)
            # Read before the listing: changes during the listing are newer, and the next sync reads them.
            cursor = label_studio.newest_change(project)
            after.sources[project_id] = ProjectSource(
                title=project.title,
                created_at=project.created_at,
                case=case.name,
                case_hash=_fingerprint(case, options),
                config_hash=case.labelling.config_hash,
                cursor=cursor,
            )
            reading.read(project, case, old)
        programs, ran = len(reading.code), 0
        if programs:
            if make_reruns is None:
                raise SetupError("There is code, and nothing that runs it again.", hint="Give `make_reruns`.")
            reruns = make_reruns()
            if reruns.remote_runner is not None and options.rerun:
                progress.begin("running code again elsewhere", programs)
                ran = reading.run_code_remotely(reruns.remote_runner)
            progress.begin("running code again" if options.rerun else "looking for runs of code", programs)
            reading.run_code(reruns)
            ran += reruns.ran
        if before.tokenizer != after.tokenizer:
            reading.count_again()
        checks = _checks(label_studio, options)
        after.checks = digest(canonical([asdict(check) for all_ in checks.values() for check in all_])).hex()
        new, changed, gone = _difference(old_digests, after.rows)
        if before.manifest is not None and after.gives_same_files_as(before) and not new + changed + gone:
            counts = before.manifest["counts"]
            written = store_manifest(folder, _with_cursors(before.manifest, after.sources))
        else:
            briefs = (row.brief for row in after.rows.values() if row.brief is not None)
            settled = settle(briefs, options, _splits(before, after.rows), reading.sketches, checks)
            written, counts = write(folder, lines, after, settled, each)
    return Report(reading.looked_at, new, changed, gone, written, counts, programs, ran)


class _ProjectReader:
    """Reads projects into `rows`, which starts with the rows of the folder.

    unrun   annotations in `rows` whose code could not be run; every sync reads them again
    code    places of annotations whose code has not passed its gates yet, and their cases
    """

    def __init__(
        self,
        label_studio: LabelStudio,
        before: State,
        options: DatasetOptions,
        counter: Tokens | None,
        lines: Lines,
        each: OrderedMap,
        progress: Progress,
    ) -> None:
        self.label_studio, self.options, self.counter = label_studio, options, counter
        self.lines, self.each, self.progress = lines, each, progress
        self.rows: IndexRows = before.rows  # mutated in place to save memory
        self.unrun = before.unrun
        self.code: dict[int, tuple[LinePlace, Case]] = {}
        self.looked_at = 0

    def read(self, project: Project, case: Case, old: ProjectSource | None) -> None:
        """Read the changes of a project, or all of it where changes are not enough."""
        if old is not None and old.cursor is not None and old.case_hash == _fingerprint(case, self.options):
            since = _minus_overlap(old.cursor)
            # `full` also lists tasks whose last annotation was deleted.
            self._take(project, case, self.label_studio.tasks(project, since=since, full=True))
            unrun = {row.task for row in self._of(project) if row.annotation in self.unrun}
            self._take(project, case, self.label_studio.tasks_by_id(project, unrun, full=True))
            # A listing by time misses deleted tasks, and changes after the server's clock was set back.
            tasks = {row.task for row in self._of(project)}
            if len(tasks) == self.label_studio.count_annotated(project):
                return
        for row in list(self._of(project)):
            self._drop(row.annotation)
        self._take(project, case, self.label_studio.annotated_tasks(project))

    def _take(self, project: Project, case: Case, listed: Iterable[Mapping[str, Any]]) -> None:
        known: dict[int, list[int]] = {}
        for row in self._of(project):
            known.setdefault(row.task, []).append(row.annotation)
        for task, judged in self.each(_Judge(project.id, case, self.options, self.counter), listed):
            for annotation_id in known.pop(task, []):
                self._drop(annotation_id)
            for one in judged:
                self._store(one.record)
                if one.code is not None:
                    self.code[one.record.row.annotation] = (self.lines.add(one.code), case)
            self.looked_at += 1
            self.progress.advance()

    def run_code_remotely(self, remote_runner: Callable[[Work], int]) -> int:
        """Run the code in the workers of `each`, into the shared store; return how many programs ran."""
        ran = 0
        for count in self.each(remote_runner, self._submitted()):
            ran += count
            self.progress.advance()
        return ran

    def run_code(self, reruns: Reruns) -> None:
        """Pass the samples with code through the gates of code tasks."""
        mask = self.options.region if self.options.mask else ""
        for judged in reruns.judged(self._submitted(), rerun=self.options.rerun, mask=mask):
            self._store(_index_counted(judged, self.counter))
            self.progress.advance()
        self.code.clear()

    def _submitted(self) -> Iterator[Work]:
        for annotation_id, (place, case) in self.code.items():
            task = submitted(_annotation(self.lines.get(place)), case)
            if task is not None:
                yield parse_judged(self.lines.line(self.rows[annotation_id].place)), task

    def _drop(self, annotation: int) -> None:
        del self.rows[annotation]
        self.code.pop(annotation, None)
        self.unrun.discard(annotation)

    def count_again(self) -> None:
        """Count the tokens of samples from earlier syncs again, with the current tokenizer."""
        old = [row for row in self.rows.values() if row.brief is not None and not row.place.is_new]
        for record in self.each(_CountAgain(self.counter), (self.lines.line(row.place) for row in old)):
            self._store(record)

    def _store(self, record: IndexedRecord) -> None:
        self.rows[record.row.annotation] = append_record(self.lines, record)

    def sketches(self, briefs: Sequence[Brief]) -> Iterator[bytes]:
        """Yield the sketches of the samples' inputs."""
        return sketches(self.lines, (self.rows[brief.annotation].place for brief in briefs))

    def _of(self, project: Project) -> Iterator[IndexRow]:
        return (row for row in self.rows.values() if row.project == project.id)


class _Judged(NamedTuple):
    """The record of an annotation; with the annotation's line where its code must still pass its gates."""

    record: IndexedRecord
    code: bytes | None


@dataclass(frozen=True)
class _Judge:
    """Judges the annotations of a listed task; returns the task's id and the results. It is pickled."""

    project: int
    case: Case
    options: DatasetOptions
    counter: Tokens | None

    def __call__(self, task: Mapping[str, Any]) -> tuple[int, list[_Judged]]:
        return task["id"], [self._judged(annotation) for annotation in annotations_of(task, self.project)]

    def _judged(self, annotation: Annotation) -> _Judged:
        options = self.options
        judged = judge(
            annotation, self.case, group_by=options.group_by, mask=options.mask, region=options.region
        )
        if isinstance(judged, Sample):
            try:
                if submitted(annotation, self.case) is not None:
                    return _Judged(index_record(judged), _line(annotation))
            except TaskError as error:  # the task names inputs in a way that no import writes
                judged = unrunnable(judged, error)
        return _Judged(_index_counted(judged, self.counter), None)


@dataclass(frozen=True)
class _CountAgain:
    """Counts the tokens of a stored sample again; takes its line, returns its record. It is pickled."""

    counter: Tokens | None

    def __call__(self, line: bytes) -> IndexedRecord:
        return _index_counted(parse_judged(line), self.counter)


def _index_counted(judged: Sample | Rejected, counter: Tokens | None) -> IndexedRecord:
    return index_record(count_tokens(judged, counter) if isinstance(judged, Sample) else judged)


def count_tokens(sample: Sample, counter: Tokens | None) -> Sample:
    """Return a sample with its length in tokens and the control tokens that it contains.

    The length is None without a tokenizer, or where the chat template refuses the conversation.
    """
    notes = [note for note in sample.notes if note["gate"] not in _COUNTING_GATES]
    tokens = None
    if counter is not None:
        try:
            tokens = counter.count(conversation(sample), tools(sample))
        except TaskError as error:
            notes.append(Note(gate=FITS_TOKENS.name, reason=str(error)))
    control = counter.control if counter else QWEN
    held = control_tokens_in(_written(conversation(sample)), control)
    of_draft = control_tokens_in([sample.draft_target or ""], control)
    if of_draft and not held:
        reason = f"The draft holds {', '.join(of_draft)}: no row is made of it."
        notes.append(Note(gate=DRAFT_NOTE, reason=reason))
    counts = (tokens, tuple(notes), held)
    is_so = counts == (sample.tokens, sample.notes, sample.control_tokens)
    return sample if is_so else replace(sample, tokens=tokens, notes=counts[1], control_tokens=held)


def _written(messages: Iterable[ChatMessage]) -> Iterator[str]:
    """Yield the texts of messages that a chat template writes: contents and programs."""
    for message in messages:
        yield message["content"]
        yield from (call["function"]["arguments"]["code"] for call in message.get("tool_calls", ()))


def _checks(label_studio: LabelStudio, options: DatasetOptions) -> Checks:
    """Read the verdicts of reviewers. All are in memory: a few for a hundred samples."""
    checks: dict[int, list[Check]] = {}
    if options.reviews:
        for task in label_studio.annotated_tasks(label_studio.project(options.reviews)):
            for check in checks_of(task):
                comment = check.review.get("comment")
                if comment is not None and options.mask:
                    check.review["comment"] = Mask([comment], options.region)(comment)
                checks.setdefault(check.annotation, []).append(check)
    return checks


def _difference(before: Mapping[int, bytes], rows: IndexRows) -> tuple[int, int, int]:
    """Count rows that are new, changed, and gone."""
    new = sum(annotation not in before for annotation in rows)
    changed = sum(before.get(annotation, row.digest) != row.digest for annotation, row in rows.items())
    return new, changed, len(before) - (len(rows) - new)


def _splits(before: State, rows: IndexRows) -> dict[str, Split]:
    """Return the splits of earlier syncs by group; a new group gets the split of its first old sample.

    Consumes `before.given` to save memory.
    """
    splits = before.splits
    for annotation in sorted(rows.keys() & before.given.keys()):
        brief = rows[annotation].brief
        if brief is not None:
            splits.setdefault(brief.group, before.given[annotation])
    before.given.clear()
    return splits


def _fingerprint(case: Case, options: DatasetOptions) -> str:
    of_code = [] if case.labelling.program is None else [options.rerun]
    return fingerprint(case, options.group_by, options.mask, options.region, *of_code)


def _line(annotation: Annotation) -> bytes:
    # A sample never contains lone surrogates.
    return canonical(asdict(annotation)).encode(errors="replace")


def _annotation(record: Record) -> Annotation:
    return Annotation(**{**record, "task": Task(**record["task"])})


def _known_case(old: ProjectSource | None, cases: Cases) -> str | None:
    return old.case if old is not None and old.case in cases.names() else None


def _minus_overlap(cursor: str) -> str:
    # Label Studio omits microseconds that are 0, but its filter requires them.
    return (datetime.fromisoformat(cursor) - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _with_cursors(manifest: Record, sources: Mapping[int, ProjectSource]) -> Record:
    projects = {
        key: entry | {"source": asdict(sources[int(key)])} for key, entry in manifest["projects"].items()
    }
    return {**manifest, "projects": projects}
