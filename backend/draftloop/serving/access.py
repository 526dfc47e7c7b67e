"""Who may ask for what: logins, the webhooks' secret, hosts, origins, and a brake on guesses.

Knows headers and addresses. Does not know HTTP's framing, nor what a request does. Three logins: `main`
opens everything (Label Studio's calls and admins), `viewer` the pages of runs, `webhook` the webhooks alone,
because Label Studio shows every member the headers of webhooks. A viewer is also who is logged in to Label
Studio: its cookie reaches every port of its host, and Label Studio says whether it is good. Without any login
the backend answers its own machine only, unless a setting opens it to everybody.

Source:
    RFC 7617 (Basic), RFC 6750 (Bearer), https://www.w3.org/TR/fetch-metadata/; requests 2.34.2, auth.py: a
    user and a password that are text go out in Latin-1.
"""

import base64
import binascii
import hmac
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal
from urllib.parse import urlsplit

import structlog

from draftloop.errors import ServiceError
from draftloop.support.logins import Logins

_log = structlog.get_logger("backend")

Role = Literal["main", "viewer", "webhook"]

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WINDOW_S = 60.0
_ADDRESSES = 1024  # that are remembered, of each kind
_SESSION_S = 60.0  # how long the answer about a session is reused
_QUESTIONS, _QUESTION_S = 8, 1.0  # to Label Studio at once, and how long one waits for its turn


@dataclass(frozen=True)
class RequestOrigin:
    """Where a request comes from, by its headers; missing ones are empty."""

    method: str
    address: str
    host: str = ""
    authorization: str = ""
    origin: str = ""
    fetch_site: str = ""
    media_type: str = ""
    session: str = ""  # Label Studio's cookie


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    error: str
    hint: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Access:
    """Checks who asks, and whether they may. Safe to call from several threads."""

    def __init__(self, logins: Logins, is_member: Callable[[str], bool] | None = None) -> None:
        """Prepare.

        Args:
            logins: `check_logins` has been called, or they are known to be right.
            is_member: Asks Label Studio whether a session is a member's, or raises ServiceError. None:
                sessions count for nothing.
        """
        self.logins = logins
        self._sessions = _Sessions(is_member) if is_member else None
        self._proofs: list[tuple[Role, bytes]] = []
        pairs: dict[Role, tuple[str, str]] = {
            "main": (logins.user, logins.password),
            "viewer": (logins.viewer_user, logins.viewer_password),
        }
        for role, (user, password) in pairs.items():
            if user:
                self._proofs += [(role, digest) for digest in _basic_digests(user, password)]
        if logins.webhook_secret:
            self._proofs.append(("webhook", _digest(b"bearer", logins.webhook_secret.encode())))
        public = urlsplit(logins.public_url)
        self._public = public.netloc.lower()
        self._hosts = _LOCAL_NAMES | {_name(host) for host in logins.hosts} | {public.hostname or "localhost"}
        self._brake = _Brake(logins.wrong_logins)

    def refusal_to_listen(self, address: str) -> str | None:
        """Return why the backend must not be served at an address of this machine; None if it may."""
        if self._proofs or self.logins.is_open or _is_local(address):
            return None
        return (
            f"The backend has no login, and {address} may be reached from other machines. "
            "Set BACKEND_USER and BACKEND_PASSWORD, or BACKEND_OPEN=true to answer everybody."
        )

    def takes_body(self, method: str, path: str, authorization: str, address: str) -> bool:
        """Return whether a request's body is worth reading; without it the request is refused."""
        if method in _READING:
            return False
        if not self._proofs:
            return self.logins.is_open or _is_local(address)
        role = self._role(authorization, address)
        return role == "main" or (role == "webhook" and f"/{path.lstrip('/')}" == "/webhook")

    def check(self, asked: RequestOrigin, allowed: frozenset[Role]) -> Role | Refusal:
        """Return in which role a request is answered, or why it is not.

        Args:
            asked: What it says of itself.
            allowed: Roles that may ask this.
        """
        return self._check_host(asked) or self._check_site(asked) or self._check_login(asked, allowed)

    def _check_host(self, asked: RequestOrigin) -> Refusal | None:
        """Refuse other machines where there is no login, and names that are not the backend's.

        A page whose name was pointed at this address (DNS rebinding) sends its own name. The browser sends
        no password along for it, so names matter most where there is none.
        """
        logins, name = self.logins, _name(asked.host)
        if not self._proofs and not logins.is_open and not _is_local(asked.address):
            return Refusal(
                403,
                "The backend has no login, so it answers its own machine alone.",
                "Set BACKEND_USER and BACKEND_PASSWORD, or BACKEND_OPEN=true to answer everybody.",
            )
        if name in self._hosts or (self._proofs and not logins.hosts):
            return None
        if logins.is_open and not logins.hosts and (_is_address(name) or (name and "." not in name)):
            return None  # no page of the internet has such a name
        return Refusal(
            421, "The backend is not called by that name here.", "Add it to BACKEND_ALLOWED_HOSTS."
        )

    def _check_site(self, asked: RequestOrigin) -> Refusal | None:
        """Refuse what a page of another site has a browser send, with the password that it remembers."""
        if asked.method in _READING:
            return None
        ours = asked.origin.partition("://")[2].lower() in {asked.host.lower(), self._public} - {""}
        if asked.fetch_site.lower() not in ("", "same-origin", "none") or (asked.origin and not ours):
            return Refusal(
                403, "The backend takes no calls from pages of other sites.", "Call it from a program."
            )
        return None

    def _check_login(self, asked: RequestOrigin, allowed: frozenset[Role]) -> Role | Refusal:
        if not self._proofs:
            return "main"
        role = self._role(asked.authorization, asked.address)
        if role == "main":
            self._brake.right(asked.address)
        if role in allowed:
            return role
        if "viewer" in allowed and self._sessions and self._sessions.is_member(asked.session):
            return "viewer"
        if role is None and asked.authorization and self._brake.wrong(asked.address):
            return Refusal(
                429,
                "Too many wrong logins from this address.",
                f"Try again in {_WINDOW_S:.0f} seconds.",
                {"Retry-After": f"{_WINDOW_S:.0f}"},
            )
        return Refusal(
            401,
            "Wrong or missing user and password.",
            "Log in to Label Studio under this host name and reload, or give the viewer's login."
            if "viewer" in allowed and self._sessions
            else "Give the backend's basic auth.",
            {"WWW-Authenticate": 'Basic realm="draftloop"'},
        )

    def _role(self, authorization: str, address: str) -> Role | None:
        """Return whose login it is; None too where the address has guessed too often."""
        if self._brake.is_shut(address):
            return None
        scheme, _, rest = authorization.partition(" ")
        given = rest.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True)
            except (binascii.Error, ValueError):
                return None
        digest = _digest(scheme.lower().encode("latin-1", "replace"), given)
        # All of them, so that the time says nothing.
        roles = [role for role, proof in self._proofs if hmac.compare_digest(proof, digest)]
        return roles[0] if roles else None


