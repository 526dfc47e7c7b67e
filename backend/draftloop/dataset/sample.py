"""The canonical sample: what a human submitted, with everything that training or judging it may need.

Knows the record of samples.jsonl, which `sample.schema.json` beside this file describes, and the
conversation that a sample is. Does not know where samples come from or what trainers' rows look like.

A record is canonical JSON: UTF-8, compact, keys sorted, null only inside the target. Fields that follow from
others (`messages`, `tools`, and for a code task `code`, `stdout`, `stderr`) are written for other readers;
`Sample.from_record` ignores them.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

from draftloop.labelling.labelling import Value

Record = dict[str, Any]
ChatMessage = dict[str, Any]
ChatTool = dict[str, Any]
Verdict = Literal["accepted", "corrected", "written"]
Opinion = Literal["pass", "needs_fix", "partially_correct"]
Split = Literal["train", "test"]
Draw = Literal["lot", "stratum"]

# Raised when the same annotations would give other samples; every dataset is then written again.
SAMPLE_VERSION = 5

_STREAM_CHARS = 4000  # shown of each output stream in a conversation: half from its start, half from its end
_PROGRAM = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}


class SampleFile(TypedDict):
    """A file that a program read or left: path relative to its folder, size, SHA-256 in hex."""

    path: str
    size_bytes: int
    sha256: str


class SampleStep(TypedDict):
    """One program that was run. `exit_status` is negative where a signal ended it."""

    language: str
    code: str
    stdout: str
    stderr: str
    exit_status: int
    wall_s: NotRequired[float]


class SampleAttempt(TypedDict):
    """Programs run one after another, and how that ended."""

    outcome: Literal["ok", "failed", "timeout", "killed"]
    steps: list[SampleStep]
    reason: NotRequired[str]
    files: NotRequired[list[SampleFile]]


class Note(TypedDict):
    """A remark of a gate about a sample; the sample still passes."""

    gate: str
    reason: str


_Subject = TypeVar("_Subject")
_Finding = TypeVar("_Finding")


@dataclass(frozen=True)
class Gate(Generic[_Subject, _Finding]):
    """A check that a sample must pass, or that only adds a note to it.

    name    stored in records
    check   returns why the subject does not pass, or the note; None or nothing where it passes
    """

    name: str
    check: Callable[[_Subject], _Finding]


class FailedGate(NamedTuple):
    """The gate that a subject failed, and why."""

    gate: str
    reason: str


def check_gates(gates: Iterable[Gate[_Subject, str | None]], subject: _Subject) -> FailedGate | None:
    """Return the first gate that a subject fails, with the reason; None where it passes all of them."""
    for gate in gates:
        reason = gate.check(subject)
        if reason is not None:
            return FailedGate(gate.name, reason)
    return None


def collect_notes(gates: Iterable[Gate[_Subject, str | None]], subject: _Subject) -> tuple[Note, ...]:
    """Return the notes that gates make about a subject."""
    reasons = ((gate.name, gate.check(subject)) for gate in gates)
    return tuple(Note(gate=name, reason=reason) for name, reason in reasons if reason)


class Review(TypedDict):
    """The verdict of a second human on a sample."""

    verdict: Opinion
    by: int
    at: str
    comment: NotRequired[str]


@dataclass(frozen=True)
class Sample:
    """A training sample: what the human read, what they submitted, and what the draft was.

    verdict      accepted: the draft was right; corrected: `changed` lists the fields that were wrong;
                 written: there was no draft, or none that the config can read
    input        texts that the annotator read, by key of task data
    system       the two messages that ask a tuned model for the target
    instruction
    target       canonical serialization of `value`; `draft_target` that of `draft`
    group        hash of the source document, or of the input; a group is never in both train and test
    control_tokens  control tokens of the target model that its conversation contains
    split        None until all samples have been compared with each other
    gates        names of the gates that it passed, in order
    attempts     runs of a code task; the last one ran what the human submitted
    drawn        how it was drawn for a spot check: by lot, or because its stratum had none; None: not drawn
    """

    project: int
    task: int
    annotation: int
    case: str
    verdict: Verdict
    input: Mapping[str, str]
    system: str
    instruction: str
    value: Value
    target: str
    group: str
    split: Split | None = None
    draft: Value | None = None
    draft_target: str | None = None
    changed: tuple[str, ...] = ()
    ground_truth: bool = False
    gates: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    tokens: int | None = None
    control_tokens: tuple[str, ...] = ()
    attempts: tuple[SampleAttempt, ...] = ()
    input_files: tuple[SampleFile, ...] = ()
    output_files: tuple[SampleFile, ...] = ()
    review: Review | None = None
    drawn: Draw | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_code(self) -> bool:
        """Whether it comes from a code task: it passed the first gate of code tasks."""
        return bool(self.attempts) or VERDICT_GATE in self.gates

    @property
    def final_code(self) -> str:
        """The program that the human submitted; empty where nobody ran it, or for other tasks."""
        return _joined(self.attempts, "code")

    def record(self) -> Record:
        """Return the row of samples.jsonl; an absent field has no key."""
        own = {name: list(part) if isinstance(part, tuple) else part for name, part in self.__dict__.items()}
        empty = [name for name in _LEFT_OUT_WHEN_EMPTY if not own[name]]
        derived: Record = {"schema_version": SAMPLE_VERSION, "messages": conversation(self)}
        if self.attempts:
            derived |= {"tools": tools(self)}
            derived |= {name: _joined(self.attempts, name) for name in _STEP_TEXTS}
        return present({**own, **dict.fromkeys(empty), **derived})

    @classmethod
    def from_record(cls, record: Record) -> "Sample":
        """Read the row of samples.jsonl.

        Raises:
            ValueError: The record has another version.
        """
        if record.get("schema_version") != SAMPLE_VERSION:
            raise ValueError(f"version {record.get('schema_version')} instead of {SAMPLE_VERSION}")
        own = {name: record[name] for name in _FIELDS if name in record}
        parts: Record = {name: tuple(part) if isinstance(part, list) else part for name, part in own.items()}
        return cls(**parts)


@dataclass(frozen=True, slots=True)
class Brief:
    """The fields of a sample that stay in memory: about 700 bytes, whatever the sample's size.

    system     digest of the system message; many samples share one string object
    question   digest of system message and instruction
    answer     digest of the target
    """

    project: int
    task: int
    annotation: int
    case: str
    system: str
    question: bytes
    answer: bytes
    group: str
    ground_truth: bool
    updated_at: str
    human: int | None
    score: float | None
    tokens: int | None
    control_tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, sample: Sample) -> "Brief":
        """Make the brief of a sample."""
        return cls(
            project=sample.project,
            task=sample.task,
            annotation=sample.annotation,
            case=sys.intern(sample.case),
            system=sys.intern(digest(sample.system).hex()),
            question=digest(sample.system, sample.instruction),
            answer=digest(sample.target),
            group=sample.group,
            ground_truth=sample.ground_truth,
            updated_at=sample.metadata.get("updated_at", ""),
            human=sample.metadata.get("human"),
            score=sample.metadata.get("draft_score"),
            tokens=sample.tokens,
            control_tokens=sample.control_tokens,
        )

    @property
    def seal(self) -> str:
        """Hash question and answer, 32 hex digits; a reviewer's verdict counts while this stays the same."""
        return digest(self.question.hex(), self.answer.hex()).hex()


