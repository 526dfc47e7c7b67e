"""A cascade on two real vLLM: a threshold is chosen; some of a project's tasks are escalated, not all."""

import json
import time
from collections import Counter
from pathlib import Path

import httpx

from demo.corpus import generate
from draftloop.cli import servers
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from draftloop.support.environments import MODELS, ROOT
from tests.conftest import LabelStudioServer, ModelServer, backend_settings, installed
from tests.promotions import of_truths
from tests.verbs import environment, run_here

CASES = Cases(ROOT / "label_config")
SMALL = MODELS / "tiny-qwen3-small"
TASKS = 30


def test_the_small_model_drafts_and_the_larger_one_what_it_is_not_sure_of(
    label_studio: LabelStudioServer, vllm: ModelServer, tmp_path: Path
) -> None:
    truths = list(generate("complaint", "held_out", 60, 5))
    dataset = of_truths(tmp_path / "dataset", (CASES.get("complaint"), truths))
    with (
        installed(),
        servers.start_vllm(SMALL, served_name=SMALL.name, log=tmp_path / "vllm.log") as small,
        LabelStudio(label_studio.url, label_studio.token) as studio,
    ):
        cascade = {"CASCADE_NAME": vllm.name, "CASCADE_URL": vllm.url, "CASCADE_PROFILE": vllm.profile}
        settings = backend_settings(label_studio, vllm, tmp_path, MODEL_MAX_TOKENS="200", **cascade)
        settings |= {"MODEL_NAME": SMALL.name, "MODEL_URL": f"{small.url}/v1"}
        env = environment(label_studio, tmp_path, **settings)
        report = tmp_path / "report"
        code, out, err = run_here(env, "cascade", "--dataset", dataset, "--budget", "0.2", "--out", report)
        assert code == 0, out + err
        choice = json.loads((report / "cascade.json").read_text())
        case = choice["cases"]["complaint"]
        assert case["small"]["accepted"] < case["larger"]["accepted"]
        assert case["chosen"]["harmed_at_most"] <= 0.2
        settings["CASCADE_THRESHOLD"] = env["CASCADE_THRESHOLD"] = str(choice["threshold"])

        project = studio.create_project(f"cascade {time.time_ns()}", CASES.config("complaint"))
        texts = [truth.text for truth in generate("complaint", "held_out", TASKS, 6)]
        list(studio.import_tasks(project, [{"text": text, "draft_status": ""} for text in texts]))
        records = tmp_path / "records.jsonl"
        code, _, err = run_here(env, "prelabel", "--project", project.id, "--out", records)
        assert code == 0, err
        rows = [json.loads(line) for line in records.read_bytes().splitlines()]
        assert len(rows) == TASKS
        assert set(Counter(row["cascade"] for row in rows)) == {"kept", "escalated"}
        assert {row["model"] for row in rows if row["cascade"] == "kept"} == {SMALL.name}
        (version,) = {row["version"] for row in rows}
        tasks = list(studio.tasks(project, full=True))
        assert [[one["model_version"] for one in task["predictions"]] for task in tasks] == [
            [version]
        ] * TASKS

        with servers.start_backend(settings, log=tmp_path / "backend.log") as backend:
            login = (settings["BACKEND_USER"], settings["BACKEND_PASSWORD"])
            with httpx.Client(base_url=backend.url, auth=login, timeout=60, trust_env=False) as client:
                assert client.get("/ready").status_code == 200
                about = {"project": f"{project.id}.1", "schema": project.label_config}
                setup = client.post("/setup", json={**about, "extra_params": {"case": "complaint"}})
                assert setup.json()["model_version"] == version
