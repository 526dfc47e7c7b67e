"""Flow 4: back to humans: drawn samples to a second one, and what a gate stopped to its annotators.

Knows the steps. Does not know which samples are drawn or stopped (`core.corpus`): it reads that from a
dataset's folder, as the last sync left it. Whatever is there already is neither made nor sent again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from backend.core.labelling import STATUS_KEY
from backend.core.sample import Record, Sample
from backend.core.spotcheck import CONFIG, TITLE, WAITS, order, shown
from backend.edge.folder import lines_of
from backend.edge.labelstudio import LabelStudio, Project
from backend.errors import SetupError
from backend.records import manifest_and_options

Tell = Callable[[], None]


@dataclass(frozen=True)
class Opened:
    """The project with the spot checks: how many samples wait for one, and how many came just now."""

    project: Project
    waiting: int
    sent: int


@dataclass(frozen=True)
class Stopped:
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


def open_spot_check(label_studio: LabelStudio, folder: Path) -> Opened:
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
    rows = [shown(sample) for sample in sorted(waiting, key=order)]
    sent = sum(
        len(ids)
        for ids in label_studio.import_tasks(project, [row for row in rows if row["seal"] not in known])
    )
    return Opened(project, len(waiting), sent)


def stopped_by(folder: Path, gate: str = "") -> Iterator[Stopped]:
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


def send_back(label_studio: LabelStudio, folder: Path, gate: str, tell: Tell | None = None) -> SentBack:
    """Write a gate's reasons into the tasks that it stopped, where a saved tab finds them.

    The annotators see the reason above the task (in configs that show `$draft_status`), correct their
    annotation and update it. Tasks that the gate does not stop any more lose its reason.

    Args:
        label_studio: Where the tasks are.
        folder: The dataset.
        gate: Name of the gate.
        tell: Called after each task that was written.
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
                if tell is not None:
                    tell()
        label_studio.keep_sent_back_tab(project, status_mark(""))
    return SentBack(written, cleared, sum(map(len, reasons.values())))


def status_mark(gate: str) -> str:
    """Give how the status of a task begins that a gate stopped; of any, where none is named."""
    return f"Sent back by {gate}:" if gate else "Sent back by"


def _stopped(record: Record, gate: str, reason: str) -> Stopped:
    return Stopped(record["project"], record["task"], record["annotation"], gate, reason)
