"""A conversation as a model's tokens, by the chat template and the tokenizer in its folder.

The only module that imports tokenizers. Renders as Transformers does, without Transformers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from draftloop.errors import SetupError, TaskError
from draftloop.model.control_tokens import is_control_token

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*\Z")
_READING = b"3"  # changed where the same files give other tokens
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")  # of tokenizer_config.json


class Encoded(NamedTuple):
    """A conversation as tokens: the prompt as it is served, the answer with its end token, the rest."""

    prompt: list[int]
    answer: list[int]
    tail: list[int]


class _Generation(Extension):
    """Renders the content of `{% generation %}`, with which templates mark the answer for trainers."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse a block; its variables are local to it, as in Transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Tokens:
    """Counts and lists the tokens of conversations for one model.

    control   texts that its tokenizer reads as control tokens
    """

    control: tuple[str, ...]

    def __init__(self, folder: Path) -> None:
        """Read a model's folder: tokenizer.json, and its chat template.

        Raises:
            SetupError: One of them is missing or damaged.
        """
        try:
            content = (folder / "tokenizer.json").read_bytes()
            config = _tokenizer_config(folder)
            self._source = _template(folder, config)
            self._named = _named(config)
            self._tokenizer = Tokenizer.from_str(content.decode())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(
                f"{folder} holds no tokenizer with a chat template ({str(error)[:120]}).",
                hint="Name a model's folder with tokenizer.json and chat_template.jinja.",
            ) from error
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.control = tuple(
            token.content for token in added if is_control_token(token.content, special=token.special)
        )
        parts = (_READING, content, self._source.encode(), json.dumps(self._named).encode())
        self.fingerprint = hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    @cached_property
    def _template(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        return environment.from_string(self._source)

    def __getstate__(self) -> dict[str, Any]:
        # A compiled template cannot be pickled; it is recomputed after unpickling.
        return {name: part for name, part in self.__dict__.items() if name != "_template"}

    def count(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> int:
        """Count the tokens of a whole conversation, with the answer and its end token.

        Raises:
            TaskError: The chat template does not take these messages.
        """
        return len(self._ids(self._text(messages, tools)))

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """Return a whole conversation as it is served; the prompt ends where the model begins to write.

        An empty think block belongs to the prompt where the template puts one there, even if it leaves it
        out of an answered conversation.

        Raises:
            TaskError: The chat template does not take these messages, renders an answered question in another
                way than an open one, or changes the answer.
        """
        whole = self._text(messages, ())
        prompt = self._text(messages[:-1], (), add_generation_prompt=True)
        heads = (prompt, _EMPTY_THOUGHT.sub("", prompt))
        head = next((part for part in heads if whole.startswith(part)), None)
        if head is None:
            raise TaskError("The chat template writes the question otherwise once it is answered.")
        rest, content = whole[len(head) :], str(messages[-1]["content"])
        if not rest.startswith((content, content.strip())):
            raise TaskError("The chat template does not write the answer as it is, right after the question.")
        answer = rest.rstrip()
        return Encoded(self._ids(prompt), self._ids(answer), self._ids(rest[len(answer) :]))

    def _text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,
                **self._named,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TaskError(f"The chat template refuses the conversation: {str(error)[:200]}.") from error

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _tokenizer_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    if not isinstance(config, Mapping):
        raise TypeError("tokenizer_config.json holds no object")
    return config


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = config["chat_template"]
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}["default"]
    if not isinstance(template, str):
        raise TypeError("the chat template in tokenizer_config.json is no text")
    return template


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokens that templates use by a name; empty where the model has none."""
    named = {}
    for name in _NAMED_TOKENS:
        token = config.get(name)
        token = token.get("content") if isinstance(token, Mapping) else token
        named[name] = token if isinstance(token, str) else ""
    return named


def _to_json(
    part: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates give them in this order
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    # Jinja's own would escape for HTML.
    return json.dumps(
        part, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
