"""Which of many texts are nearly the same, in at most 600 bytes of memory for each.

Knows shingles, MinHash and bands. Does not know samples. The sketches lie in one table of numbers: the
index of `datasketch` itself would take ten times their size.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

from draftloop.support.text import fold, shingles

if TYPE_CHECKING:
    from datasketch import MinHash

NEAR = 0.9  # share of common shingles from which two texts are nearly the same

_SHINGLE = 4  # characters; words would need a language
_PERMUTATIONS = 128  # standard error of the estimated share at 0.9: 0.027
_NUMBER: Any = np.dtype("<u4")
SKETCH_BYTES = _PERMUTATIONS * _NUMBER.itemsize
# 16 bands of 8: one of 8,000 pairs with a share of 0.9 has no band in common; false hits are checked.
_BANDS, _ROWS = 16, 8


class Nearness(NamedTuple):
    """What is nearly the same, by place in the list of texts.

    near       those with nearly the same text that say something else of it
    repeats    of one that says the same too, the first such and the share that they have in common
    """

    near: dict[int, set[int]]
    repeats: dict[int, tuple[int, float]]


def sketch(text: str) -> bytes:
    """Sketch a text: SKETCH_BYTES that share as many numbers with another's as the texts share shingles."""
    hashes = copy(_empty())  # its own way to copy takes five times as long; an update makes numbers anew
    hashes.update_batch(_shingles(text))
    return bytes(hashes.hashvalues.astype(_NUMBER))


def nearness(sketches: Iterator[bytes], count: int, same: Callable[[int, int], bool]) -> Nearness:
    """Compare all texts with those before them.

    Args:
        sketches: Of the texts, one at a time.
        count: How many they are.
        same: Tells of two places whether what is said of the texts is the same.
    """
    table = sketch_table(sketches, count)
    buckets = _buckets(table)
    found = Nearness({}, {})
    members: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for place in range(count):
        shared = [(band, int(bucket)) for band, bucket in enumerate(buckets[place]) if bucket >= 0]
        share_of = {
            other: float(np.count_nonzero(table[place] == table[other])) / _PERMUTATIONS
            for other in sorted({other for key in shared for other in members[key]})
        }
        near = {other: share for other, share in share_of.items() if share >= NEAR}
        repeated = next((other for other in near if same(place, other)), None)
        if repeated is not None:
            found.repeats[place] = (repeated, near[repeated])
            continue  # nobody needs to be compared with it
        for other in near:
            found.near.setdefault(place, set()).add(other)
            found.near.setdefault(other, set()).add(place)
        for key in shared:
            members[key].append(place)
    return found


def sketch_table(sketches: Iterator[bytes], count: int) -> Any:
    """Put sketches into a table: a row each, an array of `count` rows.

    Args:
        sketches: The sketches, one at a time.
        count: How many they are.
    """
    table: Any = np.empty((count, _PERMUTATIONS), dtype=_NUMBER)
    for place, one in zip(range(count), sketches, strict=True):
        table[place] = np.frombuffer(one, dtype=_NUMBER)
    return table


def shared_shingles(table: Any, place: int) -> Any:
    """Estimate which share of shingles the text at a place has in common with each of all, itself too."""
    return np.count_nonzero(table == table[place], axis=1) / _PERMUTATIONS


def _buckets(table: Any) -> Any:
    """Give each text and band a number that texts with the same band share; -1 where there is no other."""
    buckets: Any = np.full((len(table), _BANDS), -1, dtype=np.int32)
    for band in range(_BANDS if len(table) else 0):
        rows = np.ascontiguousarray(table[:, band * _ROWS : (band + 1) * _ROWS])
        _, numbers, counts = np.unique(
            rows.view(np.dtype((np.void, rows.dtype.itemsize * _ROWS))).ravel(),
            return_inverse=True,
            return_counts=True,
        )
        buckets[:, band] = np.where(counts[numbers] > 1, numbers, -1)
    return buckets


@cache
def _empty() -> "MinHash":
    from datasketch import MinHash  # noqa: PLC0415  # brings half of scipy

    return MinHash(num_perm=_PERMUTATIONS, hashfunc=crc32)  # draws all permutations


def _shingles(text: str) -> set[bytes]:
    return {shingle.encode() for shingle in shingles(fold(text), _SHINGLE)}
