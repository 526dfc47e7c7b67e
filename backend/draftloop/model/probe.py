"""What a model server can do, asked before drafts need it: its models, their context, texts it can write."""

import re
import time
from collections.abc import Iterator
from typing import Any

from draftloop.errors import FailedRequest, SetupError, TaskError
from draftloop.model.adapters import AdapterLoader

# What control tokens look like: <|im_start|>, </think>, <s>, [INST].
_LIKE_CONTROL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]")
_CONTROL_TOKENS = 8  # of an answer in which one would stand
_MOST_ASKED = 8
_MODELS_S = 10


class ModelProbe:
    """Asks a server about its models; keeps what does not change while it runs."""

    def __init__(self, adapters: AdapterLoader, name: str, *, settings: str, context_tokens: int) -> None:
        """Prepare.

        Args:
            adapters: Sends requests to the server.
            name: Name of the configured model.
            settings: How the names of the server's settings begin, for hints.
            context_tokens: The model's context length; 0 asks the server.
        """
        self._adapters = adapters
        self._name = name
        self._settings = settings
        self._stated_tokens = context_tokens
        self._context_tokens: dict[str, int] = {}  # by model
        self._writable: dict[tuple[str, str], bool] = {}  # by model and text

    def check_served(self, name: str, *, timeout_s: float) -> None:
        """Check that the server serves a model.

        Raises:
            ServiceError: The server does not answer.
            SetupError: It does not serve it.
        """
        self._max_model_len(name, timeout_s)

    def context_tokens_of(self, name: str) -> int:
        """Return the context length of a model; 0 where the server does not state it.

        Raises:
            ServiceError: The server does not answer.
            SetupError: It does not serve this model.
        """
        if self._stated_tokens:
            return self._stated_tokens
        if name not in self._context_tokens:  # names that are not served are errors, and not kept
            self._context_tokens[name] = self._max_model_len(name, _MODELS_S)
        return self._context_tokens[name]

    def check_schema(self, schema: Any, name: str, *, timeout_s: float) -> None:
        """Check that a model can write the options and keys of a schema.

        A text that looks like a control token is asked for by itself: where the model has it, guidance
        fails to write it as text, and so does the server (vLLM 0.32, measured). What cannot be asked in time
        passes.

        Args:
            schema: A decoding schema.
            name: The model.
            timeout_s: For all of it.
        Raises:
            ServiceError: The server does not answer.
            SetupError: It takes one of the texts for a control token.
        """
        ends = time.monotonic() + timeout_s
        likely = dict.fromkeys(token for text in _literals(schema) for token in _LIKE_CONTROL.findall(text))
        for text in list(likely)[:_MOST_ASKED]:
            if (name, text) not in self._writable:
                left_s = ends - time.monotonic()
                if left_s <= 0:
                    return
                self._writable[name, text] = self._can_write(name, text, left_s)
            if not self._writable[name, text]:
                raise SetupError(
                    f"The config holds {text!r} in an option, a label or a name, which is a control token of "
                    f"'{name}'.",
                    hint="Write it otherwise there: the model cannot write it as text.",
                )

    def _can_write(self, name: str, text: str, timeout_s: float) -> bool:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "Hello!"}],
            "temperature": 0,
            "max_tokens": _CONTROL_TOKENS,
            "chat_template_kwargs": {"enable_thinking": False},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "text", "schema": {"type": "string", "enum": [text]}},
            },
        }
        try:
            self._adapters.call("POST", "/chat/completions", body, name=name, timeout_s=timeout_s)
        except FailedRequest:
            return False
        except TaskError:
            return True  # refused for another reason, which the first draft will show
        return True

    def _max_model_len(self, name: str, timeout_s: float) -> int:
        models = self._models(timeout_s)
        if name not in models and self._adapters.load_known(name):
            models = self._models(timeout_s)
        if name in models:
            # The card of an adapter lacks the length: it is that of its base.
            base = models.get(models[name].get("parent"), {})
            return int(models[name].get("max_model_len") or base.get("max_model_len") or 0)
        served = ", ".join(map(str, models))
        where = f"{self._settings}_NAME" if name == self._name else "model in the project's extra params"
        raise SetupError(
            f"The model server does not serve '{name}'; it serves: {served}.",
            hint=f"Set {where} to one of them.",
        )

    def _models(self, timeout_s: float) -> dict[Any, dict[str, Any]]:
        answer = self._adapters.call("GET", "/models", None, name=self._name, timeout_s=timeout_s)
        return {card.get("id"): card for card in answer.get("data", [])}


def _literals(schema: Any) -> Iterator[str]:
    """List the texts that a schema has a model write as they stand: options and keys."""
    if isinstance(schema, list):
        for part in schema:
            yield from _literals(part)
    if isinstance(schema, dict):
        literals = [*schema.get("enum", ()), schema.get("const"), *schema.get("properties", ())]
        yield from (text for text in literals if isinstance(text, str))
        for part in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("anyOf")):
            yield from _literals(part)
