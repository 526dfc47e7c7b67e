"""Held-out samples: read with their tasks, drafted through the whole flow, compared with submitted values.

Knows datasets, and which draft is compared with which value. Does not know how figures are computed, nor how
they decide.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from draftloop.dataset.folder import MANIFEST, lines_of
from draftloop.dataset.records import manifest_and_options
from draftloop.dataset.sample import Sample
from draftloop.drafting.drafts import Draft
from draftloop.drafting.versions import Version
from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.evaluation.measures import DraftOutcome, compare_fields
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import Project
from draftloop.prompting.prompt import NO_OVERRIDES, Case, Overrides
from draftloop.support.files import hash_file
from draftloop.support.progress import Progress


class Projects(Protocol):
    """The part of Label Studio's client that reads tasks of held-out samples."""

    def project(self, project_id: int) -> Project:
        """Return a project.

        Raises:
            SetupError: There is no such project.
            ServiceError: Label Studio failed.
        """
        ...

    def tasks_by_id(self, project: Project, ids: Collection[int]) -> Iterator[dict[str, Any]]:
        """List some tasks of a project."""
        ...


class CaseFolder(Protocol):
    """The folder of cases."""

    def names(self) -> list[str]:
        """List the cases' names."""
        ...

    def get(self, name: str) -> Case:
        """Return a case as its folder defines it."""
        ...

    def find(self, xml: str, wanted: str | None = None, overrides: Overrides = NO_OVERRIDES) -> Case:
        """Find the case for a project."""
        ...


class BulkDrafter(Protocol):
    """Drafts tasks in bulk."""

    def version(self, case: Case) -> Version:
        """Return the version of a case's drafts."""
        ...

    def stream(self, case: Case, tasks: Iterable[Task], version: Version) -> Iterator[Draft]:
        """Draft tasks; yield one draft for each task, in order of completion."""
        ...


@dataclass(frozen=True)
class HeldOutRow:
    """A held-out sample, with its case and its task as the annotator saw it."""

    sample: Sample
    case: Case
    task: Task


@dataclass
class HeldOut:
    """The held-out samples of one case. `lost` counts those whose task or config has changed."""

    rows: list[HeldOutRow] = field(default_factory=list)
    lost: int = 0
    datasets: dict[str, str] = field(default_factory=dict)  # by folder, the hash of its manifest


class Measured(NamedTuple):
    """A draft of a held-out sample, and its outcome."""

    draft: Draft
    outcome: DraftOutcome


class HeldOutSamples:
    """Reads the held-out samples of datasets."""

    def __init__(self, cases: CaseFolder, label_studio: Projects | None) -> None:
        """Prepare.

        Args:
            cases: The samples' cases.
            label_studio: The server with tasks and configs that a dataset lacks; None: it must lack none.
        """
        self._cases = cases
        self._label_studio = label_studio

    def read(self, folder: Path) -> dict[str, HeldOut]:
        """Return the held-out samples of a dataset by case, with their tasks.

        Raises:
            SetupError: The folder is no dataset, or Label Studio is needed and not configured.
            ServiceError: Label Studio or the disk failed.
        """
        manifest_and_options(folder)
        about = {str(folder.absolute()): hash_file(folder / MANIFEST)}
        by_project: dict[int, list[Sample]] = defaultdict(list)
        for record in lines_of(folder, "samples.jsonl"):
            if record["split"] == "test":
                by_project[record["project"]].append(Sample.from_record(record))
        by_case: dict[str, HeldOut] = defaultdict(lambda: HeldOut(datasets=about))
        for project, samples in by_project.items():
            for sample, row in self._rows(project, samples):
                held = by_case[sample.case]
                if row is None:
                    held.lost += 1
                else:
                    held.rows.append(row)
        return dict(by_case)

    def _rows(self, project_id: int, samples: Sequence[Sample]) -> Iterator[tuple[Sample, HeldOutRow | None]]:
        """Yield samples with case and task; None in place of these where texts or config have changed."""
        project: Project | None = None
        incomplete: list[tuple[Sample, Case]] = []
        for sample in samples:
            case = self._cases.get(sample.case) if sample.case in self._cases.names() else None
            if case is None or not _is_of(sample, case):
                project = project or self._require_label_studio().project(project_id)
                case = self._cases.find(project.label_config, project.case)
            if not _is_of(sample, case):
                yield sample, None
                continue
            # Where the stored texts suffice, as for most tasks, Label Studio is not asked.
            task = Task(sample.task, dict(sample.input), sample.project)
            if (
                case.labelling.program is None
                and not case.labelling.dynamic
                and _same_texts(sample, case, task)
            ):
                yield sample, HeldOutRow(sample, case, task)
            else:
                incomplete.append((sample, case))
        if incomplete:
            project = project or self._require_label_studio().project(project_id)
            ids = {sample.task for sample, _ in incomplete}
            data = {row["id"]: row["data"] for row in self._require_label_studio().tasks_by_id(project, ids)}
            for sample, case in incomplete:
                task = Task(sample.task, data.get(sample.task, {}), sample.project)
                yield sample, HeldOutRow(sample, case, task) if _same_texts(sample, case, task) else None

    def _require_label_studio(self) -> Projects:
        if self._label_studio is None:
            raise SetupError(
                "The dataset does not hold all that its tasks show.",
                hint="Set LABEL_STUDIO_API_KEY: they are read from Label Studio.",
            )
        return self._label_studio


