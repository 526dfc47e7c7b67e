"""How far annotators agree where several of them had the same task.

Knows Krippendorff's alpha for nominal data, in sums that are added up task by task. Does not know samples.
An answer counts as a whole, or field by field; two answers are the same or they are not.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from backend.core.sample import canonical, digest


@dataclass
class Agreement:
    """Sums over the tasks that several annotators had; `tasks` counts them.

    Source:
        Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), nominal data, any number of observers
    """

    tasks: int = 0
    _same: float = 0.0  # observed: pairs that are the same, each task weighted by its answers
    _values: Counter[bytes] = field(default_factory=Counter)

    def add(self, answers: Sequence[object]) -> None:
        """Add the answers to one task, one of each annotator; fewer than two say nothing."""
        if len(answers) < 2:
            return
        self.tasks += 1
        found = Counter(digest(canonical(answer)) for answer in answers)
        pairs = sum(count * (count - 1) for count in found.values())
        self._same += pairs / (len(answers) - 1)
        self._values += found

    @property
    def observed(self) -> float:
        """Give the share of pairs of answers that are the same, 0..1; not a number without a task."""
        total = self._values.total()
        return self._same / total if total else math.nan

    @property
    def alpha(self) -> float:
        """Give Krippendorff's alpha: 1 is agreement, 0 chance; not a number where all answers are one."""
        total = self._values.total()
        by_chance = sum(count * (count - 1) for count in self._values.values())
        if not total or by_chance == total * (total - 1):
            return math.nan
        expected = 1 - by_chance / (total * (total - 1))
        return 1 - (1 - self.observed) / expected
