"""The canonical sample: what a human submitted, with everything that training or judging it may need.

Knows the record of samples.jsonl, which `sample.schema.json` beside this file describes, and the
conversation that a sample is. Does not know where samples come from or what trainers' rows look like.

A record is canonical JSON: UTF-8, compact, keys sorted, nothing null but inside the target. What follows
from other fields (`messages`, `tools`, and of a code task `code`, `stdout`, `stderr`) is written for
those who read records, and made anew, never read back.
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

# Raised when the same annotations would give other samples: every dataset is then made anew.
SAMPLE_VERSION = 5

_STREAM_CHARS = 4000  # of each stream of a program, in a conversation: its first and its last half
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
    """Something that was found in a sample and does not stop it."""

    gate: str
    reason: str


_Subject = TypeVar("_Subject")
_Finding = TypeVar("_Finding")


@dataclass(frozen=True)
class Gate(Generic[_Subject, _Finding]):
    """Something that samples must pass, or that is noted of them.

    name    stands in records
    check   returns why its subject does not pass, or what is noted of it; nothing where it passes
    """

    name: str
    check: Callable[[_Subject], _Finding]


class FailedGate(NamedTuple):
    """The gate that a subject did not pass, and why."""

    gate: str
    reason: str


def check_gates(gates: Iterable[Gate[_Subject, str | None]], subject: _Subject) -> FailedGate | None:
    """Return the first gate that gives a reason against a subject; None where it passes all of them."""
    for gate in gates:
        reason = gate.check(subject)
        if reason is not None:
            return FailedGate(gate.name, reason)
    return None


def collect_notes(gates: Iterable[Gate[_Subject, str | None]], subject: _Subject) -> tuple[Note, ...]:
    """Return what is noted of a subject and does not stop it."""
    noted = ((gate.name, gate.check(subject)) for gate in gates)
    return tuple(Note(gate=name, reason=reason) for name, reason in noted if reason)


class Review(TypedDict):
    """What a second human said about the sample, who and when."""

    verdict: Opinion
    by: int
    at: str
    comment: NotRequired[str]


@dataclass(frozen=True)
class Sample:
    """A training sample: what the human read, what they submitted, and what the draft had said.

    verdict      accepted: the draft was right; corrected: `changed` lists the fields in which it was
                 not; written: there was no draft, or none that the config can read
    input        texts that the annotator read, by key of task data
    system       the two messages that ask a tuned model for the target
    instruction
    target       canonical serialization of `value`; `draft_target` that of `draft`
    group        hash of the source document, or of the input: never both in train and in test
    control_tokens  those of the target model that its conversation holds
    split        None until all samples have been looked at together
    gates        names of those that it passed, in order
    attempts     runs of a code task; the last one is what the human submitted
    drawn        for a spot check: by lot, or besides because its stratum had none; None where it was not
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
        """Whether it is of a code task: it passed that case's first gate."""
        return bool(self.attempts) or VERDICT_GATE in self.gates

    @property
    def final_code(self) -> str:
        """The program that the human submitted; empty where nobody ran it, or it is no code task."""
        return _joined(self.attempts, "code")

    def record(self) -> Record:
        """Give the row of samples.jsonl; what there is not has no key."""
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
            ValueError: It is of another version.
        """
        if record.get("schema_version") != SAMPLE_VERSION:
            raise ValueError(f"version {record.get('schema_version')} instead of {SAMPLE_VERSION}")
        own = {name: record[name] for name in _FIELDS if name in record}
        parts: Record = {name: tuple(part) if isinstance(part, list) else part for name, part in own.items()}
        return cls(**parts)


@dataclass(frozen=True, slots=True)
class Brief:
    """What is kept in memory of a sample that lies on disk: about 700 bytes, whatever its size.

    system     digest of the system message; of many samples it is the same object
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
        """Sum up a sample."""
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
        """Hash question and answer: a verdict on the sample holds as long as it stays; 32 hex digits."""
        return digest(self.question.hex(), self.answer.hex()).hex()


_FIELDS = tuple(entry.name for entry in fields(Sample))
_LEFT_OUT_WHEN_EMPTY = ("ground_truth", "control_tokens", "attempts", "input_files", "output_files")
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_StepText = Literal["code", "stdout", "stderr"]
_STEP_TEXTS: tuple[_StepText, ...] = ("code", "stdout", "stderr")
VERDICT_GATE = "verdict_passes"  # the first gate of code tasks, in `codegates`


def canonical(part: Any) -> str:
    """Serialize for files, hashes and comparisons: compact, raw UTF-8, keys sorted."""
    return _CANONICAL.encode(part)


def digest(*texts: str) -> bytes:
    """Hash texts, each by itself and in this order; 16 bytes."""
    told = json.dumps(texts, ensure_ascii=True).encode()
    return hashlib.blake2b(told, digest_size=16).digest()


def present(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not there; a key that is null makes trouble in every consumer."""
    return {key: part for key, part in record.items() if part is not None}


def conversation(sample: Sample, answer: str | None = None) -> list[ChatMessage]:
    """Give a sample as messages: the question, the programs that were run with their output, the answer.

    `arguments` is an object and `content` never null: the chat templates of Qwen's models want it so.

    Args:
        sample: The sample.
        answer: The last message, instead of the target.
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
    """List the tools that a sample's conversation uses, one for each language; empty for most cases."""
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
    """Return the code, or what was printed, of all steps of the last attempt."""
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
