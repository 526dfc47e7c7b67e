"""The registry of adapters: what comes in stays what it is, under a name that nothing else has."""

import json
from pathlib import Path
from typing import Any

import pytest

from draftloop.errors import ServiceError, SetupError
from draftloop.flywheel.adapters import Adapters
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.prompt import NO_OVERRIDES, Overrides, Promoted
from tests.adapters import run_of


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    return Adapters(tmp_path / "registry")


def test_the_same_content_has_one_name_and_other_content_another(adapters: Adapters, tmp_path: Path) -> None:
    first = adapters.register(run_of(tmp_path / "a"), "tiny/qwen3")
    assert first.name.startswith("tiny-qwen3-complaint-")
    assert (first.rank, first.run["profile"], first.folder.parent) == (8, "compact", adapters.folder)
    assert adapters.register(run_of(tmp_path / "b", seed=7), "tiny/qwen3").name == first.name
    others = [run_of(tmp_path / "c", weights=b"other"), run_of(tmp_path / "d", rank=16)]
    names = {adapters.register(run, "tiny/qwen3").name for run in others}
    assert len({first.name, *names}) == 3
    assert adapters.get(first.name) == first
    assert adapters.find(first.name) == first.folder


def test_what_is_no_name_of_the_registry_is_not_found(adapters: Adapters, tmp_path: Path) -> None:
    adapters.register(run_of(tmp_path / "a"), "m")
    (tmp_path / "x-0123456789ab").mkdir()
    for name in ("tiny-qwen3", "m-complaint-0123456789ab", "../x-0123456789ab", "evidence", "", ".."):
        assert adapters.find(name) is None
    with pytest.raises(SetupError, match="There is no adapter 'nobody'"):
        adapters.get("nobody")


def test_an_adapter_that_was_changed_is_never_given(adapters: Adapters, tmp_path: Path) -> None:
    adapter = adapters.register(run_of(tmp_path / "a"), "m")
    (adapter.folder / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(SetupError, match="is not what was registered"):
        adapters.find(adapter.name)
    with pytest.raises(SetupError, match="is not what was registered"):
        adapters.register(tmp_path / "a", "m")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda run: (run / "run.json").unlink(), "run.json cannot be read"),
        (lambda run: (run / "run.json").write_text("["), "run.json cannot be read"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json is no JSON object"),
        (lambda run: (run / "run.json").write_text("{}"), "does not say case and profile"),
        (lambda run: (run / "adapter" / "adapter_config.json").write_text("{}"), "no LoRA adapter"),
        (
            lambda run: (run / "adapter" / "adapter_model.safetensors").unlink(),
            "cannot be read: No such file",
        ),
        (
            lambda run: (run / "adapter" / "adapter_model.safetensors").write_bytes(b"x"),
            "not the one that its",
        ),
    ],
)
def test_what_is_no_run_is_refused_in_words(
    adapters: Adapters, tmp_path: Path, broken: Any, said: str
) -> None:
    run = run_of(tmp_path / "a")
    broken(run)
    with pytest.raises(SetupError, match=said):
        adapters.register(run, "m")
    assert not list(adapters.folder.glob("*"))


def test_a_registry_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("in the way")
    with pytest.raises(ServiceError, match=r"registry.* cannot be written: .*ADAPTERS_DIR"):
        Adapters(tmp_path / "registry").register(run_of(tmp_path / "a"), "m")


def test_the_journal_survives_a_line_that_a_crash_cut(adapters: Adapters) -> None:
    assert adapters.journal() == []
    adapters.note({"action": "promote"})
    with (adapters.folder / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"action": "refu')
    adapters.note({"action": "roll back"})
    assert [entry["action"] for entry in adapters.journal()] == ["promote", "roll back"]


def test_evidence_is_found_by_its_hash(adapters: Adapters) -> None:
    name = adapters.keep_evidence({"gain": 0.1})
    assert name == adapters.keep_evidence({"gain": 0.1})
    assert json.loads(adapters.evidence(name).read_text()) == {"gain": 0.1}


def test_promotions_of_a_project_are_a_pile(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    one, two = Promoted("one", "compact"), Promoted("two", "full")
    assert ledger.promoted(7) is None
    ledger.promote(7, one)
    ledger.promote(7, two)
    ledger.promote(7, two)  # again by a command that was stopped
    ledger.promote(8, one)
    assert Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3").all_promoted() == {7: two, 8: one}
    assert ledger.roll_back(7) == (two, one)
    assert ledger.roll_back(7) == (one, None)
    assert ledger.all_promoted() == {8: one}
    with pytest.raises(SetupError, match="Project 7 has no promoted version"):
        ledger.roll_back(7)


def test_a_promoted_adapter_wins_over_a_model_that_people_wrote() -> None:
    wanted = Overrides(instruction="Do it.", model="big")
    assert wanted.served_by(None) is wanted
    served = wanted.served_by(Promoted("one", "compact"))
    assert served == Overrides(instruction="Do it.", model="one", profile="compact")
    assert NO_OVERRIDES.served_by(Promoted("one", "full")).set_fields() == {"model": "one", "profile": "full"}
