"""A case and how it becomes a prompt: role, task, schema, examples, then the task's own text.

Knows the two prompt profiles and the protocol that every model client follows. Does not know HTTP.
Messages that are the same for a whole project come first, so that vLLM serves them from its prefix cache.

    full      role, task, JSON Schema, rules, few-shot examples: for general Qwen models
    compact   the one-line instruction that a tuned model was trained with, then the text
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, get_args

from draftloop.errors import SetupError, TaskError
from draftloop.labelling.controls import Schema
from draftloop.labelling.grammar import quoting_grammar
from draftloop.labelling.labelling import Labelling, Question, Task, Value
from draftloop.labelling.rules import Reason, Rules
from draftloop.labelling.sources import check_data
from draftloop.support.text import has_lone_surrogate

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
_REFINE = {
    "en": "The annotator asks:\n{words}\nAnswer with the whole JSON object, changed as they ask.",
    "zh": "标注员的要求:\n{words}\n请按要求修改,只输出完整的 JSON 对象。",
}
_ENVIRONMENT = {"en": "The code is run here:\n{words}", "zh": "代码在以下环境中运行:\n{words}"}
_RAN = {
    "en": "The code was run:\n{output}\nAnswer with the whole JSON object, its code corrected.",
    "zh": "代码已运行:\n{output}\n请改正代码,只输出完整的 JSON 对象。",
}
_HAN = re.compile(r"[\u4e00-\u9fff]")
_EXTRA_HINT = 'Write {"case": "complaint"}, or {"instruction": "...", "temperature": 0, "model": "..."}.'
_PROFILES: tuple[Profile, ...] = get_args(Profile)
_MAX_TEMPERATURE = 2  # vLLM's limit


@dataclass(frozen=True)
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: messages, what constrains the answer, and how to sample.

    `grammar` constrains as `schema` does and more, and replaces it where there is one (`labelling.grammar`).
    `model` names another model of the same server; empty is the client's own.
    """

    messages: tuple[Message, ...]
    schema: Schema | None = None
    grammar: str | None = None
    temperature: float = 0.0
    max_tokens: int = 8192
    seed: int = 0
    model: str = ""


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
            FailedRequest: It is well, and failed on this prompt.
            TaskError: The server refuses this prompt; trying again does not help.
            SetupError: The server refuses every prompt: wrong model name, wrong key.
        """
        ...


@dataclass(frozen=True)
class Example:
    """A few-shot example: a task's data, and the value that a human would submit."""

    task: Task
    value: Value


class Shown(NamedTuple):
    """An example in one task's prompt: a text and its right answer, as a model reads and writes them."""

    question: str
    answer: str


class Promoted(NamedTuple):
    """The adapter that drafts for a project, and the profile that it was trained with."""

    model: str
    profile: Profile


@dataclass(frozen=True)
class Overrides:
    """Settings of one project: the extra params of its ML backend in Label Studio.

    instruction     replaces the case's task text and its compact line
    temperature     of sampling
    model           another model of the same server; empty is the configured one
    profile         that model's prompt profile; empty is the configured one
    """

    instruction: str = ""
    temperature: float | None = None
    model: str = ""
    profile: Profile | Literal[""] = ""

    def set_fields(self) -> dict[str, str | float]:
        """Return the fields that are set, for manifests."""
        return {key: part for key, part in self.__dict__.items() if part not in ("", None)}

    def served_by(self, promoted: Promoted | None) -> "Overrides":
        """Return the overrides with the project's promoted adapter, even where people named a model."""
        if promoted is None:
            return self
        return replace(self, model=promoted.model, profile=promoted.profile)

    def without_model(self) -> "Overrides":
        """Return the overrides for a model of another server: all but the model and its profile."""
        return replace(self, model="", profile="")


NO_OVERRIDES = Overrides()


