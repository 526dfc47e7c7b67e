"""Label Studio's button, and new annotations, on real servers: one job at a time, drafts go on meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from draftloop.labelstudio import LabelStudio
from tests.conftest import LabelStudioServer, ModelServer, backend_settings
from tests.faults import backend_with, connect, project_of, until
from tests.promotions import press_train
from tests.verbs import environment, run_here


def test_the_button_starts_one_job_however_many_press_it_and_a_new_annotation_the_next(
    label_studio: LabelStudioServer, vllm: ModelServer, tmp_path: Path
) -> None:
    """A project with few annotations is not trained; /jobs and the log say why."""
    settings = backend_settings(
        label_studio,
        vllm,
        tmp_path,
        ADAPTERS_DIR=str(tmp_path / "registry"),
        FLYWHEEL_FOLDER=str(tmp_path / "flywheel"),
        FLYWHEEL_AFTER="1",
    )
    with (
        LabelStudio(label_studio.url, label_studio.token) as studio,
        backend_with(settings, tmp_path, workers=2) as backend,
    ):
        project, tasks = project_of(studio, "complaint", 2)
        connect(studio, project, backend.server, "complaint")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: press_train(label_studio, project), range(4)))
        (job,) = backend.get(f"/jobs?project={project.id}").json()["jobs"]
        assert (job["state"], job["why"]) == ("running", "Label Studio's button")
        studio.retrieve_predictions(project, tasks)  # meanwhile drafts are made as always
        assert all(task["predictions"] for task in studio.tasks(project, full=True))

        def ended() -> bool:
            return bool(backend.get("/jobs").json()["jobs"][0]["state"] != "running")

        until(ended)
        (job,) = backend.get("/jobs").json()["jobs"]
        assert (job["state"], job["step"]) == ("failed", "train")
        assert job["told"].startswith("draftloop train failed")
        assert job["told"] in backend.log()
        assert f'"doing": "begun by {job["why"]}"' in backend.log()
        env = environment(label_studio, tmp_path, **settings)
        code, out, _ = run_here(env, "retrain", "--list")
        assert code == 0
        assert f"project {project.id}  failed (train), by Label Studio's button" in out

        studio.submit_annotation(tasks[0], [])
        until(lambda: len(backend.get("/jobs").json()["jobs"]) == 2)
        assert backend.get("/jobs").json()["jobs"][0]["why"] == "new annotations: 1"
        until(ended)
