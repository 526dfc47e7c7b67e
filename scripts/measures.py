"""Measures of drafts against known answers, for the demo."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Value = Mapping[str, Any]


def field_exact_match(values: Sequence[Value | None], truths: Sequence[Value], keys: Sequence[str]) -> float:
    """Return the share of fields, over all rows and keys, that equal the truth; null equals a missing key."""
    right = sum(
        (value or {}).get(key) == truth.get(key) if value is not None else False
        for value, truth in zip(values, truths, strict=True)
        for key in keys
    )
    return right / (len(truths) * len(keys)) if truths else 0.0


def span_f1(values: Sequence[Value | None], truths: Sequence[Value], key: str) -> float:
    """Return the F1 over all quotes: a quote is right if its text, `nth` and label are."""
    drafted = right = expected = 0
    for value, truth in zip(values, truths, strict=True):
        ours, theirs = (
            Counter((quote["text"], quote["nth"], quote["label"]) for quote in (row or {}).get(key) or [])
            for row in (value, truth)
        )
        drafted += ours.total()
        expected += theirs.total()
        right += (ours & theirs).total()
    return 2 * right / (drafted + expected) if drafted + expected else 1.0
