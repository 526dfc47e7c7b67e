"""The demo's flywheel: complaints of another kind are drafted, corrected and trained on, then drafted better.

They come from templates of their own, most of them in English, and have one field more than the model knows.
The other cases of the model lie in finished projects: training replays them, and the measurement of the
adapter guards them.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import orjson

from demo.corpus import Generated, generate, shifted
from demo.projects.stage import SEED, Demo
from demo.projects.texts import correct
from draftloop.dataset.folder import MANIFEST, DatasetFiles, lines_of, manifest_of
from draftloop.dataset.sample import present
from draftloop.errors import ServiceError
from draftloop.flywheel.adapters import Adapters
from draftloop.labelling.labelling import Task, Value
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case
from draftloop.support.environments import ROOT
from draftloop.support.files import hash_file

_TITLE = "Complaints of another kind"
_TO_CORRECT, _LEFT = 450, 200  # tasks that are corrected; tasks of unseen templates that nobody begins
# Title, case, tasks: what humans finished before.
_FINISHED = (
    ("Complaints, finished", "complaint", 500),
    ("Flight bookings, finished", "flight_booking", 500),
    ("Named entities, finished", "named_entities", 500),
    ("Sentiment, finished", "sentiment", 1500),  # one field each: of fewer, one that flips is a point
)
_REPLAY = 0.2  # rows of each finished project for every row of the new kind
LORA_RANK = 16
_RECIPE, _SHUFFLED_EPOCHS = "demo/models/tiny-qwen3.yaml", 1
_REFUSED = 3  # exit code of scripts/promote
_AT_ONCE = 200  # tasks of an import
_FIGURE, _ROWS = "exact_match", "messages.jsonl"
PLOT = "flywheel.svg"
UNSEEN = f"{shifted.CASE}, unseen templates"
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 } .case { font-weight: 600 }
.before { fill: #b8c4d0 } .after { fill: #4c78a8 }
"""

Figures = dict[str, dict[str, float]]  # by case and field, shares in 0..1


@dataclass(frozen=True)
class Prepared:
    """The project of the new kind with its first drafts, the known answers, and the finished datasets."""

    project: Project
    case: Case
    known: dict[str, Value]  # by text
    left: frozenset[str]  # texts of the tasks that nobody begins
    finished: tuple[Path, ...]


def cases(demo: Demo) -> Path:
    """Make a folder with the product's cases and the one of the new kind; return it."""
    folder = demo.folder / "cases"
    folder.mkdir(exist_ok=True)
    for case in (*sorted((ROOT / "label_config").iterdir()), shifted.CASES / shifted.CASE):
        (folder / case.name).unlink(missing_ok=True)
        (folder / case.name).symlink_to(case)
    return folder


def prepare(demo: Demo, label_studio: LabelStudio, backend_url: str) -> Prepared:
    """Make the finished projects and their datasets, and the one of the new kind, drafted by the base model.

    Args:
        demo: Where things are.
        label_studio: Where the projects are made.
        backend_url: What drafts.
    Returns:
        What was prepared.
    Raises:
        ServiceError: A step failed.
    """
    finished = tuple(_finish(demo, label_studio, *one) for one in _FINISHED)
    begun = shifted.make(_TO_CORRECT, SEED, held_out=False)
    left = shifted.make(_LEFT, SEED, held_out=True)
    rows = demo.folder / "another-kind.jsonl"
    rows.write_bytes(
        b"".join(orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE) for data, _ in begun + left)
    )
    project = demo.set_up(label_studio, _TITLE, shifted.CASE, backend_url)
    with demo.step("import tasks"):
        demo.verb("import_tasks", "--project", project.id, rows)
    with demo.step("draft in bulk"):
        demo.verb("prelabel", "--project", project.id, "--out", _records(demo))
    case = Cases(shifted.CASES).get(shifted.CASE)
    known = {data["text"]: present(value) for data, value in begun + left}
    return Prepared(project, case, known, frozenset(data["text"] for data, _ in left), finished)


