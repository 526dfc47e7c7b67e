"""Flow 4: what humans look at: drawn samples, what a gate stopped, and which task comes next.

Knows the steps. Does not know which samples are drawn or stopped (`core.corpus`): it reads that from a
dataset's folder, as the last sync left it; nor what makes a task the next one (`core.acquisition`). Whatever
is there already is neither made nor sent again.
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
    """The project with the spot checks: how many samples wait for one, and how many came just now."""

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
    """How many tasks carry a gate's reasons now: written just now, and taken away from those mended."""

    written: int
    cleared: int
    tasks: int


@dataclass(frozen=True)
class Queue:
    """Which tasks come next in a project, among how many that nobody has begun.

    written  tasks whose place was written just now, or taken away
    """

    ranked: list[Ranked]
    unbegun: int
    written: int


def open_spot_check(label_studio: LabelStudio, folder: Path) -> SpotCheckProject:
    """Put the drawn samples that wait into a project of their own; makes it at the first time.

    Args:
        label_studio: Where the project is.
        folder: A dataset that was synced with spot checks.
    Raises:
        SetupError: There is no dataset, or no spot checks are decided.
        ServiceError: Label Studio failed; the next call goes on.
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
    """List what gates stopped, from a dataset's folder; drawn samples that wait are not among it.

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
    """Write a gate's reasons into the tasks that it stopped, where a saved tab finds them.

    The annotators see the reason above the task (in configs that show `$draft_status`), correct their
    annotation and update it. Tasks that the gate does not stop any more lose its reason.

    Args:
        label_studio: Where the tasks are.
        folder: The dataset.
        gate: Name of the gate.
        progress: Advances with each task that was written.
    Raises:
        SetupError: There is no dataset.
        ServiceError: Label Studio failed; the next call goes on.
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
    """Write into a project's tasks in which order they are best labelled, where a saved tab finds it.

    Only tasks that nobody has begun are ranked, or lose the place that they had. Each is read again right
    before it is written: Label Studio replaces a task's whole data, and drafts may write into it meanwhile.

    Args:
        label_studio: Where the tasks are.
        project_id: The project.
        count: How many tasks get a place.
        seed: Decides between equals.
        chance: Whether by chance instead, which is what the order is measured against.
        progress: Advances with each task that was read or written.
    Raises:
        SetupError: There is no such project, or its config is not supported.
        ServiceError: Label Studio failed; the next call goes on.
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
    # Of the same length, because Label Studio orders by text.
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
    """Give how the status of a task begins that a gate stopped; of any, where none is named."""
    return f"Sent back by {gate}:" if gate else "Sent back by"


def _stopped(record: Record, gate: str, reason: str) -> StoppedAnnotation:
    return StoppedAnnotation(record["project"], record["task"], record["annotation"], gate, reason)


def _candidate(task: Mapping[str, Any], labelling: Labelling, version: str) -> TaskCandidate:
    """Read a listed task with its newest draft: of that version, or of any where none is named."""
    drafts = [one for one in task["predictions"] if version in ("", one["model_version"])]
    score = max(drafts, key=lambda one: int(one["id"]))["score"] if drafts else None
    text = ""
    with suppress(TaskError):  # a task that lacks the keys is like every other one that does
        text = "\n".join(labelling.inputs(Task(task["id"], task["data"])).values())
    return TaskCandidate(task["id"], score, text)
