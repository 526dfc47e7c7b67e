"""How good drafts are against what humans submitted, and whether one version is better than another.

Knows outcomes, figures, intervals and the decision. Does not know models, datasets or files.

    exact match   a field says what the human submitted
    F1            over what a field holds: quotes, chosen options, entries; one for a field with one value
    quality       the share of a sample's fields that are right: what versions are compared by
    acceptance    the share of samples whose every field is right: what a human would submit unchanged

The field of a program is right where the program ends well: two right ones seldom have the same text.
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

MIN_GROUPS = 20  # source documents: with fewer, the interval says more about them than about the model


class Hits(NamedTuple):
    """What a field of a draft and of the human's value hold: in both, in the draft, in the value."""

    both: int
    drafted: int
    wanted: int


@dataclass(frozen=True)
class DraftOutcome:
    """What came of one held-out sample in one version.

    group         the source document, or the input
    right         by field, whether it is right
    hits          by field
    schema_valid  it decodes and fits the validating schema
    rule_valid    and obeys rules and grounding
    ran           of a code task: whether its program ended well and left its files; None for others
    ms            from the first question to the draft
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
        """The share of its fields that are right, 0..1."""
        return fmean(self.right.values()) if self.right else 0.0

    @property
    def accepted(self) -> bool:
        """Whether a human would have submitted it as it is."""
        return all(self.right.values())


class Interval(NamedTuple):
    """A difference and the interval that holds it with 95 % confidence."""

    mean: float
    low: float
    high: float


def compare_fields(
    names: Sequence[str], draft: Value | None, value: Value
) -> tuple[dict[str, bool], dict[str, Hits]]:
    """Compare a draft with the human's value, field by field; without a draft all of them are wrong."""
    right = {
        name: draft is not None and canonical(draft.get(name)) == canonical(value.get(name)) for name in names
    }
    return right, {name: _hits((draft or {}).get(name), value.get(name)) for name in names}


def figures(outcomes: Sequence[DraftOutcome]) -> dict[str, Any]:
    """Sum up the outcomes of a version; there is at least one."""
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
    """Return by how much the quality of the same samples rose, and the interval of that.

    Source documents, not samples, are taken for independent: samples of one are right or wrong together. Two
    more documents are assumed for the interval, one that only the new version gets right and one that only
    the old one does: where few documents differ, those that differ most may not have been
    seen yet. Without them an interval of 20 documents missed the truth in up to one of three simulations, and
    one that gains nothing was surely better in one of five.

    Args:
        before: Outcomes of one version.
        after: Those of the other, of the same samples in the same order.
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
    usual = samples / len(table)  # samples of a document
    table = np.vstack([table, [[usual, usual], [-usual, usual]]])
    middle = rise / table[:, 1].sum()
    apart = table[:, 0] - middle * table[:, 1]
    documents = len(table)
    error = math.sqrt((apart**2).sum() * documents / (documents - 1)) / table[:, 1].sum()
    reach = student(max(documents - 3, 1)) * error
    return Interval(float(rise / samples), max(-1.0, float(middle - reach)), min(1.0, float(middle + reach)))


def objections(target: Interval, others: Mapping[str, Interval], margin: float) -> list[str]:
    """Say why a version must not be promoted; nothing where it may.

    Args:
        target: What it gained in the case that it was trained for.
        others: What it gained in the other cases that the model serves.
        margin: What each of them may lose.
    """
    said = []
    if target.low <= 0:
        told = (
            f"{100 * target.mean:+.1f} points, between {100 * target.low:+.1f} and {100 * target.high:+.1f}"
        )
        said.append(f"It is not surely better: {told} with 95 % confidence.")
    for name, found in sorted(others.items()):
        if found.mean < -margin:
            said.append(
                f"Case '{name}' loses {-100 * found.mean:.1f} points; {100 * margin:g} are allowed at most."
            )
    return said


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


def _share(found: Sequence[bool]) -> float:
    return _rounded(sum(found) / len(found))


def _rounded(number: float) -> float:
    return round(number, 4)
