"""draftloop cascade between stand-ins: what it chooses, on what, and what it says."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from demo.corpus import generate
from draftloop.cli.servers import PYTHONPATH
from draftloop.dataset.sample import present
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from tests.fake_vllm import Body, FakeVllm, fake_vllm
from tests.promotions import of_truths
from tests.verbs import run_here

CASES = Cases(ROOT / "label_config")
COMPLAINT = CASES.get("complaint")
TRUTHS = {truth.text: present(truth.value) for truth in generate("complaint", "held_out", 60, 1)}


@dataclass
class Stage:
    """A dataset that is all held out, a small model that errs in every third text, and one that does not."""

    folder: Path
    small: FakeVllm
    larger: FakeVllm
    dataset: Path
    env: dict[str, str] = field(default_factory=dict)
    sure: bool = False  # the small model, and wrong

    def run(self, *arguments: Any, **more: str) -> tuple[int, str, str]:
        where = ("--dataset", self.dataset, "--out", self.folder / "report")
        return run_here({**self.env, **more}, "cascade", *where, *arguments)

    def answer(self, body: Body) -> str | None:
        """Answer with the truth. A mistake is a longer question: a fake's longer answers are less sure."""
        text = next((one["content"] for one in body["messages"] if one["content"] in TRUTHS), "")
        if not text:
            return None  # of the readiness probes
        value = TRUTHS[text]
        if body["model"] == "small" and (self.sure or list(TRUTHS).index(text) % 3 == 0):
            value = {**value, "question": text[:1] if self.sure else text}
        return COMPLAINT.labelling.encode(value)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    dataset = of_truths(tmp_path / "dataset", (COMPLAINT, generate("complaint", "held_out", 60, 1)))
    with (
        fake_vllm(name="small", context_tokens=4096) as small,
        fake_vllm(name="larger", context_tokens=4096) as larger,
    ):
        made = Stage(tmp_path, small, larger, dataset)
        made.env = {
            "PYTHONPATH": PYTHONPATH,
            "MODEL_URL": small.url,
            "MODEL_NAME": "small",
            "MODEL_PROFILE": "compact",
            "MODEL_TEMPERATURE": "0",
            "CASCADE_URL": larger.url,
            "CASCADE_NAME": "larger",
            "CASCADE_PROFILE": "compact",
            "EXECUTION": "off",
            "ARTIFACTS_URL": str(tmp_path / "artifacts"),
        }
        for fake in (small, larger):
            fake.answer = made.answer
        yield made


def test_a_threshold_is_chosen_and_its_cost_is_printed(stage: Stage) -> None:
    code, out, err = stage.run("--budget", "0.15")
    assert code == 0, err
    calibration = json.loads((stage.folder / "report" / "cascade.json").read_text())
    case = calibration["cases"]["complaint"]
    assert (case["chosen_on"], case["measured_on"], case["lost"]) == (30, 30, 0)
    assert case["chosen"]["harmed_at_most"] <= 0.15
    assert case["small"]["accepted"] < case["measured"]["accepted"] <= case["larger"]["accepted"] == 1.0
    assert 0 < case["measured"]["escalated"] < 1
    assert (
        case["measured"]["larger_tokens"]
        < case["larger"]["prompt_tokens"] + case["larger"]["completion_tokens"]
    )
    assert case["curve"][0]["escalated"] <= case["curve"][-1]["escalated"]
    assert calibration["small"] == {"model": "small", "profile": "compact"}
    assert f"CASCADE_THRESHOLD={calibration['threshold']:g}" in out
    assert "escalated" in out
    page = (stage.folder / "report" / "cascade.html").read_text()
    HTMLParser().feed(page)
    assert "<svg" in page
    assert "small, then larger" in page
    before = (stage.folder / "report" / "cascade.json").read_text()
    again, _, _ = stage.run("--budget", "0.15")
    assert again == 0
    assert (
        json.loads(before)["threshold"]
        == json.loads((stage.folder / "report" / "cascade.json").read_text())["threshold"]
    )


def test_no_threshold_is_chosen_where_the_small_model_is_sure_of_its_mistakes(stage: Stage) -> None:
    stage.sure = True
    code, out, _ = stage.run("--budget", "0.15")
    assert code == 3
    assert "no threshold keeps 15.0%" in out
    assert "CASCADE_THRESHOLD" not in out
    assert json.loads((stage.folder / "report" / "cascade.json").read_text())["threshold"] is None


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        (
            ("--budget", "0.02"),
            {},
            "holds out 60 different texts of case 'complaint'; a budget of 2.0% needs 298",
        ),
        (("--budget", "0.15", "--case", "sentiment"), {}, "holds out no sample of case 'sentiment'"),
        (("--budget", "0.15"), {"CASCADE_NAME": ""}, "CASCADE_NAME is not set"),
        (("--budget", "0.15"), {"CASCADE_NAME": "other"}, "does not serve 'other'"),
        (("--budget", "0.15"), {"CASCADE_URL": "http://127.0.0.1:9/v1"}, "correct CASCADE_URL"),
    ],
)
def test_what_is_missing_is_named(
    stage: Stage, arguments: tuple[str, ...], more: dict[str, str], words: str
) -> None:
    code, _, err = stage.run(*arguments, **more)
    assert code == 1
    assert words in " ".join(err.split())
    assert not (stage.folder / "report").exists()
