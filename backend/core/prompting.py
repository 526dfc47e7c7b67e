"""A case and how it becomes a prompt: role, task, schema, examples, then the task's own text.

Knows the two prompt profiles and the protocol that every model client follows. Does not know HTTP.
What is the same for a whole project comes first, so that vLLM serves it from its prefix cache.

    full      role, task, JSON Schema, rules, few-shot examples: for general Qwen models
    compact   the one-line instruction that a tuned model was trained with, then the text
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

from backend.core.controls import Schema
from backend.core.labelling import Labelling, Task, Value
from backend.core.rules import Reason, Rules
from backend.errors import SetupError

Profile = Literal["full", "compact"]

# How the full profile orders the answer, and the titles of the schema and of the rules.
_ORDER = {
    "en": """\
Answer with exactly one JSON object that satisfies the JSON Schema below: no explanation, no code fence, \
nothing before or after it. A key for which the text gives nothing is null.""",
    "zh": """\
只输出一个满足下面 JSON Schema 的 JSON 对象:不要解释,不要代码块,前后不要有任何其他内容。\
文本中没有的内容填 null。""",
}
_RULES_TITLE = {"en": "The answer must also obey:", "zh": "答案还必须遵守:"}
_GENERIC_TASK = """\
Read the text and fill in the form. Each key of the answer is one field of the form; names and options say \
what belongs into it. Copy text from the input exactly as it stands. In a quote, `text` is copied from the \
input and `nth` counts how often the same text occurs before it."""
_RETRY = {
    "en": "This answer is not acceptable:\n{reasons}\nAnswer again with the corrected JSON object only.",
    "zh": "这个答案不符合要求:\n{reasons}\n请重新作答,只输出改正后的 JSON 对象。",
}
_HAN = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: messages, the schema that binds the answer, and how to sample."""

    messages: tuple[Message, ...]
    schema: Schema | None = None
    temperature: float = 0.0
    max_tokens: int = 8192
    seed: int = 0


@dataclass(frozen=True)
class Token:
    """One token of an answer: its bytes (a part of a character, perhaps) and its log-probability."""

    content: bytes
    logprob: float


@dataclass(frozen=True)
class Completion:
    """What a model answered. `finish_reason` is "length" where the answer was cut."""

    text: str
    finish_reason: str
    tokens: tuple[Token, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Model(Protocol):
    """A model that answers prompts. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Name under which the server knows the model."""
        ...

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """Answer a prompt.

        Raises:
            ServiceError: The server did not answer in time, or failed; trying again may help.
            TaskError: The server refuses this prompt; trying again does not help.
            SetupError: The server refuses every prompt: wrong model name, wrong key.
        """
        ...


@dataclass(frozen=True)
class Example:
    """A few-shot example: a task's data and the value that a human would submit."""

    task: Task
    value: Value


@dataclass(frozen=True)
class Case:
    """A kind of task: its labelling and everything that a model is told about it."""

    name: str
    labelling: Labelling
    role: str
    task_text: str
    compact: str
    examples: tuple[Example, ...] = ()

    @cached_property
    def rules(self) -> Rules:
        """The case's checks, compiled."""
        return Rules(self.labelling)

    def for_task(self, task: Task) -> "Case":
        """Give the case with the options that the task brings; itself where it brings none.

        Raises:
            TaskError: The task lacks them.
        """
        return replace(self, labelling=self.labelling.for_task(task)) if self.labelling.dynamic else self

    @property
    def language(self) -> Literal["en", "zh"]:
        """Language in which the model is addressed: that of the case's own words."""
        return "zh" if _HAN.search(self.role + self.task_text) else "en"


def generic_case(labelling: Labelling) -> Case:
    """Make a case from a labelling config alone, for projects that no case was written for."""
    keys = ", ".join(control.name for control in labelling.controls)
    return Case(
        name="generic",
        labelling=labelling,
        role="You are a careful annotator who fills in labelling forms.",
        task_text=_GENERIC_TASK,
        compact=f"Fill in the form as JSON: {keys}.",
    )


def parse_prompt(markdown: str, where: str) -> Mapping[str, str]:
    """Read a case's prompt.md: the sections `# Role`, `# Task` and `# Compact`.

    Raises:
        SetupError: A section is missing or empty, or there is one that nobody reads.
    """
    parts = re.split(r"(?m)^# +(.+?) *$", markdown)
    titled = zip(parts[1::2], parts[2::2], strict=True)
    sections = {title.strip().lower(): body.strip() for title, body in titled}
    expected = {"role", "task", "compact"}
    wrong = sorted(expected ^ {title for title, body in sections.items() if body})
    if wrong:
        raise SetupError(
            f"{where}: section '{wrong[0]}' is {'missing' if wrong[0] in expected else 'unknown'}.",
            hint="It has exactly the sections '# Role', '# Task' and '# Compact'.",
        )
    return sections


def preamble(case: Case, profile: Profile) -> tuple[Message, ...]:
    """Give the messages that are the same for every task of the case."""
    if profile == "compact":
        return (Message("system", case.compact),)
    schema = json.dumps(case.labelling.decoding_schema, ensure_ascii=False, separators=(",", ":"))
    parts = [case.role, case.task_text, _ORDER[case.language], f"JSON Schema:\n{schema}"]
    if case.rules.messages:
        parts.append(
            "\n".join([_RULES_TITLE[case.language], *(f"- {message}" for message in case.rules.messages)])
        )
    messages = [Message("system", "\n\n".join(parts))]
    for example in case.examples:
        messages.append(Message("user", _question(case, example.task)))
        messages.append(Message("assistant", case.labelling.for_task(example.task).encode(example.value)))
    return tuple(messages)


def render(case: Case, task: Task, profile: Profile) -> tuple[Message, ...]:
    """Give the messages that ask for one task's value; the answer is `labelling.encode(value)`.

    Raises:
        TaskError: The task lacks a key that the config shows.
    """
    return (*preamble(case, profile), Message("user", _question(case, task)))


def render_retry(
    case: Case, messages: Sequence[Message], answer: str, reasons: Sequence[Reason]
) -> tuple[Message, ...]:
    """Give the messages that send an unacceptable answer back, with what is wrong with it."""
    words = _RETRY[case.language].format(reasons="\n".join(f"- {reason}" for reason in reasons))
    return (*messages, Message("assistant", answer), Message("user", words))


def _question(case: Case, task: Task) -> str:
    inputs = case.labelling.inputs(task)
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    return "\n\n".join(f"## {key}\n{text}" for key, text in inputs.items())
