"""The demo's projects of texts: complaints, flight bookings and named entities, with the embedded model."""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from demo.corpus import Generated, generate
from demo.projects.stage import CORRECTED_SHARE, SEED, Demo
from draftloop.cli.servers import ServerProcess, start_backend, start_vllm
from draftloop.errors import ServiceError
from draftloop.labelling.labelling import Task, Value
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case
from draftloop.support.environments import MODELS, ROOT
from scripts.measures import field_exact_match, span_f1

MODEL = MODELS / "tiny-qwen3"
# Title, case, tasks. The first few of each are drafted by Label Studio asking the backend.
PROJECTS = (
    ("Complaints", "complaint", 120),
    ("Flight bookings", "flight_booking", 110),
    ("Named entities", "named_entities", 110),
)
ASKED_BY_LABEL_STUDIO = 5


@dataclass(frozen=True)
class Prepared:
    """A project with drafted tasks, and the known answers."""

    project: Project
    case: Case
    truths: list[Generated]


def engine(demo: Demo, lora_rank: int = 0) -> ServerProcess:
    """Start vLLM with the embedded model without waiting; `servers` waits for it.

    Args:
        demo: Keeps its log.
        lora_rank: Of adapters that it takes while it runs; 0 is none.
    """
    log = demo.folder / "vllm.log"
    return start_vllm(MODEL, served_name=MODEL.name, port=8000, log=log, lora_rank=lora_rank, wait=False)


@contextmanager
def servers(demo: Demo, engine: ServerProcess, password: str) -> Iterator[str]:
    """Wait for vLLM, and run a backend before it.

    Args:
        demo: Its environment gets the model's settings.
        engine: What `engine` gave.
        password: Of the backend.
    Yields:
        The backend's address.
    Raises:
        ServerError: One of them does not start.
    """
    with demo.step("start vLLM"):
        engine.wait()
    demo.environment |= {
        "ADAPTERS_DIR": str(demo.folder / "adapters"),
        "MODEL_URL": f"{engine.url}/v1",
        "MODEL_NAME": MODEL.name,
        "MODEL_PROFILE": "compact",
        "MODEL_TEMPERATURE": "0",
        "BACKEND_USER": "label-studio",
        "BACKEND_PASSWORD": password,
        "BACKEND_WEBHOOK_SECRET": secrets.token_urlsafe(24),
        "CACHE_URL": f"sqlite:///{demo.folder / 'cache.sqlite3'}",
        "LEDGER_URL": f"sqlite:///{demo.folder / 'ledger.sqlite3'}",
    }
    with demo.step("start the backend"):
        backend = start_backend(
            {**demo.environment, "EXECUTION": "off"}, port=9090, log=demo.folder / "backend.log"
        )
    with backend:
        yield backend.url


def prepare(demo: Demo, label_studio: LabelStudio, backend_url: str) -> dict[str, Prepared]:
    """Make the projects, with drafted tasks.

    Args:
        demo: Where things are.
        label_studio: Where the projects are made.
        backend_url: What drafts.
    Returns:
        What was prepared, by case.
    Raises:
        ServiceError: A step failed.
    """
    cases = Cases(ROOT / "label_config")
    prepared = {}
    for title, name, count in PROJECTS:
        truths = list(generate(name, "held_out", count, SEED))
        rows = demo.folder / f"{name}.jsonl"
        rows.write_bytes(b"".join(orjson.dumps({"text": truth.text}) + b"\n" for truth in truths))
        project = demo.set_up(label_studio, title, name, backend_url)
        with demo.step("draft through Label Studio"):
            demo.verb("import_tasks", "--project", project.id, "--limit", ASKED_BY_LABEL_STUDIO, rows)
            ids = [task["id"] for task in label_studio.tasks(project)]
            label_studio.retrieve_predictions(project, ids[:ASKED_BY_LABEL_STUDIO])
        with demo.step("import tasks"):
            demo.verb("import_tasks", "--project", project.id, rows)
        with demo.step("draft in bulk"):
            demo.verb("prelabel", "--project", project.id, "--out", demo.folder / f"{name}-records.jsonl")
        prepared[name] = Prepared(project, cases.get(name), truths)
    return prepared


def finish(demo: Demo, label_studio: LabelStudio, prepared: dict[str, Prepared]) -> dict[str, dict[str, Any]]:
    """Correct a part as annotators would, sync, and measure.

    Args:
        demo: Where things are.
        label_studio: Where the projects are.
        prepared: What `prepare` gave.
    Returns:
        Figures by case.
    Raises:
        ServiceError: A step failed, or something did not really happen.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, one in prepared.items():
        known = {truth.text: truth.value for truth in one.truths}
        with demo.step("correct"):
            tasks = list(label_studio.tasks(one.project, full=True))
            submitted = correct(label_studio, one.case, tasks[: round(len(tasks) * CORRECTED_SHARE)], known)
        with demo.step("sync"):
            demo.verb("sync", "--project", one.project.id, "--out", demo.folder / "dataset" / name)
        manifest = json.loads((demo.folder / "dataset" / name / "manifest.json").read_text(encoding="utf-8"))
        summary[name] = measure(one.case, tasks, known) | submitted
        summary[name] |= {"exported": manifest["counts"]["samples"]}
        wrong = _what_is_missing(summary[name], len(one.truths))
        if wrong:
            raise ServiceError(f"Project '{name}': {wrong}.", hint=f"Look at the logs in {demo.folder}.")
    return summary


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
    figures = {
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
        figures["span_f1"] = round(span_f1(drafts, truths, "entities"), 4)
    return figures


def _what_is_missing(row: dict[str, Any], count: int) -> str:
    for key, expected in (("tasks", count), ("predictions", count), ("exported", row["submitted"])):
        if row[key] != expected:
            return f"{row[key]} {key}, expected {expected}"
    return "" if row["corrections"] else "nothing was corrected"
