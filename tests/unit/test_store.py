"""Bulk drafts of code tasks: what came of the code stands in a task before its prediction does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from draftloop.drafting.bulk import Drafted, Records, Store
from draftloop.drafting.drafts import Draft
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import LabelStudio, Project
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.cases import Cases
from draftloop.runs.run import NO_RUN, RUN_KEY, Run
from tests import code_runs

CASE = Cases(Path(__file__).parents[2] / "label_config").get("code_analysis")
DATA = {**NO_RUN, "instruction": "Count", "draft_status": ""}
RUN = code_runs.run()


class Board:
    """Label Studio, as far as drafts are stored in it; remembers the order."""

    def __init__(self) -> None:
        self.order: list[tuple[str, Any]] = []

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        self.order.append((f"data {task_id}", dict(data)))

    def import_predictions(self, project: Project, predictions: Sequence[Any], *, unjudged: Any) -> list[int]:
        self.order.append(("predictions", [one["task"] for one in predictions]))
        return []


def publish(run: Run) -> dict[str, Any]:
    return {**NO_RUN, RUN_KEY: run.key}


def test_runs_are_shown_before_their_predictions_and_old_ones_are_taken_away(tmp_path: Path) -> None:
    board = Board()
    project = Project(7, "Code", "", "<View/>", "")
    records, ledger = Records(tmp_path / "records.jsonl"), Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with Store(cast("LabelStudio", board), project, CASE, records, ledger, publish) as store:
        store.add(Task(1, DATA), Draft(1, "ok", "v", value={"code": "1"}, run=RUN))
        store.add(Task(2, {**DATA, **publish(RUN)}), Draft(2, "ok", "v", value={"code": "2"}))
        store.add(Task(3, DATA), Draft(3, "ok", "v", value={"code": "3"}))
        store.add(Task(4, DATA), Draft(4, "failed", "v", run=RUN))
    assert board.order == [
        ("data 1", {**DATA, RUN_KEY: RUN.key}),
        ("data 2", DATA),
        ("predictions", [1, 2, 3]),
    ]


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
