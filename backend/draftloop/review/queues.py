"""Flow 4: tasks for humans in Label Studio: spot checks, annotations that a gate stopped, the next tasks.

Knows the steps. Does not decide which samples are drawn or stopped: it reads that from a dataset's folder, as
the last sync wrote it. Does not decide which task is next (`acquisition`). Projects and tasks that exist
already are not created again.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from draftloop.dataset.folder import lines_of
from draftloop.dataset.records import manifest_and_options
from draftloop.dataset.sample import Record, Sample
from draftloop.dataset.spot_check import CONFIG, TITLE, WAITS, review_order, review_task
from draftloop.errors import SetupError, TaskError
from draftloop.labelling.labelling import NEXT_KEY, STATUS_KEY, Labelling, Task, compile_labelling
from draftloop.labelstudio import LabelStudio, Project
from draftloop.review.acquisition import Ranked, TaskCandidate, by_chance, rank
from draftloop.support.progress import UNWATCHED, Progress


@dataclass(frozen=True)
class SpotCheckProject:
    """The project with the spot checks: how many samples wait for one, and how many were just added."""

    project: Project
    waiting: int
    sent: int


@dataclass(frozen=True)
class StoppedAnnotation:
    """An annotation that a gate stopped, and why."""

    project: int
    task: int
    annotation: int
    gate: str
    reason: str


@dataclass(frozen=True)
class SentBack:
    """How many tasks have a gate's reasons now, how many were just written, and how many were cleared."""

    written: int
    cleared: int
    tasks: int


@dataclass(frozen=True)
class Queue:
    """The next tasks of a project, in order.

    unbegun  number of tasks that nobody has begun
    written  number of tasks whose place was just written or removed
    """

    ranked: list[Ranked]
    unbegun: int
    written: int


def open_spot_check(label_studio: LabelStudio, folder: Path) -> SpotCheckProject:
    """Add the drawn samples that wait for a verdict to the review project, which is created if missing.

    Args:
        label_studio: The server.
        folder: A dataset that was synced with spot checks.
    Raises:
        SetupError: There is no dataset, or it draws no spot checks.
        ServiceError: Label Studio failed; the next call continues.
    """
    manifest, options = manifest_and_options(folder)
    if not options.spot_check:
        raise SetupError(f"{folder} draws no spot checks.", hint="Say which share with --share 0.05.")
    title = f"{TITLE} of project {', '.join(sorted(manifest['projects'], key=int))}"
    if options.reviews:
        project = label_studio.project(options.reviews)
    else:
        project = label_studio.find_project(title) or label_studio.create_project(title, CONFIG)
    waiting = [
        Sample.from_record({key: part for key, part in record.items() if key != "held"})
        for record in lines_of(folder, "held.jsonl")
        if record["held"]["reason"] == WAITS
    ]
    known = {task["data"].get("seal") for task in label_studio.tasks(project)}
    rows = [review_task(sample) for sample in sorted(waiting, key=review_order)]
    sent = sum(
        len(ids)
        for ids in label_studio.import_tasks(project, [row for row in rows if row["seal"] not in known])
    )
    return SpotCheckProject(project, len(waiting), sent)


def stopped_by(folder: Path, gate: str = "") -> Iterator[StoppedAnnotation]:
    """Yield the annotations that gates stopped, without samples that wait for a spot check.

    Raises:
        SetupError: There is no dataset.
    """
    manifest_and_options(folder)
    for record in lines_of(folder, "rejected.jsonl"):
        if gate in ("", record["gate"]):
            yield _stopped(record, record["gate"], record["reason"])
    for record in lines_of(folder, "held.jsonl"):
        held = record["held"]
        if gate in ("", held["gate"]) and held["reason"] != WAITS:
            yield _stopped(record, held["gate"], held["reason"])


