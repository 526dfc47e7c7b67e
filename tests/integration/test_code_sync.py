"""Code tasks from draft to sample: real Label Studio, real sandbox, real Open Interpreter, the verbs."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from draftloop.execution.artifacts import Artifacts
from draftloop.execution.interpreter import Interpreter, Interpreters
from draftloop.execution.runner import Runner
from draftloop.execution.sandbox import LastingSandbox, SandboxProcess, fresh_folder
from draftloop.labelling.labelling import STATUS_KEY, Task, Value
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Message
from draftloop.runs.job import Limits, Script
from draftloop.runs.run import NO_RUN, InputFile, run_key
from draftloop.support.environments import ROOT, find_environment
from tests.conftest import LabelStudioServer, installed
from tests.verbs import environment, kill, run, start

CASES = Cases(ROOT / "label_config")
CASE = CASES.get("code_analysis")
TABLE = "城市,金额\n北京,120\n上海,30\n".encode()
SALES = InputFile("销售.csv", "三月/销售.csv", len(TABLE), hashlib.sha256(TABLE).hexdigest())
DRAFT = """
import matplotlib.pyplot as plt
import pandas as pd

sales = pd.read_csv("input/销售.csv")
sales.plot.bar(x="城市", y="金额", title="各城市销售额")
plt.savefig("图.png")
print("sum:", sales["金额"].sum())
""".strip()
EDITED = DRAFT.replace("bar(", "barh(").replace("sum:", "total:")
UNRUN = DRAFT.replace("sum:", "all of it:")
FAILING = DRAFT.replace('print("sum:", sales["金额"]', 'print("sum:", sales["价格"]')
NO_CHART = DRAFT.replace("图.png", "other.png")
TEXT_AS_CHART = 'open("图.png", "w").write("no picture")'


@dataclass
class Desk:
    """A project of code tasks, and what runs their code before the sync: the backend and the annotators."""

    studio: LabelStudio
    project: Project
    runner: Runner
    artifacts: Artifacts
    env: dict[str, str]
    folder: Path

    def submitted(self, value: Value, number: int) -> dict[str, Any]:
        """Import a task, draft it, and submit another value; return the task with its annotation."""
        data = {
            **NO_RUN,
            "instruction": f"画出各城市的销售额 {chr(96 + number) * 30}",
            "inputs": [asdict(SALES)],
            "input_preview": "",
            "input_schema": "销售.csv: 城市, 金额",
            "output_files": ["图.png"],
            STATUS_KEY: "",
        }
        ((task_id,),) = self.studio.import_tasks(self.project, [data])
        prediction = {"task": task_id, "result": self.regions(data, {"code": DRAFT}), "score": 0.9}
        self.studio.import_predictions(self.project, [{**prediction, "model_version": "m-0123456789"}])
        (task,) = self.studio.tasks_by_id(self.project, [task_id], full=True)
        draft = task["predictions"][0]["id"]
        self.studio.submit_annotation(task_id, self.regions(data, value), parent_prediction=draft)
        return task

    def regions(self, data: dict[str, Any], value: Value) -> list[dict[str, Any]]:
        return list(CASE.labelling.to_regions(value, Task(0, data)).regions)

    def sync(self, name: str = "d", *options: object) -> str:
        code, out, err = run(self.env, "sync", *self.arguments(name), *options)
        assert code == 0, err
        return out

    def arguments(self, name: str) -> tuple[object, ...]:
        return ("--project", self.project.id, "--case", "code_analysis", "--out", self.folder / name)

    def lines(self, file: str, name: str = "d") -> list[dict[str, Any]]:
        text = (self.folder / name / file).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    def content(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / name).iterdir()}

    def known_runs(self) -> int:
        return len(list((self.folder / "artifacts" / "runs").glob("*.json")))


@pytest.fixture
def desk(label_studio: LabelStudioServer) -> Iterator[Desk]:
    with installed():
        pythons = [find_environment(name) / "bin" / "python" for name in ("sandbox", "open-interpreter")]
    with tempfile.TemporaryDirectory(prefix="code-sync-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "inputs" / "shared" / "三月").mkdir(parents=True)
        (folder / "inputs" / "shared" / SALES.path).write_bytes(TABLE)
        artifacts = Artifacts(str(folder / "artifacts"))
        sandbox = LastingSandbox(
            lambda: SandboxProcess(pythons[0], fresh_folder(folder / "runs"), inputs=[folder / "inputs"])
        )
        loops = Interpreters(lambda: Interpreter(pythons[1]), 1)
        runner = Runner(
            sandbox,
            loops,
            artifacts,
            inputs_root=folder / "inputs",
            limits=Limits(wall_s=60),
            folder=folder / "runs",
        )
        env = environment(
            label_studio,
            folder,
            ARTIFACTS_URL=artifacts.url,
            INPUT_ROOT=str(folder / "inputs"),
            SANDBOX_FOLDER=str(folder / "runs"),
        )
        with LabelStudio(label_studio.url, label_studio.token) as studio:
            project = studio.create_project(f"code {time.time_ns()}", CASES.config("code_analysis"))
            yield Desk(studio, project, runner, artifacts, env, folder)
        loops.close()
        sandbox.close()


def drafted(desk: Desk) -> None:
    """Run the draft as the backend does: the model's first script has a wrong column."""
    better = [Script(DRAFT)]

    def ask_again(messages: Sequence[Message]) -> Script | None:
        return better.pop() if better else None

    desk.runner.draft("Sum", [SALES], ["图.png"], Script(FAILING), ask_again, limit_s=120)


