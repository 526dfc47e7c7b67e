"""Near-duplicates among many texts, by MinHash, with at most 600 bytes of memory for each text.

Knows shingles, MinHash and bands. Does not know samples. All sketches are in one table of numbers; the index
of `datasketch` itself takes ten times as much memory.
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

NEAR = 0.9  # two texts with this share of common shingles, or more, are near-duplicates

_SHINGLE = 4  # characters; words would need a language
_PERMUTATIONS = 128  # standard error of the estimated share at 0.9: 0.027
_NUMBER: Any = np.dtype("<u4")
SKETCH_BYTES = _PERMUTATIONS * _NUMBER.itemsize
# 16 bands of 8: of 8,000 pairs with a share of 0.9, one has no band in common; candidates are checked.
_BANDS, _ROWS = 16, 8


class Nearness(NamedTuple):
    """Near-duplicates, by index in the list of texts.

    near       near-duplicates with another answer
    repeats    for a near-duplicate with the same answer: the first such text, and the share in common
    """

    near: dict[int, set[int]]
    repeats: dict[int, tuple[int, float]]


def sketch(text: str) -> bytes:
    """Return a text's MinHash: two of them share about as many numbers as the texts share shingles."""
    hashes = copy(_empty())  # MinHash.copy takes five times as long; an update replaces the numbers
    hashes.update_batch(_shingles(text))
    return bytes(hashes.hashvalues.astype(_NUMBER))


def nearness(sketches: Iterator[bytes], count: int, same: Callable[[int, int], bool]) -> Nearness:
    """Compare each text with the texts before it.

    Args:
        sketches: The texts' sketches, one at a time.
        count: Number of texts.
        same: Returns whether the texts at two indexes have the same answer.
    """
    table = sketch_table(sketches, count)
    buckets = _buckets(table)
    result = Nearness({}, {})
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
            result.repeats[place] = (repeated, near[repeated])
            continue  # later texts are compared with the first one
        for other in near:
            result.near.setdefault(place, set()).add(other)
            result.near.setdefault(other, set()).add(place)
        for key in shared:
            members[key].append(place)
    return result


def sketch_table(sketches: Iterator[bytes], count: int) -> Any:
    """Return sketches as an array with one row for each.

    Args:
        sketches: The sketches, one at a time.
        count: Number of sketches.
    """
    table: Any = np.empty((count, _PERMUTATIONS), dtype=_NUMBER)
    for place, one in zip(range(count), sketches, strict=True):
        table[place] = np.frombuffer(one, dtype=_NUMBER)
    return table


def shared_shingles(table: Any, place: int) -> Any:
    """Estimate the share of shingles that the text at an index has in common with each text."""
    return np.count_nonzero(table == table[place], axis=1) / _PERMUTATIONS


def _buckets(table: Any) -> Any:
    """Return a number for each text and band, equal for equal bands; -1 where no other text has it."""
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
    from datasketch import MinHash  # noqa: PLC0415  # imports half of scipy

    return MinHash(num_perm=_PERMUTATIONS, hashfunc=crc32)  # draws all permutations


def _shingles(text: str) -> set[bytes]:
    return {shingle.encode() for shingle in shingles(fold(text), _SHINGLE)}
