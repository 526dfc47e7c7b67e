"""vLLM's OpenAI-compatible server: one model, constrained answers, errors mapped once.

The only file that speaks HTTP to a model. What vLLM 0.32 does with unknown fields is nothing, with 200:
so every answer is validated again by the caller.

A server that was restarted has lost the adapters that it was handed while it ran. It answers 404 to them, and
is handed them again before anybody is told.

Source:
    vLLM 0.32: `response_format` json_schema, `logprobs`, `chat_template_kwargs`, `/v1/load_lora_adapter`;
    error codes measured.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import orjson

from backend.core.prompting import Completion, Prompt, Token
from backend.errors import ServiceError, SetupError, TaskError, Unreachable

_MESSAGE_CHARS = 300

# The probe: nobody answers a greeting with this unless a schema binds him.
_PROBE_ANSWER = '{"probe":"violet-otter-7"}'
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"probe": {"enum": ["violet-otter-7"]}},
    "required": ["probe"],
    "additionalProperties": False,
}
_PROBE_S = 10.0
_CHECK_S = 2.0  # Label Studio waits 3 s for a /setup
_NEEDED = """--structured-outputs-config '{"backend":"guidance","disable_any_whitespace":true}'"""

# What is behind a failed load, in vLLM's "Worker failed with error '...', please check the stack trace".
_WORKER_SAID = re.compile(r"failed with error '(.+?)'", re.DOTALL)
_LOAD_S = 60.0  # one of 0.9 MB takes 10 ms
_HAND_AGAIN = 8  # where a balancer stands before several servers, each hand-over reaches one of them
_FOR_ADAPTERS = (
    "--enable-lora --max-lora-rank 16, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
)


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
            find_adapter: Gives the folder of an adapter by its name, for servers that do not know it.
            settings: How the names of its settings begin, for hints.
        """
        self._name = name
        self._find_adapter = find_adapter
        self._settings = settings
        self._handing = threading.Lock()
        self._stated_tokens = context_tokens
        self._context_tokens: dict[str, int] = {}  # by model
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # a proxy from the environment must not see the texts
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Name under which the server knows the model."""
        return self._name

    @property
    def context_tokens(self) -> int:
        """Context length that the server states; 0 when it does not.

        Raises:
            ServiceError: The server does not answer.
            SetupError: It does not serve this model.
        """
        return self._context_of(self._name)

    def check_served(self, name: str, *, timeout_s: float = _CHECK_S) -> None:
        """Check that the server serves a model, in the time that Label Studio gives a `/setup`.

        Raises:
            ServiceError: The server does not answer.
            SetupError: It does not serve it.
        """
        self._max_model_len(name, timeout_s)

    def _context_of(self, name: str) -> int:
        if name not in self._context_tokens:
            self._context_tokens[name] = self._stated_tokens or self._max_model_len(name, 10)
        return self._context_tokens[name]

    def load_adapter(self, name: str, folder: Path) -> None:
        """Hand the server an adapter; nothing happens where it has one of this name.

        Args:
            name: Its name for good: under the same one vLLM may answer from the cache of other weights.
            folder: Where it is, for the server too.
        Raises:
            ServiceError: The server does not answer, or failed.
            SetupError: It takes no adapters, not this one, or does not find it.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        response = self._request("POST", "/load_lora_adapter", body, timeout_s=_LOAD_S)
        said = _said(response)
        if response.status_code != 200 and "already been loaded" not in said:
            raise self._not_loaded(response, said, name, folder)

    def _hand_over(self, name: str) -> bool:
        """Load an adapter of ours that the server does not know; False where it is none of ours."""
        folder = None if self._find_adapter is None else self._find_adapter(name)
        if folder is None:
            return False
        with self._handing:  # one of many that ask for it; the others find it loaded
            self.load_adapter(name, folder)
        return True

    def _max_model_len(self, name: str, timeout_s: float) -> int:
        models = self._models(timeout_s)
        if name not in models and self._hand_over(name):
            models = self._models(timeout_s)
        if name in models:
            # The card of an adapter does not say it: it is that of its base.
            base = models.get(models[name].get("parent"), {})
            return int(models[name].get("max_model_len") or base.get("max_model_len") or 0)
        served = ", ".join(map(str, models))
        where = f"{self._settings}_NAME" if name == self._name else "model in the project's extra params"
        raise SetupError(
            f"The model server does not serve '{name}'; it serves: {served}.",
            hint=f"Set {where} to one of them.",
        )

    def _models(self, timeout_s: float) -> dict[Any, dict[str, Any]]:
        cards = self._call("GET", "/models", None, timeout_s=timeout_s).get("data", [])
        return {card.get("id"): card for card in cards}

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """Answer a prompt; thinking is off.

        Raises:
            ServiceError: The server did not answer in time, or failed; trying again may help.
            TaskError: The server refuses this prompt; trying again does not help.
            SetupError: The server refuses every prompt: wrong model name, wrong key.
        """
        body = self.body(prompt)
        answer = self._call("POST", "/chat/completions", body, timeout_s=timeout_s)
        try:
            return _completion(answer)
        except (KeyError, IndexError, TypeError) as error:
            raise self._no_completion() from error

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Give the body of the request that `complete` sends.

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
        context_tokens = self._context_of(name)
        if not context_tokens or prompt_bytes + prompt.max_tokens <= context_tokens:
            body["max_tokens"] = prompt.max_tokens
        return body

    def probe(self) -> None:
        """Check that the server serves this model and binds its answers as we need it.

        Two small requests. The first schema is one that free text would break; what the grammar would
        have allowed besides shows in the tokens' alternatives, so a blank that the model happened not to
        write is found too. The second is one that guidance refuses and xgrammar takes (vLLM 0.32, measured).

        Raises:
            ServiceError: The server does not answer.
            SetupError: It does not serve this model, refuses the key, or runs without a flag that we need.
        """
        self._max_model_len(self._name, _PROBE_S)
        choice = self._ask_probe(_PROBE_SCHEMA)
        text = choice["message"]["content"] or ""
        if not _PROBE_ANSWER.startswith("".join(text.split())):
            raise SetupError(
                "The model server does not enforce JSON Schemas: it answered a schema with free text.",
                hint=f"Serve the model with vLLM and {_NEEDED}.",
            )
        if text != _PROBE_ANSWER or _allows_blanks(choice):
            raise SetupError(
                "The model server lets answers fill with blanks: disable_any_whitespace is missing.",
                hint=f"Start vLLM with {_NEEDED}.",
            )
        try:
            self._ask_probe(_PROBE_SCHEMA | {"dependentRequired": {"probe": ["probe"]}})
        except TaskError:
            return
        raise SetupError(
            "The model server's structured output is not pinned to the backend guidance.",
            hint=f"Start vLLM with {_NEEDED}.",
        )

    def _ask_probe(self, schema: dict[str, Any]) -> dict[str, Any]:
        body = {
            "model": self._name,
            "messages": [{"role": "user", "content": "Hello! How are you?"}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": 48,
            "logprobs": True,
            "top_logprobs": 20,
            "chat_template_kwargs": {"enable_thinking": False},
            "response_format": {"type": "json_schema", "json_schema": {"name": "probe", "schema": schema}},
        }
        answer = self._call("POST", "/chat/completions", body, timeout_s=_PROBE_S)
        try:
            choice: dict[str, Any] = answer["choices"][0]
            choice["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise self._no_completion() from error
        return choice

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float
    ) -> dict[str, Any]:
        name = str((body or {}).get("model", self._name))
        response = self._request(method, path, body, timeout_s=timeout_s)
        for _ in range(_HAND_AGAIN):
            if response.status_code != 404 or not self._hand_over(name):
                break
            response = self._request(method, path, body, timeout_s=timeout_s)
        if response.status_code != 200:
            raise self._refused(response, name)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise ServiceError(
                "The model server answered with something that is not JSON.",
                hint=f"Check that {self._settings}_URL points at vLLM's /v1.",
            ) from error
        return answer if isinstance(answer, dict) else {}

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float
    ) -> httpx.Response:
        try:
            return self._client.request(
                method,
                path,
                content=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json"},
                timeout=httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            )
        except httpx.TimeoutException as error:
            raise ServiceError(
                f"The model server did not answer within {timeout_s:.0f} s.",
                hint="Look at its load and its log.",
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(
                f"The model server at {self._client.base_url} cannot be reached ({type(error).__name__}).",
                hint=f"Start it, or correct {self._settings}_URL.",
            ) from error

    def _no_completion(self) -> ServiceError:
        return ServiceError(
            "The model server answered with something that is no chat completion.",
            hint=f"Check that {self._settings}_URL points at vLLM's /v1.",
        )

    def _not_loaded(
        self, response: httpx.Response, said: str, name: str, folder: Path
    ) -> ServiceError | SetupError:
        code = response.status_code
        reason = _WORKER_SAID.search(said)
        said = (reason[1] if reason else said).rstrip(".")
        if code == 404 and "adapter" in said.lower():
            return SetupError(
                f"The model server finds no adapter at {folder}.",
                hint="ADAPTERS_DIR must be a folder that vLLM can read at the same path.",
            )
        if code in (404, 405) or "enable-lora" in said:
            return SetupError(
                "The model server takes no adapters while it runs.", hint=f"Start vLLM with {_FOR_ADAPTERS}."
            )
        if "rank" in said.lower():
            return SetupError(
                f"The model server does not take '{name}': {said}.",
                hint="Start vLLM with a --max-lora-rank that is as high, or train with a lower rank.",
            )
        refused = self._refused(response, name)
        if code != 500 and not isinstance(refused, TaskError):
            return refused
        return SetupError(
            f"The model server does not take '{name}' ({code}): {said}.",
            hint="Was it trained on the model that is served?",
        )

    def _refused(self, response: httpx.Response, name: str) -> ServiceError | TaskError | SetupError:
        message = _said(response)
        code = response.status_code
        if code in (401, 403):
            return SetupError(
                f"The model server refused the key ({code}).",
                hint=f"Set {self._settings}_API_KEY to its --api-key.",
            )
        if code == 404:
            return SetupError(
                f"The model server does not know '{name}' ({message}).",
                hint=f"Set {self._settings}_NAME to a served name; {self._settings}_URL ends in /v1.",
            )
        if 400 <= code < 500 and code not in (408, 429):
            return TaskError(f"The model server refused the prompt ({code}): {message}.")
        return ServiceError(f"The model server failed ({code}): {message}.", hint="Look at its log.")


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


def _allows_blanks(choice: dict[str, Any]) -> bool:
    """Say whether a blank was among what the grammar allowed; vLLM shows a masked token at -9999."""
    entries = (choice.get("logprobs") or {}).get("content") or []
    return any(
        any(character.isspace() for character in other["token"]) and other["logprob"] > -9000
        for entry in entries
        for other in entry.get("top_logprobs") or []
    )


def _said(response: httpx.Response) -> str:
    try:
        said = response.json()
        return str((said.get("error") or said).get("message") or said)[:_MESSAGE_CHARS]
    except (ValueError, AttributeError):
        return response.text[:_MESSAGE_CHARS]
