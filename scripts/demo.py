"""Show the whole loop on this machine: Label Studio, vLLM on the CPU with the embedded model, the backend.

Makes three projects, imports generated tasks whose names and templates the model never saw, and
pre-annotates them. Then it stays up, for you to log in and correct, until Ctrl-C. What you do there is
kept and found again by the next run.

    scripts/demo
    scripts/demo --once --out DIR     unattended: corrects a part through the API, syncs, writes
                                      DIR/summary.json, and stops
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from backend.core.labelling import Task, Value
from backend.core.prompting import Case
from backend.edge.cases import Cases
from backend.edge.labelstudio import LabelStudio, Project
from backend.errors import ServiceError
from models.corpus import Generated, generate
from scripts.measures import field_exact_match, span_f1
from scripts.servers import ROOT, home, start_backend, start_label_studio, start_vllm
from scripts.terminal import Verb, app, err, out, plain_errors

cli = app()
MODEL = ROOT / "models" / "tiny-qwen3"
USER = "admin@example.com"
SEED = 20_260_101  # of the generated tasks: every run shows the same ones
# Title, case, tasks. The first few of each are drafted by Label Studio asking the backend.
PROJECTS = (
    ("Complaints", "complaint", 120),
    ("Flight bookings", "flight_booking", 110),
    ("Named entities", "named_entities", 110),
)
ASKED_BY_LABEL_STUDIO = 5
CORRECTED_SHARE = 0.4


@dataclass
class Demo:
    """What the steps share: where things are, how long they took."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say a step, time it, and add up what has the same name."""
        started = time.monotonic()
        err.print(f"[bold]{name}[/bold]")
        yield
        took = time.monotonic() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 1)
        err.print(f"  {took:.1f} s")

    def verb(self, name: str, *arguments: str | Path | int) -> None:
        """Run one of the scripts as a user would."""
        shown = " ".join(str(argument) for argument in arguments)
        err.print(f"  $ scripts/{name} {shown}", markup=False)
        command = [sys.executable, "-P", "-m", f"scripts.{name}", *map(str, arguments)]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise ServiceError(
                f"scripts/{name} {shown} ended with {done.returncode}.", hint="Its words are above."
            )


