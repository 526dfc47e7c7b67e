"""Measures of drafts against submitted values, and the comparison of two versions.

Knows outcomes, figures, intervals and the decision. Does not know models, datasets or files.

    exact match   a field equals what the human submitted
    F1            over the entries of a field: quotes, chosen options; a field with one value is one entry
    quality       the share of a sample's fields that are right; versions are compared by it
    acceptance    the share of samples whose fields are all right, which a human would submit unchanged

The field of a program is right where the program succeeds: two right programs rarely have the same text.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from draftloop.dataset.sample import canonical
from draftloop.labelling.labelling import Value
from draftloop.support.intervals import student

MIN_GROUPS = 20  # source documents; with fewer, intervals are too unreliable for a decision


class Hits(NamedTuple):
    """Numbers of entries of a field: in both draft and human's value, in the draft, in the value."""

    both: int
    drafted: int
    wanted: int


@dataclass(frozen=True)
class DraftOutcome:
    """The draft of one held-out sample by one version, compared with the human's value.

    group         hash of the source document, or of the input
    right         whether it is right, by field
    hits          by field
    schema_valid  whether it decodes and fits the validating schema
    rule_valid    whether it obeys rules and grounding too
    ran           code tasks: whether its program succeeded and wrote its files; None for others
    ms            from the first request to the draft
    """

    group: str
    right: Mapping[str, bool]
    hits: Mapping[str, Hits]
    schema_valid: bool
    rule_valid: bool
    ran: bool | None
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    ms: float

    @property
    def quality(self) -> float:
        """Share of the sample's fields that are right, 0..1."""
        return fmean(self.right.values()) if self.right else 0.0

    @property
    def accepted(self) -> bool:
        """Whether all fields are right, so that a human would have submitted the draft unchanged."""
        return all(self.right.values())


class Interval(NamedTuple):
    """A difference and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def compare_fields(
    names: Sequence[str], draft: Value | None, value: Value
) -> tuple[dict[str, bool], dict[str, Hits]]:
    """Compare a draft with the human's value, field by field; without a draft all fields are wrong."""
    right = {
        name: draft is not None and canonical(draft.get(name)) == canonical(value.get(name)) for name in names
    }
    return right, {name: _hits((draft or {}).get(name), value.get(name)) for name in names}


def figures(outcomes: Sequence[DraftOutcome]) -> dict[str, Any]:
    """Return the figures of a version's outcomes; there must be at least one."""
    fields = {
        name: {
            "exact_match": _share([outcome.right[name] for outcome in outcomes]),
            "f1": _f1([outcome.hits[name] for outcome in outcomes]),
        }
        for name in outcomes[0].right
    }
    ran = [outcome.ran for outcome in outcomes if outcome.ran is not None]
    times = sorted(outcome.ms for outcome in outcomes)
    return {
        "samples": len(outcomes),
        "quality": _rounded(fmean(outcome.quality for outcome in outcomes)),
        "accepted": _share([outcome.accepted for outcome in outcomes]),
        "schema_valid": _share([outcome.schema_valid for outcome in outcomes]),
        "rule_valid": _share([outcome.rule_valid for outcome in outcomes]),
        **({"ran": _share(ran)} if ran else {}),
        "attempts": _rounded(fmean(outcome.attempts for outcome in outcomes)),
        "prompt_tokens": _rounded(fmean(outcome.prompt_tokens for outcome in outcomes)),
        "completion_tokens": _rounded(fmean(outcome.completion_tokens for outcome in outcomes)),
        "ms": {"mean": _rounded(fmean(times)), "p95": _rounded(times[math.ceil(0.95 * len(times)) - 1])},
        "fields": fields,
    }


def gain(before: Sequence[DraftOutcome], after: Sequence[DraftOutcome]) -> Interval:
    """Return the gain in quality from one version to another on the same samples, with its interval.

    Source documents, not samples, are assumed to be independent: samples of one document are right or wrong
    together. The interval adds two artificial documents, one that only the new version gets right and one
    that only the old one does: where few documents differ, the largest differences may not be in the sample.
    Without them, intervals from 20 documents missed the true gain in up to a third of simulations, and a
    version without any gain was called better in a fifth.

    Args:
        before: Outcomes of the old version.
        after: Outcomes of the new version, of the same samples in the same order.
    Source:
        Cochran, Sampling Techniques (1977), 6.4: a ratio of sums over documents, with Student's t; the two
        documents as in Agresti, Coull, Approximate is better than "exact" (American Statistician 52, 1998)
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for old, new in zip(before, after, strict=True):
        sums[old.group][0] += new.quality - old.quality
        sums[old.group][1] += 1
    table = np.array(list(sums.values()))
    rise, samples = table.sum(axis=0)
    usual = samples / len(table)  # mean number of samples of a document
    table = np.vstack([table, [[usual, usual], [-usual, usual]]])
    middle = rise / table[:, 1].sum()
    residuals = table[:, 0] - middle * table[:, 1]
    documents = len(table)
    error = math.sqrt((residuals**2).sum() * documents / (documents - 1)) / table[:, 1].sum()
    reach = student(max(documents - 3, 1)) * error
    return Interval(float(rise / samples), max(-1.0, float(middle - reach)), min(1.0, float(middle + reach)))


def objections(target: Interval, others: Mapping[str, Interval], margin: float) -> list[str]:
    """Return the reasons against promoting a version; empty where there are none.

    Args:
        target: The gain in the case that it was trained for.
        others: The gains in the other cases that the model serves.
        margin: The loss that is allowed in each of those.
    """
    reasons = []
    if target.low <= 0:
        points = (
            f"{100 * target.mean:+.1f} points, between {100 * target.low:+.1f} and {100 * target.high:+.1f}"
        )
        reasons.append(f"It is not surely better: {points} with 95 % confidence.")
    for name, change in sorted(others.items()):
        if change.mean < -margin:
            reasons.append(
                f"Case '{name}' loses {-100 * change.mean:.1f} points; {100 * margin:g} are allowed at most."
            )
    return reasons


def count_groups(outcomes: Sequence[DraftOutcome]) -> int:
    """Count the source documents of outcomes."""
    return len({outcome.group for outcome in outcomes})


def _hits(drafted: Any, wanted: Any) -> Hits:
    ours, theirs = _entries(drafted), _entries(wanted)
    return Hits((ours & theirs).total(), ours.total(), theirs.total())


def _entries(part: Any) -> Counter[str]:
    if part is None:
        return Counter()
    return Counter(canonical(item) for item in (part if isinstance(part, list) else [part]))


def _f1(hits: Sequence[Hits]) -> float:
    both, drafted, wanted = (sum(column) for column in zip(*hits, strict=True))
    return _rounded(2 * both / (drafted + wanted)) if drafted + wanted else 1.0


def _share(flags: Sequence[bool]) -> float:
    return _rounded(sum(flags) / len(flags))


def _rounded(number: float) -> float:
    return round(number, 4)
