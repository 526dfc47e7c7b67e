"""A conversation as a model's tokens: its chat template and its tokenizer, read from a folder.

The only file that imports tokenizers. Renders as Transformers does, without Transformers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from backend.errors import SetupError, TaskError


class Encoded(NamedTuple):
    """A conversation as tokens: what is asked, as it is served; the answer and what ends it; what follows."""

    prompt: list[int]
    answer: list[int]
    tail: list[int]


class Tokens:
    """Counts and gives the tokens of conversations for one model."""

    def __init__(self, folder: Path) -> None:
        """Read a model's folder: tokenizer.json, and its chat template.

        Raises:
            SetupError: One of them is missing or damaged.
        """
        try:
            content = (folder / "tokenizer.json").read_bytes()
            self._source = _template(folder)
            self._tokenizer = Tokenizer.from_str(content.decode())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(
                f"{folder} holds no tokenizer with a chat template ({str(error)[:120]}).",
                hint="Name a model's folder with tokenizer.json and chat_template.jinja.",
            ) from error
        self.fingerprint = hashlib.sha256(content + self._source.encode()).hexdigest()[:16]

    @cached_property
    def _template(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        return environment.from_string(self._source)

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled cannot be pickled; it is compiled anew where it is asked for.
        return {name: part for name, part in self.__dict__.items() if name != "_template"}

    def count(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> int:
        """Count a whole conversation, the answer and what ends it included.

        Raises:
            TaskError: The chat template does not take these messages.
        """
        return len(self._ids(self._text(messages, tools)))

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """Give a whole conversation as it is served: the prompt ends where the model begins to write.

        An empty think block belongs to the prompt where the template puts it there.

        Raises:
            TaskError: The chat template does not take these messages, or writes the question in another way
                once it is answered.
        """
        whole = self._text(messages, ())
        prompt = self._text(messages[:-1], (), add_generation_prompt=True)
        if not whole.startswith(prompt):
            raise TaskError("The chat template writes the question otherwise once it is answered.")
        rest = whole[len(prompt) :]
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
                bos_token="",
                eos_token="",
            )
        except (TemplateError, TypeError) as error:
            raise TaskError(f"The chat template refuses the conversation: {str(error)[:200]}.") from error

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found


def _template(folder: Path) -> str:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = json.loads((folder / "tokenizer_config.json").read_bytes())["chat_template"]
    if not isinstance(template, str):
        raise TypeError("tokenizer_config.json has several chat templates")
    return template


def _to_json(part: Any, *, indent: int | None = None) -> str:
    # Jinja's own would escape for HTML.
    return json.dumps(part, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
