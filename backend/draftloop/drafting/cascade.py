"""The threshold of a cascade: below which score of a small model the larger one drafts, and what that costs.

Knows what came of the same held-out samples in both models. Does not know models, datasets or files; chance
comes in as a seeded generator.

    escalated   the small model's draft breaks a rule, or scores below the threshold: the larger one drafts
    harmed      the small model's draft stands and is wrong, and the larger one would have been right
    budget      the share of tasks that may be harmed: so much of what the larger model alone gets right

A draft is right where a human would have submitted it as it is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from draftloop.evaluation.measures import DraftOutcome, figures
from draftloop.support.intervals import CONFIDENCE, upper_confidence_bound

_STEPS = (
    1e6  # a threshold is rounded up to 1/_STEPS, so that it can be written down: a higher one harms no more
)


@dataclass(frozen=True)
class Pair:
    """A held-out sample in both models.

    score     of the small model's draft; None where that breaks a rule or cannot be read
    small     what came of that draft
    larger    what came of the larger one's
    """

    score: float | None
    small: DraftOutcome
    larger: DraftOutcome

    def stands(self, threshold: float) -> bool:
        """Whether the small model's draft is kept."""
        return self.score is not None and self.score >= threshold

    @property
    def harms(self) -> bool:
        """Whether something is lost where the small model's draft is kept."""
        return self.larger.accepted and not self.small.accepted


@dataclass(frozen=True)
class Point:
    """A cascade at one threshold, measured on samples: shares of them, and means per sample.

    harmed_at_most   the upper bound of the share that is harmed, with 95 % confidence
    tokens           prompt and answer, of each model; those of the larger one cost more
    """

    threshold: float
    escalated: float
    accepted: float
    quality: float
    harmed: float
    harmed_at_most: float
    small_tokens: float
    larger_tokens: float
    ms: float


def min_samples(budget: float) -> int:
    """Return how many samples a budget needs: with fewer, even no harm at all proves too little."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - budget))


def choose(pairs: Sequence[Pair], budget: float) -> float | None:
    """Return the lowest threshold at which no more than the budget is harmed, with 95 % confidence.

    Fewer drafts stand as the threshold rises, so fewer are harmed, and the bound falls with them: then the
    lowest threshold whose bound lies within the budget keeps it with the confidence of a single bound,
    though many were tried. Samples must be independent: one of each source document.

    Args:
        pairs: Calibration samples.
        budget: Share of tasks, above 0 and below 1.
    Returns:
        0 where every draft that obeys its rules may stand; None where none may.
    Source:
        Bates, Angelopoulos, Lei, Malik, Jordan, Distribution-Free, Risk-Controlling Prediction Sets (Journal
        of the ACM 68, 2021), theorem 1
    """
    allowed = -1
    while allowed + 1 < len(pairs) and upper_confidence_bound(allowed + 1, len(pairs)) <= budget:
        allowed += 1
    if allowed < 0:
        return None
    scored = [(pair.score, pair.harms) for pair in pairs if pair.score is not None]
    harmed = sorted((score for score, harms in scored if harms), reverse=True)
    if len(harmed) <= allowed:
        return 0.0
    return min((score for score, _ in scored if score > harmed[allowed]), default=None)


def evaluate_threshold(pairs: Sequence[Pair], threshold: float) -> Point:
    """Measure the cascade on samples at a threshold; there is at least one sample."""
    stands = [pair.stands(threshold) for pair in pairs]
    kept = [pair.small if own else pair.larger for pair, own in zip(pairs, stands, strict=True)]
    harmed = sum(pair.harms for pair, own in zip(pairs, stands, strict=True) if own)
    theirs = [None if own else pair.larger for pair, own in zip(pairs, stands, strict=True)]
    return Point(
        threshold=threshold,
        escalated=_share(len(pairs) - sum(stands), len(pairs)),
        accepted=_share(sum(outcome.accepted for outcome in kept), len(pairs)),
        quality=round(fmean(outcome.quality for outcome in kept), 4),
        harmed=_share(harmed, len(pairs)),
        harmed_at_most=round(upper_confidence_bound(harmed, len(pairs)), 4),
        small_tokens=round(fmean(_tokens(pair.small) for pair in pairs), 1),
        larger_tokens=round(fmean(_tokens(outcome) for outcome in theirs), 1),
        ms=round(
            fmean(
                pair.small.ms + (outcome.ms if outcome else 0.0)
                for pair, outcome in zip(pairs, theirs, strict=True)
            ),
            1,
        ),
    )


def curve(pairs: Sequence[Pair], points: int = 101) -> list[Point]:
    """Measure the cascade on samples at thresholds from 0 to 1."""
    return [evaluate_threshold(pairs, place / (points - 1)) for place in range(points)]


def split_groups(groups: Iterable[str], chance: np.random.Generator) -> frozenset[str]:
    """Draw half of the source documents, to calibrate on; what is reported is measured on the others."""
    known = sorted(set(groups))
    drawn = chance.permutation(len(known))[: (len(known) + 1) // 2]
    return frozenset(known[place] for place in drawn)


def one_per_group(pairs: Iterable[Pair]) -> list[Pair]:
    """Keep the first sample of each source document: samples of one document are not independent."""
    return list({pair.small.group: pair for pair in reversed(list(pairs))}.values())[::-1]


@dataclass(frozen=True)
class Calibration:
    """The threshold chosen for a case on half of its documents, measured on the other half.

    threshold   None where none keeps the budget
    """

    budget: float
    threshold: float | None
    chosen_on: int
    measured_on: int
    chosen: Point | None
    measured: Point | None
    small: dict[str, Any]
    larger: dict[str, Any]
    curve: list[Point]

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def calibrated(pairs: Sequence[Pair], budget: float, chance: np.random.Generator) -> Calibration:
    """Choose a threshold on half of the source documents, and measure it on the other half.

    Args:
        pairs: Held-out samples; at least two documents.
        budget: Share of tasks that may be harmed.
        chance: A seeded generator.
    """
    independent = one_per_group(pairs)
    first = split_groups((pair.small.group for pair in independent), chance)
    chosen_on = [pair for pair in independent if pair.small.group in first]
    measured_on = [pair for pair in independent if pair.small.group not in first]
    threshold = choose(chosen_on, budget)
    if threshold is not None:
        threshold = math.ceil(threshold * _STEPS) / _STEPS
    return Calibration(
        budget=budget,
        threshold=threshold,
        chosen_on=len(chosen_on),
        measured_on=len(measured_on),
        chosen=None if threshold is None else evaluate_threshold(chosen_on, threshold),
        measured=None if threshold is None else evaluate_threshold(measured_on, threshold),
        small=figures([pair.small for pair in measured_on]),
        larger=figures([pair.larger for pair in measured_on]),
        curve=curve(measured_on),
    )


def _tokens(outcome: DraftOutcome | None) -> int:
    return 0 if outcome is None else outcome.prompt_tokens + outcome.completion_tokens


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4)
