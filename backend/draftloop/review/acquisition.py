"""Which tasks humans look at next: those whose drafts are least certain, and no two that are much alike.

Knows scores, texts and the order. Does not know where they come from or where the order goes. What looks like
chance is a hash of seed and task: the same tasks have the same order, in whatever order they come.

    uncertainty  1 - score of the draft, so what broke a rule comes first; of a task without a draft as told
    likeness     share of the text's shingles that the nearest of the tasks before it has, too
"""

import hashlib
import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from draftloop.dataset.nearness import shared_shingles, sketch, sketch_table

_POOL = 10  # candidates of likeness for each task that is wanted
_LIKENESS = 0.5  # weight of likeness against uncertainty


class TaskCandidate(NamedTuple):
    """A task that nobody has begun, the score of its draft if it has one, and its text."""

    task: int
    score: float | None
    text: str


class Ranked(NamedTuple):
    """A task in the order of labelling, and why it stands there."""

    task: int
    score: float | None
    likeness: float


def rank(
    candidates: Iterable[TaskCandidate], count: int, *, seed: int = 0, undrafted: float = 0.0
) -> list[Ranked]:
    """Give the tasks to label next, first things first.

    Each next one is that with the most uncertainty less likeness. Only the most uncertain tasks, ten for each
    that is wanted, are compared at all, so memory and time go with `count` and not with the candidates.

    Args:
        candidates: In any order, one at a time.
        count: How many are wanted.
        seed: Decides between equals.
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
    found: list[Ranked] = []
    for _ in range(min(count, len(pool))):
        place = int(np.argmax(worth - _LIKENESS * nearest))  # the first of equals: of the highest lot
        found.append(Ranked(pool[place].task, pool[place].score, float(nearest[place])))
        worth[place] = -np.inf
        nearest = np.maximum(nearest, shared_shingles(table, place))
    return found


def by_chance(candidates: Iterable[TaskCandidate], count: int, *, seed: int = 0) -> list[Ranked]:
    """Give tasks in an order that knows nothing of them: what `rank` is measured against."""
    drawn = heapq.nlargest(count, candidates, key=lambda one: _lot(seed, one.task))
    return [Ranked(one.task, one.score, 0.0) for one in drawn]


def _lot(seed: int, task: int) -> bytes:
    return hashlib.blake2b(f"next {seed} {task}".encode(), digest_size=8).digest()
