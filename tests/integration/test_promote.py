"""scripts/promote on real servers: what is worse is refused, what is better drafts, and it goes back.

The adapters are PEFT's (tests/consumers/peft_adapters.py): `zero` drafts as the base does, `worse` worse than
it. So `zero` is better than a project's version by construction once `worse` is that version.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.core.prompting import Promoted
from backend.edge.adapters import Adapters
from backend.edge.cases import Cases
from backend.edge.labelstudio import LabelStudio, Project
from backend.edge.ledger import Ledger
from models.corpus import generate
from scripts import servers
from tests.adapters import peft_runs, pointed_at
from tests.conftest import BackendServer, LabelStudioServer, ModelServer, backend_server, backend_settings
from tests.datasets import of_truths
from tests.verbs import environment, kill, run, start

CASES = Cases(servers.ROOT / "label_config")
COMPLAINT = CASES.get("complaint")
TASKS = 6  # the first has an annotation, the second a saved draft of one


@dataclass
class Stage:
    """A project drafted by the base, its backend, and a dataset that holds out what the model never saw."""

    studio: LabelStudio
    project: Project
    backend: BackendServer
    env: dict[str, str]
    ledger: Ledger
    adapters: Adapters
    vllm: ModelServer

    def promote(self, *arguments: object) -> tuple[int, str, str]:
        return run(self.env, "promote", *arguments, "--project", self.project.id)

    def predictions(self) -> list[list[str]]:
        """Give the versions of each task's predictions, oldest first."""
        tasks = self.studio.tasks(self.project, full=True)
        return [
            [one["model_version"] for one in sorted(task["predictions"], key=lambda one: int(one["id"]))]
            for task in tasks
        ]

    def shown(self) -> str:
        return self.studio.project(self.project.id).model_version

    def drafted_by(self) -> set[str]:
        """Ask the backend as Label Studio does: the version that it states, and those of its drafts."""
        with httpx.Client(
            base_url=self.backend.url, auth=(self.backend.user, self.backend.password)
        ) as client:
            about = {"project": f"{self.project.id}.1", "extra_params": {"case": "complaint"}}
            stated = client.post("/setup", json={**about, "schema": self.project.label_config}, timeout=60)
            task = {
                "id": time.time_ns() % 10**9,
                "data": {"text": "我叫王小明,快递没到!", "draft_status": ""},
            }
            body = {**about, "tasks": [task], "label_config": self.project.label_config}
            found = client.post("/predict", json=body, timeout=90).json()["results"]
        return {stated.json()["model_version"], *(result["model_version"] for result in found)}


@pytest.fixture
def stage(
    label_studio: LabelStudioServer, vllm: ModelServer, runs: dict[str, Path], tmp_path: Path
) -> Iterator[Stage]:
    adapters = {"ADAPTERS_DIR": str(tmp_path / "registry")}
    settings = backend_settings(label_studio, vllm, tmp_path, MODEL_MAX_TOKENS="200", **adapters)
    env = environment(label_studio, tmp_path, **settings)
    dataset = of_truths(tmp_path / "dataset", (COMPLAINT, generate("complaint", "held_out", 24, 1)))
    for made in runs.values():
        pointed_at(made, dataset)
    with (
        LabelStudio(label_studio.url, label_studio.token) as studio,
        servers.start_backend(settings, log=tmp_path / "backend.log", workers=2) as server,
    ):
        project = studio.create_project(f"promote {time.time_ns()}", CASES.config("complaint"))
        rows = [{"text": f"我叫张三{n},快递还没到!", "draft_status": ""} for n in range(TASKS)]
        list(studio.import_tasks(project, rows))
        code, _, err = run(env, "prelabel", "--project", project.id, "--out", tmp_path / "records.jsonl")
        assert code == 0, err
        first, second, *_ = studio.tasks(project)
        studio.submit_annotation(first["id"], [])
        studio.send(
            "a draft",
            "POST",
            f"api/tasks/{second['id']}/drafts",
            json.dumps({"result": [], "lead_time": 1}).encode(),
        )
        yield Stage(
            studio,
            studio.project(project.id),
            backend_server(server.url, settings, server.log),
            env,
            Ledger(settings["LEDGER_URL"]),
            Adapters(tmp_path / "registry"),
            vllm,
        )


