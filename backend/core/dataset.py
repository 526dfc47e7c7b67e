"""What humans submitted, as training samples: read back, judged by gates, written in formats.

Knows Label Studio's task object as its API lists it, the gates that a sample must pass, and the row of
every format. Does not know files, Label Studio's API or the time: the same annotations always give the
same samples.

The training target is the canonical serialization of the value that the human submitted, and the
prompt before it is the compact one: a model tuned on these rows is asked exactly what it was trained on.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from backend.core.controls import Region
from backend.core.labelling import Task, Value
from backend.core.prompting import Case, render
from backend.errors import InvalidValue, TaskError

Record = dict[str, Any]
Row = dict[str, Any]
Verdict = Literal["accepted", "corrected", "written"]
Split = Literal["train", "test"]

# Raised when the same annotations would give other samples: every dataset is then made anew.
SYNC_VERSION = 1
TEST_PCT = 10

_HALF = re.compile(r"[\ud800-\udfff]")  # of a surrogate pair: SQLite keeps it, UTF-8 cannot


@dataclass(frozen=True)
class Annotation:
    """What a human made of a task. `draft` holds the prediction it began from, where there was one."""

    id: int
    project: int
    task: Task
    regions: list[Region]
    cancelled: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
    draft: list[Region] | None = None


@dataclass(frozen=True)
class Candidate:
    """An annotation on its way to a sample: its value, or why it does not read back."""

    annotation: Annotation
    case: Case
    value: Value | None
    unreadable: str = ""


@dataclass(frozen=True)
class Rejected:
    """An annotation that is no sample, with the gate that stopped it and the reason."""

    project: int
    task: int
    annotation: int
    case: str
    gate: str
    reason: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        """Give the row of rejected.jsonl."""
        return _present(self.__dict__)

    @classmethod
    def from_record(cls, record: Record) -> "Rejected":
        """Read the row of rejected.jsonl."""
        return cls(**record)


@dataclass(frozen=True)
class Sample:
    """A training sample: what the human read, what they submitted, and what the draft had said.

    verdict     accepted: the draft was right; corrected: `changed` lists the fields in which it was
                not; written: there was no draft, or none that the config can read
    target      canonical serialization of `value`
    system      the two messages that ask a tuned model for the target
    user
    """

    project: int
    task: int
    annotation: int
    case: str
    split: Split
    verdict: Verdict
    input: Mapping[str, str]
    value: Value
    target: str
    system: str
    user: str
    draft: Value | None = None
    changed: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        """Give the row of samples.jsonl; what there is not has no key."""
        return _present({**self.__dict__, "changed": list(self.changed)})

    @classmethod
    def from_record(cls, record: Record) -> "Sample":
        """Read the row of samples.jsonl."""
        return cls(**{**record, "changed": tuple(record["changed"])})


def annotations_of(task: Mapping[str, Any], project: int) -> list[Annotation]:
    """Read the annotations of a task as Label Studio lists it, annotations and predictions included."""
    predictions = {prediction["id"]: prediction for prediction in task["predictions"]}
    found = []
    for entry in task["annotations"]:
        draft = predictions.get(entry.get("parent_prediction"))
        human = entry.get("completed_by")
        metadata = {
            "human": human.get("id") if isinstance(human, Mapping) else human,
            "created_at": entry.get("created_at"),
            "updated_at": entry.get("updated_at"),
            "lead_time_s": entry.get("lead_time"),
            "draft_prediction": entry.get("parent_prediction"),
            "draft_version": draft and draft.get("model_version"),
            "draft_score": draft and draft.get("score"),
        }
        found.append(
            Annotation(
                id=entry["id"],
                project=project,
                task=Task(task["id"], task["data"]),
                regions=entry["result"] or [],
                cancelled=bool(entry.get("was_cancelled")),
                metadata=_present(metadata),
                draft=draft and draft["result"],
            )
        )
    return found


def judge(annotation: Annotation, case: Case) -> Sample | Rejected:
    """Make an annotation a sample, or say which gate it failed; the first one that it fails counts."""
    asked = case.labelling.words(annotation.regions)
    if asked:
        annotation = replace(annotation, metadata={**annotation.metadata, "prompt": asked})
    try:
        case = case.for_task(annotation.task)
        case.labelling.inputs(annotation.task)  # what cannot be shown is no sample
        value = case.labelling.from_regions(annotation.regions, annotation.task)
        candidate = Candidate(annotation, case, value)
    except TaskError as error:
        candidate = Candidate(annotation, case, None, str(error))
    for gate in SAMPLE_GATES:
        reason = gate(candidate)
        if reason is not None:
            return Rejected(
                annotation.project,
                annotation.task.id,
                annotation.id,
                case.name,
                gate.__name__,
                reason,
                annotation.metadata,
            )
    return _sample(candidate)


def split_of(texts: Mapping[str, str]) -> Split:
    """Put a task into train or test by what the human reads: the same text is never in both."""
    digest = hashlib.sha256(_canonical(texts).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 100 < TEST_PCT else "train"


def fingerprint(case: Case) -> str:
    """Hash what decides how a case's annotations become samples; 16 hex digits."""
    decisive = [
        SYNC_VERSION,
        case.name,
        case.compact,
        case.labelling.config_hash,
        case.labelling.validating_schema,
    ]
    return hashlib.sha256(_canonical(decisive).encode()).hexdigest()[:16]


