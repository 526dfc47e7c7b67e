"""Figures of drafts, the interval of a gain, and the decision."""

import math
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.evaluation.measures import DraftOutcome, Interval, compare_fields, figures, gain, objections

NAMES = ["name", "tags"]


def outcome(draft: Any, value: Any, group: str = "g", **more: Any) -> DraftOutcome:
    right, hits = compare_fields(NAMES, draft, value)
    defaults = {
        "schema_valid": True,
        "rule_valid": True,
        "ran": None,
        "attempts": 1,
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "ms": 5.0,
    }
    return DraftOutcome(group=group, right=right, hits=hits, **{**defaults, **more})


def outcomes(*qualities: float, group: str = "") -> list[DraftOutcome]:
    """Return outcomes of two fields each: 0, 0.5 or 1 of them right."""
    values = {0.0: {}, 0.5: {"name": "a"}, 1.0: {"name": "a", "tags": ["x"]}}
    return [
        outcome(values[quality], values[1.0], group or str(number))
        for number, quality in enumerate(qualities)
    ]


def test_a_field_is_right_where_it_equals_the_human_value() -> None:
    half = outcome({"name": "a", "tags": ["x", "y"]}, {"name": "a", "tags": ["x"]})
    assert half.right == {"name": True, "tags": False}
    assert (half.quality, half.accepted) == (0.5, False)
    assert outcome({"tags": []}, {"tags": []}).accepted
    assert outcome(None, {"tags": []}).quality == 0.0


def test_f1_counts_what_a_field_holds() -> None:
    summary = figures(
        [
            outcome({"name": "a", "tags": ["x", "y"]}, {"name": "a", "tags": ["x", "z", "z"]}),
            outcome({"name": "b"}, {"tags": []}),
            outcome(None, {"name": "c", "tags": ["z"]}),
        ]
    )
    assert summary["fields"]["name"] == {"exact_match": round(1 / 3, 4), "f1": 0.5}  # 1 of 2 and of 2
    assert summary["fields"]["tags"]["f1"] == round(2 * 1 / (2 + 4), 4)
    assert figures([outcome({}, {})])["fields"]["tags"] == {"exact_match": 1.0, "f1": 1.0}


def test_figures_hold_validity_acceptance_tokens_and_times() -> None:
    summary = figures(
        [
            outcome({"name": "a"}, {"name": "a"}, ms=10.0),
            outcome({"name": "a"}, {"name": "b"}, ms=30.0, rule_valid=False, ran=True, completion_tokens=8),
        ]
    )
    assert (summary["accepted"], summary["schema_valid"], summary["rule_valid"], summary["ran"]) == (
        0.5,
        1.0,
        0.5,
        1.0,
    )
    assert (summary["completion_tokens"], summary["ms"]) == (6.0, {"mean": 20.0, "p95": 30.0})
    assert "ran" not in figures([outcome({}, {})])


def test_a_gain_is_paired_and_its_interval_repeats() -> None:
    before, after = outcomes(*[0.0, 0.5, 0.5, 1.0] * 10), outcomes(*[0.5, 0.5, 1.0, 1.0] * 10)
    result = gain(before, after)
    assert result == gain(before, after)
    assert result.mean == 0.25
    # Half the samples gain 0.5: a standard error of 0.25 / sqrt(40) by hand, and the two assumed documents.
    error = math.sqrt((20 * 0.25 + 2 - 42 * (10 / 42) ** 2) / 41 / 42)
    reach = 2.0227 * error  # Student's t of 39 degrees
    assert (result.low, result.high) == pytest.approx((10 / 42 - reach, 10 / 42 + reach), abs=1e-4)


def test_equal_versions_have_no_gain() -> None:
    same = outcomes(*[0.0, 0.5, 1.0] * 10)
    result = gain(same, same)
    assert result.mean == 0
    assert result.low == -result.high
    assert 0 < result.high < 0.1  # what 30 documents that do not differ say


def test_samples_of_one_document_count_as_one() -> None:
    before = outcomes(*[0.0] * 20) + outcomes(*[0.5] * 20, group="one")
    after = outcomes(*[0.5] * 20) + outcomes(*[0.0] * 20, group="one")
    apart = outcomes(*[0.0] * 20, *[0.5] * 20), outcomes(*[0.5] * 20, *[0.0] * 20)
    together, alone = (gain(*pair) for pair in ((before, after), apart))
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=30), st.randoms())
def test_an_interval_holds_its_mean_and_turns_with_the_sign(qualities: list[float], chance: Any) -> None:
    before = outcomes(*qualities)
    chance.shuffle(qualities)
    after = outcomes(*qualities)
    there, back = (gain(*pair) for pair in ((before, after), (after, before)))
    assert there.low <= there.mean + 1e-9
    assert there.high >= there.mean - 1e-9
    assert there.mean == pytest.approx(
        fmean(one.quality for one in after) - fmean(one.quality for one in before)
    )
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        (Interval(0.1, 0.01, 0.2), Interval(0.0, 0.0, 0.0), []),
        (Interval(0.1, 0.01, 0.2), Interval(-0.01, -0.2, 0.0), []),
        (Interval(0.1, 0.0, 0.2), Interval(0.0, 0.0, 0.0), ["It is not surely better: +10.0 points"]),
        (
            Interval(0.1, 0.01, 0.2),
            Interval(-0.012, 0.0, 0.0),
            ["Case 'other' loses 1.2 points; 1 are allowed"],
        ),
        (
            Interval(-0.1, -0.2, 0.0),
            Interval(-0.5, 0.0, 0.0),
            ["It is not surely better", "Case 'other' loses"],
        ),
    ],
)
def test_objections_to_an_unsure_gain_and_to_losses_elsewhere(
    own: Interval, other: Interval, said: list[str]
) -> None:
    result = objections(own, {"other": other}, 0.01)
    assert len(result) == len(said)
    assert all(words in sentence for words, sentence in zip(said, result, strict=True))
