"""How far annotators agree where several of them had the same task.

Knows Krippendorff's alpha for nominal data, in sums that are added up task by task. Does not know samples.
An answer counts as a whole, or field by field; two answers are the same or they are not.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from draftloop.dataset.sample import canonical, digest
from draftloop.support.intervals import GroupedShare, Range


@dataclass
class Agreement:
    """Sums over the tasks that several annotators had; `tasks` counts them.

    Source:
        Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), nominal data, any number of observers
    """

    tasks: int = 0
    # Pairs that are the same, each task weighted by its answers.
    _same: GroupedShare = field(default_factory=GroupedShare)
    _values: Counter[bytes] = field(default_factory=Counter)

    def add(self, answers: Sequence[object], group: str) -> None:
        """Add the answers to one task, one of each annotator; fewer than two say nothing.

        Args:
            answers: What each annotator submitted.
            group: Hash of the task's source document, in hex.
        """
        if len(answers) < 2:
            return
        self.tasks += 1
        found = Counter(digest(canonical(answer)) for answer in answers)
        pairs = sum(count * (count - 1) for count in found.values())
        self._same.add(group, pairs / (len(answers) - 1), len(answers))
        self._values += found

    @property
    def observed(self) -> float:
        """Give the share of pairs of answers that are the same, 0..1; not a number without a task."""
        return self._same.share

    @property
    def alpha(self) -> float:
        """Give Krippendorff's alpha: 1 is agreement, 0 chance; not a number where all answers are one."""
        return 1 - (1 - self.observed) / self._by_chance

    @property
    def alpha_interval(self) -> Range:
        """The interval of alpha over further tasks of the same kind, with 95 % confidence.

        Takes the frequency of answers as it was seen, as Krippendorff's own bootstrap does, and source
        documents for independent; simulated coverage is 96 % and more, most where one answer is frequent.
        """
        low, high = self._same.interval
        return Range(1 - (1 - low) / self._by_chance, 1 - (1 - high) / self._by_chance)

    @property
    def _by_chance(self) -> float:
        """The share of pairs that would differ by chance; not a number where all answers are one."""
        total = self._values.total()
        same = sum(count * (count - 1) for count in self._values.values())
        if not total or same == total * (total - 1):
            return math.nan
        return 1 - same / (total * (total - 1))