def send_back(label_studio: LabelStudio, folder: Path, gate: str, progress: Progress = UNWATCHED) -> SentBack:
    """Write a gate's reasons into the tasks that it stopped, and make a tab that lists these tasks.

    The annotators see the reason above the task (in configs that show `$draft_status`), correct their
    annotation and update it. The reason is removed from tasks that the gate no longer stops.

    Args:
        label_studio: The server with the tasks.
        folder: The dataset.
        gate: Name of the gate.
        progress: Advances with each task that was written.
    Raises:
        SetupError: There is no dataset.
        ServiceError: Label Studio failed; the next call continues.
    """
    reasons: dict[int, dict[int, list[str]]] = {}
    for one in stopped_by(folder, gate):
        by_task = reasons.setdefault(one.project, {})
        by_task.setdefault(one.task, []).append(f"annotation {one.annotation}: {one.reason}")
    mark = status_mark(gate)
    written = cleared = 0
    manifest, _ = manifest_and_options(folder)
    for project_id in map(int, manifest["projects"]):
        project = label_studio.project(project_id)
        wanted = {
            task: f"{mark} {escape(' '.join(words))}" for task, words in reasons.get(project_id, {}).items()
        }
        marked = {task["id"] for task in label_studio.tasks(project, status=mark)}
        for task in [*label_studio.tasks_by_id(project, sorted(wanted.keys() | marked))]:
            words = wanted.get(task["id"], "")
            if task["data"].get(STATUS_KEY) != words:
                label_studio.set_task_data(task["id"], {**task["data"], STATUS_KEY: words})
                written += bool(words)
                cleared += not words
                progress.advance()
        label_studio.keep_sent_back_tab(project, status_mark(""))
    return SentBack(written, cleared, sum(map(len, reasons.values())))


def put_next(
    label_studio: LabelStudio,
    project_id: int,
    count: int,
    *,
    seed: int = 0,
    chance: bool = False,
    progress: Progress = UNWATCHED,
) -> Queue:
    """Write the order of labelling into a project's tasks, and make a tab that sorts by it.

    Only tasks that nobody has begun are ranked, and lose the place that they had. Each is read again right
    before it is written: Label Studio replaces a task's whole data, and drafts may write into it meanwhile.

    Args:
        label_studio: The server with the tasks.
        project_id: The project.
        count: Number of tasks that get a place.
        seed: Breaks ties.
        chance: Whether the order is random, as a baseline.
        progress: Advances with each task that was read or written.
    Raises:
        SetupError: There is no such project, or its config is not supported.
        ServiceError: Label Studio failed; the next call continues.
    """
    project = label_studio.project(project_id)
    labelling = compile_labelling(project.label_config)
    every = label_studio.count_tasks(project)
    current = project.model_version
    version = current if current and label_studio.count_tasks(project, lacking=current) < every else ""
    placed: dict[int, str] = {}
    unbegun = 0

    def candidates() -> Iterator[TaskCandidate]:
        nonlocal unbegun
        for task in label_studio.tasks(project, unbegun=True, full=True):
            unbegun += 1
            if place := task["data"].get(NEXT_KEY):
                placed[task["id"]] = place
            yield _candidate(task, labelling, version)
            progress.advance()

    ranked = (by_chance if chance else rank)(candidates(), count, seed=seed)
    # Padded to equal length, because Label Studio sorts as text.
    wanted = {one.task: f"{place:06}" for place, one in enumerate(ranked, start=1)}
    changed = sorted(one for one in wanted.keys() | placed.keys() if wanted.get(one) != placed.get(one))
    written = 0
    for number in changed:
        for task in label_studio.tasks_by_id(project, [number], unbegun=True):
            data = {key: part for key, part in task["data"].items() if key != NEXT_KEY}
            data |= {NEXT_KEY: wanted[number]} if number in wanted else {}
            label_studio.set_task_data(number, data)
            written += 1
            progress.advance()
    label_studio.keep_next_tab(project)
    return Queue(ranked, unbegun, written)


def status_mark(gate: str) -> str:
    """Return the prefix of the status of tasks that a gate stopped; without a name, of all of them."""
    return f"Sent back by {gate}:" if gate else "Sent back by"


def _stopped(record: Record, gate: str, reason: str) -> StoppedAnnotation:
    return StoppedAnnotation(record["project"], record["task"], record["annotation"], gate, reason)


def _candidate(task: Mapping[str, Any], labelling: Labelling, version: str) -> TaskCandidate:
    """Read a listed task with its newest draft of a version; of any version where none is named."""
    drafts = [one for one in task["predictions"] if version in ("", one["model_version"])]
    score = max(drafts, key=lambda one: int(one["id"]))["score"] if drafts else None
    text = ""
    with suppress(TaskError):  # tasks that lack the keys have the same, empty text
        text = "\n".join(labelling.inputs(Task(task["id"], task["data"])).values())
    return TaskCandidate(task["id"], score, text)
