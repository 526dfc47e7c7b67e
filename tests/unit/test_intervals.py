"""Intervals hold what they say: coverage in simulated projects, where the truth is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from draftloop.dataset.agreement import Agreement
from draftloop.dataset.corpus import Corpus, DatasetOptions, spot_checked
from draftloop.dataset.sample import Brief, Review
from draftloop.dataset.spot_check import ByLot, Check, Stratum
from draftloop.drafting.cascade import Pair, choose, evaluate_threshold
from draftloop.evaluation.measures import DraftOutcome, gain, objections
from draftloop.support.intervals import (
    GroupedShare,
    Numbers,
    binomial_interval,
    sample_interval,
    upper_confidence_bound,
)
from tests.unit.test_spotcheck import sample

PROJECTS = 2_000
WANTED = 0.94  # of intervals that say 95 %: with 2,000 of them, 1 point is two standard errors

# Samples, annotators, share that is drawn, share that is wrong, and whether the wrong ones have low scores.
SETTINGS = [
    (300, 5, 0.20, 0.06, True),
    (1_000, 12, 0.05, 0.06, True),
    (1_000, 30, 0.05, 0.06, True),
    (5_000, 12, 0.05, 0.06, True),
    (5_000, 1, 0.02, 0.02, False),
    (2_000, 8, 0.10, 0.20, False),
]


@lru_cache(None)
def by_lot(*counts: int) -> tuple[float, float]:
    return ByLot(*counts).interval


@lru_cache(None)
def in_stratum(*counts: int) -> tuple[float, float]:
    return Stratum("c", 1, "b", *counts).interval


def simulated(
    seed: int, samples: int, annotators: int, share: float, error: float, low: bool
) -> tuple[Numbers, Numbers, Numbers]:
    """Make a project: which samples are wrong, which are in which stratum, and their lots."""
    chance = np.random.default_rng(seed)
    score = chance.random(samples) ** 0.25  # few are low, as of a model that is sure of itself
    odds = np.where(score < 0.5, 1.0, 0.02) if low else np.ones(samples)
    wrong = chance.random(samples) < error * odds / odds.mean()
    bands = np.searchsorted([0.5, 0.9], score, side="right")
    return wrong, bands * annotators + chance.integers(0, annotators, samples), chance.random(samples)


def first_of_each(strata: Numbers, lots: Numbers) -> Numbers:
    """Return where the sample of the lowest lot of each stratum is."""
    ordered = np.lexsort((lots, strata))
    starts = np.flatnonzero(np.diff(strata[ordered], prepend=-1))
    result: Numbers = ordered[starts]
    return result


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_share_of_wrong_samples_is_in_its_interval(setting: Any) -> None:
    samples, _, share, error, _ = setting
    held, widths = 0, []
    for seed in range(PROJECTS):
        wrong, _, lots = simulated(seed, *setting)
        drawn = lots < share
        low, high = by_lot(samples, int(drawn.sum()), int(drawn.sum()), int(wrong[drawn].sum()))
        held += low <= wrong.mean() <= high
        widths.append(high - low)
    assert held >= WANTED * PROJECTS
    # An interval of everything would hold the truth as well: no wider than half again a normal one.
    assert np.mean(widths) < 1.5 * 2 * 1.96 * math.sqrt(error * (1 - error) / (share * samples))


@pytest.mark.parametrize("setting", SETTINGS[1:3])
def test_the_simulation_finds_that_pooled_strata_miss_the_truth(setting: Any) -> None:
    """What the report did: everything drawn in one pot, the one of each stratum that has none included."""
    samples, _, share, _, _ = setting
    held = 0
    for seed in range(500):
        wrong, strata, lots = simulated(seed, *setting)
        drawn = lots < share
        drawn[first_of_each(strata, lots)] = True
        looked, failed = int(drawn.sum()), int(wrong[drawn].sum())
        low, high = by_lot(samples, looked, looked, failed)
        held += low <= wrong.mean() <= high
    assert held < 0.9 * 500


def test_the_share_of_a_stratum_is_in_its_interval() -> None:
    held = strata_seen = 0
    for seed in range(300):
        wrong, strata, lots = simulated(seed, *SETTINGS[2])
        drawn = lots < SETTINGS[2][2]
        drawn[first_of_each(strata, lots)] = True
        for stratum in np.unique(strata):
            of_it = strata == stratum
            members, looked = int(of_it.sum()), int((of_it & drawn).sum())
            low, high = in_stratum(members, looked, looked, int((of_it & drawn & wrong).sum()))
            held += low <= wrong[of_it].mean() <= high
            strata_seen += 1
    assert held >= WANTED * strata_seen


def test_the_gate_itself_draws_and_counts_so_that_the_truth_is_in_the_interval() -> None:
    """300 samples of 5 annotators, 20 % drawn, 6 % wrong in low scores; most wrong ones are corrected."""
    first = Brief.of(sample(1))
    numbers = count(1)
    held = 0
    projects = 400
    for seed in range(projects):
        wrong, strata, _ = simulated(seed, *SETTINGS[0])
        briefs = [
            replace(first, annotation=next(numbers), human=int(stratum), score=None) for stratum in strata
        ]
        checks = {}
        for brief, is_wrong in zip(briefs, wrong, strict=True):
            said = Review(verdict="needs_fix" if is_wrong else "pass", by=-1, at="2026-01-01T00:00:00Z")
            checks[brief.annotation] = [Check(brief.annotation, brief.seal, said)]
        corrected = [
            replace(brief, answer=b"corrected") if is_wrong and brief.annotation % 2 else brief
            for brief, is_wrong in zip(briefs, wrong, strict=True)
        ]
        corpus = Corpus(corrected, DatasetOptions(spot_check=0.2), lambda _: iter(()), checks=checks)
        spot_checked(corpus)
        assert corpus.result.by_lot is not None
        assert corpus.result.by_lot.drawn == list(corpus.result.drawn.values()).count("lot")
        low, high = corpus.result.by_lot.interval
        held += low <= wrong.mean() <= high
    assert held >= WANTED * projects


@pytest.mark.parametrize("shy", [0.0, 0.5])
def test_samples_that_reviewers_leave_out_because_they_are_wrong_do_not_break_the_interval(
    shy: float,
) -> None:
    held = 0
    for seed in range(PROJECTS):
        wrong, _, lots = simulated(seed, *SETTINGS[0])
        drawn = lots < 0.2
        left_out = wrong & (np.random.default_rng(seed).random(300) >= shy)
        checked = drawn & ~left_out
        low, high = by_lot(300, int(drawn.sum()), int(checked.sum()), int((checked & wrong).sum()))
        held += low <= wrong.mean() <= high
    assert held >= WANTED * PROJECTS


@given(st.integers(1, 400), st.data())
def test_limits_are_those_of_the_hypergeometric_distribution(population: int, data: st.DataObject) -> None:
    drawn = data.draw(st.integers(1, population))
    failed = data.draw(st.integers(0, drawn))
    low, high = (round(limit * population) for limit in sample_interval(failed, drawn, drawn, population))
    kept = stats.hypergeom.cdf(failed, population, high, drawn)
    assert kept > 0.025 - 1e-9
    if high < population - drawn + failed:
        assert stats.hypergeom.cdf(failed, population, high + 1, drawn) <= 0.025 + 1e-9
    if low > failed:
        assert stats.hypergeom.sf(failed - 1, population, low - 1, drawn) <= 0.025 + 1e-9
    assert low <= high


def test_limits_are_those_that_are_known() -> None:
    assert sample_interval(0, 0, 0, 100) == (0.0, 1.0)
    assert sample_interval(3, 10, 10, 10) == (0.3, 0.3)  # all were looked at
    assert sample_interval(3, 5, 10, 10) == (0.3, 0.8)  # half of all, and the others may all be wrong
    assert binomial_interval(0, 0) == (0.0, 1.0)
    # Of binom.test in R.
    assert binomial_interval(8, 100) == pytest.approx((0.03517156, 0.15155764), abs=1e-8)


# ------------------------------------------------------------------------------ shares and agreement


@pytest.mark.parametrize(
    ("documents", "size", "share", "alike"),
    [
        (20, 1, 0.1, 0.0),
        (300, 1, 0.05, 0.0),
        (200, 1, 0.9, 0.0),
        (20, 5, 0.3, 0.3),
        (60, 5, 0.1, 0.3),
        (60, 5, 0.9, 0.3),
    ],
)
def test_a_share_of_samples_in_documents_is_in_its_interval(
    documents: int, size: int, share: float, alike: float
) -> None:
    """Samples of a document share a chance of their own; `alike` is the correlation between two of them."""
    chance = np.random.default_rng(1)
    held = of_units = 0
    for _ in range(1_000):
        odds = np.full(documents, share)
        if alike:
            odds = chance.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), documents)
        hits = chance.random((documents, size)) < odds[:, None]
        groups = [f"{bits:016x}" for bits in chance.integers(0, 2**63, documents)]
        added = GroupedShare()
        for group, ones in zip(groups, hits.tolist(), strict=True):
            for one in ones:
                added.add(group, one)
        low, high = added.interval
        held += low <= share <= high
        low, high = binomial_interval(int(hits.sum()), hits.size)
        of_units += low <= share <= high
    assert held >= WANTED * 1_000
    assert alike == 0 or of_units < 0.9 * 1_000  # as if samples were independent


@pytest.mark.parametrize("frequent", [0.5, 0.9])
@pytest.mark.parametrize("noise", [0.05, 0.3])
@pytest.mark.parametrize("tasks", [10, 60])
def test_alpha_is_in_its_interval(tasks: int, noise: float, frequent: float) -> None:
    """Two annotators say what is true, but with `noise` either says what they say anyway."""
    chance = np.random.default_rng(2)

    def answers(number: int) -> Numbers:
        true = chance.random(number) < frequent
        guesses = chance.random((2, number)) < frequent
        said: Numbers = np.where(chance.random((2, number)) < noise, guesses, true).T
        return said

    many = answers(1_000_000)
    truth = 1 - np.mean(many[:, 0] != many[:, 1]) / (2 * many.mean() * (1 - many.mean()))
    held = 0
    repeats = 600
    for _ in range(repeats):
        agreement = Agreement()
        for place, pair in enumerate(answers(tasks).tolist()):
            agreement.add(pair, f"{place * 7919:x}")
        low, high = agreement.alpha_interval
        held += math.isnan(low) or low <= truth <= high  # all answers are one: nothing is shown
    assert held >= WANTED * repeats


# ------------------------------------------------------------------------------ promotion


def outcome(group: str, quality: float) -> DraftOutcome:
    return DraftOutcome(group, {"a": bool(quality)}, {}, True, True, None, 1, 1, 1, 1.0)


KNOWN = {(f"{number}", q): outcome(f"{number}", q) for number in range(200) for q in (0.0, 1.0)}
# Chance that a document is better, and worse; the gain is the difference.
CHANCES = [(0.05, 0.05), (0.15, 0.15), (0.05, 0.0), (0.8, 0.0), (0.3, 0.1)]


@pytest.mark.parametrize(("better", "worse"), CHANCES)
@pytest.mark.parametrize("documents", [20, 100])
def test_a_gain_is_in_its_interval(documents: int, better: float, worse: float) -> None:
    chance = np.random.default_rng(3)
    held = promoted = 0
    repeats = 1_000
    for _ in range(repeats):
        drawn = chance.random(documents)
        old = [float(better <= one < better + worse) for one in drawn]
        new = [float(one < better) for one in drawn]
        before, after = (
            [KNOWN[str(place), one] for place, one in enumerate(column)] for column in (old, new)
        )
        result = gain(before, after)
        held += result.low <= better - worse <= result.high
        promoted += not objections(result, {}, 0.01)
    assert held >= WANTED * repeats
    assert better > worse or promoted <= 0.03 * repeats
    assert better < 0.8 or promoted == repeats


def test_a_rare_large_loss_that_was_not_seen_does_not_promote() -> None:
    """Four documents of five stay, one gains a quarter; one of twenty loses all: nothing is gained."""
    chance = np.random.default_rng(4)
    steps = {0.25: (0.5, 0.75), 0.0: (1.0, 1.0), -1.0: (1.0, 0.0)}
    names = [str(number) for number in range(20)]

    def made(group: str, quality: float) -> DraftOutcome:
        right = {str(place): place < quality * 4 for place in range(4)}
        return replace(KNOWN[group, 0.0], right=right)

    known = {(name, q): made(name, q) for name in names for q in (0.0, 0.5, 0.75, 1.0)}
    promoted = 0
    for _ in range(1_000):
        drawn = chance.choice(list(steps), 20, p=[0.2, 0.75, 0.05])
        before, after = (
            [known[name, steps[step][side]] for name, step in zip(names, drawn, strict=True)]
            for side in (0, 1)
        )
        promoted += not objections(gain(before, after), {}, 0.01)
    assert promoted <= 25  # the bootstrap that was here before: 210


# ------------------------------------------------------------------------------ cascade


def harmed_above(threshold: float, harm: Callable[[float], float]) -> float:
    grid = np.linspace(threshold, 1, 2_000)
    return float(np.mean([harm(one) for one in grid]) * (1 - threshold))


@pytest.mark.parametrize("documents", [100, 300])
@pytest.mark.parametrize("steep", [0.5, 4.0])
def test_a_threshold_keeps_its_budget(documents: int, steep: float) -> None:
    """Scores are uniform; the chance of harm at a score falls from one in two, slowly or steeply."""
    chance = np.random.default_rng(5)
    right, wrong = outcome("g", 1.0), outcome("g", 0.0)

    def harm(one: float) -> float:
        return float(0.5 * (1 - one) ** steep)

    broken = missed = chosen = 0
    for _ in range(1_000):
        first, second = (pairs(chance, documents, harm, right, wrong) for _ in range(2))
        threshold = choose(first, 0.05)
        if threshold is None:
            continue
        chosen += 1
        truth = harmed_above(threshold, harm)
        broken += truth > 0.05
        missed += truth > evaluate_threshold(second, threshold).harmed_at_most
    assert chosen > 500
    assert broken <= 0.05 * 1_000
    assert missed <= 0.06 * chosen


def pairs(
    chance: np.random.Generator,
    documents: int,
    harm: Callable[[float], float],
    right: DraftOutcome,
    wrong: DraftOutcome,
) -> Sequence[Pair]:
    scores = chance.random(documents)
    harmed = chance.random(documents) < [harm(one) for one in scores]
    return [
        Pair(float(one), wrong if is_harmed else right, right)
        for one, is_harmed in zip(scores, harmed, strict=True)
    ]


@given(st.integers(1, 400), st.data())
def test_binomial_limits_are_the_exact_ones_of_scipy(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    exact = stats.binomtest(hits, total).proportion_ci(0.95, method="exact")
    assert binomial_interval(hits, total) == pytest.approx((exact.low, exact.high), abs=1e-9)
    bound = stats.binomtest(hits, total, alternative="less").proportion_ci(0.95, method="exact").high
    assert upper_confidence_bound(hits, total) == pytest.approx(bound, abs=1e-9)
