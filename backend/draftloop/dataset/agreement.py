"""Agreement of annotators who had the same task.

Knows Krippendorff's alpha for nominal data, in sums that are added up task by task. Does not know samples.
Whole answers are compared, or single fields; two answers are equal or different, with nothing between.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from draftloop.dataset.sample import canonical, digest
from draftloop.support.intervals import GroupedShare, Range


@dataclass
class Agreement:
    """Sums over the tasks that several annotators answered; `tasks` counts them.

    Source:
        Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), nominal data, any number of observers
    """

    tasks: int = 0
    # Share of equal pairs; each task is weighted by its number of answers.
    _same: GroupedShare = field(default_factory=GroupedShare)
    _values: Counter[bytes] = field(default_factory=Counter)

    def add(self, answers: Sequence[object], group: str) -> None:
        """Add the answers to one task, one by each annotator; fewer than two are ignored.

        Args:
            answers: What each annotator submitted.
            group: Hash of the task's source document, in hex.
        """
        if len(answers) < 2:
            return
        self.tasks += 1
        counts = Counter(digest(canonical(answer)) for answer in answers)
        pairs = sum(count * (count - 1) for count in counts.values())
        self._same.add(group, pairs / (len(answers) - 1), len(answers))
        self._values += counts

    @property
    def observed(self) -> float:
        """The share of pairs of answers that are equal, 0..1; NaN without a task."""
        return self._same.share

    @property
    def alpha(self) -> float:
        """Krippendorff's alpha: 1 is full agreement, 0 is chance; NaN where all answers are equal."""
        return 1 - (1 - self.observed) / self._by_chance

    @property
    def alpha_interval(self) -> Range:
        """The interval of alpha over further tasks of the same kind, with 95 % confidence.

        Takes the observed frequencies of answers as given, as Krippendorff's own bootstrap does, and assumes
        that source documents are independent. Simulated coverage is 96 % or more, highest where one answer
        is frequent.
        """
        low, high = self._same.interval
        return Range(1 - (1 - low) / self._by_chance, 1 - (1 - high) / self._by_chance)

    @property
    def _by_chance(self) -> float:
        """The share of pairs that would differ by chance; NaN where all answers are equal."""
        total = self._values.total()
        same = sum(count * (count - 1) for count in self._values.values())
        if not total or same == total * (total - 1):
            return math.nan
        return 1 - same / (total * (total - 1))
