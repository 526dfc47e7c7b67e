"""Annotations read from Label Studio's tasks, passed through gates and made into training samples.

Knows Label Studio's task object as its API lists it, and the gates that judge one sample at a time. Does
not know other samples (`corpus`), rows (`formats`), files, Label Studio's API or the time: the same
annotation always gives the same sample.

The training target is the canonical serialization of the value that the human submitted. The prompt before
it is the compact one, so that a model tuned on these rows is later asked exactly as it was trained.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from draftloop.dataset.personal import Mask, described, strings
from draftloop.dataset.sample import (
    SAMPLE_VERSION,
    FailedGate,
    Gate,
    Record,
    Sample,
    canonical,
    check_gates,
    collect_notes,
    present,
)
from draftloop.errors import InvalidValue, TaskError
from draftloop.labelling.labelling import Question, Task, Value
from draftloop.labelling.regions import Json, too_deep
from draftloop.labelling.rules import Reason
from draftloop.prompting.prompt import Case, render
from draftloop.support.text import has_lone_surrogate, replace_lone_surrogates

_VERSION = re.compile(r"(.+)-[0-9a-f]{10}")  # the backend's: model, hash


@dataclass(frozen=True)
class Annotation:
    """A human's annotation of a task. `draft` holds the prediction that it started from, if any.

    `regions` and `draft` are as Label Studio stores them: any JSON, most often a list of regions.
    """

    id: int
    project: int
    task: Task
    regions: Json
    cancelled: bool
    ground_truth: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    draft: Json = None


@dataclass(frozen=True)
class Candidate:
    """An annotation that gates check: its value and the rules that it breaks, or why it cannot be read.

    question   the parsed task; None where it cannot be read
    region     country of telephone numbers without a country code
    """

    annotation: Annotation
    case: Case
    value: Value | None
    question: Question | None = None
    unreadable: str = ""
    broken: tuple[Reason, ...] = ()
    region: str = "CN"

    @property
    def texts(self) -> Mapping[str, str]:
        """Texts that the annotator read, by key of task data."""
        return {} if self.question is None else self.question.inputs


@dataclass(frozen=True)
class Rejected:
    """An annotation that a gate rejected, with the reason."""

    project: int
    task: int
    annotation: int
    case: str
    gate: str
    reason: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        """Return the row of rejected.jsonl."""
        return present(self.__dict__) | {"schema_version": SAMPLE_VERSION}

    @classmethod
    def from_record(cls, record: Record) -> "Rejected":
        """Read the row of rejected.jsonl."""
        return cls(**{name: part for name, part in record.items() if name != "schema_version"})


def annotations_of(task: Mapping[str, Any], project: int) -> list[Annotation]:
    """Read the annotations of a task as Label Studio lists it, annotations and predictions included.

    Their results may be any JSON; `judge` rejects what cannot be read. Entries without an id are left out;
    no listing has any.
    """
    predictions = _by_id(task.get("predictions"))
    data = task.get("data")
    annotations = []
    for number, entry in _by_id(task.get("annotations")).items():
        parent = _number(entry.get("parent_prediction"))
        draft = predictions.get(parent, {})
        drafted = draft.get("result")
        human = entry.get("completed_by")
        version = _text(draft.get("model_version"))
        model = _VERSION.fullmatch(version or "")
        metadata = {
            "human": _number(human.get("id") if isinstance(human, Mapping) else human),
            "created_at": _text(entry.get("created_at")),
            "updated_at": _text(entry.get("updated_at")),
            "lead_time_s": _number(entry.get("lead_time")),
            "draft_prediction": parent,
            "draft_version": version,
            "draft_model": model and model[1],
            "draft_score": _number(draft.get("score")),
        }
        annotations.append(
            Annotation(
                id=number,
                project=project,
                task=Task(task["id"], data if isinstance(data, Mapping) else {}),
                regions=entry.get("result"),
                cancelled=bool(entry.get("was_cancelled")),
                ground_truth=bool(entry.get("ground_truth")),
                metadata=present(metadata),
                draft=None if too_deep(drafted) else drafted,
            )
        )
    return annotations


def _by_id(entries: Any) -> dict[int, Mapping[str, Any]]:
    """Return annotations or predictions by their ids. In an export, predictions are ids only: left out."""
    listed = entries if isinstance(entries, list) else []
    return {entry["id"]: entry for entry in listed if isinstance(entry, dict) and _is_id(entry.get("id"))}


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _number(part: Any) -> Any:
    if isinstance(part, float):
        return part if math.isfinite(part) else None
    return part if _is_id(part) and abs(part) < 2**63 else None  # as in SQL


def _text(part: Any) -> str | None:
    return replace_lone_surrogates(part) if isinstance(part, str) else None


def judge(
    annotation: Annotation, case: Case, *, group_by: str = "", mask: bool = False, region: str = "CN"
) -> Sample | Rejected:
    """Make a sample of an annotation, or reject it with the first gate that it fails.

    Args:
        annotation: A human's annotation.
        case: The task's case.
        group_by: Key of task data that names the source document, if tasks have one.
        mask: Whether personal data is replaced by stand-ins, in reasons too.
        region: Country of telephone numbers without a country code.
    """
    prompt = case.labelling.words(annotation.regions)
    if prompt:
        annotation = replace(annotation, metadata={**annotation.metadata, "prompt": prompt})
    try:
        case = case.for_task(annotation.task)
        question = case.labelling.read(annotation.task)
        texts = question.inputs  # raises for tasks that cannot be shown
        value = case.labelling.from_regions(annotation.regions, question)
        candidate = _candidate(annotation, case, value, question, region)
    except TaskError as error:
        texts = {}
        candidate = Candidate(annotation, case, None, unreadable=str(error))
    draft = draft_of(candidate)

    def group() -> str:
        # From the unmasked texts: masking must not move a sample to the other split.
        source = annotation.task.data.get(group_by) if group_by else None
        return group_of(texts if source is None else {group_by: source})

    hide = Mask([annotation.task.data, candidate.value, draft, prompt], region) if mask else None
    if hide is not None:
        annotation = replace(annotation, metadata=hide(dict(annotation.metadata)))
    stopped = check_gates(SAMPLE_GATES, candidate)
    if stopped is None and hide is not None:
        masked = replace(annotation, task=Task(annotation.task.id, hide(dict(annotation.task.data))))
        question = case.labelling.read(masked.task)
        candidate = _candidate(masked, case, hide(candidate.value), question, region)
        broken = check_gates(SAMPLE_GATES, candidate)
        if broken is None:
            return _sample(candidate, hide(draft), group())
        stopped = check_gates([STILL_RIGHT_WHEN_MASKED], broken)
    if stopped is None:
        return _sample(candidate, draft, group())
    return Rejected(
        annotation.project,
        annotation.task.id,
        annotation.id,
        case.name,
        stopped.gate,
        replace_lone_surrogates(hide(stopped.reason) if hide else stopped.reason),
        annotation.metadata,
    )


def _candidate(
    annotation: Annotation, case: Case, value: Value, question: Question, region: str
) -> Candidate:
    broken = case.rules.check(value, question)
    return Candidate(annotation, case, value, question, broken=broken, region=region)


def group_of(source: Mapping[str, Any]) -> str:
    """Hash a source document or a task's texts, which must not be in both train and test; 16 hex digits."""
    return hashlib.sha256(canonical(source).encode(errors="surrogatepass")).hexdigest()[:16]


