"""Figures of a dataset, added up record by record, in memory that does not grow with it.

Knows what is counted. Does not know how it is displayed (`report`), files or the time.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from draftloop.dataset.agreement import Agreement
from draftloop.dataset.corpus import Held
from draftloop.dataset.gates import Rejected
from draftloop.dataset.sample import Sample, canonical
from draftloop.support.intervals import GroupedShare

_EXAMPLES = 3  # of each gate
_COMPARED_CHARS = 400  # comparing two texts takes time in proportion to the product of their lengths
_READ_CHARS = 2000  # of a text, for its script
_FREQUENT = (("Chinese characters", re.compile("[\u4e00-\u9fff]")), ("Latin", re.compile("[A-Za-z]")))
_DECILES = 10


class Counts:
    """Counts that add up: annotations = samples + held + rejected; samples = train + test.

    Also: samples = accepted + corrected + written, and the sum of stopped_by = held + rejected.
    """

    def __init__(self) -> None:
        self._tasks = 0
        self._last_task: int | None = None
        self._all: Counter[str] = Counter()
        self._stopped: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()

    def add(self, row: Sample | Rejected, held: Held | None = None) -> None:
        """Count an annotation; all annotations of a task must be added in a row."""
        self._tasks += row.task != self._last_task
        self._last_task = row.task
        if isinstance(row, Rejected):
            self._all["rejected"] += 1
            self._stopped[row.gate] += 1
        elif held is not None:
            self._all["held"] += 1
            self._stopped[held.gate] += 1
        else:
            for name in ("samples", str(row.split), row.verdict):
                self._all[name] += 1
            for note in row.notes:
                self._noted[note["gate"]] += 1

    def record(self) -> dict[str, Any]:
        """Return the counts of the manifest."""
        parts = ("samples", "held", "rejected")
        return {
            "tasks": self._tasks,
            "annotations": sum(self._all[name] for name in parts),
            **{
                name: self._all[name]
                for name in (*parts, "train", "test", "accepted", "corrected", "written")
            },
            "stopped_by": dict(sorted(self._stopped.items())),
            "noted_by": dict(sorted(self._noted.items())),
        }


@dataclass
class Drafts:
    """How many drafts were accepted and corrected.

    share      share of accepted drafts, with its interval
    lead_s     number of annotations by seconds that they took, rounded
    days       number of drafts by day of the annotation, and whether they were accepted
    """

    accepted: int = 0
    corrected: int = 0
    share: GroupedShare = field(default_factory=GroupedShare)
    lead_s: Counter[int] = field(default_factory=Counter)
    days: Counter[tuple[str, bool]] = field(default_factory=Counter)

    @property
    def judged(self) -> int:
        """How many drafts were accepted or corrected."""
        return self.accepted + self.corrected


@dataclass
class Field:
    """How often one field of drafts was corrected.

    share      share of corrected drafts, with its interval
    likeness   sum of `likeness` of draft and correction, over the corrected ones
    """

    drafts: int = 0
    corrected: int = 0
    share: GroupedShare = field(default_factory=GroupedShare)
    likeness: float = 0.0
    agreement: Agreement = field(default_factory=Agreement)


@dataclass
class Person:
    """Counts of one annotator's annotations."""

    samples: int = 0
    held: int = 0
    rejected: int = 0
    accepted: int = 0
    corrected: int = 0
    lead_s: Counter[int] = field(default_factory=Counter)


