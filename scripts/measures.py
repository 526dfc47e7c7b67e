"""Measures of drafts against known answers, and how they are told, shared by the verbs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Value = Mapping[str, Any]


def field_exact_match(values: Sequence[Value | None], truths: Sequence[Value], keys: Sequence[str]) -> float:
    """Give the share of fields, over all rows and keys, that equal the truth; null is missing."""
    right = sum(
        (value or {}).get(key) == truth.get(key) if value is not None else False
        for value, truth in zip(values, truths, strict=True)
        for key in keys
    )
    return right / (len(truths) * len(keys)) if truths else 0.0


def span_f1(values: Sequence[Value | None], truths: Sequence[Value], key: str) -> float:
    """Give the F1 over all quotes: one counts as right when text, `nth` and label are."""
    found = right = expected = 0
    for value, truth in zip(values, truths, strict=True):
        ours, theirs = (
            Counter((quote["text"], quote["nth"], quote["label"]) for quote in (row or {}).get(key) or [])
            for row in (value, truth)
        )
        found += ours.total()
        expected += theirs.total()
        right += (ours & theirs).total()
    return 2 * right / (found + expected) if found + expected else 1.0


_SHARES = {
    "quality": "fields right",
    "accepted": "accepted as they are",
    "schema_valid": "fit the schema",
    "rule_valid": "obey the rules",
    "ran": "code ended well",
}


def side_by_side(
    before: Mapping[str, Any], after: Mapping[str, Any], gain: Mapping[str, float]
) -> Iterator[str]:
    """Tell the figures of two versions beside each other, and by how much the second is better."""
    for field, shares in before["fields"].items():
        then = after["fields"][field]
        yield (
            f"  {field:<24} exact match {_points(shares['exact_match'], then['exact_match'])}   "
            f"F1 {_points(shares['f1'], then['f1'])}"
        )
    for figure, words in _SHARES.items():
        if figure in before:
            yield f"  {words:<24} {_points(before[figure], after[figure])}"
    for figure in ("prompt_tokens", "completion_tokens"):
        yield f"  {figure.replace('_', ' '):<24} {before[figure]:.1f} -> {after[figure]:.1f}"
    times = [f"{part['ms']['mean']:.0f} (p95 {part['ms']['p95']:.0f})" for part in (before, after)]
    yield f"  {'ms a draft':<24} {' -> '.join(times)}"
    low, mean, high = (100 * gain[key] for key in ("low", "mean", "high"))
    yield f"  gain {mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"


def _points(before: float, after: float) -> str:
    return f"{100 * before:5.1f} -> {100 * after:5.1f}"