def fingerprint(case: Case, *how: object) -> str:
    """Hash what decides how a case's annotations become samples; 16 hex digits.

    Args:
        case: The case.
        how: Further options of `judge`.
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


def _sample(candidate: Candidate, draft: Value | None, group: str) -> Sample:
    annotation, case, value = candidate.annotation, candidate.case, candidate.value
    if value is None or candidate.question is None:
        raise InvalidValue(candidate.unreadable)
    labelling = case.labelling
    changed = () if draft is None or draft is value else _changed(case, draft, value)
    target = labelling.encode(value)
    system, user = render(case, candidate.question, "compact")
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
        gates=tuple(gate.name for gate in SAMPLE_GATES),
        notes=collect_notes(NOTES, candidate),
        metadata={**annotation.metadata, "config_hash": labelling.config_hash},
    )


def draft_of(candidate: Candidate) -> Value | None:
    """Return the value of the draft that a human started from; None where there is none to read."""
    if candidate.annotation.draft is None:
        return None
    if candidate.value is not None and candidate.annotation.draft == candidate.annotation.regions:
        return candidate.value
    try:
        draft = candidate.case.labelling.from_regions(
            candidate.annotation.draft, candidate.question or candidate.annotation.task
        )
    except TaskError:
        return None  # a prediction by another program, or for an older config
    return None if has_lone_surrogate(canonical(draft)) else draft


def _changed(case: Case, draft: Value, value: Value) -> tuple[str, ...]:
    return tuple(
        control.name
        for control in case.labelling.controls
        # A human's verdict on the draft is no correction of it.
        if control.name not in case.labelling.human
        and not _same(draft.get(control.name), value.get(control.name))
    )


def _same(one: Any, other: Any) -> bool:
    if one is other or (isinstance(one, str) and isinstance(other, str)):
        return one == other  # fast path: most parts are texts or absent
    return canonical(one) == canonical(other)  # 1 and true are not the same, nor 1 and 1.0


# ---------------------------------------------------------------------------------- gates


def not_skipped(candidate: Candidate) -> str | None:
    """Stop annotations of skipped tasks."""
    return "The annotator skipped the task." if candidate.annotation.cancelled else None


def readable(candidate: Candidate) -> str | None:
    """Stop regions that do not fit the config, tasks that lack what it shows, and lone surrogates."""
    if has_lone_surrogate(canonical(candidate.value)):
        return "It holds half a character (a lone surrogate), which no file can."
    return candidate.unreadable or None


def not_empty(candidate: Candidate) -> str | None:
    """Stop an empty form without a draft. Where a draft was emptied or accepted, empty is an answer."""
    is_empty = not any(part not in ([], "") for part in (candidate.value or {}).values())
    return "The annotation is empty." if is_empty and candidate.annotation.draft is None else None


def fits_schema(candidate: Candidate) -> str | None:
    """Stop values that the validating schema refuses."""
    return _broken(candidate, "schema")


def obeys_rules(candidate: Candidate) -> str | None:
    """Stop values that break one of the case's rules."""
    return _broken(candidate, "rule")


