"""What humans submitted, as training samples: read back from Label Studio's tasks, judged by gates.

Knows Label Studio's task object as its API lists it, and the gates that a sample passes by itself. Does
not know other samples (`corpus`), rows (`formats`), files, Label Studio's API or the time: the same
annotation always gives the same sample.

The training target is the canonical serialization of the value that the human submitted, and the
prompt before it is the compact one: a model tuned on these rows is asked exactly what it was trained on.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backend.core.controls import Region
from backend.core.labelling import Task, Value
from backend.core.personal import Mask, described, strings
from backend.core.prompting import Case, render
from backend.core.rules import Reason
from backend.core.sample import SAMPLE_VERSION, Note, Record, Sample, canonical, present
from backend.errors import InvalidValue, TaskError

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
    """An annotation on its way to a sample: its value and what is wrong with it, or why there is none.

    texts  what the annotator read, by key of task data
    """

    annotation: Annotation
    case: Case
    value: Value | None
    texts: Mapping[str, str] = field(default_factory=dict)
    unreadable: str = ""
    broken: tuple[Reason, ...] = ()


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


def judge(
    annotation: Annotation, case: Case, *, group_by: str = "", mask: bool = False, region: str = "CN"
) -> Sample | Rejected:
    """Make an annotation a sample, or say which gate it failed; the first one that it fails counts.

    Args:
        annotation: What a human made of a task.
        case: The task's case.
        group_by: Key of task data that names the source document, if tasks have one.
        mask: Whether stand-ins take the place of personal data, in the reasons too.
        region: Country of telephone numbers without a country code.
    """
    asked = case.labelling.words(annotation.regions)
    if asked:
        annotation = replace(annotation, metadata={**annotation.metadata, "prompt": asked})
    try:
        case = case.for_task(annotation.task)
        texts = case.labelling.inputs(annotation.task)  # what cannot be shown is no sample
        candidate = _candidate(
            annotation, case, case.labelling.from_regions(annotation.regions, annotation.task), texts
        )
    except TaskError as error:
        texts = {}
        candidate = Candidate(annotation, case, None, unreadable=str(error))
    # Of the texts as they are: no sample changes sides because it is masked.
    source = annotation.task.data.get(group_by) if group_by else None
    group = group_of(texts if source is None else {group_by: source})
    draft = draft_of(candidate)
    hide = Mask([annotation.task.data, candidate.value, draft, asked], region) if mask else None
    if hide is not None:
        annotation = replace(annotation, metadata=hide(dict(annotation.metadata)))
    stopped = _stopped(candidate)
    if stopped is None and hide is not None:
        masked = replace(annotation, task=Task(annotation.task.id, hide(dict(annotation.task.data))))
        candidate = _candidate(masked, case, hide(candidate.value), case.labelling.inputs(masked.task))
        stopped = _stopped(candidate)
        if stopped is None:
            return _sample(candidate, hide(draft), group, region)
        stopped = (still_right_when_masked.__name__, still_right_when_masked(stopped))
    if stopped is None:
        return _sample(candidate, draft, group, region)
    gate, reason = stopped
    return Rejected(
        annotation.project,
        annotation.task.id,
        annotation.id,
        case.name,
        gate,
        hide(reason) if hide else reason,
        annotation.metadata,
    )


def _candidate(annotation: Annotation, case: Case, value: Value, texts: Mapping[str, str]) -> Candidate:
    return Candidate(annotation, case, value, texts, broken=case.rules.check(value, annotation.task))


def _stopped(candidate: Candidate) -> tuple[str, str] | None:
    for gate in SAMPLE_GATES:
        reason = gate(candidate)
        if reason is not None:
            return gate.__name__, reason
    return None


def group_of(source: Mapping[str, Any]) -> str:
    """Hash what must not be both in train and in test; 16 hex digits."""
    return hashlib.sha256(canonical(source).encode(errors="surrogatepass")).hexdigest()[:16]


def fingerprint(case: Case, *how: object) -> str:
    """Hash what decides how a case's annotations become samples; 16 hex digits.

    Args:
        case: The case.
        how: What else `judge` is told.
    """
    decisive = [
        SAMPLE_VERSION,
        case.name,
        case.compact,
        case.labelling.config_hash,
        case.labelling.validating_schema,
        *how,
    ]
    return hashlib.sha256(canonical(decisive).encode()).hexdigest()[:16]


def _sample(candidate: Candidate, draft: Value | None, group: str, region: str) -> Sample:
    annotation, case, value = candidate.annotation, candidate.case, candidate.value
    if value is None:
        raise InvalidValue(candidate.unreadable)
    labelling = case.labelling
    changed = () if draft is None or draft is value else _changed(case, draft, value)
    target = labelling.encode(value)
    system, user = render(case, annotation.task, "compact")
    notes = ((note.__name__, note(candidate, region)) for note in NOTES)
    return Sample(
        project=annotation.project,
        task=annotation.task.id,
        annotation=annotation.id,
        case=case.name,
        verdict="written" if draft is None else "corrected" if changed else "accepted",
        input=candidate.texts,
        system=system.content,
        instruction=user.content,
        value=value,
        target=target,
        group=group,
        draft=draft,
        draft_target=None if draft is None else target if draft is value else labelling.encode(draft),
        changed=changed,
        ground_truth=annotation.ground_truth,
        gates=tuple(gate.__name__ for gate in SAMPLE_GATES),
        notes=tuple(Note(gate=gate, reason=reason) for gate, reason in notes if reason),
        metadata={**annotation.metadata, "config_hash": labelling.config_hash},
    )


def draft_of(candidate: Candidate) -> Value | None:
    """Give the value of the draft that a human began from; None where none can be read."""
    if candidate.annotation.draft is None:
        return None
    if candidate.value is not None and candidate.annotation.draft == candidate.annotation.regions:
        return candidate.value
    try:
        draft = candidate.case.labelling.from_regions(candidate.annotation.draft, candidate.annotation.task)
    except TaskError:
        return None  # a prediction from elsewhere, or of an older config: nothing can be said about it
    return None if _HALF.search(canonical(draft)) else draft


def _changed(case: Case, draft: Value, value: Value) -> tuple[str, ...]:
    return tuple(
        control.name
        for control in case.labelling.controls
        # A verdict is not about what the draft said: it says how right that was.
        if control.name not in case.labelling.human
        and not _same(draft.get(control.name), value.get(control.name))
    )


def _same(one: Any, other: Any) -> bool:
    if one is other or (isinstance(one, str) and isinstance(other, str)):
        return one == other  # most parts are texts, or not there
    return canonical(one) == canonical(other)  # 1 and true are not the same, nor 1 and 1.0


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


def fits_schema(candidate: Candidate) -> str | None:
    """Stop what the validating schema refuses: humans err too."""
    return _broken(candidate, "schema")


def obeys_rules(candidate: Candidate) -> str | None:
    """Stop what breaks one of the case's rules."""
    return _broken(candidate, "rule")


def is_grounded(candidate: Candidate) -> str | None:
    """Stop quotes that do not stand in the text."""
    return _broken(candidate, "grounding")


def still_right_when_masked(stopped: tuple[str, str]) -> str:
    """Say why a sample cannot be masked: it was right, and with stand-ins it is not."""
    gate, reason = stopped
    return f"With stand-ins for personal data it does not pass {gate}: {reason}"


def personal_data(candidate: Candidate, region: str) -> str:
    """Note personal data in the texts and in the value, without quoting it."""
    return described([*candidate.texts.values(), *strings(candidate.value)], region)


def _broken(candidate: Candidate, kind: str) -> str | None:
    return "; ".join(str(reason) for reason in candidate.broken if reason.kind == kind) or None


Gate = Callable[[Candidate], str | None]

# One annotation at a time, in this order; the first that gives a reason rejects it.
SAMPLE_GATES: tuple[Gate, ...] = (
    not_skipped,
    readable,
    not_empty,
    fits_schema,
    obeys_rules,
    is_grounded,
)

# What is told and stops nothing.
NOTES: tuple[Callable[[Candidate, str], str], ...] = (personal_data,)