def test_submitted_code_is_exported_with_its_own_run_or_rejected_with_the_reason_and_sent_back(
    desk: Desk,
) -> None:
    drafted(desk)
    desk.runner.rerun([Script(EDITED)], [SALES], origin="human")
    values: list[Value] = [
        *({"code": code, "verdict": "pass"} for code in (DRAFT, EDITED, UNRUN, FAILING, NO_CHART)),
        {"code": TEXT_AS_CHART},
        {"code": DRAFT, "verdict": "needs_fix", "comment": "per month"},
    ]
    tasks = [desk.submitted(value, number) for number, value in enumerate(values, 1)]

    # Killed once it has stored runs, and started again: stored runs are not run again.
    before = desk.known_runs()
    process = start(desk.env, "sync", *desk.arguments("d"))
    while process.poll() is None and desk.known_runs() < before + 2:
        time.sleep(0.01)
    kill(process)
    assert not (desk.folder / "d" / "manifest.json").exists()
    out = desk.sync()
    assert list((desk.folder / "runs").glob("*-run-*")) == [], "nothing of the killed one stays"
    assert "7 annotations = 3 samples" in out
    assert "code: 7 programs looked at" in out

    by_task = {sample["task"]: sample for sample in desk.lines("samples.jsonl")}
    accepted, edited, unrun = (by_task[task["id"]] for task in tasks[:3])
    assert (accepted["code"], accepted["stdout"], accepted["verdict"]) == (DRAFT, "sum: 150\n", "accepted")
    assert [attempt["outcome"] for attempt in accepted["attempts"]] == ["failed", "ok"]
    assert (edited["code"], edited["stdout"], edited["verdict"]) == (EDITED, "total: 150\n", "corrected")
    assert (unrun["code"], unrun["stdout"]) == (UNRUN, "all of it: 150\n")
    assert [one["metadata"]["run_by"] for one in (accepted, edited, unrun)] == ["draft", "human", "gate"]
    for sample, code in ((edited, EDITED), (unrun, UNRUN)):
        assert sample["metadata"]["run"] == run_key([Script(code)], [SALES])
        assert sample["notes"] == []
        (chart,) = sample["output_files"]
        with desk.artifacts.open(chart["sha256"]) as stream:
            assert stream.read(4) == b"\x89PNG"

    reasons = {record["task"]: (record["gate"], record["reason"]) for record in desk.lines("rejected.jsonl")}
    failing, no_chart, no_picture, not_right = (reasons[task["id"]] for task in tasks[3:])
    assert failing[0] == "code_runs"
    assert "KeyError: '价格'" in failing[1]
    assert no_chart == ("files_exist", "Run again: 图.png is not there")
    assert no_picture[0] == "files_exist"
    assert "does not open as what it claims to be" in no_picture[1]
    assert not_right == ("verdict_passes", "The annotator says needs_fix: per month")

    assert "nothing new" in (again := desk.sync())
    assert "0 runs made just now" in again
    desk.sync("fresh")
    assert desk.content("fresh") == desk.content("d")

    status, out, _ = run(desk.env, "sync", "--out", desk.folder / "d", "--explain", tasks[3]["id"])
    assert (status, "rejected by code_runs" in out) == (0, True)
    status, out, err = run(desk.env, "requeue", "--out", desk.folder / "d", "--gate", "code_runs")
    assert status == 0, err
    assert "1 tasks are sent back" in out
    (task,) = desk.studio.tasks_by_id(desk.project, [tasks[3]["id"]], full=True)
    assert "Sent back by code_runs" in task["data"][STATUS_KEY]
    assert "KeyError" in task["data"][STATUS_KEY]
    desk.studio._sdk.annotations.update(
        task["annotations"][0]["id"], result=desk.regions(task["data"], {"code": EDITED})
    )
    assert "7 annotations = 4 samples" in desk.sync()


def test_without_a_sandbox_code_is_exported_only_where_it_is_decided_and_marked(desk: Desk) -> None:
    desk.submitted({"code": UNRUN, "verdict": "pass"}, 1)
    desk.env["SANDBOX_PYTHON"] = str(desk.folder / "no-python")
    code, _, err = run(desk.env, "sync", *desk.arguments("d"))
    assert code == 1
    assert "--no-rerun" in err
    assert not (desk.folder / "d" / "manifest.json").exists()
    assert "noted by not_run_again: 1 samples" in desk.sync("d", "--no-rerun")
    (sample,) = desk.lines("samples.jsonl")
    assert [note["gate"] for note in sample["notes"]] == ["not_run_again"]
    manifest = json.loads((desk.folder / "d" / "manifest.json").read_bytes())
    assert manifest["options"]["rerun"] is False
