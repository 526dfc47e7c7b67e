"""Spot checks: which samples a second human looks at, what they see of them, and what follows from it.

Knows the draw, the labelling config of the review project, and how its tasks are read back. Does not
know Label Studio's API. The reviewer sees the question, the answer and what programs left: not who or
what drafted it, nor who submitted it and what they thought of it.

The draw is a function of project and annotation alone, so it stays while data grow; the first in that
order of each stratum (case, annotator, band of the draft's score) is drawn in any case.
"""

import hashlib
import html
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from backend.core.sample import Brief, Opinion, Review, Sample

WAITS = "It waits for the verdict of a second human."
ENOUGH = 5  # checks from which on a stratum is judged as a whole
TITLE = "Spot check"
CONFIG = """\
<View>
  <Style>
    .both { display: flex; gap: 2em; line-height: 1.6 } .one { flex: 1; min-width: 0 }
    .both pre { white-space: pre-wrap; margin: 0 } .both .code { font-family: monospace; font-size: 90% }
  </Style>
  <View className="both">
    <View className="one">
      <Header value="What was wanted" size="5"/>
      <HyperText name="question" value="$question" inline="true"/>
    </View>
    <View className="one">
      <Header value="The answer" size="5"/>
      <HyperText name="answer" value="$answer" inline="true"/>
    </View>
  </View>
  <Header value="Is the answer right, for the business too?" size="5"/>
  <Choices name="verdict" toName="answer" choice="single" required="true">
    <Choice value="pass"/>
    <Choice value="needs_fix"/>
    <Choice value="partially_correct"/>
  </Choices>
  <TextArea name="comment" toName="answer" rows="2" maxSubmissions="1" editable="true"
    placeholder="What is wrong?"/>
</View>
"""

_Z = 1.96  # of a 95 % interval
_BANDS = ((0.5, "score below 0.5"), (0.9, "score 0.5 to 0.9"), (math.inf, "score 0.9 and more"))
_PRE = "<pre>{}</pre>"
_CODE = '<pre class="code">{}</pre>'


@dataclass(frozen=True)
class Check:
    """A verdict of a reviewer on a sample, and the seal that the sample had when they saw it."""

    annotation: int
    seal: str
    review: Review

    def holds_for(self, brief: Brief) -> bool:
        """Tell whether it is about this very sample, and of somebody else than who submitted it."""
        return self.seal == brief.seal and self.review["by"] != brief.human


class Stratum(NamedTuple):
    """Samples of a kind: how many there are, were drawn, were checked, and were not right."""

    case: str
    human: int | None
    band: str
    samples: int
    drawn: int
    checked: int
    failed: int

    @property
    def name(self) -> str:
        """Say which it is."""
        human = "unknown" if self.human is None else self.human
        return f"case {self.case}, annotator {human}, {self.band}"

    @property
    def interval(self) -> tuple[float, float]:
        """Give the share that is not right with 95 % confidence (Wilson), 0..1 each."""
        return wilson(self.failed, self.checked)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a share; everything where nothing was counted."""
    if not count:
        return 0.0, 1.0
    share, square = hits / count, _Z * _Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def strata(briefs: Iterable[Brief]) -> dict[tuple[str, int | None, str], list[Brief]]:
    """Sort samples by case, annotator and band of the draft's score."""
    found: dict[tuple[str, int | None, str], list[Brief]] = {}
    for brief in briefs:
        found.setdefault((brief.case, brief.human, _band(brief.score)), []).append(brief)
    return found


def drawn(members: Sequence[Brief], share: float) -> set[int]:
    """Draw a share of a stratum, at least one; gives annotations."""
    if not members or share <= 0:
        return set()
    lots = {brief.annotation: _lot(brief) for brief in members}
    return {annotation for annotation, lot in lots.items() if lot < share} | {min(lots, key=lots.__getitem__)}


def order(sample: Sample) -> float:
    """Give a place among the tasks of the review project that says nothing about the sample."""
    return _lot(Brief.of(sample))


def shown(sample: Sample) -> dict[str, Any]:
    """Give the data of the review task: what a reviewer sees, and by what the verdict finds back."""
    question = [_PRE.format(html.escape(sample.instruction))]
    if sample.input_files:
        files = ", ".join(file["path"] for file in sample.input_files)
        question += [f"<b>It reads</b> {html.escape(files)}"]
    asked = json.loads(sample.target)  # of a model; the rest is the annotator's own verdict and comment
    form = _CODE if sample.attempts else _PRE
    answer = [
        "<br>".join(
            f"<b>{html.escape(name)}</b>{form.format(html.escape(_words(part)))}"
            for name, part in sample.value.items()
            if name in asked
        )
        or "<i>nothing</i>"
    ]
    if sample.attempts:
        last = sample.attempts[-1]
        for step in last["steps"]:
            answer += [f"<b>It prints</b>{_CODE.format(html.escape(step['stdout'] + step['stderr']))}"]
        files = ", ".join(f"{file['path']} ({file['size_bytes']} bytes)" for file in sample.output_files)
        answer += [f"<b>It leaves</b> {html.escape(files)}" if files else "<b>It leaves no file</b>"]
    return {
        "question": "<br>".join(question),
        "answer": "<br>".join(answer),
        "annotation": sample.annotation,
        "seal": Brief.of(sample).seal,
    }


def checks_of(task: Mapping[str, Any]) -> Iterator[Check]:
    """Read the verdicts from a task of the review project, as Label Studio lists it."""
    data = task["data"]
    for entry in task["annotations"]:
        parts = {region.get("from_name"): region.get("value", {}) for region in entry["result"] or []}
        (opinion,) = parts.get("verdict", {}).get("choices") or [None]
        by = entry.get("completed_by")
        by = by.get("id") if isinstance(by, Mapping) else by
        if entry.get("was_cancelled") or opinion not in get_args(Opinion) or by is None:
            continue
        review = Review(verdict=opinion, by=by, at=entry["updated_at"])
        comment = " ".join(parts.get("comment", {}).get("text") or []).strip()
        if comment:
            review["comment"] = comment
        if isinstance(data.get("annotation"), int) and isinstance(data.get("seal"), str):
            yield Check(data["annotation"], data["seal"], review)


def latest_of(checks: Iterable[Check], brief: Brief) -> Review | None:
    """Give the last verdict that holds for a sample."""
    holding = [check.review for check in checks if check.holds_for(brief)]
    return max(holding, key=lambda review: (review["at"], review["by"]), default=None)


def _lot(brief: Brief) -> float:
    told = f"spot check {brief.project} {brief.annotation}".encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=6).digest(), "big") / 2**48


def _band(score: float | None) -> str:
    return "no score" if score is None else next(name for limit, name in _BANDS if score < limit)


def _words(part: Any) -> str:
    return part if isinstance(part, str) else json.dumps(part, ensure_ascii=False, indent=1)
