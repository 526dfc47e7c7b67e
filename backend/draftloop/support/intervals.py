"""Intervals of shares, 95 % each: what they assume is said with each, and tests measure their coverage.

Knows counts. Does not know samples. None of these intervals is meant to be looked at again and again until it
says what one wants, and ten of them at once do not hold together with 95 %.

Source:
    Clopper, Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial
    (Biometrika 26, 1934): exact limits by inverting tests; Buonaccorsi, A note on confidence intervals for
    proportions in finite populations (The American Statistician 41, 1987): the same with the hypergeometric
    distribution; Korn, Graubard, Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data (Survey Methodology 24, 1998): an effective sample size for groups
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2
_BUCKETS = 64  # of groups: measured as good as 128, and little memory
_Z = float(special.ndtri(1 - _TAIL))

Numbers = np.ndarray[Any, Any]


class Range(NamedTuple):
    """A lower and an upper limit, 0..1 each."""

    low: float
    high: float


def binomial_interval(hits: float, count: float) -> Range:
    """Return the exact interval of a probability from independent trials; both may be fractions.

    Args:
        hits: How many had it.
        count: How many there were; nothing is known where there was none.
    """
    if count <= 0:
        return Range(0.0, 1.0)
    low = special.betaincinv(hits, count - hits + 1, _TAIL) if hits > 0 else 0.0
    high = special.betaincinv(hits + 1, count - hits, 1 - _TAIL) if hits < count else 1.0
    return Range(float(low), float(high))


def upper_confidence_bound(hits: int, count: int) -> float:
    """Return the upper 95 % confidence bound of a probability, from independent trials; exact."""
    return 1.0 if hits >= count else float(special.betaincinv(hits + 1, count - hits, CONFIDENCE))


def sample_interval(hits: int, looked_at: int, drawn: int, population: int) -> Range:
    """Return the exact interval of a share of a finite population, from a simple sample of it.

    Assumes that every sample of this size was equally likely. What was drawn and not looked at yet counts as
    no hit in the lower limit and as a hit in the upper one: it may be missing because of what it is.

    Args:
        hits: How many of those looked at had it.
        looked_at: How many of those drawn were looked at.
        drawn: How many were drawn.
        population: How many they were drawn from.
    """
    if not drawn:
        return Range(0.0, 1.0)
    missed = looked_at - hits
    low = population - _upper_count(missed + drawn - looked_at, drawn, population)
    return Range(low / population, _upper_count(hits + drawn - looked_at, drawn, population) / population)


class GroupedShare:
    """A share of units that come in groups, such as texts of one document; its memory does not grow.

    Units of one group may be right or wrong together: groups, not units, are taken for independent. Each
    falls into one of 64 buckets; how far their shares are apart says how many independent units all are
    worth.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count = 0
        self._hits = np.zeros(_BUCKETS)
        self._weights = np.zeros(_BUCKETS)

    def add(self, group: str, hits: float, weight: float = 1.0) -> None:
        """Add a unit: how much of its weight are hits.

        Args:
            group: Hash of its group, in hex.
            hits: From 0 to its weight.
            weight: What it counts in the share.
        """
        self.count += 1
        bucket = int(group, 16) % _BUCKETS
        self._hits[bucket] += hits
        self._weights[bucket] += weight

    @property
    def share(self) -> float:
        """The share of hits, 0..1; not a number where nothing was added."""
        return float(self._hits.sum() / self._weights.sum()) if self.count else float("nan")

    @property
    def interval(self) -> Range:
        """The interval of the share that further groups of the same kind would have."""
        used = self._weights > 0
        buckets = int(used.sum())
        if buckets < 2:
            return Range(0.0, 1.0)
        share, whole = self.share, self._weights.sum()
        deviations = self._hits[used] - share * self._weights[used]
        variance = float((deviations**2).sum()) * buckets / (buckets - 1) / whole**2
        independent = share * (1 - share) / self.count  # the variance if the units were independent
        effective = min(1.0, independent / variance) if variance > 0 else 1.0
        effective *= (_Z / student(buckets - 1)) ** 2
        return binomial_interval(share * self.count * effective, self.count * effective)


def student(degrees: int) -> float:
    """Return how many standard errors an interval reaches to each side: Student's t."""
    return float(special.stdtrit(degrees, 1 - _TAIL))


def _upper_count(hits: int, drawn: int, population: int) -> int:
    """Return the upper limit of the hits in a population, from the hits among those drawn."""
    low, high = hits, population - drawn + hits
    while low < high:
        middle = (low + high + 1) // 2
        if _hypergeometric_cdf(hits, drawn, middle, population) > _TAIL:
            low = middle
        else:
            high = middle - 1
    return low


def _hypergeometric_cdf(hits: int, drawn: int, having: int, population: int) -> float:
    """Return the probability that a sample holds at most so many hits: hypergeometric."""
    number = np.arange(max(0, drawn - population + having), hits + 1)
    logs = (
        _log_binomial(having, number)
        + _log_binomial(population - having, drawn - number)
        - _log_binomial(population, np.asarray(drawn))
    )
    return float(np.exp(logs).sum())


def _log_binomial(whole: int, part: Numbers) -> Numbers:
    """Return the logarithm of the binomial coefficient."""
    chosen: Numbers = (
        special.gammaln(whole + 1) - special.gammaln(part + 1) - special.gammaln(whole - part + 1)
    )
    return chosen
