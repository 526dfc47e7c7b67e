"""Gates that compare samples with each other, and the split of samples into train and test.

Knows these gates, in their order, and how splits stay the same while the dataset grows. Does not know where
samples come from, files or the time. A sample that a gate stops is held, not deleted: it returns as soon as
the reason is gone.

    holds_control_tokens  holds control tokens of the target model
    one_per_task          several annotations of a task: a policy picks one
    not_contradicted      the same question with different answers: all of them are held
    not_repeated          the same question and the same answer: the first stays
    fits_tokens           longer than the target model takes; samples are never cut
    not_nearly_repeated   nearly the same text and the same answer: the first stays
    not_leaking           nearly the same as a train sample and a test sample
    spot_checked          drawn for a second human, who has not passed it yet

The hash of a sample's group (the source document, or the text itself) decides its split, unless a
near-duplicate has one already. Splits are stored: neither growth nor deletion moves a sample.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from draftloop.dataset.formats import DEFAULT_FORMATS, FORMATS
from draftloop.dataset.nearness import Nearness, nearness
from draftloop.dataset.sample import Brief, Draw, Gate, Record, Review, Split
from draftloop.dataset.spot_check import (
    ENOUGH,
    WAITS,
    ByLot,
    Check,
    Stratum,
    drawn,
    drawn_by_lot,
    latest_of,
    right_as_submitted,
    strata,
)
from draftloop.errors import SetupError

TEST_PCT = 10
_CORPUS_FIELDS = (
    "split",
    "review",
    "drawn",
    "held",
)  # what the look at all samples writes into a record, beside gates

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class DatasetOptions:
    """What a team decided about its dataset; the folder remembers it.

    formats      names of the `formats.FORMATS` that are written
    files        name of the kind of files that rows are written to
    policy       name in POLICIES of the policy that picks among several annotations of a task
    group_by     key of task data that names the source document, where tasks have one
    tokenizer    folder of the target model's tokenizer; with it, no sample is longer than `max_tokens`
    mask         whether personal data is replaced by stand-ins
    region       country of telephone numbers without a country code
    spot_check   share of samples that a second human has to pass, 0..1
    max_error    share of wrong samples that a stratum may have, 0..1; strata above this rate are held whole
    reviews      id of the project with the spot checks; 0 is none
    rerun        whether submitted code is run again; otherwise samples carry a note
    """

    formats: tuple[str, ...] = DEFAULT_FORMATS
    files: str = "jsonl"
    policy: str = "ground_truth"
    group_by: str = ""
    tokenizer: str = ""
    max_tokens: int = 1024
    mask: bool = False
    region: str = "CN"
    spot_check: float = 0.0
    max_error: float = 0.1
    reviews: int = 0
    rerun: bool = True

    def __post_init__(self) -> None:
        choices = (
            *(("format", name, [form.name for form in FORMATS]) for name in self.formats),
            ("policy", self.policy, [policy.name for policy in POLICIES]),
        )
        for what, name, known in choices:
            if name not in known:
                raise SetupError(f"There is no {what} '{name}'.", hint=f"There are: {', '.join(known)}.")
        if not (self.region.isascii() and self.region.isupper() and len(self.region) == 2):
            raise SetupError(f"'{self.region}' is no country.", hint="Two letters, as in CN or US.")
        for share in (self.spot_check, self.max_error):
            if not 0 <= share <= 1:
                raise SetupError(f"{share} is no share.", hint="Give a number from 0 to 1: 0.05 is 5 %.")


class Held(NamedTuple):
    """The gate that holds a sample back, and why."""

    gate: str
    reason: str


@dataclass(frozen=True)
class Settled:
    """The outcome of the corpus gates, by annotation: splits, and why some samples are held.

    A sample that only a spot check holds has a split too, so that it returns to the same side.
    """

    splits: Mapping[int, Split]
    held: Mapping[int, Held]
    reviews: Mapping[int, Review] = field(default_factory=dict)
    strata: tuple[Stratum, ...] = ()
    drawn: Mapping[int, Draw] = field(default_factory=dict)
    by_lot: ByLot | None = None

    def for_annotation(self, annotation: int) -> "Settled":
        """Return the entries of one annotation: the subset that a worker needs, small when pickled."""

        def entry(parts: Mapping[int, _Part]) -> Mapping[int, _Part]:
            return {annotation: parts[annotation]} if annotation in parts else {}

        return Settled(entry(self.splits), entry(self.held), entry(self.reviews), drawn=entry(self.drawn))

    def finalize(self, record: Record) -> Record:
        """Return a sample's record with its split, corpus gates that it passed, review, and why it is held.

        Args:
            record: The sample's record before the corpus gates, or as an earlier sync wrote it.
        """
        annotation = record["annotation"]
        held = self.held.get(annotation)
        passed = _GATE_NAMES if held is None else _GATE_NAMES[: _GATE_NAMES.index(held.gate)]
        own = as_judged(record)
        own["gates"] += passed
        fields = {"split": self.splits, "review": self.reviews, "drawn": self.drawn}
        own |= {name: parts[annotation] for name, parts in fields.items() if annotation in parts}
        return own if held is None else own | {"held": held._asdict()}


@dataclass
class CorpusResult:
    """What gates record about samples besides the reasons that hold them, by annotation.

    given    splits that were assigned
    reviews  verdicts that hold
    drawn    how samples were drawn for spot checks
    """

    given: dict[int, Split] = field(default_factory=dict)
    reviews: dict[int, Review] = field(default_factory=dict)
    strata: list[Stratum] = field(default_factory=list)
    drawn: dict[int, Draw] = field(default_factory=dict)
    by_lot: ByLot | None = None


@dataclass
class Corpus:
    """The samples that passed so far, in the order of their annotations, and what gates need besides."""

    samples: Sequence[Brief]
    options: DatasetOptions
    sketches: Callable[[Sequence[Brief]], Iterator[bytes]]
    splits: Mapping[str, Split] = field(default_factory=dict)  # by group, as they were given before
    checks: Mapping[int, Sequence[Check]] = field(default_factory=dict)  # by annotation
    result: CorpusResult = field(default_factory=CorpusResult)

    @cached_property
    def nearness(self) -> "Nearness":
        """Near-duplicates among the samples, by annotation; computed once, when a gate reads it."""
        samples = self.samples

        def same(one: int, other: int) -> bool:
            a, b = samples[one], samples[other]
            return (a.system, a.answer) == (b.system, b.answer)

        by_place = nearness(self.sketches(samples), len(samples), same)
        ids = [sample.annotation for sample in samples]
        return Nearness(
            {ids[one]: {ids[other] for other in others} for one, others in by_place.near.items()},
            {ids[one]: (ids[first], share) for one, (first, share) in by_place.repeats.items()},
        )


def settle(
    samples: Iterable[Brief],
    options: DatasetOptions,
    splits: Mapping[str, Split],
    sketches: Callable[[Sequence[Brief]], Iterator[bytes]],
    checks: Mapping[int, Sequence[Check]] | None = None,
) -> Settled:
    """Pass samples through the corpus gates, and assign a split to each that passes.

    Args:
        samples: Samples that passed their own gates, in any order.
        options: What the team decided.
        splits: Splits by group that an earlier sync assigned; these stay.
        sketches: Returns the sketches (`nearness.sketch`) of the samples' inputs, in their order.
        checks: Verdicts of reviewers by annotation.
    """
    # Annotation ids rise with time, so new samples never change the outcome of old ones.
    ordered = sorted(samples, key=lambda one: one.annotation)
    corpus = Corpus(ordered, options, sketches, splits, checks or {})
    held: dict[int, Held] = {}
    for gate in CORPUS_GATES:
        reasons = gate.check(corpus)
        held |= {annotation: Held(gate.name, reason) for annotation, reason in reasons.items()}
        corpus.samples = [sample for sample in corpus.samples if sample.annotation not in reasons]
    result = corpus.result
    return Settled(result.given, held, result.reviews, tuple(result.strata), result.drawn, result.by_lot)


def split_of(group: str) -> Split:
    """Return the split of a group by its hash only, so that it stays while the dataset grows."""
    return "test" if int(group, 16) % 100 < TEST_PCT else "train"


def as_judged(record: Record) -> Record:
    """Return a sample's record without what the corpus gates added."""
    gates = [name for name in record["gates"] if name not in _GATE_NAMES]
    return {key: part for key, part in record.items() if key not in _CORPUS_FIELDS} | {"gates": gates}


