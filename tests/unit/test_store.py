"""Bulk drafts: which tasks are drafted, where each draft is stored, and in which order."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from draftloop.drafting.bulk import Drafted, PredictionStore, Records, draft_project
from draftloop.drafting.drafts import Draft, failed
from draftloop.drafting.versions import Version
from draftloop.errors import ServiceError
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import Project
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case
from draftloop.runs.run import NO_RUN, RUN_KEY, Run
from tests import code_runs

CASE = Cases(Path(__file__).parents[2] / "label_config").get("code_analysis")
DATA = {**NO_RUN, "instruction": "Count", "draft_status": ""}
RUN = code_runs.run()
PROJECT = Project(7, "Code", "", "<View/>", "")


class Board:
    """A project of Label Studio in memory; remembers the order of what is written."""

    def __init__(self, tasks: Iterable[Task] = (), refuses: Collection[int] = ()) -> None:
        self.data = {task.id: task.data for task in tasks}
        self.refuses = refuses
        self.predicted: dict[int, str] = {}  # version by task
        self.shown_version = ""
        self.order: list[tuple[str, Any]] = []

    def tasks(
        self, project: Project, *, lacking: str | None = None, unbegun: bool = False
    ) -> Iterator[dict[str, Any]]:
        for number, data in self.data.items():
            if lacking is None or self.predicted.get(number) != lacking:
                yield {"id": number, "data": data}

    def count_tasks(self, project: Project, *, lacking: str | None = None, unbegun: bool = False) -> int:
        return len(list(self.tasks(project, lacking=lacking)))

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        self.order.append((f"data {task_id}", dict(data)))

    def import_predictions(
        self, project: Project, predictions: Sequence[Mapping[str, Any]], *, unjudged: Collection[str] = ()
    ) -> list[int]:
        self.order.append(("predictions", [one["task"] for one in predictions]))
        taken = [one for one in predictions if one["task"] not in self.refuses]
        self.predicted |= {one["task"]: one["model_version"] for one in taken}
        return [one["task"] for one in predictions if one not in taken]

    def set_model_version(self, project: Project, version: str) -> None:
        self.shown_version = version


class Stream:
    """Drafts every task `ok`, or every one `failed`."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.drafted: list[int] = []

    def version(self, case: Case) -> Version:
        return Version("model-0123456789", {"model": "model"})

    def stream(self, case: Case, tasks: Iterable[Task], version: Version | None = None) -> Iterator[Draft]:
        name = self.version(case).name
        for task in tasks:
            self.drafted.append(task.id)
            yield (
                failed(task.id, name, "down")
                if self.fails
                else Draft(task.id, "ok", name, value={"code": ""})
            )


def publish(run: Run) -> dict[str, Any]:
    return {**NO_RUN, RUN_KEY: run.key}


def opened(folder: Path, board: Board) -> PredictionStore:
    ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite3")
    return PredictionStore(board, PROJECT, CASE, Records(folder / "records.jsonl"), ledger, publish)


def test_runs_are_shown_before_their_predictions_and_old_ones_are_taken_away(tmp_path: Path) -> None:
    board = Board()
    with opened(tmp_path, board) as store:
        store.add(Task(1, DATA), Draft(1, "ok", "v", value={"code": "1"}, run=RUN))
        store.add(Task(2, {**DATA, **publish(RUN)}), Draft(2, "ok", "v", value={"code": "2"}))
        store.add(Task(3, DATA), Draft(3, "ok", "v", value={"code": "3"}))
        store.add(Task(4, DATA), Draft(4, "failed", "v", run=RUN))
    assert board.order == [
        ("data 1", {**DATA, RUN_KEY: RUN.key}),
        ("data 2", DATA),
        ("predictions", [1, 2, 3]),
    ]


def test_a_project_is_drafted_where_it_lacks_drafts_and_its_version_is_shown(tmp_path: Path) -> None:
    board, stream, lines = Board(Task(number, DATA) for number in range(1, 6)), Stream(), list[str]()
    board.predicted[2] = "model-0123456789"
    done = draft_project(stream, CASE, opened(tmp_path, board), limit=3, announce=lines.append)
    assert stream.drafted == [1, 3, 4]
    assert (done.counts, done.is_complete) == ({"ok": 3}, True)
    assert lines == ["version model-0123456789: 5 tasks, 1 drafted already, 3 to draft"]
    assert board.shown_version == "model-0123456789"
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    assert ledger.manifest("model-0123456789") == {"model": "model"}
    assert [len(ledger.drafts_of(number, 7)) for number in range(1, 6)] == [1, 0, 1, 1, 0]
    draft_project(stream, CASE, opened(tmp_path, board), again=True)
    assert stream.drafted[3:] == [1, 2, 3, 4, 5]


def test_refused_predictions_are_counted(tmp_path: Path) -> None:
    board = Board([Task(1, DATA), Task(2, DATA)], refuses={2})
    done = draft_project(Stream(), CASE, opened(tmp_path, board))
    assert (done.refused, done.is_complete) == ([2], False)


def test_nothing_is_drafted_any_more_after_many_failures_in_a_row(tmp_path: Path) -> None:
    board, stream = Board(Task(number, DATA) for number in range(50)), Stream(fails=True)
    with pytest.raises(ServiceError, match="20 drafts in a row failed"):
        draft_project(stream, CASE, opened(tmp_path, board))
    assert len(stream.drafted) == 20
    assert (board.order, board.shown_version) == ([("predictions", [])], "")


def test_what_was_drafted_is_described_with_its_rate_and_what_label_studio_refused() -> None:
    drafted = Drafted({"ok": 3, "invalid": 1}, 2.0, [])
    assert drafted.is_complete
    assert list(drafted.describe()) == [
        "4 drafted in 2.0 s (2.0/s): 3 ok, 1 invalid, 0 undecodable, 0 failed"
    ]
    refused = Drafted({"ok": 3}, 2.0, [17, 18])
    assert not refused.is_complete
    assert list(refused.describe())[1] == "Label Studio refused the drafts of 2 tasks, as of 17"
    assert not Drafted({"ok": 3, "failed": 1}, 2.0, []).is_complete