def turn(demo: Demo, label_studio: LabelStudio, prepared: Prepared) -> dict[str, Any]:
    """Correct, sync, train, promote; refuse a worse adapter; roll back, and promote again.

    Args:
        demo: Where things are.
        label_studio: Where the projects are.
        prepared: What `prepare` gave.
    Returns:
        `before` and `after`: exact match by case and field, 0..1. `gains`: by case, of the mean over fields,
        with its 95 % interval. `promoted`, `rolled_back`: the version that drafted then. `refused_worse`: why
        the adapter of shuffled answers was refused. Numbers: `submitted`, `corrections`, `exported`.
    Raises:
        ServiceError: A step failed, or the figures are not the expected ones.
    """
    project = prepared.project
    with demo.step("correct"):
        tasks = _tasks(label_studio, prepared, left=False)
        summary: dict[str, Any] = dict(correct(label_studio, prepared.case, tasks, prepared.known))
    dataset = demo.folder / "dataset" / "another-kind"
    with demo.step("sync"):
        demo.verb("sync", "--project", project.id, "--out", dataset)
    summary["exported"] = _manifest(dataset)["counts"]["samples"]
    with demo.step("train"):
        better = _trained(demo, dataset, "corrected", prepared.finished)
    with demo.step("train on shuffled answers"):
        worse = _trained(demo, shuffled(dataset, demo.folder / "dataset" / "shuffled"), "shuffled")
    with demo.step("measure and promote"):
        _promote(demo, project, better, dataset, prepared.finished)
    evidence = _evidence(demo, project)
    summary["promoted"] = _drafting(label_studio, project)
    _expect("the version that drafts", summary["promoted"], evidence["after"])
    summary["before"], summary["after"] = (_exact(evidence, name) for name in ("before", "after"))
    with demo.step("look at the tasks of unseen templates"):
        tasks = _tasks(label_studio, prepared, left=True)
        for name in ("before", "after"):
            summary[name] |= {UNSEEN: _exact_of(prepared, tasks, evidence[name])}
    summary["gains"] = {name: case["gain"] for name, case in evidence["cases"].items()}
    with demo.step("measure and refuse"):
        _promote(demo, project, worse, dataset, prepared.finished, refused=True)
    summary["refused_worse"] = _last(demo, project, "refuse")["reasons"]
    _expect(
        "the version that drafts after the refusal", _drafting(label_studio, project), summary["promoted"]
    )
    with demo.step("roll back"):
        demo.verb("promote", "--rollback", "--project", project.id, "--out", _records(demo))
    summary["rolled_back"] = _drafting(label_studio, project)
    _expect("the version that drafts after the roll-back", summary["rolled_back"], evidence["before"])
    with demo.step("promote again"):
        _promote(demo, project, better, dataset, prepared.finished)
    _expect("the version that drafts in the end", _drafting(label_studio, project), summary["promoted"])
    (demo.folder / PLOT).write_text(plot(summary["before"], summary["after"]), encoding="utf-8")
    return summary


def plot(before: Figures, after: Figures) -> str:
    """Draw the exact match of every field before (light) and after (dark), case by case, as SVG."""
    left, width, row, parts, top = 190, 420, 34, [], 34
    parts.append('<text x="16" y="20">Drafts that say what the human submitted, in %: before, after</text>')
    for name, fields in before.items():
        parts.append(f'<text x="16" y="{top + 14}" class="case">{escape(name)}</text>')
        top += 22
        for field, share in fields.items():
            parts.append(f'<text x="{left - 8}" y="{top + 18}" text-anchor="end">{escape(field)}</text>')
            for place, (kind, part) in enumerate((("before", share), ("after", after[name][field]))):
                y = top + 2 + 14 * place
                parts.append(
                    f'<rect class="{kind}" x="{left}" y="{y}" width="{width * part:.1f}" height="12"/>'
                    f'<text x="{left + width * part + 6:.1f}" y="{y + 10}">{100 * part:.0f}</text>'
                )
            top += row
        top += 8
    size = f'width="{left + width + 50}" height="{top}" viewBox="0 0 {left + width + 50} {top}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style>{"".join(parts)}</svg>\n'


# ---------------------------------------------------------------------------------- steps


def _finish(demo: Demo, label_studio: LabelStudio, title: str, name: str, count: int) -> Path:
    """Make a project that humans finished, and its dataset."""
    cases = Cases(ROOT / "label_config")
    case = cases.get(name)
    with demo.step("set up finished projects"):
        project = label_studio.find_project(title)
        if project is None:
            project = label_studio.create_project(title, cases.config(name))
        there = label_studio.count_tasks(project)
        truths = list(generate(name, "held_out", count, SEED + 1))[there:]
        for start in range(0, len(truths), _AT_ONCE):
            rows = [_answered(case, truth) for truth in truths[start : start + _AT_ONCE]]
            path = f"api/projects/{project.id}/import"
            label_studio.send(f"{len(rows)} answered tasks", "POST", path, orjson.dumps(rows))
    dataset = demo.folder / "dataset" / f"finished-{name}"
    with demo.step("sync"):
        demo.verb("sync", "--project", project.id, "--case", name, "--out", dataset)
    return dataset


