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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import orjson

from draftloop.errors import FailedRequest, ServiceError, SetupError, TaskError, Unreachable
from draftloop.prompting.prompt import Completion, Prompt, Token

_MESSAGE_CHARS = 300

_CHECK_S = 2.0  # Label Studio waits 3 s for a /setup

# What is behind a failed load, in vLLM's "Worker failed with error '...', please check the stack trace".
_WORKER_SAID = re.compile(r"failed with error '(.+?)'", re.DOTALL)
# What control tokens look like: <|im_start|>, </think>, <s>, [INST].
_LIKE_CONTROL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]")
_CONTROL_TOKENS = 8  # of an answer in which one would stand
_MOST_ASKED = 8
_FAILED = 500
_HEALTH_S = 2.0
_LOAD_S = 60.0  # one of 0.9 MB takes 10 ms
_HAND_AGAIN = 8  # where a balancer stands before several servers, each hand-over reaches one of them
_FOR_ADAPTERS = (
    "--enable-lora --max-lora-rank 16, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
)


class Reply(NamedTuple):
    """What came for a request: its status, and its body as JSON (nothing where it is none) and as text."""

    status: int
    body: dict[str, Any]
    text: str

    @property
    def message(self) -> str:
        """What the server says about an error."""
        error = self.body.get("error") or self.body
        said = error.get("message") if isinstance(error, dict) else error
        return str(said or self.text)[:_MESSAGE_CHARS]


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
        self._writable: dict[tuple[str, str], bool] = {}  # by model and text
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
    def settings(self) -> str:
        """How the names of its settings begin, for hints."""
        return self._settings

    @property
    def url(self) -> str:
        """Address of the server, with its `/v1`."""
        return str(self._client.base_url).rstrip("/")

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

    def check_schema(self, schema: Any, name: str = "", *, timeout_s: float = _CHECK_S) -> None:
        """Check that the server can write the options and keys of a schema, in the time of a `/setup`.

        A text that looks like a control token is asked for by itself: where the model has it, guidance
        fails to write it as text, and so does the server (vLLM 0.32, measured). What cannot be asked in time
        is taken.

        Args:
            schema: A decoding schema.
            name: The model; empty is the client's own.
            timeout_s: For all of it.
        Raises:
            ServiceError: The server does not answer.
            SetupError: It takes one of the texts for a control token.
        """
        ends = time.monotonic() + timeout_s
        name = name or self._name
        likely = dict.fromkeys(found for text in _written(schema) for found in _LIKE_CONTROL.findall(text))
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
            self._call("POST", "/chat/completions", body, timeout_s=timeout_s)
        except FailedRequest:
            return False
        except TaskError:
            return True  # refused for another reason, which a draft will tell
        return True

    def _context_of(self, name: str) -> int:
        if self._stated_tokens:
            return self._stated_tokens
        if name not in self._context_tokens:  # names that are not served are errors, and not kept
            self._context_tokens[name] = self._max_model_len(name, 10)
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
        reply = _reply(response)
        said = reply.message
        if response.status_code != 200 and "already been loaded" not in said:
            raise self._not_loaded(reply, name, folder)

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
            FailedRequest: It is well, and failed on this prompt.
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
        root = self.url.removesuffix("/v1")
        response = self._request(
            method, f"{root}{path}" if at_root else path, body, timeout_s=timeout_s, fresh=fresh
        )
        return _reply(response)

    def refusal(self, reply: Reply, name: str) -> ServiceError | TaskError | SetupError:
        """Return the error that a reply stands for whose status is not 200; the request named a model."""
        code, message = reply.status, reply.message
        if code in (401, 403):
            return SetupError(
                f"The model server refused the key ({code}).",
                hint=f"Set {self._settings}_API_KEY to its --api-key.",
            )
        if code == 405 or (code == 404 and not reply.body.keys() & {"error", "message"}):
            return SetupError(
                f"There is no OpenAI API at {self.url} ({code}).",
                hint=f"Set {self._settings}_URL to the server's address with /v1 at its end.",
            )
        if code == 404:
            return SetupError(
                f"The model server does not know '{name}' ({message}).",
                hint=f"Set {self._settings}_NAME to a served name.",
            )
        if "chat template" in message:
            return SetupError(
                f"The model server has no chat template for '{name}' ({code}).",
                hint="Start vLLM with --chat-template FILE, or put a chat_template.jinja beside the model.",
            )
        if 400 <= code < 500 and code not in (408, 429):
            return TaskError(f"The model server refused the prompt ({code}): {message}.")
        return ServiceError(f"The model server failed ({code}): {message}.", hint="Look at its log.")

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
            refused = self.refusal(_reply(response), name)
            if response.status_code == _FAILED and self._is_well():
                raise FailedRequest(refused.message, hint=refused.hint)
            raise refused
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise ServiceError(
                "The model server answered with something that is not JSON.",
                hint=f"Check that {self._settings}_URL points at vLLM's /v1.",
            ) from error
        return answer if isinstance(answer, dict) else {}

    def _is_well(self) -> bool:
        """Check that the server's engine runs; one that cannot be asked so counts as well.

        Source:
            vLLM 0.32: /health answers 503 once the engine is dead, and then every request is a 500.
        """
        url = self._client.base_url
        health = url.copy_with(path=f"{url.path.rstrip('/').removesuffix('/v1')}/health")
        try:
            return self._client.get(health, timeout=_HEALTH_S).status_code < _FAILED
        except httpx.HTTPError:
            return False

    def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        *,
        timeout_s: float,
        fresh: bool = False,
    ) -> httpx.Response:
        try:
            return self._client.request(
                method,
                path,
                content=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json", **({"Connection": "close"} if fresh else {})},
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

    def _not_loaded(self, reply: Reply, name: str, folder: Path) -> ServiceError | SetupError:
        code = reply.status
        reason = _WORKER_SAID.search(reply.message)
        said = (reason[1] if reason else reply.message).rstrip(".")
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
        refused = self.refusal(reply, name)
        if code != 500 and not isinstance(refused, TaskError):
            return refused
        return SetupError(
            f"The model server does not take '{name}' ({code}): {said}.",
            hint="Was it trained on the model that is served?",
        )


def _written(schema: Any) -> Iterator[str]:
    """List the texts that a schema has a model write as they stand: options and keys."""
    if isinstance(schema, list):
        for part in schema:
            yield from _written(part)
    if isinstance(schema, dict):
        literals = [*schema.get("enum", ()), schema.get("const"), *schema.get("properties", ())]
        yield from (text for text in literals if isinstance(text, str))
        for part in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("anyOf")):
            yield from _written(part)


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


def _reply(response: httpx.Response) -> Reply:
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    return Reply(response.status_code, body if isinstance(body, dict) else {}, response.text)
