"""Flow 2: what humans submitted in Label Studio -> gates -> samples -> a folder of training files.

Knows the order of the steps, and what of a project has to be read. Does not know what a sample is
(`core.dataset`, `core.corpus`), how Label Studio is asked (`edge.labelstudio`) or what the folder's files
are (`records`).

The folder is a function of what Label Studio holds, of what the team decided, and of the splits that were
given before: the same state gives the same bytes, whatever was interrupted. So killing it at any moment
loses nothing and doubles nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from backend.core.corpus import Options, settle
from backend.core.dataset import annotations_of, fingerprint, judge
from backend.core.personal import Mask
from backend.core.prompting import Case
from backend.core.sample import Brief, Note, Record, Sample, Split, canonical, conversation, digest, tools
from backend.core.spotcheck import Check, checks_of
from backend.edge.cases import Cases
from backend.edge.folder import Lines, locked, store_manifest
from backend.edge.labelstudio import LabelStudio, Project
from backend.edge.tokens import Tokens
from backend.errors import SetupError, TaskError
from backend.records import Each, Recorded, Row, Rows, Source, State, judged_in, load, put, recorded, write

# Label Studio stamps a change before it commits it: a slow commit appears behind the newest stamp.
_OVERLAP = timedelta(minutes=5)

Tell = Callable[[], None]
Checks = Mapping[int, Sequence[Check]]  # by annotation


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
    each: Each = map,
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
        each: Does what is done for each task and each sample by itself.
    Returns:
        What was done; nothing is written where nothing changed.
    Raises:
        SetupError: No project, another Label Studio's folder, one that is being synced, or an option
            that there is not.
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
        reading = _Reading(label_studio, options, counter, lines, before.rows, tell, each)
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
            written, counts = write(folder, lines, after, settled, each)
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
    each: Each
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
        known: dict[int, list[int]] = {}
        for row in self._of(project):
            known.setdefault(row.task, []).append(row.annotation)
        if since is None:
            listed = self.label_studio.annotated_tasks(project)
        else:
            listed = self.label_studio.tasks(project, since=since, full=True)  # also those whose one went
        for task, judged in self.each(_Judge(project.id, case, self.options, self.counter), listed):
            for annotation_id in known.pop(task, []):
                del self.rows[annotation_id]
            for found in judged:
                self._add(found)
            self.looked_at += 1
            if self.tell is not None:
                self.tell()

    def count_again(self) -> None:
        """Count the tokens of samples that were there before with the tokenizer of now."""
        old = [row for row in self.rows.values() if row.brief is not None and not row.place.is_new]
        for found in self.each(_CountAgain(self.counter), (self.lines.line(row.place) for row in old)):
            self._add(found)

    def _add(self, found: Recorded) -> None:
        self.rows[found.row.annotation] = put(self.lines, found)

    def texts(self, briefs: Sequence[Brief]) -> Iterator[str]:
        """Give what annotators read of samples."""
        places = (self.rows[brief.annotation].place for brief in briefs)
        return (" ".join(self.lines.get(place)["input"].values()) for place in places)

    def _of(self, project: Project) -> Iterator[Row]:
        return (row for row in self.rows.values() if row.project == project.id)


@dataclass(frozen=True)
class _Judge:
    """Judges the annotations of a task, as Label Studio lists it; gives its number and their records."""

    project: int
    case: Case
    options: Options
    counter: Tokens | None

    def __call__(self, task: Mapping[str, Any]) -> tuple[int, list[Recorded]]:
        found = []
        for annotation in annotations_of(task, self.project):
            judged = judge(
                annotation,
                self.case,
                group_by=self.options.group_by,
                mask=self.options.mask,
                region=self.options.region,
            )
            found.append(recorded(counted(judged, self.counter) if isinstance(judged, Sample) else judged))
        return task["id"], found


@dataclass(frozen=True)
class _CountAgain:
    """Makes of a sample's line the record with the length in tokens as it is counted now."""

    counter: Tokens | None

    def __call__(self, line: bytes) -> Recorded:
        return recorded(counted(judged_in(line), self.counter))


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


def _with_cursors(manifest: Record, sources: Mapping[int, Source]) -> Record:
    projects = {
        key: entry | {"source": asdict(sources[int(key)])} for key, entry in manifest["projects"].items()
    }
    return {**manifest, "projects": projects}