def is_grounded(candidate: Candidate) -> str | None:
    """Stop quotes that are not in the text."""
    return _broken(candidate, "grounding")


def still_right_when_masked(stopped: FailedGate) -> str:
    """Stop samples that pass unmasked, and fail a gate once personal data is masked."""
    return f"With stand-ins for personal data it does not pass {stopped.gate}: {stopped.reason}"


def personal_data(candidate: Candidate) -> str:
    """Count personal data in the texts and in the value, without quoting it."""
    return described([*candidate.texts.values(), *strings(candidate.value)], candidate.region)


def _broken(candidate: Candidate, kind: str) -> str | None:
    return "; ".join(str(reason) for reason in candidate.broken if reason.kind == kind) or None


SampleGate = Gate[Candidate, str | None]

# One annotation at a time, in this order; the first that gives a reason rejects it.
SAMPLE_GATES: tuple[SampleGate, ...] = (
    Gate("not_skipped", not_skipped),
    Gate("readable", readable),
    Gate("not_empty", not_empty),
    Gate("fits_schema", fits_schema),
    Gate("obeys_rules", obeys_rules),
    Gate("is_grounded", is_grounded),
)

# For masked samples only, after one of the gates above failed on the masked values.
STILL_RIGHT_WHEN_MASKED: Gate[FailedGate, str | None] = Gate(
    "still_right_when_masked", still_right_when_masked
)

PERSONAL_DATA: SampleGate = Gate("personal_data", personal_data)

# These add notes and stop nothing.
NOTES: tuple[SampleGate, ...] = (PERSONAL_DATA,)