@cli.command(cls=Verb, help=__doc__)
def main(
    once: Annotated[bool, typer.Option("--once", help="Run unattended to the end, and stop.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for everything the demo makes; kept between runs.")
    ] = None,
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again: what is done already stays."), ExitStack() as servers:
        demo = Demo((folder or home() / "demo").resolve())
        demo.folder.mkdir(parents=True, exist_ok=True)
        label_studio, login = start(demo, servers)
        cases = Cases(ROOT / "label_config")
        projects = {}
        for title, name, count in PROJECTS:
            truths = list(generate(name, "held_out", count, SEED))
            project = prepare(demo, label_studio, title, name, truths)
            projects[name] = (project, cases.get(name), truths)
        if once:
            finish(demo, label_studio, projects)
            return
        out.print(f"\nLabel Studio   {label_studio.url}\nuser           {login['user']}")
        out.print(f"password       {login['password']}")
        out.print("Open a project, then a task: it is filled in. Correct it, submit, and export with")
        for name, (project, _, _) in projects.items():
            out.print(f"  {_exports(demo)} scripts/sync --project {project.id} --out dataset/{name}")
        out.print("Ctrl-C stops all of it; what you did is kept and found again by the next run.")
        signal.pause()


def start(demo: Demo, servers: ExitStack) -> tuple[LabelStudio, dict[str, str]]:
    """Start the three servers; they stop when the stack is left."""
    login = _login(demo.folder / "login.json")
    with demo.step("start Label Studio"):
        web = servers.enter_context(
            start_label_studio(
                demo.folder / "label-studio",
                token=login["token"],
                username=USER,
                password=login["password"],
                port=8080,
            )
        )
    with demo.step("start vLLM"):
        engine = servers.enter_context(
            start_vllm(MODEL, served_name=MODEL.name, port=8000, log=demo.folder / "vllm.log")
        )
    demo.environment = {
        "LABEL_STUDIO_URL": web.url,
        "LABEL_STUDIO_API_KEY": login["token"],
        "MODEL_URL": f"{engine.url}/v1",
        "MODEL_NAME": MODEL.name,
        "MODEL_PROFILE": "compact",
        "MODEL_TEMPERATURE": "0",
        "BACKEND_USER": "label-studio",
        "BACKEND_PASSWORD": login["password"],
        "CACHE_URL": f"sqlite:///{demo.folder / 'cache.sqlite3'}",
        "LEDGER_URL": f"sqlite:///{demo.folder / 'ledger.sqlite3'}",
    }
    with demo.step("start the backend"):
        backend = servers.enter_context(
            start_backend(demo.environment, port=9090, log=demo.folder / "backend.log")
        )
    demo.environment["DEMO_BACKEND_URL"] = backend.url
    return LabelStudio(web.url, login["token"]), login


def prepare(
    demo: Demo, label_studio: LabelStudio, title: str, name: str, truths: Sequence[Generated]
) -> Project:
    """Make a project with drafted tasks."""
    rows = demo.folder / f"{name}.jsonl"
    rows.write_bytes(b"".join(orjson.dumps({"text": truth.text}) + b"\n" for truth in truths))
    with demo.step("set up projects"):
        backend = demo.environment["DEMO_BACKEND_URL"]
        demo.verb("setup_project", "--case", name, "--title", title, "--backend-url", backend)
        project = label_studio.find_project(title)
        if project is None:
            raise ServiceError(f"The project '{title}' is not there.", hint="Look at label-studio.log.")
    with demo.step("draft through Label Studio"):
        demo.verb("import_tasks", "--project", project.id, "--limit", ASKED_BY_LABEL_STUDIO, rows)
        ids = [task["id"] for task in label_studio.tasks(project)]
        label_studio.retrieve_predictions(project, ids[:ASKED_BY_LABEL_STUDIO])
    with demo.step("import tasks"):
        demo.verb("import_tasks", "--project", project.id, rows)
    with demo.step("draft in bulk"):
        demo.verb("prelabel", "--project", project.id, "--out", demo.folder / f"{name}-records.jsonl")
    return project


def finish(
    demo: Demo, label_studio: LabelStudio, projects: dict[str, tuple[Project, Case, list[Generated]]]
) -> None:
    """Correct a part as annotators would, sync, and say what came of it."""
    summary: dict[str, Any] = {}
    for name, (project, case, truths) in projects.items():
        known = {truth.text: truth.value for truth in truths}
        with demo.step("correct"):
            tasks = list(label_studio.tasks(project, full=True))
            submitted = correct(label_studio, case, tasks[: round(len(tasks) * CORRECTED_SHARE)], known)
        with demo.step("sync"):
            demo.verb("sync", "--project", project.id, "--out", demo.folder / "dataset" / name)
        manifest = json.loads((demo.folder / "dataset" / name / "manifest.json").read_text(encoding="utf-8"))
        summary[name] = measure(case, tasks, known) | submitted | {"exported": manifest["counts"]["samples"]}
        wrong = _what_is_missing(summary[name], len(truths))
        if wrong:
            raise ServiceError(f"Project '{name}': {wrong}.", hint=f"Look at the logs in {demo.folder}.")
    path = demo.folder / "summary.json"
    path.write_text(
        json.dumps({"projects": summary, "seconds": demo.seconds}, indent=2, ensure_ascii=False) + "\n"
    )
    for name, row in summary.items():
        shown = {key: value for key, value in row.items() if key != "failures"}
        out.print(f"{name:<15} " + "  ".join(f"{key} {value}" for key, value in shown.items()))
    out.print(
        f"Everything is in {demo.folder}: summary.json, dataset/, the records of every draft, the logs."
    )


def correct(
    label_studio: LabelStudio, case: Case, tasks: Sequence[dict[str, Any]], known: dict[str, Value]
) -> dict[str, int]:
    """Submit what an annotator would: the draft where it is right, else the regions corrected."""
    counts = {"submitted": 0, "corrections": 0}
    for row in tasks:
        task = Task(row["id"], row["data"])
        prediction = row["predictions"][-1]
        truth = {key: part for key, part in known[row["data"]["text"]].items() if part is not None}
        same = case.labelling.from_regions(prediction["result"], task) == truth
        counts["submitted"] += 1
        counts["corrections"] += not same
        if row["annotations"]:
            continue  # by an earlier run
        regions = prediction["result"] if same else case.labelling.to_regions(truth, task).regions
        origin = "prediction" if same else "prediction-changed"
        label_studio.submit_annotation(
            task.id, [{**region, "origin": origin} for region in regions], parent_prediction=prediction["id"]
        )
    return counts


def measure(case: Case, tasks: Sequence[dict[str, Any]], known: dict[str, Value]) -> dict[str, Any]:
    """Compare what stands in Label Studio with the known answers."""
    drafts, truths, failures = [], [], []
    broken = {"schema": 0, "rule": 0}
    for row in tasks:
        task = Task(row["id"], row["data"])
        truths.append({key: part for key, part in known[row["data"]["text"]].items() if part is not None})
        result = row["predictions"][-1]["result"] if row["predictions"] else []
        value = case.labelling.from_regions(result, task)
        drafts.append(value)
        reasons = case.rules.check(value, task)
        if reasons:
            broken["schema" if any(reason.kind == "schema" for reason in reasons) else "rule"] += 1
            failures.append({"task": task.id, "reasons": [str(reason) for reason in reasons]})
    found = {
        "tasks": len(tasks),
        "predictions": sum(bool(row["predictions"]) for row in tasks),
        "schema_valid": round(1 - broken["schema"] / len(tasks), 4),
        "rule_valid": round(1 - (broken["schema"] + broken["rule"]) / len(tasks), 4),
        "field_exact_match": round(
            field_exact_match(drafts, truths, list(case.labelling.validating_schema["properties"])), 4
        ),
        "failures": failures,
    }
    if case.name == "named_entities":
        found["span_f1"] = round(span_f1(drafts, truths, "entities"), 4)
    return found


def _what_is_missing(row: dict[str, Any], count: int) -> str:
    for key, expected in (("tasks", count), ("predictions", count), ("exported", row["submitted"])):
        if row[key] != expected:
            return f"{row[key]} {key}, expected {expected}"
    return "" if row["corrections"] else "nothing was corrected"


def _login(path: Path) -> dict[str, str]:
    """Make a password and a token for this demo once, readable by its owner alone."""
    if not path.exists():
        made = {"user": USER, "password": secrets.token_urlsafe(12), "token": secrets.token_hex(20)}
        path.touch(mode=0o600)
        path.write_text(json.dumps(made))
    found: dict[str, str] = json.loads(path.read_text())
    return found


def _exports(demo: Demo) -> str:
    return " ".join(
        f"{name}={demo.environment[name]}" for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY")
    )


if __name__ == "__main__":
    cli()