@dataclass
class Tally:
    """All figures of the report.

    examples     a few stopped annotations by gate: task, annotation, reason
    splits       samples by case and split
    writings     samples by the script of most letters of their input
    versions     accepted and corrected drafts, by version
    undrafted_s  number of annotations without a draft by seconds that they took
    deciles      number of drafts by tenth of their score, and whether they were accepted
    fields       corrections by case and field
    people       counts by the annotator's id in Label Studio; None is unknown
    lengths      samples by length, in `unit`; a key is the upper end of a range
    agreement    agreement on whole answers, by case
    """

    counts: Counts = field(default_factory=Counts)
    examples: defaultdict[str, list[tuple[int, int, str]]] = field(
        default_factory=lambda: defaultdict[str, list[tuple[int, int, str]]](list)
    )
    splits: Counter[tuple[str, str]] = field(default_factory=Counter)
    writings: Counter[str] = field(default_factory=Counter)
    versions: defaultdict[str, Drafts] = field(default_factory=lambda: defaultdict[str, Drafts](Drafts))
    undrafted_s: Counter[int] = field(default_factory=Counter)
    deciles: Counter[tuple[int, bool]] = field(default_factory=Counter)
    fields: defaultdict[tuple[str, str], Field] = field(
        default_factory=lambda: defaultdict[tuple[str, str], Field](Field)
    )
    people: defaultdict[int | None, Person] = field(
        default_factory=lambda: defaultdict[int | None, Person](Person)
    )
    lengths: Counter[int] = field(default_factory=Counter)
    unit: str = "characters"
    agreement: defaultdict[str, Agreement] = field(
        default_factory=lambda: defaultdict[str, Agreement](Agreement)
    )

    def rejected(self, row: Rejected) -> None:
        """Count a rejected annotation."""
        self.counts.add(row)
        self.people[row.metadata.get("human")].rejected += 1
        self._example(row.gate, row.task, row.annotation, row.reason)

    def sample(self, sample: Sample, held: Held | None = None) -> None:
        """Count a sample; with `held`, one that is held back."""
        self.counts.add(sample, held)
        person = self.people[sample.metadata.get("human")]
        if held is not None:
            person.held += 1
            self._example(held.gate, sample.task, sample.annotation, held.reason)
            return
        person.samples += 1
        self.splits[sample.case, str(sample.split)] += 1
        self.writings[writing(" ".join(sample.input.values()))] += 1
        self.lengths[_upper_end(self._length(sample))] += 1
        lead_s = sample.metadata.get("lead_time_s")
        taken = [] if lead_s is None else [round(lead_s)]
        person.lead_s.update(taken)
        if sample.draft is None:
            self.undrafted_s.update(taken)
            return
        is_accepted = sample.verdict == "accepted"
        drafts = self.versions[sample.metadata.get("draft_version", "unknown")]
        drafts.accepted += is_accepted
        drafts.corrected += not is_accepted
        drafts.share.add(sample.group, is_accepted)
        drafts.lead_s.update(taken)
        drafts.days[sample.metadata.get("updated_at", "")[:10], is_accepted] += 1
        person.accepted += is_accepted
        person.corrected += not is_accepted
        if "draft_score" in sample.metadata:
            tenth = min(int(sample.metadata["draft_score"] * _DECILES), _DECILES - 1)
            self.deciles[max(tenth, 0), is_accepted] += 1
        for name in sorted(sample.draft.keys() | sample.value.keys()):
            field_ = self.fields[sample.case, name]
            field_.drafts += 1
            field_.share.add(sample.group, name in sample.changed)
            if name in sample.changed:
                field_.corrected += 1
                field_.likeness += likeness(sample.draft.get(name), sample.value.get(name))

    def overlap(self, several: Sequence[Sample]) -> None:
        """Add the agreement of one task's annotators; of each, the latest annotation counts."""
        by_human = {sample.metadata.get("human"): sample for sample in several}
        if len(by_human) < 2:
            return
        latest = list(by_human.values())
        case, group = latest[0].case, latest[0].group
        self.agreement[case].add([sample.value for sample in latest], group)
        for name in sorted({name for sample in latest for name in sample.value}):
            self.fields[case, name].agreement.add([sample.value.get(name) for sample in latest], group)

    def _length(self, sample: Sample) -> int:
        if sample.tokens is None:
            return len(sample.system) + len(sample.instruction) + len(sample.target)
        self.unit = "tokens"
        return sample.tokens

    def _example(self, gate: str, task: int, annotation: int, reason: str) -> None:
        if len(self.examples[gate]) < _EXAMPLES:
            self.examples[gate].append((task, annotation, reason))


def median(counts: Counter[int]) -> int | None:
    """Return the median of counted numbers, the lower one of two; None where there are none."""
    left = (counts.total() + 1) // 2
    for part, count in sorted(counts.items()):
        left -= count
        if left <= 0:
            return part
    return None


def likeness(one: Any, other: Any) -> float:
    """Return the share of characters that two parts of values have in common, in the same order, 0..1.

    Long texts are compared at their start and end only; what is between counts as different.
    """
    first, second = _text(one), _text(other)
    whole = len(first) + len(second)
    start = _same(first, second)
    first, second = first[start:], second[start:]
    end = _same(first[::-1], second[::-1])
    first, second = first[: len(first) - end], second[: len(second) - end]
    common = start + end
    if first and second and max(len(first), len(second)) <= _COMPARED_CHARS:
        blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
        common += sum(block.size for block in blocks)
    return 2 * common / whole if whole else 1.0


def _same(first: str, second: str) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def writing(text: str) -> str:
    """Return the script (not the language) of most letters of a text: Chinese characters, Latin, ..."""
    text = text[:_READ_CHARS]
    for name, letters in _FREQUENT:  # fast path for most texts
        if len(letters.findall(text)) * 2 > len(text):
            return name
    kinds = Counter(map(_script, filter(str.isalpha, text)))
    kind = min(kinds, key=lambda name: (-kinds[name], name), default="")
    return {"Cjk": "Chinese characters", "": "no letters"}.get(kind, kind)


@lru_cache(1 << 14)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0].capitalize()


def _upper_end(length: int) -> int:
    """Return the upper end of the range that contains a length: 16, 24, 32, 48, 64, 96, ..."""
    end = 16
    while length > end:
        if length <= end * 3 // 2:
            return end * 3 // 2
        end *= 2
    return end


def _text(part: Any) -> str:
    return part if isinstance(part, str) else "" if part is None else canonical(part)
