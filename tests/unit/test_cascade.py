"""The threshold of a cascade keeps its budget; what is not sure is drafted again; no draft is lost."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.app import make_larger, make_larger_model
from draftloop.drafting.bulk import record
from draftloop.drafting.cache import SqliteCache
from draftloop.drafting.cascade import (
    Pair,
    calibrated,
    choose,
    curve,
    evaluate_threshold,
    min_samples,
    one_per_group,
    split_groups,
)
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.drafts import Draft
from draftloop.drafting.escalation import Larger
from draftloop.drafting.versions import AskOptions
from draftloop.errors import SetupError
from draftloop.evaluation.measures import DraftOutcome, Hits
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Overrides, generic_case
from draftloop.serving.readiness import ModelCheck, check_ready
from draftloop.settings import Settings, variables
from draftloop.support.intervals import upper_confidence_bound
from tests.fake_vllm import Body, FakeVllm, fake_vllm
from tests.families import FAMILIES

CASES = Cases(Path(__file__).parents[2] / "label_config")
FLIGHT = CASES.get("flight_booking")
SURE, UNSURE, WRONG, UNREADABLE = "从昆明到哈尔滨", "从上海到哈尔滨", "从昆明到昆明", "读不出"
CITIES = {SURE: ("昆明", "哈尔滨"), UNSURE: ("上海", "哈尔滨"), WRONG: ("昆明", "昆明")}


def outcome(*, right: bool, group: str = "g", tokens: int = 10, ms: float = 1.0) -> DraftOutcome:
    return DraftOutcome(group, {"a": right}, {"a": Hits(right, 1, 1)}, True, True, None, 1, tokens, 0, ms)


def pair(score: float | None, small: bool, larger: bool, group: str = "g") -> Pair:
    costs = outcome(right=larger, group=group, tokens=100, ms=20.0)
    return Pair(score, outcome(right=small, group=group), costs)


PAIRS = st.lists(
    st.builds(
        pair, st.none() | st.integers(0, 8).map(lambda eighth: eighth / 8), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=80,
)


# ------------------------------------------------------------------------------ the threshold


@given(PAIRS, st.sampled_from([0.02, 0.1, 0.3, 0.6]))
def test_the_threshold_is_the_lowest_that_keeps_the_budget(pairs: list[Pair], budget: float) -> None:
    def kept(threshold: float) -> bool:
        harmed = sum(one.harms for one in pairs if one.stands(threshold))
        return upper_confidence_bound(harmed, len(pairs)) <= budget

    tried = [0.0, *sorted(one.score for one in pairs if one.score is not None)]
    assert choose(pairs, budget) == next((threshold for threshold in tried if kept(threshold)), None)


@given(PAIRS)
def test_more_is_escalated_and_less_is_harmed_as_the_threshold_rises(pairs: list[Pair]) -> None:
    points = curve(pairs, 17)
    assert [point.threshold for point in points] == [place / 16 for place in range(17)]
    for low, high in pairwise(points):
        assert low.escalated <= high.escalated
        assert low.harmed >= high.harmed
        assert low.larger_tokens <= high.larger_tokens
        # Of what the larger one gets right alone, nothing is lost but what is harmed.
        alone = sum(one.larger.accepted for one in pairs) / len(pairs)
        assert high.accepted >= alone - high.harmed - 1e-3


@given(st.integers(1, 300), st.data())
def test_the_bound_is_that_of_clopper_and_pearson(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total - 1))
    share = upper_confidence_bound(count, total)
    seen = sum(math.comb(total, one) * share**one * (1 - share) ** (total - one) for one in range(count + 1))
    assert seen == pytest.approx(0.05, abs=1e-4)
    assert upper_confidence_bound(total, total) == 1.0


def test_a_budget_needs_so_many_samples() -> None:
    assert min_samples(0.02) == 149
    assert (
        upper_confidence_bound(0, min_samples(0.02))
        <= 0.02
        < upper_confidence_bound(0, min_samples(0.02) - 1)
    )
    assert choose([pair(0.9, True, True)] * 148, 0.02) is None
    assert choose([pair(0.9, True, True)] * 149, 0.02) == 0.0
    assert choose([pair(0.9, False, True)] * 200, 0.02) is None


def test_a_threshold_holds_for_documents_it_was_not_chosen_on() -> None:
    chance = np.random.default_rng(1)
    broken = 0
    for _ in range(200):
        # The truth is known: a draft of score s is harmed with probability (1 - s) / 2.
        scores = chance.random(400)
        harmed = chance.random(400) < (1 - scores) / 2
        pairs = [pair(float(score), not bad, True) for score, bad in zip(scores, harmed, strict=True)]
        threshold = choose(pairs, 0.05)
        assert threshold is not None
        broken += (1 - threshold) ** 2 / 4 > 0.05
    assert broken <= 0.05 * 200 + 10


def test_documents_are_apart_and_each_counts_once() -> None:
    pairs = [pair(0.5 + number / 1000, True, True, str(number // 2)) for number in range(200)]
    alone = one_per_group(pairs)
    assert [one.small.group for one in alone] == [str(number) for number in range(100)]
    assert alone[0] is pairs[0]
    groups = [one.small.group for one in pairs]
    half = split_groups(groups, np.random.default_rng(0))
    assert len(half) == 50
    assert half == split_groups(reversed(groups), np.random.default_rng(0))
    assert half != split_groups(groups, np.random.default_rng(1))


def test_a_threshold_is_measured_on_documents_it_was_not_chosen_on() -> None:
    pairs = [
        pair(number / 500, number % 10 < 7 or number > 300, number % 7 != 0, str(number))
        for number in range(500)
    ]
    calibration = calibrated(pairs, 0.05, np.random.default_rng(0))
    assert (calibration.chosen_on, calibration.measured_on) == (250, 250)
    assert calibration.threshold is not None
    assert calibration.chosen is not None
    assert calibration.measured is not None
    assert calibration.chosen.harmed_at_most <= 0.05
    assert 0 < calibration.measured.escalated < 1
    assert calibration.measured.small_tokens == 10
    assert calibration.measured.larger_tokens == pytest.approx(100 * calibration.measured.escalated)
    assert calibration.measured.ms == pytest.approx(1 + 20 * calibration.measured.escalated, abs=0.1)
    assert calibration.record()["measured"]["threshold"] == calibration.threshold
    hopeless = calibrated([replace(one, score=None) for one in pairs], 0.05, np.random.default_rng(0))
    assert hopeless.threshold is None or evaluate_threshold(pairs, hopeless.threshold).escalated < 1


# ------------------------------------------------------------------------------ drafts


@dataclass
class Two:
    """A small model, which knows one text well, and a larger one, which knows them all."""

    small: FakeVllm
    larger: FakeVllm
    make: Callable[..., Drafter]

    def drafts(self, *texts: str, **more: Any) -> list[Draft]:
        drafter = self.make(**more)
        tasks = [Task(number, {"text": text}) for number, text in enumerate(texts)]
        drafts = drafter.draft(FLIGHT, tasks, deadline_s=20)
        drafter.close()
        return drafts


def answered(body: Body, *, knows: bool) -> str:
    known = (SURE, UNSURE, WRONG, UNREADABLE)
    text = next(message["content"] for message in body["messages"] if message["content"] in known)
    if text == UNREADABLE and not knows:
        return "no json"
    departure, arrival = CITIES.get(text, ("读", "出"))
    if text == WRONG and knows:
        arrival = "到"
    value = {"intent": "book", "departure_city": departure, "arrival_city": arrival}
    # A fake's tokens are as sure as each other: what has more of them is less sure.
    return FLIGHT.labelling.encode(value if knows or text != UNSURE else {**value, "arrival_city": text})


@pytest.fixture
def two() -> Iterator[Two]:
    with (
        fake_vllm(name="small", context_tokens=4096) as small,
        fake_vllm(name="larger", context_tokens=4096) as larger,
        VllmModel(small.url, small.name) as first,
        VllmModel(larger.url, larger.name, settings="CASCADE") as second,
    ):
        small.answer = lambda body: answered(body, knows=False)
        larger.answer = lambda body: answered(body, knows=True)

        def make(threshold: float = 0.0, *, profile: Any = "full", cache: Any = None) -> Drafter:
            theirs = Drafter(second, AskOptions(profile=profile, patient=False), concurrency=4)
            return Drafter(
                first,
                AskOptions(profile="compact"),
                concurrency=4,
                cache=cache,
                larger=Larger(theirs, threshold),
            )

        yield Two(small, larger, make)


def between(two: Two) -> float:
    """Return a threshold between the scores of what the small model is sure of and what it is not."""
    sure, unsure = (draft.score for draft in two.drafts(SURE, UNSURE))
    assert unsure < sure
    two.larger.asked.clear()
    return (sure + unsure) / 2


def test_what_scores_below_the_threshold_or_breaks_a_rule_is_drafted_by_the_larger_model(two: Two) -> None:
    texts = [SURE, UNSURE, WRONG, UNREADABLE]
    drafts = two.drafts(*texts, threshold=between(two))
    assert [draft.task_id for draft in drafts] == [0, 1, 2, 3]
    assert [draft.cascade for draft in drafts] == ["kept", "escalated", "escalated", "escalated"]
    assert [draft.model for draft in drafts] == ["small", "larger", "larger", "larger"]
    assert {draft.status for draft in drafts} == {"ok"}
    assert drafts[1].value == {"intent": "book", "departure_city": "上海", "arrival_city": "哈尔滨"}
    assert (drafts[0].attempts, drafts[1].attempts, drafts[2].attempts) == (1, 2, 3)
    assert len({draft.version for draft in drafts}) == 1
    asked = [body["messages"] for body in two.larger.asked]
    assert len(asked) == 3
    assert all("JSON Schema" in messages[0]["content"] for messages in asked)  # its own profile
    assert all(body["model"] == "larger" for body in two.larger.asked)
    rows = [record(1, FLIGHT, Task(draft.task_id, {"text": SURE}), draft) for draft in drafts]
    assert [row["model"] for row in rows[:2]] == ["small", "larger"]
    assert [row["cascade"] for row in rows[:2]] == ["kept", "escalated"]


def test_where_the_larger_model_is_down_the_small_draft_stands_and_is_not_cached(
    two: Two, tmp_path: Path
) -> None:
    threshold = between(two)
    cache = SqliteCache(f"sqlite:///{tmp_path}/cache.sqlite3", max_rows=9)
    two.larger.fail = lambda _: 401
    first = two.drafts(SURE, UNSURE, UNREADABLE, threshold=threshold, cache=cache)
    assert [draft.cascade for draft in first] == ["kept", "failed", "failed"]
    assert [draft.status for draft in first] == ["ok", "ok", "undecodable"]
    assert [draft.model for draft in first] == ["small"] * 3
    two.larger.fail = lambda _: None
    second = two.drafts(SURE, UNSURE, UNREADABLE, threshold=threshold, cache=cache)
    assert [draft.from_cache for draft in second] == [True, False, False]
    assert [draft.model for draft in second] == ["small", "larger", "larger"]
    third = two.drafts(SURE, UNSURE, UNREADABLE, threshold=threshold, cache=cache)
    assert [draft.from_cache for draft in third] == [True] * 3
    assert [draft.model for draft in third] == ["small", "larger", "larger"]


def test_a_larger_model_at_which_nobody_answers_is_not_waited_for(two: Two) -> None:
    with VllmModel("http://127.0.0.1:9/v1", "larger", context_tokens=4096) as nobody:
        theirs = Drafter(nobody, AskOptions(patient=False), concurrency=1)
        with VllmModel(two.small.url, "small") as model:
            drafter = Drafter(model, AskOptions(profile="compact"), concurrency=1, larger=Larger(theirs, 1.0))
            drafts = drafter.draft(FLIGHT, [Task(number, {"text": UNSURE}) for number in range(3)])
            drafter.close()
    assert [(draft.status, draft.cascade) for draft in drafts] == [("ok", "failed")] * 3


def test_a_larger_model_that_is_slow_leaves_time_for_the_small_draft(two: Two) -> None:
    two.larger.delay_s = 5
    drafter = two.make(1.0)
    drafts = drafter.draft(FLIGHT, [Task(1, {"text": UNSURE})], deadline_s=2)
    drafter.close()
    assert [(draft.status, draft.cascade, draft.model) for draft in drafts] == [("ok", "failed", "small")]


def test_a_larger_draft_of_a_worse_kind_leaves_the_small_one(two: Two) -> None:
    two.larger.answer = lambda _: "no json"
    unsure, wrong = two.drafts(UNSURE, WRONG, threshold=1.0)
    assert (unsure.status, unsure.model, unsure.cascade) == ("ok", "small", "escalated")
    assert (wrong.status, wrong.model, wrong.cascade) == ("invalid", "small", "escalated")


def test_what_the_small_model_cannot_be_asked_the_larger_one_is(two: Two) -> None:
    two.small.fail = lambda _: 400  # as where a text is longer than its context
    drafts = two.drafts(SURE)
    assert [(draft.status, draft.model, draft.cascade) for draft in drafts] == [("ok", "larger", "escalated")]


def test_options_that_a_task_brings_bind_the_larger_model_too(two: Two) -> None:
    config, data = FAMILIES["options"]
    case = generic_case(compile_labelling(config))
    two.small.answer = two.larger.answer = None
    drafter = two.make(1.0)
    (draft,) = drafter.draft(case, [Task(1, data)])
    drafter.close()
    assert (draft.model, draft.cascade) == ("larger", "escalated")
    assert draft.value is not None
    assert draft.value["flat"] == "x 1"
    assert two.larger.asked[0]["structured_outputs"] == two.small.asked[0]["structured_outputs"]


def test_an_adapter_of_the_project_is_the_small_model(two: Two) -> None:
    two.small.adapters.append("adapter")
    case = FLIGHT.overridden(Overrides(instruction="填写航班表单。", model="adapter", profile="compact"))
    drafter = two.make(1.0, profile="compact")
    (draft,) = drafter.draft(case, [Task(1, {"text": UNSURE})])
    drafter.close()
    assert (draft.model, draft.cascade) == ("larger", "escalated")
    assert draft.version.startswith("adapter-")
    assert [body["model"] for body in two.larger.asked] == ["larger"]
    assert two.larger.asked[0]["messages"][0]["content"] == "填写航班表单。"


def test_the_version_changes_with_the_cascade(two: Two) -> None:
    with VllmModel(two.small.url, "small") as alone:
        versions = [
            Drafter(alone, AskOptions(profile="compact")).version(FLIGHT).name,
            two.make(0.5).version(FLIGHT).name,
            two.make(0.6).version(FLIGHT).name,
            two.make(0.5, profile="compact").version(FLIGHT).name,
        ]
    assert len(set(versions)) == 4
    assert {version.rpartition("-")[0] for version in versions} == {"small"}
    cascade = two.make(0.5).version(FLIGHT).manifest["cascade"]
    assert (cascade["model"], cascade["profile"], cascade["threshold"]) == ("larger", "full", 0.5)


# ------------------------------------------------------------------------------ settings


def test_a_cascade_is_off_unless_its_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, _ in variables():
        monkeypatch.delenv(name, raising=False)
    assert make_larger_model(Settings()) is None
    assert make_larger(None, Settings()) is None
    monkeypatch.setenv("CASCADE_NAME", "larger")
    monkeypatch.setenv("CASCADE_PROFILE", "compact")
    with VllmModel("http://127.0.0.1:9/v1", "larger") as model:
        with pytest.raises(SetupError, match=r"CASCADE_THRESHOLD is not set. draftloop cascade"):
            make_larger(model, Settings())
        monkeypatch.setenv("CASCADE_THRESHOLD", "0.75")
        larger = make_larger(model, Settings())
        assert larger is not None
        assert larger.threshold == 0.75
        assert larger.drafter.version(FLIGHT).manifest["profile"] == "compact"
    made = make_larger_model(Settings())
    assert made is not None
    made.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CASCADE_THRESHOLD", "1.1"),
        ("CASCADE_PROFILE", "half"),
        ("CASCADE_URL", "x"),
        ("CASCADE_ADDRESS", "x"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=name):
        Settings()


def test_it_is_ready_when_both_servers_are_and_else_the_setting_is_named(two: Two, tmp_path: Path) -> None:
    two.small.answer = two.larger.answer = None
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with VllmModel(two.small.url, "small") as model:
        with VllmModel(two.larger.url, "larger", settings="CASCADE") as larger:
            check_ready([ModelCheck(model), ModelCheck(larger)], ledger)
        with (
            VllmModel(two.larger.url, "another", settings="CASCADE") as larger,
            pytest.raises(SetupError, match="Set CASCADE_NAME"),
        ):
            check_ready([ModelCheck(model), ModelCheck(larger)], ledger)


def test_the_small_model_of_the_tests_is_small_and_reads_as_the_other_does() -> None:
    models = Path(__file__).parents[2] / "demo" / "models"
    small, usual = models / "tiny-qwen3-small", models / "tiny-qwen3"
    assert (small / "model.safetensors").stat().st_size <= 3_000_000
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (small / name).read_bytes() == (usual / name).read_bytes()