_FIELDS = tuple(entry.name for entry in fields(Sample))
_LEFT_OUT_WHEN_EMPTY = ("ground_truth", "control_tokens", "attempts", "input_files", "output_files")
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_StepText = Literal["code", "stdout", "stderr"]
_STEP_TEXTS: tuple[_StepText, ...] = ("code", "stdout", "stderr")
VERDICT_GATE = "verdict_passes"  # the first gate of code tasks, in `code_gates`


def canonical(part: Any) -> str:
    """Serialize for files, hashes and comparisons: compact, raw UTF-8, keys sorted."""
    return _CANONICAL.encode(part)


def digest(*texts: str) -> bytes:
    """Hash a sequence of texts; 16 bytes. Boundaries between the texts count."""
    return hashlib.blake2b(json.dumps(texts, ensure_ascii=True).encode(), digest_size=16).digest()


def present(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the keys that are None: null keys break trainers' loaders."""
    return {key: part for key, part in record.items() if part is not None}


def conversation(sample: Sample, answer: str | None = None) -> list[ChatMessage]:
    """Return a sample as chat messages: the question, the programs that ran with their output, the answer.

    `arguments` is an object and `content` never null, as the chat templates of Qwen's models require.

    Args:
        sample: The sample.
        answer: Content of the last message; the target by default.
    """
    messages: list[ChatMessage] = [
        {"role": "system", "content": sample.system},
        {"role": "user", "content": sample.instruction},
    ]
    for step in (step for attempt in sample.attempts for step in attempt["steps"]):
        call = {"name": step["language"], "arguments": {"code": step["code"]}}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        )
        messages.append({"role": "tool", "name": step["language"], "content": _describe_step(step)})
    messages.append({"role": "assistant", "content": sample.target if answer is None else answer})
    return messages


def tools(sample: Sample) -> list[ChatTool]:
    """Return the tools that a sample's conversation calls, one for each language; empty for most cases."""
    languages = {step["language"]: None for attempt in sample.attempts for step in attempt["steps"]}
    return [
        {
            "type": "function",
            "function": {
                "name": language,
                "description": f"Run one complete {language} program and read what it prints.",
                "parameters": _PROGRAM,
            },
        }
        for language in languages
    ]


def _joined(attempts: Sequence[SampleAttempt], name: _StepText) -> str:
    """Join one text of all steps of the last attempt: code, stdout or stderr."""
    return "\n".join(step[name] for step in attempts[-1]["steps"]) if attempts else ""


def _describe_step(step: SampleStep) -> str:
    streams = {"stdout": _cut(step["stdout"]), "stderr": _cut(step["stderr"])}
    parts = [f"{name}:\n{text}" for name, text in streams.items() if text]
    return "\n".join([*parts, f"exit status {step['exit_status']}"])


def _cut(text: str) -> str:
    if len(text) <= _STREAM_CHARS:
        return text
    half = _STREAM_CHARS // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
