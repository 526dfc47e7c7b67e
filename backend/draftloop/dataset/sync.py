"""Flow 2: what humans submitted in Label Studio -> gates -> samples -> a folder of training files.

Knows the order of the steps, and what of a project has to be read. Does not know what a sample is
(`core.dataset`, `core.corpus`), how Label Studio is asked (`edge.labelstudio`), how submitted code is run
again (`reruns`) or what the folder's files are (`records`).

The folder is a function of what Label Studio holds, of what the team decided, and of the splits that were
given before: the same state gives the same bytes, whatever was interrupted. So killing it at any moment
loses nothing and doubles nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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

# Label Studio stamps a change before it commits it: a slow commit appears behind the newest stamp.
_OVERLAP = timedelta(minutes=5)
_COUNTING_GATES = (FITS_TOKENS.name, DRAFT_NOTE)  # notes that counting makes
_QWEN_TOKENS = digest(*QWEN).hex()  # what samples are looked through for without a tokenizer

Checks = Mapping[int, Sequence[Check]]  # by annotation


@dataclass(frozen=True)
class Report:
    """What a sync did: tasks looked at, annotations that came, changed or went, and the counts after it.

    programs   samples whose code was looked at; `ran` counts what was run for that just now
    """

    looked_at: int
    new: int
    changed: int
    gone: int
    written: tuple[str, ...]
    counts: Mapping[str, Any]
    programs: int = 0
    ran: int = 0


def sync(  # noqa: PLR0913  # what is read and decided, and who does the work
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
        label_studio: Where the annotations are.
        cases: Where the projects' cases are.
        folder: The dataset; made if there is none.
        project_ids: Projects to add; those that the folder has already are synced as well.
        wanted_case: Case of all these projects, where their backend connections do not say.
        changes: Options that are decided anew; the folder remembers the others.
        make_reruns: Makes what runs submitted code again; needed where a case has code.
        progress: Shows how far it is.
        each: Does what is done for every task and sample by itself; runs code too, where reruns say so.
    Returns:
        What was done; nothing is written where nothing changed.
    Raises:
        SetupError: No project, another Label Studio's folder, one that is being synced, an option that
            there is not, or submitted code and no sandbox that can contain it.
        ServiceError: Label Studio or the disk failed; the folder is as it was, or is completed next time.
    """
    with locked(folder), Lines(folder) as lines:
        before = load(folder, lines)
        options = replace(before.options, **(changes or {}))
        counter = Tokens(Path(options.tokenizer)) if options.tokenizer else None
        ids = sorted({*before.sources, *project_ids})
        if not ids:
            raise SetupError(f"{folder} has no project yet.", hint="Say which with --project ID.")
        old_digests = {annotation: row.digest for annotation, row in before.rows.items()}
        # The same table goes on: two of them would take memory.
        reading = _ProjectReader(
            label_studio, options, counter, lines, before.rows, before.unrun, each, progress
        )
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
            # Asked before the listing: what changes while it runs is newer than this and seen next time.
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


