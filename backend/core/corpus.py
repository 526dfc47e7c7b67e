"""All samples looked at together: which of them stay, which go to train and which to test.

Knows the gates that need other samples, in their order, and how splits stay as they are while data grow.
Does not know where samples come from, files or the time. What a gate stops is held, not thrown away: it
comes back by itself when the reason is gone.

    one_per_task          several annotations of a task: a policy picks one
    not_contradicted      the same question with different answers: none of them is trusted
    not_repeated          the same question and the same answer: the first stays
    fits_tokens           longer than the target model takes; nothing is ever cut
    not_nearly_repeated   nearly the same text and the same answer: the first stays
    not_leaking           stands between train and test

A sample's split is decided by the hash of its group (the source document, or the text itself), unless
nearly the same text has one already. It is remembered: neither growth nor deletion moves a sample.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple
from zlib import crc32

from datasketch import MinHash, MinHashLSH

from backend.core.formats import DEFAULT_FORMATS, FORMATS
from backend.core.sample import Record, Sample, Split, canonical
from backend.errors import SetupError

TEST_PCT = 10
NEAR = 0.9  # share of common shingles from which two texts are nearly the same

_SHINGLE = 4  # characters; words would need a language
_PERMUTATIONS = 128  # standard error of the estimated share at 0.9: 0.027
# LSH compares 16 bands of 8 of them: it misses 1 of 8,000 pairs with a share of 0.9; false hits are checked.
_BANDS = (16, 8)


@dataclass(frozen=True)
class Options:
    """What a team decided about its dataset; the folder remembers it.

    formats      names of `core.formats.FORMATS` that are written
    files        name of the kind of files that rows are written to
    policy       name of the one of POLICIES that picks among several annotations of a task
    group_by     key of task data that names the source document, where tasks have one
    tokenizer    folder of the target model's tokenizer; with it, no sample is longer than `max_tokens`
    mask         whether stand-ins take the place of personal data
    region       country of telephone numbers without a country code
    """

    formats: tuple[str, ...] = DEFAULT_FORMATS
    files: str = "jsonl"
    policy: str = "ground_truth"
    group_by: str = ""
    tokenizer: str = ""
    max_tokens: int = 1024
    mask: bool = False
    region: str = "CN"

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


@dataclass(frozen=True)
class Held:
    """A sample that a gate holds back, and why."""

    sample: Sample
    gate: str
    reason: str

    def record(self) -> Record:
        """Give the row of held.jsonl."""
        return self.sample.record() | {"held": {"gate": self.gate, "reason": self.reason}}


@dataclass(frozen=True)
class Settled:
    """What became of all samples: those that stay, each with its split, and those that are held."""

    samples: tuple[Sample, ...]
    held: tuple[Held, ...]


class Nearness(NamedTuple):
    """What is nearly the same, by annotation.

    near       those with nearly the same text and another answer
    repeats    of one with the same answer too, the first such and the share that they have in common
    """

    near: dict[int, set[int]]
    repeats: dict[int, tuple[int, float]]


@dataclass
class Corpus:
    """The samples that are still in, in the order in which they came, and what gates need beside them."""

    samples: Sequence[Sample]
    options: Options
    splits: Mapping[str, Split] = field(default_factory=dict)  # by group, as they were given before
    given: dict[int, Split] = field(default_factory=dict)  # by annotation, now

    @cached_property
    def nearness(self) -> "Nearness":
        """Tell which texts are nearly the same; found once, by the first gate that asks."""
        return _nearness(self.samples)


def settle(samples: Iterable[Sample], options: Options, splits: Mapping[str, Split]) -> Settled:
    """Pass samples through the gates that look at all of them, and give each that stays its split.

    Args:
        samples: Those that passed their own gates, in any order.
        options: What the team decided.
        splits: Splits by group as they were given last time; these stay.
    Returns:
        Every sample once, sorted by task and annotation.
    """
    # Annotations are numbered as they come: what is new never changes what became of the old.
    corpus = Corpus(sorted(map(as_judged, samples), key=lambda one: one.annotation), options, splits)
    held: list[Held] = []
    passed: tuple[str, ...] = ()
    for gate in CORPUS_GATES:
        reasons = gate(corpus)
        stopped = [sample for sample in corpus.samples if sample.annotation in reasons]
        held += [
            Held(replace(sample, gates=sample.gates + passed), gate.__name__, reasons[sample.annotation])
            for sample in stopped
        ]
        corpus.samples = [sample for sample in corpus.samples if sample.annotation not in reasons]
        passed = (*passed, gate.__name__)
    stayed = [
        replace(sample, gates=sample.gates + passed, split=corpus.given[sample.annotation])
        for sample in corpus.samples
    ]
    return Settled(tuple(sorted(stayed, key=_place)), tuple(sorted(held, key=lambda one: _place(one.sample))))


def split_of(group: str) -> Split:
    """Put a group into train or test by its hash alone: it stays there as data grow."""
    return "test" if int(group, 16) % 100 < TEST_PCT else "train"


def as_judged(sample: Sample) -> Sample:
    """Give a sample as it was before others were looked at."""
    names = {gate.__name__ for gate in CORPUS_GATES}
    return replace(sample, split=None, gates=tuple(name for name in sample.gates if name not in names))


def _place(sample: Sample) -> tuple[int, int]:
    return sample.task, sample.annotation


# ---------------------------------------------------------------------------------- gates


def one_per_task(corpus: Corpus) -> Mapping[int, str]:
    """Pick one annotation of each task by the policy; the others are held."""
    policy = next(policy for policy in POLICIES if policy.name == corpus.options.policy)
    reasons: dict[int, str] = {}
    for several in _by(corpus.samples, lambda sample: sample.task):
        if len(several) == 1:
            continue
        chosen = policy.choose(several)
        for sample in several:
            if chosen is None:
                count = len({canonical(other.value) for other in several})
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
    for several in _by(corpus.samples, lambda sample: (sample.system, sample.instruction)):
        if len({sample.target for sample in several}) == 1:
            continue
        truths = {sample.target for sample in several if sample.ground_truth}
        for sample in several:
            if truths == {sample.target}:
                continue
            other = next(one for one in several if one.target != sample.target)
            reasons[sample.annotation] = (
                f"Annotation {other.annotation} of task {other.task} answers the same question differently."
            )
    return reasons


def not_repeated(corpus: Corpus) -> Mapping[int, str]:
    """Stop the same question with the same answer, but for the first."""
    return {
        sample.annotation: f"Annotation {first.annotation} of task {first.task} says the same."
        for first, *others in _by(
            corpus.samples, lambda sample: (sample.system, sample.instruction, sample.target)
        )
        for sample in others
    }


def fits_tokens(corpus: Corpus) -> Mapping[int, str]:
    """Stop what is longer than the target model takes."""
    limit = corpus.options.max_tokens
    return {
        sample.annotation: f"It has {sample.tokens} tokens, the limit is {limit}."
        for sample in corpus.samples
        if sample.tokens is not None and sample.tokens > limit
    }


def not_nearly_repeated(corpus: Corpus) -> Mapping[int, str]:
    """Stop nearly the same text with the same answer: it teaches nothing. Other answers stay."""
    tasks = {sample.annotation: sample.task for sample in corpus.samples}
    return {
        annotation: f"Annotation {first} of task {tasks[first]} says the same of nearly the same text "
        f"({share:.0%} in common)."
        for annotation, (first, share) in corpus.nearness.repeats.items()
    }


def not_leaking(corpus: Corpus) -> Mapping[int, str]:
    """Give splits to groups, and stop what stands between a train and a test sample."""
    reasons: dict[int, str] = {}
    splits = dict(corpus.splits)
    for sample in sorted(corpus.samples, key=lambda one: one.group not in corpus.splits):
        found: dict[Split, str] = {}
        for other in sorted(corpus.nearness.near[sample.annotation]):
            if other in corpus.given:
                found.setdefault(corpus.given[other], f"nearly the same text as annotation {other}")
        own = splits.get(sample.group)
        if own is not None:
            found[own] = "the same source"
        if len(found) == 2:
            reasons[sample.annotation] = (
                f"It would bridge train ({found['train']}) and test ({found['test']})."
            )
            continue
        (split,) = found or {split_of(sample.group): ""}
        corpus.given[sample.annotation] = splits[sample.group] = split
    return reasons


def _by(samples: Iterable[Sample], key: Callable[[Sample], Any]) -> list[list[Sample]]:
    found: defaultdict[Any, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[key(sample)].append(sample)
    return list(found.values())


def _nearness(samples: Sequence[Sample]) -> Nearness:
    found = Nearness({sample.annotation: set() for sample in samples}, {})
    index = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
    known: dict[int, tuple[Sample, MinHash]] = {}
    empty = MinHash(num_perm=_PERMUTATIONS, hashfunc=crc32)
    for sample in samples:
        hashes = empty.copy()  # making one draws all permutations anew
        hashes.update_batch(_shingles(sample))
        shares = {other: float(hashes.jaccard(known[other][1])) for other in sorted(index.query(hashes))}
        near = {other: share for other, share in shares.items() if share >= NEAR}
        says = (sample.system, sample.target)
        same = [other for other in near if says == (known[other][0].system, known[other][0].target)]
        if same:
            found.repeats[sample.annotation] = (same[0], near[same[0]])
            continue  # nobody needs to be compared with it
        for other in near:
            found.near[sample.annotation].add(other)
            found.near[other].add(sample.annotation)
        index.insert(sample.annotation, hashes)
        known[sample.annotation] = (sample, hashes)
    return found


def _shingles(sample: Sample) -> list[bytes]:
    text = " ".join(unicodedata.normalize("NFKC", " ".join(sample.input.values())).casefold().split())
    ends = range(max(1, len(text) - _SHINGLE + 1))
    return sorted({text[start : start + _SHINGLE].encode() for start in ends})


# ---------------------------------------------------------------------------------- policies


def latest(several: Sequence[Sample]) -> Sample:
    """Choose the annotation that was changed last."""
    return max(several, key=lambda one: (one.metadata.get("updated_at", ""), one.annotation))


def ground_truth(several: Sequence[Sample]) -> Sample:
    """Choose what is marked as ground truth, else the latest."""
    return latest([sample for sample in several if sample.ground_truth] or several)


def agreement(several: Sequence[Sample]) -> Sample | None:
    """Choose the most frequent answer; none where two are equally frequent."""
    frequent = Counter(canonical(sample.value) for sample in several).most_common(2)
    if len(frequent) == 2 and frequent[0][1] == frequent[1][1]:
        return None
    return latest([sample for sample in several if canonical(sample.value) == frequent[0][0]])


class Policy(NamedTuple):
    """How one annotation of several is chosen to stand for a task."""

    name: str
    choose: Callable[[Sequence[Sample]], Sample | None]


POLICIES: tuple[Policy, ...] = (
    Policy("ground_truth", ground_truth),
    Policy("latest", latest),
    Policy("agreement", agreement),
)

CorpusGate = Callable[[Corpus], Mapping[int, str]]

# All samples together, in this order: each gate sees what the ones before let pass.
CORPUS_GATES: tuple[CorpusGate, ...] = (
    one_per_task,
    not_contradicted,
    not_repeated,
    fits_tokens,
    not_nearly_repeated,
    not_leaking,
)