def _sample(candidate: Candidate) -> Sample:
    annotation, case, value = candidate.annotation, candidate.case, candidate.value
    if value is None:
        raise InvalidValue(candidate.unreadable)
    labelling = case.labelling
    draft = _draft_of(candidate)
    changed = () if draft is None else _changed(case, draft, value)
    system, user = render(case, annotation.task, "compact")
    texts = labelling.inputs(annotation.task)
    return Sample(
        project=annotation.project,
        task=annotation.task.id,
        annotation=annotation.id,
        case=case.name,
        split=split_of(texts),
        verdict="written" if draft is None else "corrected" if changed else "accepted",
        input=texts,
        value=value,
        target=labelling.encode(value),
        system=system.content,
        user=user.content,
        draft=draft,
        changed=changed,
        metadata={**annotation.metadata, "config_hash": labelling.config_hash, "sync_version": SYNC_VERSION},
    )


def _draft_of(candidate: Candidate) -> Value | None:
    if candidate.annotation.draft is None:
        return None
    try:
        return candidate.case.labelling.from_regions(candidate.annotation.draft, candidate.annotation.task)
    except TaskError:
        return None  # a prediction from elsewhere, or of an older config: nothing can be said about it


def _changed(case: Case, draft: Value, value: Value) -> tuple[str, ...]:
    return tuple(
        control.name
        for control in case.labelling.controls
        if _canonical(draft.get(control.name)) != _canonical(value.get(control.name))
    )


def _canonical(part: Any) -> str:
    return json.dumps(part, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _present(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not there; a key that is null makes trouble in every consumer."""
    return {key: part for key, part in record.items() if part is not None}


# ---------------------------------------------------------------------------------- gates


def not_skipped(candidate: Candidate) -> str | None:
    """Stop what the annotator skipped."""
    return "The annotator skipped the task." if candidate.annotation.cancelled else None


def readable(candidate: Candidate) -> str | None:
    """Stop regions that the config cannot hold, tasks that lack what it shows, and half characters."""
    if _HALF.search(_canonical(candidate.value)):
        return "It holds half a character (a lone surrogate), which no file can."
    return candidate.unreadable or None


def not_empty(candidate: Candidate) -> str | None:
    """Stop an empty form without a draft; an emptied or accepted draft says that there is nothing."""
    says_nothing = not any(part not in ([], "") for part in (candidate.value or {}).values())
    return "The annotation is empty." if says_nothing and candidate.annotation.draft is None else None


def obeys_rules(candidate: Candidate) -> str | None:
    """Stop what the validating schema, the case's rules or grounding refuse: humans err too."""
    if candidate.value is None:
        return None
    reasons = candidate.case.rules.check(candidate.value, candidate.annotation.task)
    return "; ".join(map(str, reasons)) or None


# ---------------------------------------------------------------------------------- formats


def alpaca(sample: Sample) -> Row:
    """Write an Alpaca row; `instruction` is the whole user turn, so no template changes the prompt."""
    return {"instruction": sample.user, "input": "", "output": sample.target, "system": sample.system}


def messages(sample: Sample) -> Row:
    """Write Qwen chat messages."""
    return {
        "messages": [
            {"role": "system", "content": sample.system},
            {"role": "user", "content": sample.user},
            {"role": "assistant", "content": sample.target},
        ]
    }


class Format(NamedTuple):
    """A format of training rows: the name of its files and the row of a sample."""

    name: str
    row: Callable[[Sample], Row]


def rows(samples: list[Sample], form: Format, split: Split) -> Iterator[Row]:
    """Give the rows of one split in one format, in the order of the samples."""
    return (form.row(sample) for sample in samples if sample.split == split)


Gate = Callable[[Candidate], str | None]

# One annotation at a time, in this order; the first that gives a reason rejects it.
SAMPLE_GATES: tuple[Gate, ...] = (not_skipped, readable, not_empty, obeys_rules)

FORMATS: tuple[Format, ...] = (Format("alpaca", alpaca), Format("messages", messages))