def test_what_is_worse_is_refused_what_is_better_drafts_and_is_rolled_back(
    stage: Stage, runs: dict[str, Path], tmp_path: Path
) -> None:
    (base,) = stage.drafted_by()
    assert stage.shown() == base
    records = ("--out", tmp_path / "records.jsonl")

    # Stopped while it measures: nothing has changed.
    process = start(stage.env, "promote", runs["worse"], "--project", stage.project.id, *records)
    assert process.stderr is not None
    while "measuring" not in process.stderr.readline():
        assert process.poll() is None
    kill(process)
    assert stage.ledger.promoted(stage.project.id) is None

    code, out, err = stage.promote(runs["worse"], *records)
    assert code == 3, err
    assert "not surely better" in out
    assert stage.drafted_by() == {base}
    assert stage.predictions() == [[base]] * TASKS

    # Its project is given the refused one by hand: what drafts as the base does is better than that.
    (refused,) = [name for name in stage.adapters.folder.iterdir() if stage.adapters.find(name.name)]
    stage.ledger.promote(stage.project.id, Promoted(refused.name, "compact"))
    (worse,) = stage.drafted_by()
    assert worse.startswith(f"{refused.name}-")
    code, out, err = stage.promote(runs["zero"], *records)
    assert code == 0, out + err
    (zero,) = stage.drafted_by()
    assert f"promoted: {zero[:-11]}, version {zero}" in out
    assert stage.shown() == zero
    begun, fresh = [[base]] * 2, [[base, zero]] * (TASKS - 2)
    assert stage.predictions() == begun + fresh
    entry = stage.adapters.journal()[-2]
    assert (entry["action"], entry["instead_of"]) == ("promote", refused.name)
    assert stage.adapters.evidence(entry["evidence"]).is_file()

    # A model server that was restarted has no adapters; whoever asks first gives it this one again.
    stage.vllm.process.stop()
    stage.vllm.process.start()
    assert stage.drafted_by() == {zero}

    code, out, err = stage.promote("--rollback", *records)
    assert code == 0, out + err
    assert stage.drafted_by() == {worse}
    assert stage.shown() == worse
    code, out, err = stage.promote("--rollback", *records)
    assert code == 0, out + err
    assert stage.drafted_by() == {base}
    assert stage.shown() == base
    assert stage.predictions() == begun + [[base, zero, worse]] * (TASKS - 2)
    code, _, err = stage.promote("--rollback")
    assert code == 1
    assert "nothing to roll back" in err
    code, out, _ = run(stage.env, "promote", "--list")
    actions = [line.split("  ")[2].split()[0] for line in out.splitlines()]
    assert actions == ["refuse", "promote", "draft", "roll", "draft", "roll", "draft"]


def test_an_adapter_that_the_server_does_not_take_is_refused_in_words(stage: Stage, tmp_path: Path) -> None:
    run_ = pointed_at(peft_runs(tmp_path / "high", rank=32)["zero"], tmp_path / "dataset")
    code, out, err = stage.promote(run_)
    assert (code, out) == (1, "")
    assert "LoRA rank 32 is greater than max_lora_rank" in err
    assert "--max-lora-rank" in err
    assert "Traceback" not in err
    assert stage.ledger.promoted(stage.project.id) is None


def test_help_shows_examples_and_wrong_usage_is_told(tmp_path: Path) -> None:
    env: dict[str, Any] = {"PATH": "/usr/bin", "PYTHONPATH": str(servers.ROOT)}
    code, out, _ = run(env, "promote", "--help")
    assert code == 0
    assert "scripts/promote --rollback --project 7" in out
    for arguments in ([], ["run"], ["run", "--project", 1, "--rollback"], ["--project", 1]):
        assert run(env, "promote", *arguments)[0] == 2
