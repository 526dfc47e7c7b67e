"""What humans submitted, as training samples: read back, judged by gates, written in formats.

Knows Label Studio's task object as its API lists it, the gates that a sample must pass, and the row of
every format. Does not know files, Label Studio's API or the time: the same annotations always give the
same samples.

The training target is the canonical serialization of the value that the human submitted, and the
prompt before it is the compact one: a model tuned on these rows is asked exactly what it was trained on.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from backend.core.controls import Region
from backend.core.labelling import Task, Value
from backend.core.prompting import Case, render
from backend.core.sample import SAMPLE_VERSION, Record, Sample, Split, canonical, present
from backend.errors import InvalidValue, TaskError

Row = dict[str, Any]

TEST_PCT = 10

_HALF = re.compile(r"[\ud800-\udfff]")  # of a surrogate pair: SQLite keeps it, UTF-8 cannot
_VERSION = re.compile(r"(.+)-[0-9a-f]{10}")  # the backend's: model, hash


@dataclass(frozen=True)
class Annotation:
    """What a human made of a task. `draft` holds the prediction it began from, where there was one."""

    id: int
    project: int
    task: Task
    regions: list[Region]
    cancelled: bool
    ground_truth: bool = False
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
        return present(self.__dict__) | {"schema_version": SAMPLE_VERSION}

    @classmethod
    def from_record(cls, record: Record) -> "Rejected":
        """Read the row of rejected.jsonl."""
        return cls(**{name: part for name, part in record.items() if name != "schema_version"})


def annotations_of(task: Mapping[str, Any], project: int) -> list[Annotation]:
    """Read the annotations of a task as Label Studio lists it, annotations and predictions included."""
    predictions = {prediction["id"]: prediction for prediction in task["predictions"]}
    found = []
    for entry in task["annotations"]:
        draft = predictions.get(entry.get("parent_prediction"))
        human = entry.get("completed_by")
        version = draft and draft.get("model_version")
        model = _VERSION.fullmatch(version or "")
        metadata = {
            "human": human.get("id") if isinstance(human, Mapping) else human,
            "created_at": entry.get("created_at"),
            "updated_at": entry.get("updated_at"),
            "lead_time_s": entry.get("lead_time"),
            "draft_prediction": entry.get("parent_prediction"),
            "draft_version": version,
            "draft_model": model and model[1],
            "draft_score": draft and draft.get("score"),
        }
        found.append(
            Annotation(
                id=entry["id"],
                project=project,
                task=Task(task["id"], task["data"]),
                regions=entry["result"] or [],
                cancelled=bool(entry.get("was_cancelled")),
                ground_truth=bool(entry.get("ground_truth")),
                metadata=present(metadata),
                draft=draft and draft["result"],
            )
        )
    return found


def judge(annotation: Annotation, case: Case) -> Sample | Rejected:
    """Make an annotation a sample, or say which gate it failed; the first one that it fails counts."""
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


def group_of(texts: Mapping[str, str]) -> str:
    """Hash what must not be both in train and in test; 16 hex digits."""
    return hashlib.sha256(canonical(texts).encode()).hexdigest()[:16]


def split_of(group: str) -> Split:
    """Put a group into train or test by its hash alone: it stays there as data grow."""
    return "test" if int(group, 16) % 100 < TEST_PCT else "train"


def fingerprint(case: Case) -> str:
    """Hash what decides how a case's annotations become samples; 16 hex digits."""
    decisive = [
        SAMPLE_VERSION,
        case.name,
        case.compact,
        case.labelling.config_hash,
        case.labelling.validating_schema,
    ]
    return hashlib.sha256(canonical(decisive).encode()).hexdigest()[:16]


def _sample(candidate: Candidate) -> Sample:
    annotation, case, value = candidate.annotation, candidate.case, candidate.value
    if value is None:
        raise InvalidValue(candidate.unreadable)
    labelling = case.labelling
    draft = _draft_of(candidate)
    changed = () if draft is None else _changed(case, draft, value)
    system, user = render(case, annotation.task, "compact")
    texts = labelling.inputs(annotation.task)
    group = group_of(texts)
    return Sample(
        project=annotation.project,
        task=annotation.task.id,
        annotation=annotation.id,
        case=case.name,
        verdict="written" if draft is None else "corrected" if changed else "accepted",
        input=texts,
        system=system.content,
        instruction=user.content,
        value=value,
        target=labelling.encode(value),
        group=group,
        split=split_of(group),
        draft=draft,
        draft_target=None if draft is None else labelling.encode(draft),
        changed=changed,
        ground_truth=annotation.ground_truth,
        gates=tuple(gate.__name__ for gate in SAMPLE_GATES),
        metadata={**annotation.metadata, "config_hash": labelling.config_hash},
    )


def _draft_of(candidate: Candidate) -> Value | None:
    if candidate.annotation.draft is None:
        return None
    try:
        draft = candidate.case.labelling.from_regions(candidate.annotation.draft, candidate.annotation.task)
    except TaskError:
        return None  # a prediction from elsewhere, or of an older config: nothing can be said about it
    return None if _HALF.search(canonical(draft)) else draft


def _changed(case: Case, draft: Value, value: Value) -> tuple[str, ...]:
    return tuple(
        control.name
        for control in case.labelling.controls
        if canonical(draft.get(control.name)) != canonical(value.get(control.name))
    )


# ---------------------------------------------------------------------------------- gates


def not_skipped(candidate: Candidate) -> str | None:
    """Stop what the annotator skipped."""
    return "The annotator skipped the task." if candidate.annotation.cancelled else None


def readable(candidate: Candidate) -> str | None:
    """Stop regions that the config cannot hold, tasks that lack what it shows, and half characters."""
    if _HALF.search(canonical(candidate.value)):
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
    return {"instruction": sample.instruction, "input": "", "output": sample.target, "system": sample.system}


def messages(sample: Sample) -> Row:
    """Write Qwen chat messages."""
    return {
        "messages": [
            {"role": "system", "content": sample.system},
            {"role": "user", "content": sample.instruction},
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
