"""Sessions of Label Studio: whether the cookie that a browser sent is that of a member who is logged in.

Asks Label Studio each time, with that cookie alone, and keeps nothing.

Source:
    Label Studio 1.23.2, core/settings/label_studio.py: sessions are signed cookies named `sessionid`;
    users/api.py: `current-user/whoami` answers 401 to everybody who is not logged in.
"""

import re
from contextlib import suppress

import httpx

from draftloop.errors import ServiceError
from draftloop.labelstudio.listing import loads

_COOKIE = "sessionid"
_COOKIE_CHARS = 4096  # browsers keep no longer ones
_VALUE = re.compile(rf"[!#-+\--:<-\[\]-~]{{8,{_COOKIE_CHARS}}}")  # cookie-octet of RFC 6265
_TIMEOUT_S = 5.0
_ANSWER_BYTES = 1 << 20


class Sessions:
    """Sessions of one Label Studio. Safe to call from several threads."""

    def __init__(self, url: str) -> None:
        """Remember the address; nothing is sent yet.

        Args:
            url: Address, with the path where Label Studio is mounted below one.
        """
        self._url = f"{url.rstrip('/')}/api/current-user/whoami"

    def is_member(self, session: str) -> bool:
        """Check whether a session is that of somebody who is logged in and belongs to an organization.

        Args:
            session: Value of the browser's cookie, unchecked.
        Raises:
            ServiceError: Label Studio does not answer.
        """
        if not _VALUE.fullmatch(session):
            return False
        headers = {"Cookie": f"{_COOKIE}={session}", "Accept": "application/json"}
        try:
            # No proxy of the environment may see the cookie, and no redirect is followed with it. Each call
            # has a client of its own, because the cookies that Label Studio sets belong to one person.
            reply = httpx.get(self._url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        except httpx.HTTPError as error:
            words = (
                f"Label Studio was not asked about a session: it does not answer ({type(error).__name__})."
            )
            raise ServiceError(words, hint="Start it, or correct LABEL_STUDIO_URL.") from error
        if reply.status_code >= 500:
            raise ServiceError(f"Label Studio answers {reply.status_code} to the question about a session.")
        if reply.status_code != 200 or len(reply.content) > _ANSWER_BYTES:
            return False
        user = None
        with suppress(ValueError):
            user = loads(reply.content)
        # A user without an organization was removed from it.
        return (
            isinstance(user, dict)
            and isinstance(user.get("id"), int)
            and bool(user.get("active_organization"))
        )
