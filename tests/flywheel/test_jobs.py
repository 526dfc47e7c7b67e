"""A job from Label Studio's button to new drafts, with a real training: begun once, killed, gone on with."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from demo.corpus import generate
from draftloop.dataset.sample import present
from draftloop.labelling.labelling import Task
from tests.conftest import LabelStudioServer, ModelServer
from tests.faults import connect, opened, until
from tests.promotions import COMPLAINT, TASKS, Stage, press_train, staged

CORRECTED = 330
RECIPE = "--set epochs=3 --set learning_rate=2e-3 --set checkpoint_steps=2"


def correct(stage: Stage) -> None:
    """Have humans submit answers for texts of a kind that the model never saw."""
    rows = []
    for text in generate("complaint", "held_out", CORRECTED, 0):
        task = Task(0, {"text": text.text, "draft_status": ""})
        result = COMPLAINT.labelling.to_regions(present(text.value), task).regions
        rows.append({"data": task.data, "annotations": [{"result": result}]})
    body = json.dumps(rows, ensure_ascii=False).encode()
    stage.studio.send("samples", "POST", f"api/projects/{stage.project.id}/import", body)


def jobs(stage: Stage) -> list[dict[str, Any]]:
    """Ask the backend what became of its jobs, newest first."""
    with stage.asked() as client:
        jobs_: list[dict[str, Any]] = client.get("/jobs").json()["jobs"]
    return jobs_


@pytest.mark.timeout(1800)
def test_a_job_that_was_killed_goes_on_at_the_next_press_and_its_adapter_drafts(
    label_studio: LabelStudioServer, vllm: ModelServer, tmp_path: Path
) -> None:
    home = tmp_path / "flywheel"
    more = {"FLYWHEEL_FOLDER": str(home), "FLYWHEEL_TRAIN": RECIPE}
    with staged(label_studio, vllm, {}, tmp_path, **more) as stage:
        connect(stage.studio, stage.project, stage.backend, "complaint")
        correct(stage)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: press_train(label_studio, stage.project), range(4)))
        assert len(jobs(stage)) == 1
        runs = home / str(stage.project.id) / "runs"
        until(lambda: bool(list(runs.glob("*.part/sft/checkpoint-*/whole.json"))), 600)
        os.kill(int(jobs(stage)[0]["owner"].split(":")[1]), signal.SIGKILL)
        until(lambda: jobs(stage)[0]["state"] == "killed", 30)
        assert stage.drafted_by() == {stage.base}

        press_train(label_studio, stage.project)
        until(lambda: jobs(stage)[0]["state"] != "running", 1200)
        job, before = jobs(stage)
        assert (job["state"], before["state"]) == ("promoted", "killed"), job
        log = (home / str(stage.project.id) / f"job-{job['id']}.log").read_text()
        assert "going on after step" in log
        (version,) = stage.drafted_by()
        assert job["told"] == f"{version[:-11]} drafts."
        assert stage.shown() == version
        drafted = stage.predictions()[:TASKS]
        assert drafted[2:] == [[stage.base, version]] * (TASKS - 2)
        fresh = next(iter(stage.studio.import_tasks(stage.project, [{"text": "你好", "draft_status": ""}])))
        opened(stage.studio, fresh[0])
        assert stage.predictions()[-1] == [version]
