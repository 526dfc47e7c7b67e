"""The demo's project of code tasks: a small model drafts programs; they are run, corrected and run again."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.corpus.code_checks import mistakes
from demo.corpus.code_tasks import FAMILIES, CodeTask, write_demo
from demo.projects.stage import CORRECTED_SHARE, SEED, Demo
from draftloop.cli.servers import LOCALHOST, ServerProcess, free_port, start_backend, start_vllm
from draftloop.errors import ServiceError, SetupError
from draftloop.execution.artifacts import Artifacts
from draftloop.labelling.labelling import Task, Value
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case
from draftloop.runs.run import INPUTS_KEY, RUN_KEY, Run, inputs_of, missing_outputs, run_key
from draftloop.support.environments import MODELS, ROOT

MODEL = MODELS / "tiny-code"
TITLE = "Code tasks"
CASE = "code_analysis"
TASKS = 60
_REASON_CHARS = 300


@dataclass(frozen=True)
class Prepared:
    """The project with drafted tasks, the known answers, and the demo with this part's settings."""

    project: Project
    known: list[CodeTask]
    demo: Demo


@dataclass(frozen=True)
class Seen:
    """A task as Label Studio has it, a run of it, and the mistakes in the files of that run."""

    row: dict[str, Any]
    known: CodeTask
    run: Run | None
    wrong: list[str]

    @property
    def executed(self) -> bool:
        """Whether the program ended well and left its files."""
        return self.run is not None and self.run.ok and not missing_outputs(self.run.last, self.known.outputs)


def engine(demo: Demo) -> ServerProcess:
    """Start a second vLLM without waiting, with the model of code tasks; `servers` waits for it."""
    log = demo.folder / "vllm-code.log"
    return start_vllm(MODEL, served_name=MODEL.name, port=8001, log=log, wait=False)


@contextmanager
def servers(demo: Demo, engine: ServerProcess) -> Iterator[Demo]:
    """Wait for the second vLLM, and run a backend before it that runs code.

    Args:
        demo: With the settings of the other backend, which share Label Studio and the password.
        engine: What `engine` gave.
    Yields:
        The demo with this part's settings.
    Raises:
        ServerError: One of them does not start.
    """
    with demo.step("start vLLM for code"):
        engine.wait()
    port = free_port(9091)
    open_folder = _open_folder(demo.folder)
    ours = demo.within(
        {
            **demo.environment,
            "ARTIFACTS_URL": str(demo.folder / "artifacts"),
            "BACKEND_PUBLIC_URL": f"http://{LOCALHOST}:{port}",
            "EXECUTION": "auto",
            "INPUT_ROOT": str(open_folder / "inputs"),
            "MODEL_MAX_TOKENS": "600",  # its programs have 40 to 100; a loop would go on for minutes
            "MODEL_NAME": MODEL.name,
            "MODEL_URL": f"{engine.url}/v1",
            "SANDBOX_FOLDER": str(open_folder / "runs"),
        }
    )
    with demo.step("start the backend for code"):
        backend = start_backend(ours.environment, port=port, log=demo.folder / "backend-code.log")
    with backend:
        yield ours


def prepare(demo: Demo, label_studio: LabelStudio) -> Prepared:
    """Make the project, with drafted tasks whose programs have run.

    Args:
        demo: What `servers` gave.
        label_studio: Where the project is made.
    Returns:
        What was prepared.
    Raises:
        ServiceError: A step failed.
    """
    known = write_demo(Path(demo.environment["INPUT_ROOT"]).parent, TASKS, SEED)
    project = demo.set_up(label_studio, TITLE, CASE, demo.environment["BACKEND_PUBLIC_URL"])
    with demo.step("import code tasks"):
        rows = Path(demo.environment["INPUT_ROOT"]).parent / "tasks.jsonl"
        demo.verb("import_tasks", "--project", project.id, rows)
    with demo.step("draft and run code"):
        demo.verb("prelabel", "--project", project.id, "--out", demo.folder / f"{CASE}-records.jsonl")
    return Prepared(project, known, demo)


def finish(label_studio: LabelStudio, prepared: Prepared) -> dict[str, Any]:
    """Correct a part as annotators would, have what they edited run, sync, and measure.

    Args:
        label_studio: Where the project is.
        prepared: What `prepare` gave.
    Returns:
        Shares of all tasks in 0..1: `executed` (the program ended well and left its files), `right_files`
        (they hold the known values). Numbers: `faults` (tasks whose file has a fault that no preview shows),
        `fixed_later` (those of them that an attempt after the first one got right), `submitted`,
        `corrections`, `rerun` (corrected ones whose new code was run by hand), `exported`.
        `seconds_per_task` of drafting and running.
    Raises:
        ServiceError: A step failed, or the figures are not the expected ones.
    """
    demo, case = prepared.demo, Cases(ROOT / "label_config").get(CASE)
    tasks = _look(label_studio, prepared, case, of_drafts=True)
    summary = measure(tasks) | {"predictions": sum(bool(one.row["predictions"]) for one in tasks)}
    summary["seconds_per_task"] = round(demo.seconds["draft and run code"] / len(tasks), 2)
    with demo.step("correct code and run it"):
        some = tasks[: round(len(tasks) * CORRECTED_SHARE)]
        summary |= correct(label_studio, prepared, case, some)
        again = {one.row["id"]: one for one in _look(label_studio, prepared, case, of_drafts=False)}
        edited = [again[one.row["id"]] for one in some if one.wrong]
        summary["rerun"] = sum(one.executed and not one.wrong for one in edited)
    dataset = demo.folder / "dataset" / CASE
    with demo.step("sync"):
        demo.verb("sync", "--project", prepared.project.id, "--out", dataset)
    summary["exported"] = json.loads((dataset / "manifest.json").read_text(encoding="utf-8"))["counts"][
        "samples"
    ]
    for key, expected in (
        *(("tasks", TASKS), ("predictions", TASKS)),
        *(("rerun", summary["corrections"]), ("exported", summary["submitted"])),
    ):
        if summary[key] != expected:
            raise ServiceError(
                f"Project '{TITLE}': {summary[key]} {key}, expected {expected}.",
                hint=f"Look at {dataset}/rejected.jsonl and the logs in {demo.folder}.",
            )
    return summary