class _Sessions:
    """Remembers for a minute, by their hashes, the sessions of members; in constant memory.

    A session is signed, so it is not guessed: wrong ones are not counted, and somebody whose session has
    ended locks nobody out. Label Studio is asked a few at a time.
    """

    def __init__(self, ask: Callable[[str], bool]) -> None:
        self._ask = ask
        self._asking = threading.BoundedSemaphore(_QUESTIONS)
        self._lock = threading.Lock()
        self._members: OrderedDict[bytes, float] = OrderedDict()  # until when

    def is_member(self, session: str) -> bool:
        """Return whether a session is a member's; no, too, where Label Studio cannot be asked."""
        if not session:
            return False
        digest = _digest(b"session", session.encode("utf-8", "replace"))
        with self._lock:
            if time.monotonic() < self._members.get(digest, 0.0):
                return True
        if not self._asking.acquire(timeout=_QUESTION_S):
            return False
        try:
            if not self._ask(session):
                return False
        except ServiceError as error:
            _log.warning("a session was not checked", error=error.message, hint=error.hint)
            return False
        finally:
            self._asking.release()
        with self._lock:
            self._members[digest] = time.monotonic() + _SESSION_S
            self._members.move_to_end(digest)
            if len(self._members) > _ADDRESSES:
                self._members.popitem(last=False)
        return True


class _Brake:
    """Counts wrong logins by address, in constant memory.

    An address that has once given the main login is never shut, or a member of Label Studio could have Label
    Studio send wrong logins until it is locked out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many
        self._proven: OrderedDict[str, None] = OrderedDict()

    def is_shut(self, address: str) -> bool:
        """Return whether logins from an address are refused without a look at them."""
        address = _network(address)
        with self._lock:
            return address not in self._proven and self._count(address) >= self._limit

    def wrong(self, address: str) -> bool:
        """Count a wrong login; return whether there were too many before."""
        address = _network(address)
        with self._lock:
            count = self._count(address)
            since = self._wrong[address][0] if count else time.monotonic()
            if count < self._limit:
                self._wrong[address] = (since, count + 1)
                self._wrong.move_to_end(address)
                if len(self._wrong) > _ADDRESSES:
                    self._wrong.popitem(last=False)
        if count + 1 == self._limit:
            _log.warning("many wrong logins", address=address, seconds=_WINDOW_S, wrong=self._limit)
        return count >= self._limit

    def right(self, address: str) -> None:
        """Record a right main login."""
        address = _network(address)
        with self._lock:
            self._proven[address] = None
            self._proven.move_to_end(address)
            if len(self._proven) > _ADDRESSES:
                self._proven.popitem(last=False)

    def _count(self, address: str) -> int:
        since, count = self._wrong.get(address, (0.0, 0))
        return count if count and time.monotonic() - since < _WINDOW_S else 0


def _basic_digests(user: str, password: str) -> list[bytes]:
    """Return the digests of a login in each encoding that a client may use."""
    login = f"{user}:{password}"
    encoded = {login.encode()}
    if all(ord(mark) < 256 for mark in login):
        encoded.add(login.encode("latin-1"))
    return [_digest(b"basic", given) for given in encoded]


def _digest(scheme: bytes, given: bytes) -> bytes:
    return sha256(scheme + b" " + given).digest()


def _name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".") if host.count(":") < 2 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_local(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address == "localhost"  # as waitress names a client on a Unix socket
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def _network(address: str) -> str:
    """Return the addresses of one client: in IPv6 a whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