# ---------------------------------------------------------------------------------- gates


def holds_control_tokens(corpus: Corpus) -> Mapping[int, str]:
    """Stop texts with control tokens of the target model, which would change the conversation's structure."""
    return {
        sample.annotation: f"It holds {', '.join(sample.control_tokens)}, which the target model's tokenizer "
        "reads as a control token."
        for sample in corpus.samples
        if sample.control_tokens
    }


def one_per_task(corpus: Corpus) -> Mapping[int, str]:
    """Keep one annotation of each task, which the policy picks."""
    policy = next(policy for policy in POLICIES if policy.name == corpus.options.policy)
    reasons: dict[int, str] = {}
    for several in _grouped(corpus.samples, lambda sample: sample.task):
        if len(several) == 1:
            continue
        chosen = policy.choose(several)
        for sample in several:
            if chosen is None:
                count = len({other.answer for other in several})
                reasons[sample.annotation] = (
                    f"The task has {len(several)} annotations with {count} answers, none of them the most "
                    f"frequent (policy {policy.name})."
                )
            elif sample is not chosen:
                reasons[sample.annotation] = (
                    f"Annotation {chosen.annotation} stands for the task (policy {policy.name})."
                )
    return reasons


def not_contradicted(corpus: Corpus) -> Mapping[int, str]:
    """Stop different answers to the same question, unless one is marked as ground truth."""
    reasons: dict[int, str] = {}
    for several in _grouped(corpus.samples, lambda sample: sample.question):
        if len({sample.answer for sample in several}) == 1:
            continue
        truths = {sample.answer for sample in several if sample.ground_truth}
        for sample in several:
            if truths == {sample.answer}:
                continue
            other = next(one for one in several if one.answer != sample.answer)
            reasons[sample.annotation] = (
                f"Annotation {other.annotation} of task {other.task} answers the same question differently."
            )
    return reasons


