"""Spot checks: which samples a second human reviews, what they see, and how verdicts are counted.

Knows the draw, the labelling config of the review project, and how its tasks are read back. Does not
know Label Studio's API. The reviewer sees the question, the answer and the output of programs, but not who or
what drafted it, who submitted it, or the annotator's own verdict.

The draw is a function of project and annotation only, so it stays while the dataset grows: each sample has a
lot, a hash as a number from 0 to 1, and is drawn where its lot is below the share. Where a stratum (case,
annotator, band of the draft's score) has none below, its lowest lot is drawn too. Samples drawn by lot are a
simple random sample of all samples, and estimates for the whole dataset use only them; the others count in
their stratum only.
"""

import hashlib
import html
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from draftloop.dataset.gates import annotations_of
from draftloop.dataset.sample import Brief, Opinion, Review, Sample
from draftloop.errors import InvalidValue
from draftloop.labelling.regions import collect, regions_of
from draftloop.support.intervals import Range, sample_interval
from draftloop.support.text import replace_lone_surrogates

WAITS = "It waits for the verdict of a second human."
ENOUGH = 5  # a stratum with this many checks or more is judged as a whole
TITLE = "Spot check"
CONFIG = """\
<View>
  <Style>
    .both { display: flex; gap: 2em; line-height: 1.6 } .one { flex: 1; min-width: 0 }
    .both pre { white-space: pre-wrap; margin: 0 } .both .code { font: 90%/1.6 monospace !important }
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

_BANDS = ((0.5, "score below 0.5"), (0.9, "score 0.5 to 0.9"), (math.inf, "score 0.9 and more"))
_PRE = "<pre>{}</pre>"
_CODE = '<pre class="code">{}</pre>'


@dataclass(frozen=True)
class Check:
    """A reviewer's verdict on a sample, and the sample's seal (`Brief.seal`) when they saw it."""

    annotation: int
    seal: str
    review: Review

    def holds_for(self, brief: Brief) -> bool:
        """Return whether the sample is unchanged since, and the reviewer is not its annotator."""
        return self.seal == brief.seal and self.review["by"] != brief.human


class Stratum(NamedTuple):
    """Counts of one stratum: samples, how many were drawn, checked, and wrong."""

    case: str
    human: int | None
    band: str
    samples: int
    drawn: int
    checked: int
    failed: int

    @property
    def name(self) -> str:
        """The stratum in words."""
        human = "unknown" if self.human is None else self.human
        return f"case {self.case}, annotator {human}, {self.band}"

    @property
    def interval(self) -> Range:
        """The 95 % confidence interval of the share of wrong samples.

        Assumes that the checked samples are a simple random sample of the stratum. That holds where reviewers
        take the tasks of the review project in order, which is by lot.
        """
        return sample_interval(self.failed, self.checked, self.checked, self.samples)


class ByLot(NamedTuple):
    """Counts of all samples: how many were drawn by lot, checked, and wrong as submitted."""

    samples: int
    drawn: int
    checked: int
    failed: int

    @property
    def interval(self) -> Range:
        """The 95 % confidence interval of the share of all samples that were wrong as submitted.

        Assumes nothing about the samples or about drawn samples that are not checked yet. Assumes that
        reviewers' verdicts are right, and that the share to draw was not chosen after seeing verdicts.
        """
        return sample_interval(self.failed, self.checked, self.drawn, self.samples)


def strata(briefs: Iterable[Brief]) -> dict[tuple[str, int | None, str], list[Brief]]:
    """Group samples by case, annotator and band of the draft's score."""
    groups: dict[tuple[str, int | None, str], list[Brief]] = {}
    for brief in briefs:
        groups.setdefault((brief.case, brief.human, _band(brief.score)), []).append(brief)
    return groups


def drawn_by_lot(briefs: Iterable[Brief], share: float) -> set[int]:
    """Draw a simple random sample of about this share; return its annotations."""
    return {brief.annotation for brief in briefs if _lot(brief) < share}


def drawn(members: Sequence[Brief], share: float) -> set[int]:
    """Draw a share of a stratum, at least one sample; return their annotations."""
    if not members or share <= 0:
        return set()
    return drawn_by_lot(members, share) or {min(members, key=_lot).annotation}


def review_order(sample: Sample) -> float:
    """Return a sort key for the review project's tasks that reveals nothing about the sample."""
    return _lot(Brief.of(sample))


def review_task(sample: Sample) -> dict[str, Any]:
    """Return the data of the review task: what a reviewer sees, and what identifies the sample."""
    question = [_PRE.format(html.escape(sample.instruction))]
    if sample.input_files:
        files = ", ".join(file["path"] for file in sample.input_files)
        question += [f"<b>It reads</b> {html.escape(files)}"]
    answered = json.loads(sample.target)  # without the annotator's own verdict and comment
    form = _CODE if sample.attempts else _PRE
    answer = [
        "<br>".join(
            f"<b>{html.escape(name)}</b>{form.format(html.escape(_words(part)))}"
            for name, part in sample.value.items()
            if name in answered
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
        **({"drawn": sample.drawn} if sample.drawn else {}),
    }


def checks_of(task: Mapping[str, Any]) -> Iterator[Check]:
    """Yield the verdicts from a task of the review project, as Label Studio lists it.

    A result that does not fit the review's form is ignored, and its sample keeps waiting.
    """
    for annotation in annotations_of(task, project=0):
        data, metadata = annotation.task.data, annotation.metadata
        if annotation.cancelled or "human" not in metadata or "updated_at" not in metadata:
            continue
        try:
            regions = regions_of(annotation.regions)
            opinion, comment = (
                collect(name, [region for region in regions if region.get("from_name") == name], key)
                for name, key in (("verdict", "choices"), ("comment", "text"))
            )
        except InvalidValue:
            continue
        words = replace_lone_surrogates(" ".join(part for part in comment if isinstance(part, str))).strip()
        if len(opinion) != 1 or opinion[0] not in get_args(Opinion):
            continue
        review = Review(verdict=opinion[0], by=metadata["human"], at=metadata["updated_at"])
        if words:
            review["comment"] = words
        if isinstance(data.get("annotation"), int) and isinstance(data.get("seal"), str):
            yield Check(data["annotation"], data["seal"], review)


def latest_of(checks: Iterable[Check], brief: Brief) -> Review | None:
    """Return the latest verdict that holds for a sample."""
    holding = [check.review for check in checks if check.holds_for(brief)]
    return max(holding, key=_when, default=None)


def right_as_submitted(checks: Iterable[Check], brief: Brief) -> bool | None:
    """Return whether a sample was right before it was checked; None where that is not known.

    An answer that was corrected after a check still counts as wrong: it stands for unchecked answers, which
    nobody corrected.
    """
    by_seal: dict[str, list[Review]] = defaultdict(list)
    for check in checks:
        if check.review["by"] != brief.human:
            by_seal[check.seal].append(check.review)
    verdicts = {seal: max(reviews, key=_when)["verdict"] for seal, reviews in by_seal.items()}
    if any(verdict != "pass" for verdict in verdicts.values()):
        return False
    return True if brief.seal in verdicts else None


def _when(review: Review) -> tuple[str, int]:
    return review["at"], review["by"]


def _lot(brief: Brief) -> float:
    name = f"spot check {brief.project} {brief.annotation}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big") / 2**48


def _band(score: float | None) -> str:
    return "no score" if score is None else next(name for limit, name in _BANDS if score < limit)


def _words(part: Any) -> str:
    return part if isinstance(part, str) else json.dumps(part, ensure_ascii=False, indent=1)
