"""Spot checks: what is drawn, what a reviewer sees, which verdicts count, and what follows."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.dataset.corpus import DatasetOptions
from draftloop.dataset.sample import Brief, Review, Sample
from draftloop.dataset.spot_check import (
    CONFIG,
    WAITS,
    ByLot,
    Check,
    Stratum,
    checks_of,
    drawn,
    drawn_by_lot,
    review_order,
    review_task,
)
from draftloop.labelling.labelling import compile_labelling
from tests.results import JSON
from tests.samples import written_out
from tests.unit.test_settle import settle_all


def sample(number: int, **more: Any) -> Sample:
    first = written_out(code=False)[0]
    text = f"{number} " + " ".join(str(number * prime % 9973) for prime in (7919, 6007, 4001, 2003))
    return replace(
        first,
        task=number,
        annotation=number,
        input={"text": text},
        instruction=text,
        group=f"{number:016x}",
        metadata={"config_hash": "c", "human": 1, "draft_score": 0.7},
        **more,
    )


def check(one: Sample, verdict: Any, by: int = 2, at: str = "2026-01-01T00:00:00Z") -> Check:
    return Check(one.annotation, Brief.of(one).seal, Review(verdict=verdict, by=by, at=at))


def checked(
    samples: list[Sample], *checks: Check, share: float = 1.0, max_error: float = 1.0
) -> dict[int, str]:
    by_id: dict[int, list[Check]] = {}
    for one in checks:
        by_id.setdefault(one.annotation, []).append(one)
    outcome = settle_all(samples, DatasetOptions(spot_check=share, max_error=max_error), {}, by_id)
    return {held.sample.annotation: held.reason for held in outcome.held if held.gate == "spot_checked"}


def test_a_drawn_sample_is_held_until_a_second_human_passes_it() -> None:
    one, other = sample(1), sample(2)
    assert checked([one, other]) == {1: WAITS, 2: WAITS}
    assert checked([one, other], check(one, "pass")) == {2: WAITS}
    assert checked([one, other], check(one, "pass"), share=0.0) == {}
    outcome = settle_all([one], DatasetOptions(spot_check=1.0), {}, {1: [check(one, "pass")]})
    assert outcome.samples[0].review == {"verdict": "pass", "by": 2, "at": "2026-01-01T00:00:00Z"}
    assert "spot_checked" in outcome.samples[0].gates


def test_a_sample_that_was_held_comes_back_to_the_split_that_it_had() -> None:
    one = sample(1)
    waiting = settle_all([one], DatasetOptions(spot_check=1.0), {one.group: "test"})
    assert waiting.samples == ()
    assert waiting.held[0].sample.split == "test"


@pytest.mark.parametrize("verdict", ["needs_fix", "partially_correct"])
def test_what_a_second_human_does_not_pass_is_held_with_their_words(verdict: Any) -> None:
    one = sample(1)
    said = check(one, verdict)
    said.review["comment"] = "the wrong branch"
    assert checked([one], said) == {1: f"Reviewer 2 says {verdict}: the wrong branch"}
    assert checked([one], said, share=0.0)  # known to be wrong, whatever is drawn
    later = check(one, "pass", by=3, at="2026-01-02T00:00:00Z")
    assert checked([one], said, later) == {}


def test_own_samples_and_samples_changed_since_are_not_passed() -> None:
    one = sample(1)
    assert checked([one], check(one, "pass", by=1)) == {1: WAITS}
    assert checked([replace(one, target="{}")], check(one, "pass")) == {1: WAITS}


def test_a_stratum_with_too_many_errors_is_held_whole() -> None:
    samples = [sample(number) for number in range(1, 41)]
    lots = drawn([Brief.of(one) for one in samples], 0.3)
    checks = [check(one, "needs_fix") for one in samples if one.annotation in lots]
    assert 5 <= len(lots) < 25
    held = checked(samples, *checks, share=0.3, max_error=0.1)
    assert held.keys() == {one.annotation for one in samples}
    assert f"{len(lots)} of {len(lots)} checks found it wrong" in held[min(held.keys() - lots)]
    assert checked(samples, *checks, share=0.3, max_error=1.0).keys() == lots


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.05, 0.3]))
def test_growth_draws_more_and_gives_up_at_most_the_one_that_stood_for_its_kind(
    few: int, more: int, share: float
) -> None:
    one = Brief.of(sample(1))
    briefs = [replace(one, annotation=number) for number in range(few + more)]
    before, after = drawn(briefs[:few], share), drawn(briefs, share)
    assert before
    assert len(before - after) <= 1
    assert not (before - after) or len(before) == 1


def test_about_the_share_is_drawn() -> None:
    one = Brief.of(sample(1))
    briefs = [replace(one, annotation=number) for number in range(20_000)]
    assert 850 < len(drawn(briefs, 0.05)) < 1150


def test_review_tasks_are_escaped_and_name_nobody() -> None:
    one = sample(
        1, value={"name": "<b>张三</b>"}, draft={"name": "李"}, draft_target="李四", changed=("name",)
    )
    one = replace(one, metadata={**one.metadata, "draft_version": "model-x", "human": 777})
    task = review_task(one)
    assert "&lt;b&gt;张三&lt;/b&gt;" in task["answer"]
    assert one.instruction in task["question"]
    visible = str(task["question"]) + str(task["answer"])
    assert not any(secret in visible for secret in ("model-x", "李", "777", "0.7"))
    (program,) = written_out(code=True)[:1]
    assert "总数 2" in review_task(program)["answer"]
    judged = replace(
        program,
        value={"code": "print(2)", "verdict": "pass", "comment": "better than the draft"},
        target='{"code":"print(2)"}',
    )
    assert "print(2)" in review_task(judged)["answer"]
    assert "pass" not in review_task(judged)["answer"]
    assert "better" not in review_task(judged)["answer"]
    assert {source.key for source in compile_labelling(CONFIG).sources} <= task.keys()
    assert 0 <= review_order(one) < 1


def test_verdicts_are_read_back_as_label_studio_lists_them() -> None:
    one = sample(1)

    def entry(number: int, verdict: str | None, **more: Any) -> dict[str, Any]:
        said = [{"from_name": "verdict", "value": {"choices": [verdict]}}] if verdict else []
        words = {"from_name": "comment", "value": {"text": ["no ", "name"]}}
        return {
            "id": number,
            "result": [*said, words],
            "completed_by": {"id": 5},
            "updated_at": "2026-01-01T00:00:00Z",
            "was_cancelled": False,
            **more,
        }

    task = {
        "id": 1,
        "data": review_task(one),
        "annotations": [
            entry(1, "needs_fix"),
            entry(2, "pass", was_cancelled=True),
            entry(3, None),
            entry(4, "perfect"),
        ],
    }
    (verdict,) = checks_of(task)
    assert verdict.holds_for(Brief.of(one))
    assert verdict.review == {
        "verdict": "needs_fix",
        "by": 5,
        "at": "2026-01-01T00:00:00Z",
        "comment": "no  name",
    }


def test_records_and_review_tasks_say_how_samples_were_drawn() -> None:
    few = [replace(sample(number), case=f"case {number % 9}") for number in range(1, 61)]
    outcome = settle_all(few, DatasetOptions(spot_check=0.1), {})
    draws = {held.sample.annotation: held.sample.drawn for held in outcome.held}
    lot = drawn_by_lot(map(Brief.of, few), 0.1)
    assert lot
    assert draws == {
        annotation: "lot" if annotation in lot else "stratum" for annotation in draws.keys() | lot
    }
    assert {"lot", "stratum"} == set(draws.values())
    assert {review_task(held.sample)["drawn"] for held in outcome.held} == {"lot", "stratum"}
    assert outcome.fates.by_lot == ByLot(60, len(lot), 0, 0)
    assert outcome.fates.by_lot.interval == (0.0, 1.0)
    assert settle_all(few, DatasetOptions(), {}).fates.by_lot is None


def test_records_and_review_tasks_of_before_are_read() -> None:
    one = sample(1)
    old = review_task(one)
    assert "drawn" not in old  # as they were written before draws were recorded
    said = [{"from_name": "verdict", "value": {"choices": ["pass"]}}]
    entry = {"id": 1, "result": said, "completed_by": 5, "updated_at": "2026-01-01T00:00:00Z"}
    (verdict,) = checks_of({"id": 1, "data": old, "annotations": [entry]})
    assert checked([one], verdict) == {}
    assert Sample.from_record(one.record()).drawn is None


def test_an_answer_corrected_after_its_check_still_counts_as_wrong() -> None:
    ones = [sample(number) for number in range(1, 5)]
    said = [check(one, "needs_fix" if one.annotation == 1 else "pass") for one in ones]
    corrected = replace(ones[0], target="{}")
    again = [*ones[1:], corrected]

    def by_lot(*checks: Check) -> ByLot | None:
        by_id: dict[int, list[Check]] = {}
        for one in checks:
            by_id.setdefault(one.annotation, []).append(one)
        return settle_all(again, DatasetOptions(spot_check=1.0, max_error=1.0), {}, by_id).fates.by_lot

    assert by_lot(*said) == ByLot(4, 4, 4, 1)
    passed = check(corrected, "pass", at="2026-01-02T00:00:00Z")
    assert by_lot(*said, passed) == ByLot(4, 4, 4, 1)
    assert checked(again, *said, passed) == {}  # and is a sample all the same
    own = check(ones[0], "needs_fix", by=1)  # nobody judges their own
    assert by_lot(*said[1:], own, passed) == ByLot(4, 4, 4, 0)
    assert by_lot(*said[1:]) == ByLot(4, 4, 3, 0)
    mended = check(ones[0], "pass", by=3, at="2026-01-02T00:00:00Z")  # a second reviewer of the same answer
    assert by_lot(*said, mended, passed) == ByLot(4, 4, 4, 0)


def test_two_wrong_ones_of_five_do_not_hold_a_kind_of_which_one_in_ten_may_be_wrong() -> None:
    """One in twelve such kinds would show as many by chance; Wilson's interval began at 12 %."""
    assert Stratum("c", None, "b", 30, 5, 5, 2).interval.low <= 0.1
    assert Stratum("c", None, "b", 30, 5, 5, 3).interval.low > 0.1
    assert Stratum("c", None, "b", 9, 2, 0, 0).interval == (0.0, 1.0)


@given(result=JSON, data=JSON)
def test_a_result_that_the_form_does_not_make_is_no_verdict(result: Any, data: Any) -> None:
    verdict = {"from_name": "verdict", "to_name": "answer", "type": "choices", "value": {"choices": ["pass"]}}
    for odd in (result, [verdict, result], [{**verdict, "value": result}], [verdict, verdict]):
        entry = {"id": 9, "result": odd, "completed_by": 2, "updated_at": "2026-01-01T00:00:00Z"}
        task = {"id": 1, "data": {"annotation": 5, "seal": "s", "x": data}, "annotations": [entry]}
        assert all(check.review["verdict"] == "pass" for check in checks_of(task))
    list(checks_of({"id": 1, "data": data, "annotations": result}))
