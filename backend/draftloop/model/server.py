"""One vLLM server over HTTP: requests, replies, and what its errors mean.

The only module that speaks HTTP to a model. Does not know prompts, schemas or adapters.

Source:
    vLLM 0.32: error codes and messages measured.
"""

from typing import Any, NamedTuple

import httpx
import orjson

from draftloop.errors import FailedRequest, ServiceError, SetupError, TaskError, Unreachable

_MESSAGE_CHARS = 300
_FAILED = 500
_HEALTH_S = 2.0


class Reply(NamedTuple):
    """What came for a request: its status, and its body as JSON (nothing where it is none) and as text."""

    status: int
    body: dict[str, Any]
    text: str
    is_json: bool

    @property
    def message(self) -> str:
        """What the server says about an error."""
        error = self.body.get("error") or self.body
        message = error.get("message") if isinstance(error, dict) else error
        return str(message or self.text)[:_MESSAGE_CHARS]


class ModelServer:
    """A vLLM server. Safe to call from several threads."""

    def __init__(self, url: str, *, api_key: str, connections: int, settings: str) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: Address of the server, with its `/v1`.
            api_key: The server's key; empty where it has none.
            connections: Most connections kept and used at once.
            settings: How the names of its settings begin, for hints.
        """
        self.settings = settings
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # a proxy from the environment must not see the texts
        )

    @property
    def url(self) -> str:
        """Address of the server, with its `/v1`."""
        return str(self._client.base_url).rstrip("/")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

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
        """Send one request, and return what comes, whatever its status.

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
        try:
            response = self._client.request(
                method,
                f"{self.url.removesuffix('/v1')}{path}" if at_root else path,
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
                hint=f"Start it, or correct {self.settings}_URL.",
            ) from error
        return _reply(response)

    def answer(self, reply: Reply, name: str) -> dict[str, Any]:
        """Return the JSON object of a reply.

        Args:
            reply: The reply.
            name: The model that the request named.
        Raises:
            ServiceError: The server failed, or answered with something that is not JSON.
            FailedRequest: It failed on this request, and its engine still runs.
            TaskError: It refuses this request; sending it again does not help.
            SetupError: It refuses every request.
        """
        if reply.status != 200:
            refused = self.refusal(reply, name)
            if reply.status == _FAILED and self._is_well():
                raise FailedRequest(refused.message, hint=refused.hint)
            raise refused
        if not reply.is_json:
            raise ServiceError(
                "The model server answered with something that is not JSON.",
                hint=f"Check that {self.settings}_URL points at vLLM's /v1.",
            )
        return reply.body

    def refusal(self, reply: Reply, name: str) -> ServiceError | TaskError | SetupError:
        """Return the error that a reply stands for whose status is not 200; the request named a model."""
        code, message = reply.status, reply.message
        if code in (401, 403):
            return SetupError(
                f"The model server refused the key ({code}).",
                hint=f"Set {self.settings}_API_KEY to its --api-key.",
            )
        if code == 405 or (code == 404 and not reply.body.keys() & {"error", "message"}):
            return SetupError(
                f"There is no OpenAI API at {self.url} ({code}).",
                hint=f"Set {self.settings}_URL to the server's address with /v1 at its end.",
            )
        if code == 404:
            return SetupError(
                f"The model server does not know '{name}' ({message}).",
                hint=f"Set {self.settings}_NAME to a served name.",
            )
        if "chat template" in message:
            return SetupError(
                f"The model server has no chat template for '{name}' ({code}).",
                hint="Start vLLM with --chat-template FILE, or put a chat_template.jinja beside the model.",
            )
        if 400 <= code < 500 and code not in (408, 429):
            return TaskError(f"The model server refused the prompt ({code}): {message}.")
        return ServiceError(f"The model server failed ({code}): {message}.", hint="Look at its log.")

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


def _reply(response: httpx.Response) -> Reply:
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return Reply(response.status_code, {}, response.text, is_json=False)
    return Reply(response.status_code, body if isinstance(body, dict) else {}, response.text, is_json=True)