def not_repeated(corpus: Corpus) -> Mapping[int, str]:
    """Stop repetitions of a question with the same answer; the first one passes."""
    return {
        sample.annotation: f"Annotation {first.annotation} of task {first.task} says the same."
        for first, *others in _grouped(corpus.samples, lambda sample: (sample.question, sample.answer))
        for sample in others
    }


def fits_tokens(corpus: Corpus) -> Mapping[int, str]:
    """Stop samples that are longer than the target model takes."""
    limit = corpus.options.max_tokens
    return {
        sample.annotation: f"It has {sample.tokens} tokens, the limit is {limit}."
        for sample in corpus.samples
        if sample.tokens is not None and sample.tokens > limit
    }


def not_nearly_repeated(corpus: Corpus) -> Mapping[int, str]:
    """Stop near-duplicates with the same answer; those with another answer pass."""
    tasks = {sample.annotation: sample.task for sample in corpus.samples}
    return {
        annotation: f"Annotation {first} of task {tasks[first]} says the same of nearly the same text "
        f"({share:.0%} in common)."
        for annotation, (first, share) in corpus.nearness.repeats.items()
    }


def not_leaking(corpus: Corpus) -> Mapping[int, str]:
    """Assign splits to groups, and stop samples that are near-duplicates of both train and test samples."""
    reasons: dict[int, str] = {}
    splits = dict(corpus.splits)
    for sample in sorted(corpus.samples, key=lambda one: one.group not in corpus.splits):
        ties: dict[Split, str] = {}  # why the sample belongs to a split
        for other in sorted(corpus.nearness.near.get(sample.annotation, ())):
            if other in corpus.result.given:
                ties.setdefault(corpus.result.given[other], f"nearly the same text as annotation {other}")
        own = splits.get(sample.group)
        if own is not None:
            ties[own] = "the same source"
        if len(ties) == 2:
            reasons[sample.annotation] = f"It would bridge train ({ties['train']}) and test ({ties['test']})."
            continue
        (split,) = ties or {split_of(sample.group): ""}
        corpus.result.given[sample.annotation] = splits[sample.group] = split
    return reasons