def _answered(case: Case, truth: Generated) -> dict[str, Any]:
    data = {"text": truth.text, "draft_status": ""}
    return {
        "data": data,
        "annotations": [{"result": case.labelling.to_regions(present(truth.value), Task(0, data)).regions}],
    }


def _tasks(label_studio: LabelStudio, prepared: Prepared, *, left: bool) -> list[dict[str, Any]]:
    """List the tasks that nobody begins, or the others."""
    rows = label_studio.tasks(prepared.project, full=True)
    return [row for row in rows if (row["data"]["text"] in prepared.left) == left]


def _trained(demo: Demo, dataset: Path, name: str, replayed: Sequence[Path] = ()) -> Path:
    """Train an adapter, unless there is one of the same dataset."""
    run = demo.folder / "runs" / f"{name}-{hash_file(dataset / MANIFEST)[:8]}"
    if not (run / "run.json").exists():
        words: list[str | Path] = ["--dataset", dataset, "--out", run, "--config", ROOT / _RECIPE]
        words += [word for folder in replayed for word in ("--replay", f"{folder}:{_REPLAY}")]
        words += ["--resume"] if run.with_name(f"{run.name}.part").exists() else []
        demo.verb("train", *words, *(() if replayed else ("--set", f"epochs={_SHUFFLED_EPOCHS}")))
    return run


def shuffled(dataset: Path, folder: Path) -> Path:
    """Copy a dataset, with the answers of its training rows shuffled."""
    manifest = _manifest(dataset)
    rows = list(lines_of(dataset, _ROWS))
    answers = [row["messages"][-1] for row in rows]
    random.Random(SEED).shuffle(answers)  # noqa: S311  nothing secret
    for row, answer in zip(rows, answers, strict=True):
        row["messages"][-1] = answer
    lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    folder.mkdir(exist_ok=True)
    with DatasetFiles(folder) as files:
        for name in manifest["files"]:
            files.add(name, lines if name == _ROWS else (dataset / name).read_bytes())
        files.store({key: part for key, part in manifest.items() if key != "files"})
    return folder


def _promote(
    demo: Demo, project: Project, run: Path, dataset: Path, guards: Sequence[Path], *, refused: bool = False
) -> None:
    words: list[str | Path | int] = ["--project", project.id, "--out", _records(demo), "--dataset", dataset]
    words += [word for folder in guards for word in ("--guard", folder)]
    demo.verb("promote", run, *words, code=_REFUSED if refused else 0)


def _evidence(demo: Demo, project: Project) -> dict[str, Any]:
    """Return the evidence of the last promotion."""
    adapters = Adapters(Path(demo.environment["ADAPTERS_DIR"]))
    evidence: dict[str, Any] = orjson.loads(
        adapters.evidence(_last(demo, project, "promote")["evidence"]).read_bytes()
    )
    return evidence


def _last(demo: Demo, project: Project, action: str) -> dict[str, Any]:
    journal = Adapters(Path(demo.environment["ADAPTERS_DIR"])).journal()
    return [one for one in journal if (one["action"], one["project"]) == (action, project.id)][-1]


def _drafting(label_studio: LabelStudio, project: Project) -> str:
    return label_studio.project(project.id).model_version


def _exact(evidence: Mapping[str, Any], moment: str) -> Figures:
    return {
        name: {field: figures[_FIGURE] for field, figures in case[moment]["fields"].items()}
        for name, case in evidence["cases"].items()
    }


def _exact_of(prepared: Prepared, tasks: Sequence[Mapping[str, Any]], version: str) -> dict[str, float]:
    """Return the exact match by field of a version's drafts in Label Studio."""
    right: Counter[str] = Counter()
    fields = list(prepared.case.labelling.validating_schema["properties"])
    for row in tasks:
        drafts = [one for one in row["predictions"] if one["model_version"] == version]
        _expect(f"drafts of {version} for task {row['id']}", len(drafts), 1)
        value = prepared.case.labelling.from_regions(drafts[0]["result"], Task(row["id"], row["data"]))
        known = prepared.known[row["data"]["text"]]
        right.update(field for field in fields if value.get(field) == known.get(field))
    return {field: round(right[field] / len(tasks), 4) for field in fields}


def _expect(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise ServiceError(f"{what}: {actual}, expected {expected}.", hint="Look at the logs beside it.")


def _manifest(dataset: Path) -> dict[str, Any]:
    manifest = manifest_of(dataset)
    if manifest is None:
        raise ServiceError(f"{dataset} has no manifest.", hint="Look at what scripts/sync said above.")
    return manifest


def _records(demo: Demo) -> Path:
    return demo.folder / "another-kind-records.jsonl"
