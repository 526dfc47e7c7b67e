"""Adapters measured and promoted between stand-ins: what is decided, on what, and what stays as it was."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo.corpus import generate
from draftloop.dataset.folder import locked
from draftloop.dataset.sample import present
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.flywheel.adapters import Adapters
from draftloop.flywheel.promotion import Decision, Flywheel
from draftloop.labelling.labelling import Value
from draftloop.labelstudio import LabelStudio
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Promoted
from draftloop.serving.readiness import ModelCheck, check_ready
from draftloop.support.environments import ROOT
from tests.adapters import run_of
from tests.fake_label_studio import fake_label_studio
from tests.fake_vllm import Body, FakeVllm, fake_vllm
from tests.promotions import of_truths

CASES = Cases(ROOT / "label_config")
COMPLAINT, FLIGHT = CASES.get("complaint"), CASES.get("flight_booking")
COMPLAINTS = list(generate("complaint", "held_out", 24, 1))
FLIGHTS = list(generate("flight_booking", "held_out", 10, 1))
PROJECT = 1


@dataclass
class Wheel:
    """A flywheel between stand-ins. `wrong` says which model is wrong in which case; others are right."""

    folder: Path
    vllm: FakeVllm
    flywheel: Flywheel
    ledger: Ledger
    adapters: Adapters
    wrong: set[tuple[str, str]] = field(default_factory=set)

    def promote(self, run: Path, **more: Any) -> Decision:
        return self.flywheel.promote(PROJECT, run, who="ann", **more)

    def run(self, name: str = "run", **record: Any) -> Path:
        return run_of(self.folder / name, **record)

    def answer(self, body: Body) -> str:
        """Answer with the truth, or without one of its fields where the model is wrong."""
        text = body["messages"][1]["content"]
        for case, truths in ((COMPLAINT, COMPLAINTS), (FLIGHT, FLIGHTS)):
            for truth in truths:
                if truth.text == text:
                    kind = "adapter" if body["model"] in self.vllm.adapters else "base"
                    value: Value = present(truth.value)
                    if (kind, case.name) in self.wrong:
                        key = "question" if case is COMPLAINT else "departure_city"
                        value |= {key: text[:2]}
                    return case.labelling.encode(value)
        raise AssertionError(f"an unknown text: {text}")


@pytest.fixture
def wheel(tmp_path: Path) -> Iterator[Wheel]:
    adapters = Adapters(tmp_path / "registry")
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    of_truths(tmp_path / "dataset", (COMPLAINT, COMPLAINTS))
    with (
        fake_vllm(max_lora_rank=16, context_tokens=4096) as vllm,
        fake_label_studio(CASES.config("complaint"), 3, lambda number: {"text": str(number)}) as studio,
        LabelStudio(studio.url, "a-token") as label_studio,
        VllmModel(vllm.url, vllm.name, find_adapter=adapters.find) as model,
    ):
        drafter = Drafter(model, AskOptions(profile="compact", temperature=0), concurrency=4)
        flywheel = Flywheel(label_studio, CASES, adapters, ledger, model, drafter)
        made = Wheel(tmp_path, vllm, flywheel, ledger, adapters, {("base", "complaint")})
        vllm.answer = made.answer
        yield made
        drafter.close()


def test_an_adapter_that_is_surely_better_drafts_from_then_on(wheel: Wheel) -> None:
    decision = wheel.promote(wheel.run())
    assert decision.promoted
    name = decision.adapter.name
    assert wheel.ledger.promoted(PROJECT) == Promoted(name, "compact")
    case = decision.evidence["cases"]["complaint"]
    assert (case["before"]["accepted"], case["after"]["accepted"]) == (0.0, 1.0)
    assert (case["before"]["quality"], case["after"]["quality"]) == (0.75, 1.0)
    assert case["after"]["fields"]["question"] == {"exact_match": 1.0, "f1": 1.0}
    assert case["before"]["fields"]["question"]["exact_match"] == 0.0
    assert case["gain"]["mean"] == 0.25
    assert 0 < case["gain"]["low"] < 0.25 < case["gain"]["high"]
    assert (case["texts"], len(case["samples"]), case["lost"]) == (24, 24, 0)
    assert {version.rpartition("-")[0] for version in (decision.evidence["after"],)} == {name}
    (entry,) = wheel.adapters.journal()
    assert (entry["action"], entry["who"], entry["adapter"], entry["reasons"]) == ("promote", "ann", name, [])
    assert decision.evidence_file == wheel.adapters.evidence(entry["evidence"])
    assert decision.evidence_file is not None
    assert json.loads(decision.evidence_file.read_text())["cases"]["complaint"]["gain"] == case["gain"]
    assert wheel.promote(wheel.folder / "run").already
    assert len(wheel.adapters.journal()) == 1


@pytest.mark.parametrize("wrong", [set(), {("base", "complaint"), ("adapter", "complaint")}])
def test_an_adapter_that_is_as_good_is_refused(wheel: Wheel, wrong: set[tuple[str, str]]) -> None:
    wheel.wrong = wrong
    decision = wheel.promote(wheel.run())
    assert "not surely better: +0.0 points, between -11.5 and +11.5" in decision.objections[0]
    assert wheel.ledger.promoted(PROJECT) is None
    assert wheel.adapters.journal()[0]["action"] == "refuse"
    assert wheel.adapters.journal()[0]["reasons"] == list(decision.objections)


def test_an_adapter_that_loses_elsewhere_is_refused_unless_that_is_allowed(wheel: Wheel) -> None:
    wheel.wrong.add(("adapter", "flight_booking"))
    flights = of_truths(wheel.folder / "flights", (FLIGHT, FLIGHTS))
    decision = wheel.promote(wheel.run(), guards=[flights])
    (said,) = decision.objections
    assert said.startswith("Case 'flight_booking' loses ")
    assert wheel.ledger.promoted(PROJECT) is None
    assert wheel.promote(wheel.folder / "run", guards=[flights], margin=1.0).promoted


def test_other_cases_of_its_own_dataset_are_guarded_too(wheel: Wheel) -> None:
    wheel.wrong.add(("adapter", "flight_booking"))
    both = of_truths(wheel.folder / "both", (COMPLAINT, COMPLAINTS), (FLIGHT, FLIGHTS))
    assert "'flight_booking' loses" in wheel.promote(wheel.run(), dataset=both).objections[0]


def test_the_cases_of_other_projects_with_adapters_of_the_same_base_are_guarded(wheel: Wheel) -> None:
    wheel.wrong.add(("adapter", "flight_booking"))
    flights = of_truths(wheel.folder / "flights", (FLIGHT, FLIGHTS))
    entry = {"action": "promote", "adapter": "theirs", "dataset": str(flights)}
    for project, model in ((2, wheel.vllm.name), (3, "another"), (4, wheel.vllm.name)):
        wheel.adapters.note({**entry, "project": project, "model": model})
    wheel.ledger.promote(3, Promoted("theirs", "compact"))  # on another base
    assert wheel.promote(wheel.run()).promoted
    wheel.ledger.roll_back(PROJECT)
    wheel.ledger.promote(2, Promoted("theirs", "compact"))
    assert "'flight_booking' loses" in wheel.promote(wheel.folder / "run").objections[0]


def test_a_server_that_forgets_its_adapters_midway_is_handed_them_again(wheel: Wheel) -> None:
    class Forgets:
        def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
            pass

        def advance(self, count: int = 1) -> None:
            if wheel.vllm.adapters and wheel.vllm.handed == 1:
                wheel.vllm.restart()

    assert wheel.promote(wheel.run(), progress=Forgets()).promoted
    assert wheel.vllm.handed == 2


def test_a_server_that_is_ready_again_has_the_adapters_again(wheel: Wheel) -> None:
    name = wheel.promote(wheel.run()).adapter.name
    wheel.vllm.restart()
    wheel.vllm.answer = None
    with VllmModel(wheel.vllm.url, wheel.vllm.name, find_adapter=wheel.adapters.find) as model:
        check_ready([ModelCheck(model)], wheel.ledger)
        assert wheel.vllm.adapters == [name]
        wheel.vllm.restart()
        (wheel.adapters.folder / name / "adapter_config.json").write_text("{}")
        with pytest.raises(SetupError, match="is not what was registered"):
            check_ready([ModelCheck(model)], wheel.ledger)


def refused_adapter(wheel: Wheel) -> dict[str, Any]:
    return {"run": wheel.run(rank=32)}


def changed_adapter(wheel: Wheel) -> dict[str, Any]:
    run = wheel.run()
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    return {"run": run}


def no_dataset(wheel: Wheel) -> dict[str, Any]:
    return {"run": wheel.run(dataset={"path": str(wheel.folder / "nowhere")})}


def unnamed_dataset(wheel: Wheel) -> dict[str, Any]:
    return {"run": wheel.run(dataset={})}


def small_dataset(wheel: Wheel) -> dict[str, Any]:
    dataset = of_truths(wheel.folder / "small", (COMPLAINT, COMPLAINTS[:19]))
    return {"run": wheel.run(), "dataset": dataset}


def dataset_of_another_case(wheel: Wheel) -> dict[str, Any]:
    return {"run": wheel.run(), "dataset": of_truths(wheel.folder / "flights", (FLIGHT, FLIGHTS))}


def server_without_adapters(wheel: Wheel) -> dict[str, Any]:
    wheel.vllm.max_lora_rank = 0
    return {"run": wheel.run()}


def server_that_refuses(wheel: Wheel) -> dict[str, Any]:
    wheel.vllm.fail = lambda body: 401 if body["model"] in wheel.vllm.adapters else None
    return {"run": wheel.run()}


def full_disk(wheel: Wheel) -> dict[str, Any]:
    wheel.adapters.folder.mkdir()
    (wheel.adapters.folder / "journal.jsonl").symlink_to("/dev/full")
    return {"run": wheel.run()}


def registry_in_the_way(wheel: Wheel) -> dict[str, Any]:
    wheel.adapters.folder.write_text("no folder")
    return {"run": wheel.run()}


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (refused_adapter, SetupError, "LoRA rank 32 is greater than max_lora_rank 16.*--max-lora-rank"),
        (changed_adapter, SetupError, "not the one that its run.json names"),
        (no_dataset, SetupError, "holds no dataset that can be read"),
        (unnamed_dataset, SetupError, "does not say its dataset"),
        (small_dataset, SetupError, "holds out 19 different texts of case 'complaint'; an interval needs 20"),
        (dataset_of_another_case, SetupError, "holds out 0 different texts of case 'complaint'"),
        (server_without_adapters, SetupError, "takes no adapters while it runs"),
        (server_that_refuses, ServiceError, "A draft failed .*refused the key.*the old version serves"),
        (full_disk, ServiceError, "No space left on device"),
        (registry_in_the_way, ServiceError, "registry of adapters .* cannot be written"),
    ],
)
def test_after_any_failure_the_old_version_drafts(
    wheel: Wheel, fault: Any, kind: type[DraftloopError], said: str
) -> None:
    given = fault(wheel)
    with pytest.raises(kind) as raised:
        wheel.promote(given.pop("run"), **given)
    assert re.search(said, str(raised.value), re.DOTALL), raised.value
    assert wheel.ledger.promoted(PROJECT) is None


def test_a_second_promotion_at_once_is_kept_away(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "registry", "promotion"),
        pytest.raises(SetupError, match="Another promotion is writing"),
        locked(tmp_path / "registry", "promotion"),
    ):
        pass


def test_a_roll_back_that_was_stopped_takes_nothing_more_off(wheel: Wheel) -> None:
    one, two = Promoted("one", "compact"), Promoted("two", "compact")
    wheel.ledger.promote(PROJECT, one)
    wheel.ledger.promote(PROJECT, two)
    assert wheel.flywheel.roll_back(PROJECT, who="ann") == ("two", one)
    assert wheel.flywheel.roll_back(PROJECT, who="ann") == ("two", one)  # its drafts were not made
    wheel.flywheel.drafted(PROJECT, "one-0123456789", who="ann")
    assert wheel.flywheel.roll_back(PROJECT, who="ann") == ("one", None)
    wheel.flywheel.drafted(PROJECT, "fake-0123456789", who="ann")
    with pytest.raises(SetupError, match="nothing to roll back"):
        wheel.flywheel.roll_back(PROJECT, who="ann")
    assert [entry["action"] for entry in wheel.adapters.journal()] == ["roll back", "draft"] * 2