def spot_checked(corpus: Corpus) -> Mapping[int, str]:
    """Hold drawn samples until a second human passes them, and whole strata with too many errors."""
    options = corpus.options
    reasons: dict[int, str] = {}
    for (case, human, band), members in strata(corpus.samples).items():
        picked = drawn(members, options.spot_check)
        by_lot = drawn_by_lot(members, options.spot_check)
        corpus.result.drawn |= {
            annotation: "lot" if annotation in by_lot else "stratum" for annotation in picked
        }
        reviews = {
            brief.annotation: review
            for brief in members
            if (review := latest_of(corpus.checks.get(brief.annotation, ()), brief)) is not None
        }
        corpus.result.reviews |= reviews
        judged = picked & reviews.keys()
        wrong = {annotation for annotation in reviews if reviews[annotation]["verdict"] != "pass"}
        stratum = Stratum(case, human, band, len(members), len(picked), len(judged), len(judged & wrong))
        if picked:
            corpus.result.strata.append(stratum)
        low, high = stratum.interval
        if stratum.checked >= ENOUGH and low > options.max_error:
            share = f"{stratum.failed} of {stratum.checked} checks found it wrong ({low:.0%} to {high:.0%})"
            words = f"Of its kind ({stratum.name}) {share}; {options.max_error:.0%} may be."
            reasons |= {brief.annotation: words for brief in members}
        reasons |= dict.fromkeys(picked - judged, WAITS)
        for annotation in wrong:
            review = reviews[annotation]
            comment = f": {review['comment']}" if "comment" in review else "."
            reasons[annotation] = f"Reviewer {review['by']} says {review['verdict']}{comment}"
    if options.spot_check:
        corpus.result.by_lot = _count_lot(corpus)
    return reasons


def _count_lot(corpus: Corpus) -> ByLot:
    """Count the samples that were drawn by lot, and the verdicts on them."""
    lot = [brief for brief in corpus.samples if corpus.result.drawn.get(brief.annotation) == "lot"]
    verdicts = [right_as_submitted(corpus.checks.get(brief.annotation, ()), brief) for brief in lot]
    return ByLot(len(corpus.samples), len(lot), len(lot) - verdicts.count(None), verdicts.count(False))


def _grouped(samples: Iterable[Brief], key: Callable[[Brief], Any]) -> list[list[Brief]]:
    by_key: defaultdict[Any, list[Brief]] = defaultdict(list)
    for sample in samples:
        by_key[key(sample)].append(sample)
    return list(by_key.values())


# ---------------------------------------------------------------------------------- policies


def latest(several: Sequence[Brief]) -> Brief:
    """Return the annotation that was changed last."""
    return max(several, key=lambda one: (one.updated_at, one.annotation))


def ground_truth(several: Sequence[Brief]) -> Brief:
    """Return the annotation that is marked as ground truth, else the latest."""
    return latest([sample for sample in several if sample.ground_truth] or several)


def agreement(several: Sequence[Brief]) -> Brief | None:
    """Return the latest annotation with the most frequent answer; None where two are equally frequent."""
    frequent = Counter(sample.answer for sample in several).most_common(2)
    if len(frequent) == 2 and frequent[0][1] == frequent[1][1]:
        return None
    return latest([sample for sample in several if sample.answer == frequent[0][0]])


class Policy(NamedTuple):
    """A rule that picks one of a task's annotations."""

    name: str
    choose: Callable[[Sequence[Brief]], Brief | None]


POLICIES: tuple[Policy, ...] = (
    Policy("ground_truth", ground_truth),
    Policy("latest", latest),
    Policy("agreement", agreement),
)

CorpusGate = Gate[Corpus, Mapping[int, str]]
FITS_TOKENS: CorpusGate = Gate("fits_tokens", fits_tokens)

# In this order: each gate sees the samples that passed the gates before it.
CORPUS_GATES: tuple[CorpusGate, ...] = (
    Gate("holds_control_tokens", holds_control_tokens),
    Gate("one_per_task", one_per_task),
    Gate("not_contradicted", not_contradicted),
    Gate("not_repeated", not_repeated),
    FITS_TOKENS,
    Gate("not_nearly_repeated", not_nearly_repeated),
    Gate("not_leaking", not_leaking),
    Gate("spot_checked", spot_checked),
)
_GATE_NAMES = tuple(gate.name for gate in CORPUS_GATES)
