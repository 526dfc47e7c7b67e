"""Spot checks: what is drawn, what a reviewer sees, which verdicts count, and what follows."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.corpus import Options
from backend.core.labelling import compile_labelling
from backend.core.sample import Brief, Review, Sample
from backend.core.spotcheck import CONFIG, WAITS, Check, Stratum, checks_of, drawn, order, shown, wilson
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
    found = settle_all(samples, Options(spot_check=share, max_error=max_error), {}, by_id)
    return {held.sample.annotation: held.reason for held in found.held if held.gate == "spot_checked"}


def test_a_drawn_sample_is_held_until_a_second_human_passes_it() -> None:
    one, other = sample(1), sample(2)
    assert checked([one, other]) == {1: WAITS, 2: WAITS}
    assert checked([one, other], check(one, "pass")) == {2: WAITS}
    assert checked([one, other], check(one, "pass"), share=0.0) == {}
    found = settle_all([one], Options(spot_check=1.0), {}, {1: [check(one, "pass")]})
    assert found.samples[0].review == {"verdict": "pass", "by": 2, "at": "2026-01-01T00:00:00Z"}
    assert "spot_checked" in found.samples[0].gates


def test_a_sample_that_was_held_comes_back_to_the_split_that_it_had() -> None:
    one = sample(1)
    waiting = settle_all([one], Options(spot_check=1.0), {one.group: "test"})
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


def test_nobody_passes_their_own_sample_nor_one_that_was_changed_since() -> None:
    one = sample(1)
    assert checked([one], check(one, "pass", by=1)) == {1: WAITS}
    assert checked([replace(one, target="{}")], check(one, "pass")) == {1: WAITS}


def test_a_kind_with_too_many_errors_is_held_whole_unless_told_otherwise() -> None:
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


def test_a_reviewer_sees_question_and_answer_escaped_and_nobodys_name() -> None:
    one = sample(
        1, value={"name": "<b>张三</b>"}, draft={"name": "李"}, draft_target="李四", changed=("name",)
    )
    one = replace(one, metadata={**one.metadata, "draft_version": "model-x", "human": 777})
    task = shown(one)
    assert "&lt;b&gt;张三&lt;/b&gt;" in task["answer"]
    assert one.instruction in task["question"]
    told = str(task["question"]) + str(task["answer"])
    assert not any(secret in told for secret in ("model-x", "李", "777", "0.7"))
    (program,) = written_out(code=True)[:1]
    assert "总数 2" in shown(program)["answer"]
    judged = replace(
        program,
        value={"code": "print(2)", "verdict": "pass", "comment": "better than the draft"},
        target='{"code":"print(2)"}',
    )
    assert "print(2)" in shown(judged)["answer"]
    assert "pass" not in shown(judged)["answer"]
    assert "better" not in shown(judged)["answer"]
    assert {source.key for source in compile_labelling(CONFIG).sources} <= task.keys()
    assert 0 <= order(one) < 1


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
        "data": shown(one),
        "annotations": [
            entry(1, "needs_fix"),
            entry(2, "pass", was_cancelled=True),
            entry(3, None),
            entry(4, "perfect"),
        ],
    }
    (found,) = checks_of(task)
    assert found.holds_for(Brief.of(one))
    assert found.review == {
        "verdict": "needs_fix",
        "by": 5,
        "at": "2026-01-01T00:00:00Z",
        "comment": "no  name",
    }


def test_the_interval_is_wilsons() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 100)  # R: prop.test(8, 100, correct=FALSE)
    assert (round(low, 4), round(high, 4)) == (0.0411, 0.1500)
    assert Stratum("c", None, "b", 9, 2, 0, 0).interval == (0.0, 1.0)