def measure(tasks: Sequence[Seen]) -> dict[str, Any]:
    """Count the outcomes of the drafts, of all and by family."""

    def share(of: Sequence[Seen], good: Sequence[bool]) -> float:
        return round(sum(good) / len(of), 4) if of else 0.0

    def figures(of: Sequence[Seen]) -> dict[str, Any]:
        right = [one.executed and not one.wrong for one in of]
        return {
            "tasks": len(of),
            "executed": share(of, [one.executed for one in of]),
            "right_files": share(of, right),
            "faults": sum(one.known.fault is not None for one in of),
            "fixed_later": sum(
                good and one.known.fault is not None and one.run is not None and len(one.run.attempts) > 1
                for one, good in zip(of, right, strict=True)
            ),
        }

    families = {family: figures([one for one in tasks if one.known.family == family]) for family in FAMILIES}
    failures = [
        {"task": one.row["id"], "reasons": [reason[:_REASON_CHARS] for reason in one.wrong]}
        for one in tasks
        if one.wrong
    ]
    return figures(tasks) | {"families": families, "failures": failures}


def correct(
    label_studio: LabelStudio, prepared: Prepared, case: Case, tasks: Sequence[Seen]
) -> dict[str, int]:
    """Submit what an annotator would: a right draft with a verdict, else the right code, once it has run."""
    counts = {"submitted": 0, "corrections": 0}
    backend = next(
        one["id"]
        for one in label_studio.send("ML backends", "GET", "api/ml/", params={"project": prepared.project.id})
        if one["url"] == prepared.demo.environment["BACKEND_PUBLIC_URL"]
    )
    for one in tasks:
        counts["submitted"] += 1
        counts["corrections"] += bool(one.wrong)
        if one.row["annotations"]:
            continue  # by an earlier run
        task, prediction = Task(one.row["id"], one.row["data"]), one.row["predictions"][-1]
        draft = case.labelling.from_regions(prediction["result"], task)
        value: Value = {"code": one.known.program if one.wrong else draft["code"], "verdict": "pass"}
        regions = case.labelling.to_regions(value, task).regions
        if one.wrong:
            # As the page does at Shift+Enter in the box with the code.
            context = {"result": [region for region in regions if region["from_name"] == "code"]}
            label_studio.send(
                f"the edited code of task {task.id}",
                "POST",
                f"api/ml/{backend}/interactive-annotating",
                json.dumps({"task": task.id, "context": context}).encode(),
            )
        label_studio.submit_annotation(task.id, regions, parent_prediction=prediction["id"])
    return counts


def _look(label_studio: LabelStudio, prepared: Prepared, case: Case, *, of_drafts: bool) -> list[Seen]:
    """Read all tasks, and compare the files of the drafts' runs, or of the last runs, with the known ones."""
    artifacts = Artifacts(prepared.demo.environment["ARTIFACTS_URL"])
    seen = []
    for row in label_studio.tasks(prepared.project, full=True):
        # The demo's inputs lie in folders that count its tasks from 1.
        known = prepared.known[int(row["data"][INPUTS_KEY][0]["path"].partition("/")[0]) - 1]
        key = _key_of_draft(case, row) if of_drafts else row["data"].get(RUN_KEY)
        run = artifacts.run(key) if key else None
        seen.append(Seen(row, known, run, _wrong(artifacts, known, run)))
    return seen


def _key_of_draft(case: Case, row: dict[str, Any]) -> str | None:
    """Return the key of the run of the draft's code; the task may hold that of a human's code instead."""
    task = Task(row["id"], row["data"])
    regions = row["predictions"][-1]["result"] if row["predictions"] else []
    script = case.labelling.script(case.labelling.from_regions(regions, task))
    return None if script is None else run_key([script], inputs_of(task.data))


def _wrong(artifacts: Artifacts, known: CodeTask, run: Run | None) -> list[str]:
    if run is None:
        return ["its code was never run"]
    if not run.ok:
        return [f"its code ended with {run.last.outcome}: {run.last.stderr.strip()[-200:]}"]
    with tempfile.TemporaryDirectory(prefix="draftloop-demo-") as folder:
        for file in run.last.files:
            path = Path(folder, file.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with artifacts.open(file.sha256) as content:
                path.write_bytes(content.read())
        return mistakes(known, Path(folder), run.last.stdout)


def _open_folder(folder: Path) -> Path:
    """Make the folder for what the sandbox's users must reach: a home folder is closed to them."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    shared = Path(f"/var/tmp/draftloop-demo-{os.getuid()}-{digest}")  # noqa: S108  checked to be ours
    shared.mkdir(mode=0o755, exist_ok=True)
    if shared.is_symlink() or shared.stat().st_uid != os.getuid():
        raise SetupError(f"{shared} belongs to somebody else.", hint="Remove it, or choose another --out.")
    shared.joinpath("inputs").mkdir(exist_ok=True)  # before the backend starts, whose sandbox reads it
    return shared
