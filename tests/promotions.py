"""What promotions are tried on: datasets that are all held out, and a project that the base model drafts."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from demo.corpus import Generated, generate
from draftloop.cli import servers
from draftloop.dataset.corpus import Settled
from draftloop.dataset.folder import Lines
from draftloop.dataset.gates import Annotation, judge
from draftloop.dataset.records import State, append_record, index_record, write
from draftloop.dataset.sample import Sample, Split, present
from draftloop.flywheel.adapters import Adapters
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import LabelStudio, Project
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case
from draftloop.support.environments import ROOT
from tests.adapters import pointed_at
from tests.conftest import BackendServer, LabelStudioServer, ModelServer, backend_server, backend_settings
from tests.verbs import environment, run_here

CASES = Cases(ROOT / "label_config")
COMPLAINT = CASES.get("complaint")
TASKS = 6  # the first has an annotation, the second a saved draft of one
HELD_OUT = 24


def of_truths(folder: Path, *cases: tuple[Case, Iterable[Generated]], project: int = 1) -> Path:
    """Write a dataset whose samples are all held out: what a human submitted for generated texts."""
    samples: list[Sample] = []
    for case, truths in cases:
        for truth in truths:
            number = len(samples) + 1
            task = Task(number, {"text": truth.text})
            regions = case.labelling.to_regions(present(truth.value), task).regions
            sample = judge(Annotation(number, project, task, regions, cancelled=False), case)
            assert isinstance(sample, Sample), sample
            samples.append(sample)
    folder.mkdir(parents=True)
    splits: dict[int, Split] = {sample.annotation: "test" for sample in samples}
    with Lines(folder) as lines:
        rows = {sample.annotation: append_record(lines, index_record(sample)) for sample in samples}
        write(folder, lines, State(rows=rows), Settled(splits, {}))
    return folder


@dataclass
class Stage:
    """What a promotion needs, on real servers; `base` is the version that drafts at first."""

    studio: LabelStudio
    project: Project
    backend: BackendServer
    env: dict[str, str]
    ledger: Ledger
    adapters: Adapters
    vllm: ModelServer
    dataset: Path
    records: Path
    base: str = ""

    def promote(self, *arguments: object) -> tuple[int, str, str]:
        """Run draftloop promote on the project; return exit code, stdout and stderr."""
        where = ("--project", self.project.id, "--out", self.records)
        return run_here(self.env, "promote", *arguments, *where)

    def predictions(self) -> list[list[str]]:
        """Return the versions of each task's predictions, oldest first."""
        tasks = self.studio.tasks(self.project, full=True)
        return [
            [one["model_version"] for one in sorted(task["predictions"], key=lambda one: int(one["id"]))]
            for task in tasks
        ]

    def shown(self) -> str:
        """Return the version whose scores the project's tabs show."""
        return self.studio.project(self.project.id).model_version

    def asked(self) -> httpx.Client:
        """Open the backend as Label Studio does."""
        login = (self.backend.user, self.backend.password)
        return httpx.Client(base_url=self.backend.url, auth=login, timeout=90, trust_env=False)

    def drafted_by(self) -> set[str]:
        """Ask the backend for a draft: the version that it states, and that of the draft."""
        about = {"project": f"{self.project.id}.1", "extra_params": {"case": "complaint"}}
        data = {"text": "我叫王小明,快递没到!", "draft_status": ""}
        with self.asked() as client:
            stated = client.post("/setup", json={**about, "schema": self.project.label_config})
            task = {"id": time.time_ns() % 10**9, "data": data}
            body = {**about, "tasks": [task], "label_config": self.project.label_config}
            results = client.post("/predict", json=body).json()["results"]
        return {stated.json()["model_version"], *(result["model_version"] for result in results)}


def press_train(server: LabelStudioServer, project: Project) -> None:
    """Press "Start Training" in the menu of the project's backend."""
    (backend,) = server.sdk.ml.list(project=project.id)
    assert backend.id is not None
    server.sdk.ml.train(backend.id)


@contextmanager
def staged(
    label_studio: LabelStudioServer,
    vllm: ModelServer,
    runs: Mapping[str, Path],
    folder: Path,
    **more: str,
) -> Iterator[Stage]:
    """Set the stage in a folder; the runs say that they were trained on its dataset."""
    registry = folder / "registry"
    settings = backend_settings(
        label_studio, vllm, folder, MODEL_MAX_TOKENS="200", ADAPTERS_DIR=str(registry), **more
    )
    env = environment(label_studio, folder, **settings)
    dataset = of_truths(folder / "dataset", (COMPLAINT, generate("complaint", "held_out", HELD_OUT, 1)))
    for made in runs.values():
        pointed_at(made, dataset)
    with (
        LabelStudio(label_studio.url, label_studio.token) as studio,
        servers.start_backend(settings, log=folder / "backend.log", workers=2) as server,
    ):
        project = studio.create_project(f"promote {time.time_ns()}", CASES.config("complaint"))
        rows = [{"text": f"我叫张三{n},快递还没到!", "draft_status": ""} for n in range(TASKS)]
        list(studio.import_tasks(project, rows))
        records = folder / "records.jsonl"
        code, _, err = run_here(env, "prelabel", "--project", project.id, "--out", records)
        assert code == 0, err
        first, second, *_ = studio.tasks(project)
        studio.submit_annotation(first["id"], [])
        begun = json.dumps({"result": [], "lead_time": 1}).encode()
        studio.send("a draft", "POST", f"api/tasks/{second['id']}/drafts", begun)
        stage = Stage(
            studio,
            studio.project(project.id),
            backend_server(server.url, settings, server.log),
            env,
            Ledger(settings["LEDGER_URL"]),
            Adapters(registry),
            vllm,
            dataset,
            records,
        )
        (stage.base,) = stage.drafted_by()
        yield stage
