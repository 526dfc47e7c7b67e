"""vLLM's OpenAI-compatible server as a model: one prompt, one constrained answer.

vLLM 0.32 ignores fields that it does not know, and answers 200: so every answer is validated again by the
caller.

Source:
    vLLM 0.32: `response_format` json_schema, `structured_outputs`, `logprobs`, `chat_template_kwargs`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.model.adapters import AdapterLoader
from draftloop.model.probe import ModelProbe
from draftloop.model.server import ModelServer, Reply
from draftloop.prompting.prompt import Completion, Prompt, Token

__all__ = ["Reply", "VllmModel"]

_CHECK_S = 2.0  # Label Studio waits 3 s for a /setup


class VllmModel:
    """A model served by vLLM. Safe to call from several threads."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        api_key: str = "",
        connections: int = 64,
        context_tokens: int = 0,
        find_adapter: Callable[[str], Path | None] | None = None,
        settings: str = "MODEL",
    ) -> None:
        """Prepare a client; nothing is sent before the first call.

        Args:
            url: Address of the server, with its `/v1`.
            name: Name under which the server serves the model or adapter.
            api_key: The server's key, if it has one.
            connections: Most connections kept and used at once.
            context_tokens: The model's context length; 0 asks the server.
            find_adapter: Returns the folder of an adapter by its name, for servers that do not know it.
            settings: How the names of its settings begin, for hints.
        """
        self._name = name
        self._server = ModelServer(url, api_key=api_key, connections=connections, settings=settings)
        self._adapters = AdapterLoader(self._server, find_adapter)
        self._probe = ModelProbe(self._adapters, name, settings=settings, context_tokens=context_tokens)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Name under which the server knows the model."""
        return self._name

    @property
    def settings(self) -> str:
        """How the names of its settings begin, for hints."""
        return self._server.settings

    @property
    def url(self) -> str:
        """Address of the server, with its `/v1`."""
        return self._server.url

    @property
    def context_tokens(self) -> int:
        """Context length that the server states; 0 when it does not.

        Raises:
            ServiceError: The server does not answer.
            SetupError: It does not serve this model.
        """
        return self._probe.context_tokens_of(self._name)

    def check_served(self, name: str, *, timeout_s: float = _CHECK_S) -> None:
        """Check that the server serves a model, in the time that Label Studio gives a `/setup`.

        Raises:
            ServiceError: The server does not answer.
            SetupError: It does not serve it.
        """
        self._probe.check_served(name, timeout_s=timeout_s)

    def check_schema(self, schema: Any, name: str = "", *, timeout_s: float = _CHECK_S) -> None:
        """Check that a model can write the options and keys of a schema, in the time of a `/setup`.

        Args:
            schema: A decoding schema.
            name: The model; empty is the client's own.
            timeout_s: For all of it.
        Raises:
            ServiceError: The server does not answer.
            SetupError: It takes one of the texts for a control token.
        """
        self._probe.check_schema(schema, name or self._name, timeout_s=timeout_s)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Hand the server an adapter; nothing happens where it has one of this name.

        Args:
            name: Its name for good: under the same one vLLM may answer from the cache of other weights.
            folder: Where it is, for the server too.
        Raises:
            ServiceError: The server does not answer, or failed.
            SetupError: It takes no adapters, not this one, or does not find it.
        """
        self._adapters.load(name, folder)

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """Answer a prompt; thinking is off.

        Raises:
            ServiceError: The server did not answer in time, or failed; trying again may help.
            FailedRequest: It is well, and failed on this prompt.
            TaskError: The server refuses this prompt; trying again does not help.
            SetupError: The server refuses every prompt: wrong model name, wrong key.
        """
        body = self.body(prompt)
        answer = self._adapters.call(
            "POST", "/chat/completions", body, name=body["model"], timeout_s=timeout_s
        )
        try:
            return _completion(answer)
        except (KeyError, IndexError, TypeError) as error:
            raise ServiceError(
                "The model server answered with something that is no chat completion.",
                hint=f"Check that {self.settings}_URL points at vLLM's /v1.",
            ) from error

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the body of the request that `complete` sends.

        Raises:
            ServiceError: The server, asked for the model's context length, does not answer.
            SetupError: It does not serve this model.
        """
        name = prompt.model or self._name
        body: dict[str, Any] = {
            "model": name,
            "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
            "temperature": prompt.temperature,
            "seed": prompt.seed,
            "logprobs": True,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if prompt.grammar is not None:
            body["structured_outputs"] = {"grammar": prompt.grammar}
        elif prompt.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "value", "schema": prompt.schema, "strict": True},
            }
        # Left out, the limit is the rest of the context. Stated, it must fit beside the prompt or the
        # server answers 400; a prompt has at most as many tokens as UTF-8 bytes.
        prompt_bytes = sum(len(message.content.encode()) for message in prompt.messages)
        context_tokens = self._probe.context_tokens_of(name)
        if not context_tokens or prompt_bytes + prompt.max_tokens <= context_tokens:
            body["max_tokens"] = prompt.max_tokens
        return body

    def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float,
        at_root: bool = False,
        fresh: bool = False,
    ) -> Reply:
        """Send one request as it is, and return what comes, whatever its status; to check a server.

        Args:
            method: Of HTTP.
            path: Below `/v1`.
            body: Sent as JSON.
            timeout_s: Until the answer is there.
            at_root: The path is beside `/v1`, as those of `/metrics` and `/tokenize` are.
            fresh: Open a connection for it alone, which a balancer may lead to another server.
        Raises:
            ServiceError: The server does not answer.
        """
        return self._server.send(method, path, body, timeout_s=timeout_s, at_root=at_root, fresh=fresh)

    def refusal(self, reply: Reply, name: str) -> ServiceError | TaskError | SetupError:
        """Return the error that a reply stands for whose status is not 200; the request named a model."""
        return self._server.refusal(reply, name)


def _completion(answer: dict[str, Any]) -> Completion:
    choice = answer["choices"][0]
    usage = answer.get("usage") or {}
    # `bytes` of a token that is part of a character holds just that part; `token` is then empty.
    entries = (choice.get("logprobs") or {}).get("content") or []
    return Completion(
        text=choice["message"]["content"] or "",
        finish_reason=choice.get("finish_reason") or "",
        tokens=tuple(Token(bytes(entry["bytes"] or ()), float(entry["logprob"])) for entry in entries),
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )
