"""Submitted code in sync: run again once, judged, remembered; sandbox and Label Studio are fakes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from draftloop.dataset.records import explain
from draftloop.dataset.reruns import Reruns, Work
from draftloop.dataset.sync import Report, sync
from draftloop.errors import ServiceError, SetupError
from draftloop.execution.runner import Runner
from draftloop.labelling.labelling import Task, Value
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from draftloop.review.queues import stopped_by
from draftloop.runs.job import Attempt, Limits, Script
from draftloop.runs.run import NO_RUN, run_key
from draftloop.support.environments import ROOT
from tests.code_runs import sha256
from tests.fake_label_studio import fake_label_studio
from tests.fake_sandbox import FakeLoop, FakeSandbox, FakeStore, python

CASES = Cases(ROOT / "label_config")
CASE = CASES.get("code_analysis")
DRAFTED = "# print 41\n# leave n.txt"
EDITED = "# print 42\n# leave n.txt"


@dataclass
class Bench:
    """A project of code tasks, numbered from 1; `values` are what was submitted for each."""

    folder: Path
    values: dict[int, Value]
    declared: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    updated_at: str = "2026-01-01T00:00:00.000000Z"
    changed: str = "2026-01-01T00:00:00.000000Z"
    drafted: str = DRAFTED
    store: FakeStore = field(default_factory=FakeStore)
    sandbox: FakeSandbox = field(default_factory=FakeSandbox)
    limits: Limits = field(default_factory=Limits)

    def runner(self) -> Runner:
        return Runner(
            self.sandbox, FakeLoop(), self.store, inputs_root=self.folder / "inputs", limits=self.limits
        )

    def ran(self, code: str) -> None:
        """Run code as the page does for a human."""
        self.runner().rerun([python(code)], [], origin="human")

    def sync(
        self,
        name: str = "d",
        *,
        runner: bool = True,
        there: Callable[[Work], int] | None = None,
        **changes: Any,
    ) -> Report:
        with self._label_studio() as studio:
            reruns = Reruns(self.store, self.runner() if runner else None, jobs=2, remote_runner=there)
            return sync(
                studio,
                CASES,
                self.folder / name,
                [1],
                wanted_case="code_analysis",
                changes=changes,
                make_reruns=lambda: reruns,
            )

    @contextmanager
    def _label_studio(self) -> Iterator[LabelStudio]:
        with fake_label_studio(CASES.config("code_analysis"), len(self.values), self._data) as fake:
            fake.annotations = self._annotations
            fake.changed = lambda _: self.changed
            fake.predictions = lambda number: [
                {"id": number, "result": self._regions(number, {"code": self.drafted}), "model_version": "m"}
            ]
            with LabelStudio(fake.url, "a-token") as studio:
                yield studio

    def _data(self, number: int) -> dict[str, Any]:
        return {
            **NO_RUN,
            "instruction": f"Count {chr(96 + number) * 30}",
            "inputs": [],
            "input_schema": "",
            "input_preview": "",
            "output_files": list(self.declared),
            "draft_status": "",
            **self.data,
        }

    def _regions(self, number: int, value: Value) -> list[dict[str, Any]]:
        return list(CASE.labelling.to_regions(value, Task(number, self._data(number))).regions)

    def _annotations(self, number: int) -> list[dict[str, Any]]:
        entry = {"id": 100 + number, "completed_by": 7, "was_cancelled": False, "parent_prediction": number}
        moments = {"created_at": self.updated_at, "updated_at": self.updated_at}
        return [{**entry, **moments, "result": self._regions(number, self.values[number])}]

    def lines(self, file: str, name: str = "d") -> list[dict[str, Any]]:
        text = (self.folder / name / file).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / "d" / "manifest.json").read_bytes())
        return manifest

    def content(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / name).iterdir()}

    @property
    def scripts(self) -> list[str]:
        """The first script of every job of the sandbox."""
        return [job.scripts[0].code for job in self.sandbox.jobs]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    def make(*codes: str, **more: Any) -> Bench:
        values = {number: {"code": code} for number, code in enumerate(codes, 1)}
        return Bench(tmp_path, **{"values": values, **more})

    return make


def test_a_sample_carries_the_humans_own_run_of_exactly_its_code(bench: Callable[..., Bench]) -> None:
    one = bench(EDITED)
    one.ran(DRAFTED)
    one.ran(EDITED)
    report = one.sync()
    assert (report.programs, report.ran) == (1, 1)
    (sample,) = one.lines("samples.jsonl")
    assert (sample["code"], sample["stdout"], sample["verdict"]) == (EDITED, "42\n", "corrected")
    key = run_key([python(EDITED)], [])
    assert (sample["metadata"]["run"], sample["metadata"]["run_by"]) == (key, "human")
    assert [file["path"] for file in sample["output_files"]] == ["n.txt"]
    assert sample["output_files"][0]["sha256"] in one.store.contents
    job = one.sandbox.jobs[-1]
    assert (job.cold, job.limits.wall_s, job.scripts[0]) == (True, 30.0, python(EDITED))
    history = "\n".join(explain(one.folder / "d", 1))
    assert f"its code was run by human (run {key}): it left n.txt" in history
    assert "code_runs, files_exist" in history


def test_code_without_a_run_gets_the_run_of_the_sync(bench: Callable[..., Bench]) -> None:
    one = bench(EDITED)
    one.sync()
    (sample,) = one.lines("samples.jsonl")
    assert (sample["stdout"], sample["metadata"]["run_by"]) == ("42\n", "gate")
    made = one.store.runs[sample["metadata"]["run"]]
    assert [step.script for step in made.last.steps] == [Script(EDITED)]
    assert [file.path for file in made.last.files] == ["n.txt"]
    one.sync("fresh")
    assert one.content("fresh") == one.content("d")


def test_failing_code_is_rejected_counted_explained_and_sent_back(
    bench: Callable[..., Bench],
) -> None:
    one = bench("# fail 销售额", "# print no file", EDITED, EDITED, declared=("n.txt",))
    one.values[4] |= {"verdict": "partially_correct", "comment": "half of it"}
    one.sync()
    counts = one.manifest()["counts"]
    assert (counts["annotations"], counts["samples"], counts["rejected"]) == (4, 1, 3)
    assert counts["stopped_by"] == {"code_runs": 1, "files_exist": 1, "verdict_passes": 1}
    reasons = {record["gate"]: record["reason"] for record in one.lines("rejected.jsonl")}
    assert reasons["code_runs"].endswith("exit status 1. KeyError: 销售额")
    assert reasons["files_exist"] == "Run again: n.txt is not there"
    assert reasons["verdict_passes"] == "The annotator says partially_correct: half of it"
    assert any("rejected by code_runs" in line for line in explain(one.folder / "d", 1))
    assert [stopped.task for stopped in stopped_by(one.folder / "d", "files_exist")] == [2]
    page = (one.folder / "d" / "report.html").read_text(encoding="utf-8")
    assert "<td>code_runs</td>" in page


def test_a_second_sync_runs_nothing_and_a_new_folder_uses_stored_runs(
    bench: Callable[..., Bench],
) -> None:
    one = bench(EDITED, "# fail x", DRAFTED)
    assert one.sync().ran > 0
    ran = len(one.sandbox.jobs)
    again = one.sync()
    assert (again.ran, again.new, again.changed, again.gone, again.written) == (0, 0, 0, 0, ())
    one.sync("other")
    assert len(one.sandbox.jobs) == ran
    assert one.content("other") == one.content("d")
    one.limits = replace(one.limits, memory_bytes=1 << 30)
    assert one.sync("third").ran > 0


def test_one_that_was_stopped_is_run_again_once_it_is_submitted_again(bench: Callable[..., Bench]) -> None:
    one = bench("# hang", limits=Limits(wall_s=0.05))
    assert one.sync().ran == 1
    assert one.lines("rejected.jsonl")[0]["reason"].startswith("It does not end well (timeout)")
    assert one.sync().ran == 0
    one.updated_at = one.changed = "2999-01-01T00:00:00.000000Z"
    assert one.sync().ran == 1


def test_a_sync_that_broke_off_goes_on_where_it_stopped_and_gives_the_same_bytes(
    bench: Callable[..., Bench],
) -> None:
    one = bench(*(f"# print {number}\n# leave n.txt" for number in range(6)), declared=("n.txt",))

    @dataclass
    class Breaking(FakeSandbox):
        def run(self, *arguments: Any, **named: Any) -> Attempt:
            if len(self.jobs) >= 3:
                raise ServiceError("The sandbox failed.")
            return super().run(*arguments, **named)

    whole, one.sandbox = one.sandbox, Breaking()
    with pytest.raises(ServiceError):
        one.sync()
    assert not (one.folder / "d" / "manifest.json").exists()
    done, one.sandbox = one.scripts, whole
    assert one.sync().ran == 3
    assert not set(done) & set(one.scripts)
    fresh = bench(*(one.values[number]["code"] for number in one.values), declared=("n.txt",))
    fresh.sync("fresh")
    assert one.content("fresh") == one.content("d")


def test_without_a_sandbox_code_is_not_passed_and_a_verdict_needs_none(
    bench: Callable[..., Bench],
) -> None:
    one = bench(EDITED)
    one.sandbox.trouble = SetupError("This kernel has no Landlock.", hint="Use another.")
    with pytest.raises(SetupError, match=r"cannot be run again: This kernel.*--no-rerun"):
        one.sync()
    with pytest.raises(SetupError, match=r"EXECUTION is off.*--no-rerun"):
        one.sync(runner=False)
    one.values[1] = {"code": EDITED, "verdict": "needs_fix"}
    assert one.sync().counts["stopped_by"] == {"verdict_passes": 1}  # which takes no sandbox


def test_code_that_is_not_run_again_is_marked_and_run_as_soon_as_that_is_decided(
    bench: Callable[..., Bench],
) -> None:
    one = bench(EDITED, DRAFTED)
    one.ran(DRAFTED)
    one.sync(runner=False, rerun=False)
    first, second = one.lines("samples.jsonl")
    assert "nobody has run" in first["notes"][0]["reason"]
    assert "code" not in first
    assert second["stdout"] == "41\n"
    assert not {"code_runs", "files_exist"} & {*first["gates"], *second["gates"]}
    assert one.manifest()["counts"]["noted_by"] == {"not_run_again": 2}
    assert one.manifest()["options"]["rerun"] is False
    assert "2 samples hold code that was not run again" in (one.folder / "d" / "report.html").read_text()
    assert one.sync(runner=False).written == ()  # the folder remembers
    one.sync(rerun=True)
    assert one.manifest()["counts"]["noted_by"] == {}
    assert all("files_exist" in sample["gates"] for sample in one.lines("samples.jsonl"))


def test_missing_inputs_are_reported_and_the_next_sync_tries_again(
    bench: Callable[..., Bench],
) -> None:
    sales = {"name": "a.csv", "path": "a.csv", "size_bytes": 2, "sha256": sha256(b"1\n")}
    one = bench(EDITED, data={"inputs": [sales]})
    one.sync()
    (rejected,) = one.lines("rejected.jsonl")
    assert rejected["gate"] == "can_be_run"
    assert "INPUT_ROOT" in rejected["reason"]
    one.changed = "2025-01-01T00:00:00.000000Z"  # nothing new in Label Studio
    (one.folder / "inputs" / "shared").mkdir(parents=True)
    (one.folder / "inputs" / "shared" / "a.csv").write_bytes(b"1\n")
    report = one.sync()
    assert (report.changed, report.counts["samples"]) == (1, 1)


@pytest.mark.parametrize("inputs", [5, [5], [{"name": 5, "path": 5, "size_bytes": 1, "sha256": "0" * 64}]])
def test_malformed_inputs_reject_only_their_annotation(bench: Callable[..., Bench], inputs: Any) -> None:
    one = bench(EDITED, data={"inputs": inputs})
    report = one.sync()
    assert report.counts["samples"] == 0
    (rejected,) = one.lines("rejected.jsonl")
    assert rejected["gate"] == "can_be_run"
    assert "draftloop import-tasks" in rejected["reason"]
    assert one.sandbox.jobs == []


def test_a_failed_run_of_the_page_gives_way_to_one_that_ends_well(bench: Callable[..., Bench]) -> None:
    one = bench(EDITED)
    one.ran(EDITED)
    (key,) = one.store.runs
    own = one.store.runs[key]
    one.store.runs[key] = replace(own, attempts=(replace(own.last, outcome="timeout"),))
    one.sync()
    (sample,) = one.lines("samples.jsonl")
    assert [attempt["outcome"] for attempt in sample["attempts"]] == ["ok"]
    assert one.store.runs[key].ok
    one.sync("fresh")
    assert one.content("fresh") == one.content("d")


def test_what_was_run_elsewhere_into_the_same_store_is_not_run_here(bench: Callable[..., Bench]) -> None:
    one = bench(EDITED, "# exit 3", DRAFTED, declared=("n.txt",))
    elsewhere = replace(one, sandbox=FakeSandbox())
    there = Reruns(one.store, elsewhere.runner(), jobs=1)
    report = one.sync(there=there.fill)
    assert (report.programs, report.ran) == (3, 3)
    assert (len(elsewhere.sandbox.jobs), one.sandbox.jobs) == (3, [])
    assert report.counts["stopped_by"] == {"code_runs": 1}
    one.sync("alone")
    assert one.content("alone") == one.content("d")

    unrun = replace(one, store=FakeStore())
    assert unrun.sync("unrun", there=there.fill, rerun=False).ran == 0
    assert unrun.store.runs == {}