@dataclass(frozen=True)
class Refinement:
    """A change that an annotator asks for in words, and the value that it is about, if there is one."""

    words: str
    value: Value | None = None


@dataclass(frozen=True)
class Case:
    """A kind of task: its labelling, and everything that stands in a prompt about it."""

    name: str
    labelling: Labelling
    role: str
    task_text: str
    compact: str
    examples: tuple[Example, ...] = ()
    overrides: Overrides = NO_OVERRIDES

    @cached_property
    def rules(self) -> Rules:
        """The case's checks, compiled."""
        return Rules(self.labelling)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled rules cannot be pickled; they are recomputed after unpickling.
        return {name: part for name, part in self.__dict__.items() if name != "rules"}

    def grammar(self, task: Task | Question) -> str | None:
        """Return the grammar that allows only quotes that are in the task's text; None without quotes.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        texts = tuple(self.labelling.read(task).inputs.values())
        return quoting_grammar(self.labelling.decoding_schema, self.rules.quoted, texts)

    def for_task(self, task: Task | Question) -> "Case":
        """Return the case with the options that the task brings; itself where it brings none.

        Raises:
            TaskError: The task lacks them, or its data are nested without an end.
        """
        if isinstance(task, Question):
            labelling = task.labelling
        else:
            check_data(task)
            labelling = self.labelling.for_task(task)
        return self if labelling is self.labelling else replace(self, labelling=labelling)

    def overridden(self, overrides: Overrides) -> "Case":
        """Return the case with the overrides of one project."""
        instruction = overrides.instruction
        return replace(
            self,
            overrides=overrides,
            task_text=instruction or self.task_text,
            compact=instruction or self.compact,
        )

    @property
    def language(self) -> Literal["en", "zh"]:
        """Language in which the model is addressed: that of the case's own words."""
        return "zh" if _HAN.search(self.role + self.task_text) else "en"


def generic_case(labelling: Labelling) -> Case:
    """Make a case from a labelling config alone, for projects without a case of their own."""
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
        SetupError: A section is missing, empty or unknown.
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


def parse_extra_params(extra: Any) -> tuple[str | None, Overrides]:
    """Read Label Studio's extra params of an ML backend: an object, or a string that holds one.

    Returns:
        The name of the case, if there is one, and the project's overrides.
    Raises:
        SetupError: It is no JSON object, or holds an unknown key or a wrong value.
    """
    if isinstance(extra, str) and extra.strip():
        try:
            extra = json.loads(extra)
        except (ValueError, RecursionError) as error:
            raise SetupError(f"extra_params is not JSON: {str(error)[:200]}.", hint=_EXTRA_HINT) from error
    if extra is None or extra == "" or (isinstance(extra, str) and not extra.strip()):
        return None, NO_OVERRIDES
    if not isinstance(extra, Mapping):
        raise SetupError("extra_params is not a JSON object.", hint=_EXTRA_HINT)
    for key, part in extra.items():
        _check_extra_param(key, part)
    temperature = extra.get("temperature")
    return extra.get("case"), Overrides(
        instruction=extra.get("instruction", "").strip(),
        temperature=None if temperature is None else float(temperature),
        model=extra.get("model", "").strip(),
        profile=extra.get("profile", ""),
    )


def _check_extra_param(key: Any, part: Any) -> None:
    known = ("case", *Overrides.__dataclass_fields__)
    if key not in known:
        raise SetupError(
            f"extra_params has a key {ascii(key)[:60]}, which nobody reads.",
            hint=f"It may have {', '.join(known)}.",
        )
    if key == "temperature":
        is_number = isinstance(part, int | float) and not isinstance(part, bool)
        if not (is_number and math.isfinite(part) and 0 <= part <= _MAX_TEMPERATURE):
            raise SetupError(
                "extra_params.temperature is no number from 0 to 2.", hint='Write {"temperature": 0.3}.'
            )
    elif key == "profile" and part not in _PROFILES:
        raise SetupError(
            "extra_params.profile is neither full nor compact.", hint='Write {"profile": "compact"}.'
        )
    elif not (isinstance(part, str) and part.strip() and not has_lone_surrogate(part)):
        raise SetupError(
            f"extra_params.{key} is no text.", hint=f'Write {{"{key}": "..."}}, or leave it out.'
        )