def measure(
    drafter: BulkDrafter, held: HeldOut, overrides: Overrides, doing: str, progress: Progress
) -> list[Measured]:
    """Draft every held-out sample through the whole flow; return the outcomes in the order of the rows.

    Versions must be measured one after the other: a model may answer differently when both share a batch.

    Args:
        drafter: The drafter, without a cache, so that times are real.
        held: The samples of one case.
        overrides: Model and settings to draft with.
        doing: A description for progress and errors.
        progress: Shows the steps.
    Raises:
        ServiceError: A draft failed.
    """
    progress.begin(doing, len(held.rows))
    measured: dict[int, Measured] = {}
    by_case: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(held.rows):
        by_case[row.case.labelling.config_hash].append(place)
    for places in by_case.values():
        case = held.rows[places[0]].case.overridden(overrides)
        version = drafter.version(case)
        runs_code = version.manifest.get("execution", {}).get("mode") == "auto"
        tasks = (replace(held.rows[place].task, id=place) for place in places)
        for draft in drafter.stream(case, tasks, version):
            if draft.status == "failed":
                raise ServiceError(
                    f"A draft failed while '{doing}' was measured: {draft.reasons[0]}",
                    hint="Nothing was decided; the old version serves.",
                )
            outcome = _outcome(held.rows[draft.task_id], case, draft, runs_code=runs_code)
            measured[draft.task_id] = Measured(draft, outcome)
            progress.advance()
    return [measured[place] for place in range(len(held.rows))]


def _is_of(sample: Sample, case: Case) -> bool:
    return (case.name, case.labelling.config_hash) == (sample.case, sample.metadata.get("config_hash"))


def _same_texts(sample: Sample, case: Case, task: Task) -> bool:
    try:
        return case.for_task(task).labelling.inputs(task) == sample.input
    except TaskError:
        return False


def _outcome(row: HeldOutRow, case: Case, draft: Draft, *, runs_code: bool) -> DraftOutcome:
    labelling = case.for_task(row.task).labelling
    drafted = None if draft.value is None else labelling.from_regions(draft.regions, row.task)
    names = [control.name for control in labelling.controls if control.name not in labelling.human]
    right, hits = compare_fields(names, drafted, row.sample.value)
    kinds = {reason.kind for reason in draft.reasons}
    ran = None
    if labelling.program is not None and runs_code:
        ran = draft.run is not None and "run" not in kinds
        right[labelling.program.field] |= ran
    return DraftOutcome(
        group=row.sample.group,
        right=right,
        hits=hits,
        schema_valid=drafted is not None and "schema" not in kinds,
        rule_valid=drafted is not None and not kinds & {"schema", "rule", "grounding"},
        ran=ran,
        attempts=draft.attempts,
        prompt_tokens=draft.prompt_tokens,
        completion_tokens=draft.completion_tokens,
        ms=draft.ms,
    )
