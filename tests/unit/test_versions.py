"""What a prediction was made with can be looked up later, from the ledger alone."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.labelling.labelling import Task
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Overrides
from draftloop.serving.answers import Answers
from draftloop.support.environments import ROOT
from tests.fake_vllm import fake_vllm
from tests.verbs import run_here

CASES = Cases(ROOT / "label_config")
CASE = CASES.get("complaint")
WARM = CASES.find(CASES.config("complaint"), "complaint", Overrides("只摘录。", 0.9))


def versions(ledger: str, *arguments: object) -> tuple[int, str, str]:
    return run_here({"LEDGER_URL": ledger}, "versions", *arguments)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """A ledger after three drafts: task 1 twice, as its project was set up anew; task 2 breaks its rules."""
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.sqlite3"
    with fake_vllm(context_tokens=4096) as fake, VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="full", temperature=0))
        answers = Answers(drafter, Ledger(url), CASES.find, None, deadline_s=20)
        fake.answer = lambda body: CASE.labelling.encode(
            {
                "name": "何平" if "何平" in body["messages"][-1]["content"] else "nobody",
                "question": "电梯[坏]了",
            }
        )
        answers.answer(7, CASE, [Task(1, {"text": "电梯[坏]了。何平"})])
        answers.answer(7, WARM, [Task(1, {"text": "电梯[坏]了。何平"}), Task(2, {"text": "电梯[坏]了。"})])
        names = [drafter.version(CASE).name, drafter.version(WARM).name]
        drafter.close()
    return url, names


def test_versions_are_listed_with_what_tells_them_apart(drafted: tuple[str, list[str]]) -> None:
    url, (plain, warm) = drafted
    code, out, err = versions(url)
    assert code == 0, err
    one, two = out.splitlines()
    assert one.startswith(f"{plain} ")
    assert "projects 7  1 drafts  case complaint  profile full" in one
    assert two.startswith(f"{warm} ")
    assert "2 drafts" in two
    assert "otherwise instruction, temperature" in two
    assert versions(url, "--project", 8)[1].startswith("no versions yet")
    listed = json.loads(versions(url, "--project", 7, "--json")[1])
    assert [row["version"] for row in listed] == [plain, warm]


def test_a_version_is_shown_with_everything_that_made_it(drafted: tuple[str, list[str]]) -> None:
    url, (_, warm) = drafted
    code, out, err = versions(url, "show", warm, "--json")
    assert code == 0, err
    manifest: dict[str, Any] = json.loads(out)["manifest"]
    assert set(manifest) == {
        *("flow", "model", "profile", "case", "prompt", "decoding_schema", "validating_schema", "config"),
        *("sampling", "quotes", "overrides"),
    }
    assert manifest["sampling"]["temperature"] == 0.9
    assert manifest["validating_schema"]["x-validations"][0]["message"] == "email must hold an @"
    assert "只摘录。" in manifest["prompt"][0][1]
    words = versions(url, "show", warm)[1]
    assert manifest["prompt"][0][1] in words
    assert '"x-validations"' in words


def test_a_task_is_looked_up_with_its_versions_reasons_and_raw_answers(
    drafted: tuple[str, list[str]],
) -> None:
    url, (plain, warm) = drafted
    one = versions(url, "--task", 1)[1]
    assert [line.split()[2] for line in one.splitlines() if line.startswith("project 7")] == [plain, warm]
    assert one.count('raw     {"name":"何平","address":null,"email":null,"question":"电梯[坏]了"}') == 2
    (two,) = json.loads(versions(url, "--task", 2, "--project", 7, "--json")[1])
    assert (two["version"], two["status"]) == (warm, "invalid")
    assert "does not stand in the text" in two["reasons"][0]
    assert json.loads(two["raw"])["name"] == "nobody"
    assert "reason  name: 'nobody'" in versions(url, "--task", 2)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show", "nobody-0"], 1, "knows no version 'nobody-0'. draftloop versions lists them."),
        (["--task", 99], 1, "knows no draft of task 99."),
        (["--task", 1, "--project", 8], 1, "no draft of task 1 in project 8"),
        (["show"], 2, "draftloop versions show VERSION"),
        (["--task", "x"], 2, "valid integer"),
    ],
)
def test_what_does_not_exist_is_named(
    drafted: tuple[str, list[str]], arguments: list[object], code: int, words: str
) -> None:
    exit_code, out, err = versions(drafted[0], *arguments)
    assert (exit_code, out) == (code, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_a_wrong_ledger_is_named_and_not_made(tmp_path: Path) -> None:
    code, _, err = versions(f"sqlite:///{tmp_path}/nowhere.sqlite3")
    assert code == 1
    assert "There is no ledger at" in err
    assert "LEDGER_URL" in err
    assert list(tmp_path.iterdir()) == []


def test_an_error_does_not_end_a_program_that_has_threads_of_its_own(tmp_path: Path) -> None:
    ends = threading.Event()
    waiting = threading.Thread(target=ends.wait, daemon=False)
    waiting.start()
    try:
        assert versions(f"sqlite:///{tmp_path}/nowhere.sqlite3")[0] == 1
    finally:
        ends.set()
        waiting.join()


def test_help_shows_examples() -> None:
    code, out, _ = versions("sqlite:///x", "--help")
    assert code == 0
    assert "draftloop versions show tiny-qwen3-0123456789" in out