@dataclass
class _ProjectReader:
    """Reads projects; `rows` are those of the folder until something newer comes.

    unrun   annotations in `rows` whose code could not be run: they are read again in any case
    code    where annotations lie whose code has not passed its gates yet, and their cases
    """

    label_studio: LabelStudio
    options: DatasetOptions
    counter: Tokens | None
    lines: Lines
    rows: IndexRows
    unrun: set[int]
    each: OrderedMap
    progress: Progress
    looked_at: int = 0
    code: dict[int, tuple[LinePlace, Case]] = field(default_factory=dict)

    def read(self, project: Project, case: Case, old: ProjectSource | None) -> None:
        """Read what changed in a project, or all of it where that is not enough."""
        if old is not None and old.cursor is not None and old.case_hash == _fingerprint(case, self.options):
            since = _minus_overlap(old.cursor)
            # Also those whose last annotation went.
            self._take(project, case, self.label_studio.tasks(project, since=since, full=True))
            unrun = {row.task for row in self._of(project) if row.annotation in self.unrun}
            self._take(project, case, self.label_studio.tasks_by_id(project, unrun, full=True))
            # A deleted task leaves no trace in a listing by time, nor does a server whose clock went back.
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
        for task, found in self.each(_Judge(project.id, case, self.options, self.counter), listed):
            for annotation_id in known.pop(task, []):
                self._drop(annotation_id)
            for one in found:
                self._store(one.record)
                if one.code is not None:
                    self.code[one.record.row.annotation] = (self.lines.add(one.code), case)
            self.looked_at += 1
            self.progress.advance()

    def run_code_remotely(self, remote_runner: Callable[[Work], int]) -> int:
        """Have the code run where the work is done, into the store that all share; gives how many ran."""
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
        """Count the tokens of samples that were there before with the tokenizer of now."""
        old = [row for row in self.rows.values() if row.brief is not None and not row.place.is_new]
        for record in self.each(_CountAgain(self.counter), (self.lines.line(row.place) for row in old)):
            self._store(record)

    def _store(self, record: IndexedRecord) -> None:
        self.rows[record.row.annotation] = append_record(self.lines, record)

    def sketches(self, briefs: Sequence[Brief]) -> Iterator[bytes]:
        """Give the sketches of what annotators read of samples."""
        return sketches(self.lines, (self.rows[brief.annotation].place for brief in briefs))

    def _of(self, project: Project) -> Iterator[IndexRow]:
        return (row for row in self.rows.values() if row.project == project.id)


class _Judged(NamedTuple):
    """The record of an annotation; and, where its code has to pass its gates yet, the annotation's line."""

    record: IndexedRecord
    code: bytes | None


@dataclass(frozen=True)
class _Judge:
    """Judges the annotations of a task, as Label Studio lists it; gives its number and what came of them."""

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
            except TaskError as error:  # the task names inputs that no import wrote
                judged = unrunnable(judged, error)
        return _Judged(_index_counted(judged, self.counter), None)


@dataclass(frozen=True)
class _CountAgain:
    """Makes of a sample's line the record with the length in tokens as it is counted now."""

    counter: Tokens | None

    def __call__(self, line: bytes) -> IndexedRecord:
        return _index_counted(parse_judged(line), self.counter)


def _index_counted(judged: Sample | Rejected, counter: Tokens | None) -> IndexedRecord:
    return index_record(count_tokens(judged, counter) if isinstance(judged, Sample) else judged)


def count_tokens(sample: Sample, counter: Tokens | None) -> Sample:
    """Return a sample with its length in tokens, and with the control tokens that it holds.

    Without a length where nothing counts, or where the chat template refuses the conversation.
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
    """Yield what a chat template writes of messages, program by program."""
    for message in messages:
        yield message["content"]
        yield from (call["function"]["arguments"]["code"] for call in message.get("tool_calls", ()))


def _checks(label_studio: LabelStudio, options: DatasetOptions) -> Checks:
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


def _difference(before: Mapping[int, bytes], rows: IndexRows) -> tuple[int, int, int]:
    """Count rows that are new, that differ, and that are gone."""
    new = sum(annotation not in before for annotation in rows)
    changed = sum(before.get(annotation, row.digest) != row.digest for annotation, row in rows.items())
    return new, changed, len(before) - (len(rows) - new)


def _splits(before: State, found: IndexRows) -> dict[str, Split]:
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


def _fingerprint(case: Case, options: DatasetOptions) -> str:
    of_code = [] if case.labelling.program is None else [options.rerun]
    return fingerprint(case, options.group_by, options.mask, options.region, *of_code)


def _line(annotation: Annotation) -> bytes:
    # Half characters that somebody typed are no part of a sample.
    return canonical(asdict(annotation)).encode(errors="replace")


def _annotation(record: Record) -> Annotation:
    return Annotation(**{**record, "task": Task(**record["task"])})


def _known_case(old: ProjectSource | None, cases: Cases) -> str | None:
    return old.case if old is not None and old.case in cases.names() else None


def _minus_overlap(cursor: str) -> str:
    # Label Studio leaves out the microseconds where they are 0, and demands them in a filter.
    return (datetime.fromisoformat(cursor) - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _with_cursors(manifest: Record, sources: Mapping[int, ProjectSource]) -> Record:
    projects = {
        key: entry | {"source": asdict(sources[int(key)])} for key, entry in manifest["projects"].items()
    }
    return {**manifest, "projects": projects}
