"""Code tasks over Label Studio's wire: opened, run by hand, redrafted; what the task's data shows then."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.errors import SetupError
from draftloop.execution.runner import Execution, Runner
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.runs.run import NO_RUN, RUN_KEY, Run, run_key
from draftloop.serving.answers import Answers
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.web import WebApp
from tests.code_runs import sha256
from tests.fake_board import FakeBoard
from tests.fake_sandbox import FakeLoop, FakeSandbox, FakeStore, python
from tests.fake_vllm import FakeVllm, fake_vllm

CASES = Cases(Path(__file__).parents[2] / "label_config")
CASE = CASES.get("code_analysis")
DATA = {**NO_RUN, "instruction": "Count", "input_schema": "", "input_preview": "", "draft_status": ""}
WORKS = "# print 42"


def key(code: str) -> str:
    return run_key([python(code)], ())


def publish(run: Run) -> dict[str, Any]:
    return {**NO_RUN, RUN_KEY: run.key, "run_output": run.last.stdout, "run_charts": [f"/{run.key[:6]}.png"]}


class Desk:
    """A backend before fakes, and what it is asked."""

    def __init__(
        self, fake: FakeVllm, folder: Path, mode: Literal["auto", "ask"] | None, deadline_s: float = 5
    ) -> None:
        self.fake, self.sandbox, self.store = fake, FakeSandbox(), FakeStore()
        self.board = FakeBoard(config=CASES.config("code_analysis"), tasks={1: dict(DATA)})
        self.model = VllmModel(fake.url, fake.name)
        runner = Runner(self.sandbox, FakeLoop(), self.store, inputs_root=folder, total_s=20)
        self.drafter = Drafter(
            self.model,
            AskOptions(max_tokens=2000),
            concurrency=4,
            execution=Execution(runner, mode) if mode else None,
        )
        ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite3")
        self.answers = Answers(
            self.drafter, ledger, CASES.find, self.board, deadline_s=deadline_s, publish=publish
        )
        self.client: FlaskClient = (
            WebApp(ProtocolServer(self.drafter, CASES, ledger, self.answers)).wsgi().test_client()
        )

    def predict(self, *context: dict[str, Any]) -> Any:
        """Ask for the task as it is on the board now, with regions where a human asks."""
        held = {"id": 1, "data": dict(self.board.tasks[1]), "annotations": [], "predictions": []}
        params = {"context": {"result": list(context)} if context else None}
        body = {"tasks": [held], "project": "7.1", "label_config": self.board.config, "params": params}
        answer = self.client.post("/predict", json=body)
        assert answer.status_code == 200
        (item,) = answer.get_json()["results"]
        return item

    @property
    def shown(self) -> dict[str, Any]:
        return dict(self.board.tasks[1])

    def close(self) -> None:
        self.drafter.close()
        self.model.close()


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(context_tokens=20_000) as server:
        server.answer = lambda _: CASE.labelling.encode({"code": WORKS})
        yield server


@pytest.fixture
def desk(fake: FakeVllm, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(fake, tmp_path, "auto")
    yield made
    made.close()


def field(name: str, *texts: str) -> dict[str, Any]:
    value = {"text": [*texts]}
    return {"from_name": name, "to_name": "instruction", "type": "textarea", "id": name, "value": value}


def console(item: dict[str, Any]) -> str:
    (words,) = [region["value"]["text"][0] for region in item["result"] if region["from_name"] == "console"]
    return str(words)


def test_an_opened_task_shows_the_code_and_what_came_of_it(desk: Desk) -> None:
    item = desk.predict()
    assert [(region["from_name"], region["value"]) for region in item["result"]] == [
        ("code", {"text": [WORKS]})
    ]
    assert item["score"] > 0
    assert desk.shown == {**DATA, **publish(desk.store.runs[key(WORKS)])}


def test_code_that_does_not_work_is_shown_with_its_output_and_why(desk: Desk) -> None:
    desk.fake.answer = lambda _: CASE.labelling.encode({"code": "# print 1\n# fail x"})
    assert desk.predict()["score"] == 0
    assert "KeyError: x" in desk.shown["draft_status"]
    assert desk.shown["run_output"] == "1\n"


@pytest.mark.parametrize("mode", ["auto", "ask"])
def test_edited_code_is_run_exactly_and_the_page_is_answered_without_it(
    fake: FakeVllm, tmp_path: Path, mode: Literal["auto", "ask"]
) -> None:
    desk = Desk(fake, tmp_path, mode)
    desk.predict()
    asked = len(fake.asked)
    edited = "# print mine\n# print yours"
    verdict = {
        "from_name": "verdict",
        "to_name": "instruction",
        "type": "choices",
        "id": "v",
        "value": {"choices": ["pass"]},
    }
    item = desk.predict(field("code", edited), verdict)
    assert len(fake.asked) == asked, "no model is asked"
    assert [region["from_name"] for region in item["result"]] == ["console"]
    assert "mine\nyours" in console(item)
    assert desk.store.runs[key(edited)].origin == "human"
    assert (desk.shown[RUN_KEY], desk.shown["run_output"]) == (key(edited), "mine\nyours\n")
    assert desk.shown["draft_status"] == ""
    ran = len(desk.sandbox.jobs)
    assert "mine" in console(desk.predict(field("code", edited + "\n")))
    assert len(desk.sandbox.jobs) == ran, "what ran already is not run again"
    desk.predict(field("code", WORKS))
    assert desk.shown[RUN_KEY] == key(WORKS), "back to the draft's code: its run is shown again"
    assert len(desk.sandbox.jobs) == ran + (mode == "ask")
    desk.close()


def test_edited_code_that_fails_says_so_in_the_page_and_in_the_status(desk: Desk) -> None:
    desk.predict()
    item = desk.predict(field("code", "# exit 7"))
    assert console(item).startswith("exit status 7")
    assert "exit status 7" in desk.shown["draft_status"]


def test_a_sandbox_that_refuses_says_so_where_the_annotator_looks(desk: Desk) -> None:
    desk.sandbox.trouble = SetupError("This kernel has no Landlock.")
    item = desk.predict()
    assert item["score"] == 0
    assert "not run: This kernel has no Landlock." in desk.shown["draft_status"]
    assert "not run: This kernel" in console(desk.predict(field("code", "# print 1")))
    assert desk.sandbox.jobs == []


def test_nothing_is_run_where_execution_is_off(fake: FakeVllm, tmp_path: Path) -> None:
    desk = Desk(fake, tmp_path, None)
    assert desk.predict()["result"]
    assert desk.predict(field("code", "# print 1")) == {}
    assert desk.board.patched == []
    desk.close()


def test_words_make_other_code_which_is_run_and_shown(desk: Desk) -> None:
    desk.predict()
    other = "# print other"
    desk.fake.answer = lambda _: CASE.labelling.encode({"code": other})
    item = desk.predict(field("code", WORKS), field("prompt", "print other"), field("comment", "hm"))
    by_name = {region["from_name"]: region["value"]["text"][0] for region in item["result"]}
    assert by_name["code"] == other
    assert "other" in by_name["console"]
    assert "comment" not in by_name, "what only humans fill is left alone"
    assert desk.shown[RUN_KEY] == key(other)
    # The words are still in their box when the annotator goes on to edit that code.
    asked = len(desk.fake.asked)
    item = desk.predict(field("code", "# print third"), field("prompt", "print other"))
    assert [region["from_name"] for region in item["result"]] == ["console"]
    assert len(desk.fake.asked) == asked
    desk.predict(field("code", "# print third"), field("prompt", "print other", "and more"))
    assert len(desk.fake.asked) == asked + 1


@pytest.mark.parametrize("regions", [[field("comment", "x")], [field("code", "")], [field("gone", "x")]])
def test_a_page_without_code_runs_nothing(desk: Desk, regions: list[dict[str, Any]]) -> None:
    assert desk.predict(*regions) == {}
    assert desk.sandbox.jobs == []


def test_late_code_is_shown_before_its_prediction_is_stored(fake: FakeVllm, tmp_path: Path) -> None:
    desk = Desk(fake, tmp_path, "auto", deadline_s=0.2)
    fake.delay_s = 0.5
    order: list[str] = []
    stored = threading.Event()
    write, patch = desk.board.write, desk.board.set_task_data

    class Watched(FakeBoard):
        def write(self, project: int, predictions: Any) -> None:
            order.append("prediction")
            write(project, predictions)
            stored.set()

        def set_task_data(self, task_id: int, data: Any) -> None:
            order.append("data")
            patch(task_id, data)

    watched = Watched(config=desk.board.config, tasks=desk.board.tasks)
    ledger = Ledger(f"sqlite:///{tmp_path}/late.sqlite3")
    answers = Answers(desk.drafter, ledger, CASES.find, watched, deadline_s=0.2, publish=publish)
    desk.client = WebApp(ProtocolServer(desk.drafter, CASES, ledger, answers)).wsgi().test_client()
    answers.start()
    assert desk.predict() == {}
    assert stored.wait(20)
    assert order[:2] == ["data", "prediction"]
    assert desk.shown[RUN_KEY] == key(WORKS)
    desk.close()


ENTRY: dict[str, Any] = {"name": "a.csv", "path": "a.csv", "size_bytes": 1, "sha256": "0" * 64}
BAD_INPUTS: list[Any] = [
    [{**ENTRY, "path": 5}],
    [{**ENTRY, "name": 5}],
    [{**ENTRY, "name": "\0"}],
    [{**ENTRY, "name": "\ud800"}],
    [{**ENTRY, "path": "\ud800"}],
    [{**ENTRY, "size_bytes": "x"}],
    [{**ENTRY, "sha256": 5}],
    [{**ENTRY, "more": [1]}],
    [[ENTRY]],
    [ENTRY] * 10_000,
    {"name": 1},
    5,
]


@pytest.mark.parametrize("inputs", BAD_INPUTS, ids=range(len(BAD_INPUTS)))
def test_inputs_of_a_wrong_form_are_one_tasks_reason(desk: Desk, inputs: Any) -> None:
    desk.board.tasks[2] = {**DATA, "inputs": inputs}
    tasks = [{"id": number, "data": dict(data)} for number, data in desk.board.tasks.items()]
    body = {"tasks": tasks, "project": "7.1", "label_config": desk.board.config}
    answer = desk.client.post("/predict", json=body)
    assert answer.status_code == 200
    good, bad = answer.get_json()["results"]
    assert good["score"] > 0
    assert bad["score"] == 0
    assert bad["result"], "the code is shown"
    assert "draftloop import-tasks" in desk.board.tasks[2]["draft_status"]
    # ... and where the annotator has it run.
    context = {"context": {"result": [field("code", "# print 1")]}}
    answer = desk.client.post("/predict", json={**body, "tasks": tasks[1:], "params": context})
    assert answer.status_code == 200
    (item,) = answer.get_json()["results"]
    assert "draftloop import-tasks" in console(item)
    assert len(desk.sandbox.jobs) == 1, "the good one's"


KEYS = (
    "inputs",
    "output_files",
    "run",
    "run_status",
    "run_charts",
    "run_files",
    "input_schema",
    "draft_status",
    "instruction",
)
PARTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES = st.recursive(
    PARTS | st.sampled_from(["\ud800", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ENTRY]), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_whatever_a_tasks_data_holds_the_others_are_drafted(desk: Desk, odd: dict[str, Any]) -> None:
    number = max(desk.board.tasks) + 1  # tasks of an earlier example are claimed
    desk.board.tasks = {number: dict(DATA), number + 1: {**DATA, **odd}}
    tasks = [{"id": number, "data": dict(data)} for number, data in desk.board.tasks.items()]
    body = {"tasks": tasks, "project": "7.1", "label_config": desk.board.config}
    answer = desk.client.post("/predict", json=body)
    assert answer.status_code == 200
    good, _ = answer.get_json()["results"]
    assert good["score"] > 0
    context = {"context": {"result": [field("code", "# print 1")]}}
    answer = desk.client.post("/predict", json={**body, "tasks": tasks[1:], "params": context})
    assert answer.status_code == 200


def test_another_projects_file_is_refused_and_its_runs_are_not_shown(desk: Desk, tmp_path: Path) -> None:
    secret = b"salary\n1\n"
    for name in ("projects/7", "projects/8"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "projects/8/a.csv").write_bytes(secret)
    entry = {"name": "a.csv", "path": "a.csv", "size_bytes": len(secret), "sha256": sha256(secret)}
    desk.board.tasks[1] = {**DATA, "inputs": [entry]}
    refused = [console(desk.predict(field("code", WORKS)))]
    assert desk.sandbox.jobs == []
    # Its own project runs it; the run is stored, and still not shown to the other one.
    body = {"tasks": [{"id": 5, "data": {**DATA, "inputs": [entry]}}], "label_config": desk.board.config}
    answer = desk.client.post("/predict", json={**body, "project": "8.1"})
    assert answer.get_json()["results"][0]["score"] > 0
    assert len(desk.sandbox.jobs) == 1
    refused.append(console(desk.predict(field("code", WORKS))))
    for wrong in (
        {"path": "projects/8/a.csv"},
        {"path": "gone.csv"},
        {"size_bytes": 1},
        {"sha256": "0" * 64},
    ):
        desk.board.tasks[1] = {**DATA, "inputs": [{**entry, **wrong}]}
        refused.append(console(desk.predict(field("code", WORKS))))
    assert len(desk.sandbox.jobs) == 1
    assert refused == [refused[0]] * len(refused), "it does not tell what is there"
    assert "not among the project's files" in refused[0]
    assert "salary" not in str(desk.shown)
