"""The order in which tasks are labelled next: uncertain drafts first, without tasks that are much alike.

Knows scores, texts and the order. Does not know where they come from or where the order is stored. Ties are
broken by a hash of seed and task, so the result does not depend on the order of the candidates.

    uncertainty  1 - score of the draft, so drafts that broke a rule come first; without a draft, a parameter
    likeness     the largest share of a text's shingles that one of the tasks ranked before it has too
"""

import hashlib
import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from draftloop.dataset.nearness import shared_shingles, sketch, sketch_table

_POOL = 10  # candidates that are compared for each task that is wanted
_LIKENESS = 0.5  # weight of likeness against uncertainty


class TaskCandidate(NamedTuple):
    """A task that nobody has begun, the score of its draft if it has one, and its text."""

    task: int
    score: float | None
    text: str


class Ranked(NamedTuple):
    """A task in the order of labelling, with the score and likeness that ranked it."""

    task: int
    score: float | None
    likeness: float


def rank(
    candidates: Iterable[TaskCandidate], count: int, *, seed: int = 0, undrafted: float = 0.0
) -> list[Ranked]:
    """Return the tasks to label next, in order.

    Each next task is the one with the largest weighted uncertainty minus likeness. Only the most uncertain
    tasks, ten for each that is wanted, are compared, so memory and time grow with `count` only.

    Args:
        candidates: Tasks in any order, read once.
        count: Number of tasks to return.
        seed: Breaks ties.
        undrafted: Uncertainty of a task without a draft, 0..1.
    Source:
        Least confidence: Settles, Active Learning Literature Survey (2009), 3.1. Maximal marginal relevance:
        Carbonell, Goldstein, The Use of MMR, Diversity-Based Reranking (1998). The most uncertain ones first,
        then likeness among them: Zhdanov, Diverse mini-batch Active Learning (2019).
    """

    def uncertainty(candidate: TaskCandidate) -> float:
        return undrafted if candidate.score is None else 1.0 - min(1.0, max(0.0, candidate.score))

    pool = heapq.nlargest(count * _POOL, candidates, key=lambda one: (uncertainty(one), _lot(seed, one.task)))
    table = sketch_table((sketch(one.text) for one in pool), len(pool))
    worth = (1 - _LIKENESS) * np.array([uncertainty(one) for one in pool])
    nearest = np.zeros(len(pool))
    ranked: list[Ranked] = []
    for _ in range(min(count, len(pool))):
        place = int(np.argmax(worth - _LIKENESS * nearest))  # the first of equals has the highest hash
        ranked.append(Ranked(pool[place].task, pool[place].score, float(nearest[place])))
        worth[place] = -np.inf
        nearest = np.maximum(nearest, shared_shingles(table, place))
    return ranked


def by_chance(candidates: Iterable[TaskCandidate], count: int, *, seed: int = 0) -> list[Ranked]:
    """Return tasks in random order, the baseline for `rank`."""
    drawn = heapq.nlargest(count, candidates, key=lambda one: _lot(seed, one.task))
    return [Ranked(one.task, one.score, 0.0) for one in drawn]


def _lot(seed: int, task: int) -> bytes:
    return hashlib.blake2b(f"next {seed} {task}".encode(), digest_size=8).digest()
