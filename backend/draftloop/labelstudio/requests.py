"""Requests to Label Studio: tokens, retries, and what its errors mean.

Does not know what is asked. A request that creates something is sent again only if it never arrived;
everything else also after a 5xx.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self, TypeVar

import httpx
import orjson
from label_studio_sdk.base_client import LabelStudioBase as Sdk
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.request_options import RequestOptions

from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.labelstudio.listing import loads
from draftloop.support.retry import OUTLAST_RESTART, retrying

Json = Any
Fields = Mapping[str, Json]
_T = TypeVar("_T")

_CREATE_S = 600  # limit of a request that creates; its effect is read before anything is sent again
_ATTEMPTS = 6  # with the pauses of OUTLAST_RESTART 15 s or more: longer than a restart of Label Studio
_CHUNK_CHARS = 1 << 18
_DETAIL_CHARS = 300
_SECRET_CHARS = 4  # a shorter secret would match ordinary parts of a message
_HOW_TO_LOG_IN = (
    "Make one in Label Studio under Account & Settings: a Personal Access Token, or a Legacy Token. If the "
    "page does not offer legacy tokens, an owner enables them under Organization > API Tokens Settings. "
    "Put it in LABEL_STUDIO_API_KEY or pass --api-key."
)


class Connection:
    """A server, a token for it, and its HTTP client. A context manager."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 120, page_tasks: int = 1000) -> None:
        """Remember server and token; nothing is sent yet.

        Args:
            url: Address, with the path where Label Studio is mounted below one.
            api_key: Legacy token, or personal access token (a refresh JWT).
            timeout_s: Limit of one request; an import of 2000 tasks takes a few seconds.
            page_tasks: Most tasks in a page of a listing: 1000 take 0.2 s without annotations, 0.6 s with
                them. Three pages are in memory at once.
        Raises:
            SetupError: There is no token, or it has expired.
        """
        self.url = url.rstrip("/")
        self.page_tasks = page_tasks
        api_key = api_key.strip()
        self._secrets = [api_key]
        if not re.fullmatch(r"[!-~]+", api_key):
            given = "something that is no token" if api_key else "no token"
            raise SetupError(f"There is {given} for Label Studio at {self.url}.", hint=_HOW_TO_LOG_IN)
        # The SDK joins the refresh path to this address: without the slash a mount path is lost.
        self._sdk = self._ask("the token", partial(_sdk, f"{self.url}/", api_key, timeout_s))
        self._http = self._sdk._client_wrapper.httpx_client  # noqa: SLF001  # SDK: no public way to it

    def close(self) -> None:
        """Close the connections."""
        self._http.httpx_client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self,
        what: str,
        method: str,
        path: str,
        body: bytes = b"",
        params: Fields | None = None,
        *,
        content_type: str = "application/json",
    ) -> Json:
        """Send a request that has no method of its own, with the token and with retries.

        Args:
            what: What it is about, for messages.
            method: A POST creates something, so it is sent again only if it never arrived.
            path: Below the address, without a slash in front.
            body: Its body.
            params: Its query.
            content_type: What the body is.
        Returns:
            The answer's JSON.
        Raises:
            SetupError: Label Studio refuses it, or does not accept the token.
            ServiceError: Label Studio does not answer.
        """
        return self._send(what, method, path, body, params, content_type)

    def _get(self, what: str, path: str, params: Fields | None = None) -> Json:
        return self._send(what, "GET", path, params=params)

    def _send(
        self,
        what: str,
        method: str,
        path: str,
        body: bytes = b"",
        params: Fields | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send a request; every POST here creates something."""
        kind = {"Content-Type": content_type} if body else {}
        query = dict(params or {})
        limit: RequestOptions = {"timeout": _CREATE_S} if method == "POST" else {}

        def request() -> Json:
            reply = self._http.request(
                path, method=method, params=query, content=body or None, headers=kind, request_options=limit
            )
            answer = _answer(reply)
            if not reply.is_success or isinstance(answer, str):
                raise ApiError(status_code=reply.status_code, body=answer)
            return answer

        return self._ask(what, request, creates=method == "POST")

    def _stream(self, what: str, path: str, params: Fields, take: Callable[[Iterator[str]], None]) -> None:
        """Read a long answer while it arrives; after a failure `take` gets it again from its beginning."""

        def request() -> None:
            with self._http.stream(path, method="GET", params=dict(params)) as reply:
                if not reply.is_success:
                    reply.read()
                    raise ApiError(status_code=reply.status_code, body=_answer(reply))
                take(reply.iter_text(_CHUNK_CHARS))

        self._ask(what, request)

    def _ask(
        self, what: str, request: Callable[[], _T], *, creates: bool = False, attempts: int = _ATTEMPTS
    ) -> _T:
        is_worth_retrying = _never_arrived if creates else _is_passing
        try:
            return retrying(is_worth_retrying, attempts=attempts, pauses=OUTLAST_RESTART)(request)
        except (ApiError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._translated(what, error) from error

    def _translated(self, what: str, error: Exception) -> DraftloopError:
        """Return the error of draftloop for one of the SDK or httpx; its class says the reaction."""
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return SetupError(f"'{self.url}' is no address.", hint="Correct LABEL_STUDIO_URL.")
        if isinstance(error, httpx.HTTPError):
            words = f"Label Studio at {self.url} does not answer ({type(error).__name__})."
            return ServiceError(words, hint="Start it, or correct LABEL_STUDIO_URL.")
        status = (error.status_code if isinstance(error, ApiError) else None) or 0
        detail = self._detail(error.body) if isinstance(error, ApiError) else ""
        if status < 400:
            words = f"What answers at {self.url} is not Label Studio ({what})."
            return SetupError(words, hint="Correct LABEL_STUDIO_URL.")
        if _is_passing(error):
            words = f"Label Studio answers {status} to {what}: {detail}."
            return ServiceError(words, hint="Its log says why.")
        if status == 401:
            words = f"Label Studio at {self.url} does not accept the token ({detail})."
        elif status == 404:
            words = f"Label Studio at {self.url} has no {what}."
        else:
            words = f"Label Studio refuses {what}: {detail}."
        return SetupError(words, hint=_hint_for(status, detail))

    def _detail(self, body: Json) -> str:
        """Return the message in an error's body, short and without secrets."""
        if isinstance(body, Mapping):
            body = body.get("validation_errors") or body.get("detail") or body
        text = " ".join(_sentences(body))
        if "<html" in text[:500].lower():
            text = "an HTML page"
        for secret in self._secrets:
            if len(secret) >= _SECRET_CHARS:
                text = text.replace(secret, "***")
        # The rest of the message about the backend is advice on firewalls and a Python object.
        text = " ".join(re.sub(r"<[^>]*>", "", text).split()).split(" Make sure it is up")[0]
        return (text[:_DETAIL_CHARS] + ("..." if len(text) > _DETAIL_CHARS else "")).rstrip(".")


def dumps(body: Json) -> bytes:
    """Serialize a body, with lone surrogates and integers beyond 64 bits too, which Label Studio keeps."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return json.dumps(body).encode()


def _sentences(body: Json) -> Iterator[str]:
    """List the sentences in an error's nested lists and objects, each after the name of its field."""
    if isinstance(body, Mapping):
        for name, part in body.items():
            words = " ".join(_sentences(part))
            yield words if name == "non_field_errors" else f"{name}: {words}"
    elif isinstance(body, list):
        for part in body:
            yield from _sentences(part)
    else:
        yield str(body)


def _answer(reply: httpx.Response) -> Json:
    """Return an answer's JSON; its text where it is none."""
    try:
        return loads(reply.content)
    except ValueError:
        return reply.text


def _sdk(base_url: str, api_key: str, timeout_s: float) -> Sdk:
    # No proxy from the environment may see the texts; `_ask` retries, not the SDK.
    client = httpx.Client(timeout=timeout_s, follow_redirects=True, trust_env=False)
    return Sdk(base_url=base_url, api_key=api_key, httpx_client=client, timeout=timeout_s, max_retries=0)


def _is_passing(error: BaseException) -> bool:
    """Return whether sending the same request again may help and cannot harm."""
    if isinstance(error, ApiError):
        return error.status_code is not None and (error.status_code >= 500 or error.status_code in {408, 429})
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _never_arrived(error: BaseException) -> bool:
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def _hint_for(status: int, detail: str) -> str:
    if status == 401:
        return _HOW_TO_LOG_IN
    if status == 404:
        return "Check the number and the address."
    if "reserved network address" in detail:
        return "Start Label Studio with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false."
    if "connect to ML" in detail:
        return "Start the backend (draftloop serve), or correct its address and basic auth."
    if status == 403:
        return "Use the token of a user who may do this."
    return "Correct what it names and run this again."


def holds(current: Fields, wanted: Fields) -> bool:
    """Return whether an object of Label Studio has all the fields that are wanted, with their values."""
    return all(current.get(key) == part for key, part in wanted.items())
