"""What browsers open of runs: `/runs/<key>`, the page of a run, and `/a/<sha256>`, a file.

Knows headers. Does not know who may ask: `protocol` checks the login. Everything here was written by
untrusted code: a file is sent as no more than its bytes prove it to be, in an origin of its own, and
reaches no network. What a browser shows comes through us, because only our answer carries the policy
that contains it; downloads come from the store itself where it signs addresses.
"""

import unicodedata
from collections.abc import Callable, Iterator
from functools import wraps
from typing import BinaryIO, Protocol
from urllib.parse import quote

import structlog
from flask import Flask, Response, request

from backend.core.filekinds import MEDIA_TYPES, Kind, charset_of, kind_of, wanted_bytes
from backend.core.runpage import file_address, page
from backend.core.runs import Run
from backend.errors import ServiceError, TaskError

_log = structlog.get_logger("backend")
_CHUNK = 1 << 18
_SIGNED_S = 300  # how long the store's own address is good for; ours stays
_SHOWN: tuple[Kind, ...] = ("png", "jpeg", "svg", "html", "scripted", "csv", "json", "text")
_OURS: tuple[Kind, ...] = ("png", "jpeg", "svg", "html", "scripted")  # shown in a run's page
_TEXTS: tuple[Kind, ...] = ("html", "scripted", "csv", "json", "text")

_PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
_FILE_POLICY = "sandbox; default-src 'none'"
_POLICIES: dict[Kind, str] = {
    **dict.fromkeys(("html", "svg"), f"{_FILE_POLICY}; img-src data:; style-src 'unsafe-inline'"),
    "scripted": "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; img-src data:; "
    "style-src 'unsafe-inline'",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-DNS-Prefetch-Control": "off",
    "Cache-Control": "private, no-cache",
}


class Artifacts(Protocol):
    """Where runs and their files are kept."""

    def open(self, sha256: str) -> BinaryIO:
        """Open a file; TaskError where there is none."""
        ...

    def size(self, sha256: str) -> int:
        """Give a file's size in bytes; TaskError where there is none."""
        ...

    def run(self, key: str) -> Run | None:
        """Give the run of a key."""
        ...

    def address(self, sha256: str, media_type: str, name: str, seconds: int) -> str | None:
        """Sign an address in the store itself; None where it has none."""
        ...


class Pages:
    """The two pages, on a Flask application."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    def add_to(self, app: Flask) -> None:
        """Add the routes."""
        app.add_url_rule("/runs/<key>", "run", _answered(self._run))
        app.add_url_rule("/a/<sha256>", "file", _answered(self._file))

    def _run(self, key: str) -> Response:
        run = self._artifacts.run(key)
        if run is None:
            raise TaskError("There is no such run.", hint="It may have been collected.")
        # Relative, so that it holds behind whatever prefix a proxy puts in front.
        text = page(run, lambda file: file_address("..", file))
        answer = Response(text.encode("utf-8", "replace"), content_type="text/html; charset=utf-8")
        answer.headers.update({**_HEADERS, "Content-Security-Policy": _PAGE_POLICY})
        return answer

    def _file(self, sha256: str) -> Response:
        name = _file_name(request.args.get("name", "")) or sha256
        size_bytes = self._artifacts.size(sha256)
        head = self._head(sha256, wanted_bytes(name))
        kind = kind_of(name, head, size_bytes)
        media_type = _media_type(kind, head)
        if kind not in _OURS:
            address = self._artifacts.address(sha256, media_type, name, _SIGNED_S)
            if address is not None:
                answer = Response(status=302, headers={"Location": address})
                answer.headers.update({**_HEADERS, "Cache-Control": "no-store"})
                return answer
        stream = self._artifacts.open(sha256)
        answer = Response(_chunks(stream), content_type=media_type)
        answer.call_on_close(stream.close)
        answer.content_length = size_bytes
        answer.headers.update(
            {
                **_HEADERS,
                "Content-Disposition": _disposition(kind, name),
                "Content-Security-Policy": _POLICIES.get(kind, _FILE_POLICY),
            }
        )
        return answer

    def _head(self, sha256: str, count: int) -> bytes:
        if not count:
            return b""
        with self._artifacts.open(sha256) as stream:
            return stream.read(count)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _answered(view: Callable[..., Response]) -> Callable[..., Response]:
    """Say in a sentence what is missing, and nothing of where the store is."""

    @wraps(view)
    def answer(**given: str) -> Response:
        try:
            return view(**given)
        except TaskError as error:
            return _sentence(str(error), 404)
        except ServiceError as error:
            _log.error("artifacts not read", error=str(error))
            return _sentence("The store of artifacts does not do its part. Try again later.", 503)

    return answer


def _sentence(words: str, status: int) -> Response:
    answer = Response(f"{words}\n", status=status, content_type="text/plain; charset=utf-8")
    answer.headers.update({**_HEADERS, "Content-Security-Policy": _FILE_POLICY})
    return answer


def _media_type(kind: Kind, head: bytes) -> str:
    charset = charset_of(head) if kind in _TEXTS else None
    # An HTML file in an old encoding says so itself.
    named = charset == "utf-8" or (charset is not None and kind not in ("html", "scripted"))
    return f"{MEDIA_TYPES[kind]}; charset={charset}" if named else MEDIA_TYPES[kind]


def _file_name(path: str) -> str:
    """Make a name that a header can hold and a disk can keep, out of whatever an address says."""
    name = path.replace("\\", "/").rpartition("/")[2]
    name = "".join(mark if mark.isprintable() else "_" for mark in unicodedata.normalize("NFC", name))
    return name.strip(" .")[-150:]


def _disposition(kind: Kind, name: str) -> str:
    plain = "".join(mark if mark.isascii() and mark not in '"\\%' else "_" for mark in name)
    how = "inline" if kind in _SHOWN else "attachment"
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