def preamble(case: Case, profile: Profile, environment: str = "") -> tuple[Message, ...]:
    """Return the messages that are the same for every task of the case.

    Args:
        case: The case.
        profile: How much they contain; the compact one only what a tuned model was trained with.
        environment: Describes where code runs: limits, packages. Empty for cases without code.
    """
    if profile == "compact":
        return (Message("system", case.compact),)
    schema = json.dumps(case.labelling.decoding_schema, ensure_ascii=False, separators=(",", ":"))
    parts = [case.role, case.task_text, _ORDER[case.language], f"JSON Schema:\n{schema}"]
    if case.rules.messages:
        parts.append(
            "\n".join([_RULES_TITLE[case.language], *(f"- {message}" for message in case.rules.messages)])
        )
    if environment:
        parts.append(_ENVIRONMENT[case.language].format(words=environment))
    messages = [Message("system", "\n\n".join(parts))]
    for example in case.examples:
        messages.append(Message("user", Question(case.labelling, example.task).text))
        messages.append(Message("assistant", case.labelling.for_task(example.task).encode(example.value)))
    return tuple(messages)


def render(
    case: Case,
    task: Task | Question,
    profile: Profile,
    refinement: Refinement | None = None,
    *,
    environment: str = "",
) -> tuple[Message, ...]:
    """Return the messages that ask for one task's value; the answer is `labelling.encode(value)`.

    An annotator's words come last, after the value that they are about, so that what tasks share comes first.

    Raises:
        TaskError: The task lacks a key that the config shows, or a page holds what cannot be sent.
    """
    asked = task if isinstance(task, Question) else Question(case.labelling, task)
    shared, question = preamble(case, profile, environment), asked.text
    if refinement is None:
        return (*shared, Message("user", question))
    words = _REFINE[case.language].format(words=refinement.words)
    if refinement.value is None:
        return (*shared, Message("user", f"{question}\n\n{words}"))
    answer = case.labelling.encode(refinement.value)
    if has_lone_surrogate(answer):
        raise TaskError(
            f"Task {asked.task.id}: what stands in its page holds half a character (a lone surrogate).",
            hint="Delete it there and ask again.",
        )
    return (*shared, Message("user", question), Message("assistant", answer), Message("user", words))


def with_examples(messages: Sequence[Message], shown: Sequence[Shown]) -> tuple[Message, ...]:
    """Return the messages of a question with examples before it, after the messages that tasks share.

    Args:
        messages: What `render` returned without a refinement.
        shown: Texts and their answers; the last one comes next to the question.
    """
    turns = (
        message
        for question, answer in shown
        for message in (Message("user", question), Message("assistant", answer))
    )
    return (*messages[:-1], *turns, messages[-1])


def render_retry(
    case: Case, messages: Sequence[Message], answer: str, reasons: Sequence[Reason]
) -> tuple[Message, ...]:
    """Return the messages that send an unacceptable answer back, with what is wrong with it."""
    words = _RETRY[case.language].format(reasons="\n".join(f"- {reason}" for reason in reasons))
    return (*messages, Message("assistant", answer), Message("user", words))


def render_runs(case: Case, turns: Sequence[tuple[Value, str]]) -> tuple[Message, ...]:
    """Return the messages that follow a question and ask for better code.

    Args:
        case: The case.
        turns: The answers whose code was run, each with a description of the run, in order.
    """
    return tuple(
        message
        for value, output in turns
        for message in (
            Message("assistant", case.labelling.encode(value)),
            Message("user", _RAN[case.language].format(output=output)),
        )
    )
