"""What browsers open of runs: `/runs/<key>`, the page of a run, and `/a/<sha256>`, a file.

Knows headers. Does not know who may ask: `web` checks the login. Everything here was written by
untrusted code: a file is sent as no more than its bytes prove it to be, and in an origin of its own. HTML is
never an answer to an address that a tab is opened with: that is a page of ours, with the file in a frame.
Script runs in a frame, and only where the browser says that a human clicked for it in a page of ours; a
browser that says nothing, as all do over plain HTTP, gets no script. What a browser shows comes through us,
because only our answer carries the policy that contains it; downloads come from the store itself where it
signs addresses.
"""

import unicodedata
from collections.abc import Callable, Iterator
from functools import wraps
from typing import BinaryIO, Protocol
from urllib.parse import quote

import structlog
from flask import Flask, Response, request
from werkzeug.wsgi import wrap_file

from draftloop.errors import ServiceError, TaskError
from draftloop.execution.file_kinds import MEDIA_TYPES, Kind, charset_of, kind_of, wanted_bytes
from draftloop.execution.pictures import is_readable_picture
from draftloop.execution.run_page import file_address, file_page, page, unshown
from draftloop.runs.run import Run

_log = structlog.get_logger("backend")
_CHUNK = 1 << 18
_SIGNED_S = 300  # how long the store's own address is good for; ours stays
_SHOWN: tuple[Kind, ...] = ("png", "jpeg", "svg", "html", "scripted", "csv", "json", "text")
_OURS: tuple[Kind, ...] = ("png", "jpeg", "svg", "html", "scripted")  # shown in a run's page
_TEXTS: tuple[Kind, ...] = ("html", "scripted", "csv", "json", "text")

_PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
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
    "Vary": "Sec-Fetch-Dest, Sec-Fetch-Mode, Sec-Fetch-Site, Sec-Fetch-User",
}
# Refuses every connection that a file would open, those of WebRTC and of what is only prepared included.
_FILE_HEADERS = {**_HEADERS, "Connection-Allowlist": "()"}
_UNASKED = (
    "The script was not run: your browser did not say that you clicked for it on this page. Over plain HTTP "
    "no browser says so: open the backend by HTTPS."
)


class ArtifactReader(Protocol):
    """Where runs and their files are kept."""

    def open(self, sha256: str) -> BinaryIO:
        """Open a file; TaskError where there is none."""
        ...

    def size(self, sha256: str) -> int:
        """Return a file's size in bytes; TaskError where there is none."""
        ...

    def run(self, key: str) -> Run | None:
        """Return the run of a key."""
        ...

    def address(self, sha256: str, media_type: str, name: str, seconds: int) -> str | None:
        """Sign an address in the store itself; None where it has none."""
        ...


class Pages:
    """The two pages, on a Flask application."""

    def __init__(self, artifacts: ArtifactReader) -> None:
        self._artifacts = artifacts

    def add_to(self, app: Flask) -> None:
        """Add the routes."""
        app.add_url_rule("/runs/<key>", "run", _with_error_answers(self._run))
        app.add_url_rule("/a/<sha256>", "file", _with_error_answers(self._file))

    def _run(self, key: str) -> Response:
        run = self._artifacts.run(key)
        if run is None:
            raise TaskError("There is no such run.", hint="It may have been collected.")
        # Relative, so that it holds behind whatever prefix a proxy puts in front.
        script, notice = _asked_for_script()
        return _page(page(run, lambda file: file_address("..", file), script=script, notice=notice))

    def _file(self, sha256: str) -> Response:
        name = _file_name(request.args.get("name", "")) or sha256
        size_bytes = self._artifacts.size(sha256)
        head = self._head(sha256, wanted_bytes(name))
        kind = kind_of(name, head, size_bytes, is_readable_picture)
        how = request.args.get("as", "")
        if kind in ("html", "scripted"):
            if how not in ("frame", "script"):
                script, notice = _asked_for_script()
                return _page(file_page(sha256, name, size_bytes, kind, script=bool(script), notice=notice))
            if how == "script":
                if not _is_our_frame():
                    return _sentence("This is shown in the page of the run, or of the file.", 403)
                kind = "scripted"
            elif kind == "scripted":
                return _page(unshown(name), _FILE_POLICY + "; style-src 'unsafe-inline'")
        elif kind == "svg" and request.headers.get("Sec-Fetch-Dest") == "document":
            return _page(file_page(sha256, name, size_bytes, kind, script=False))
        media_type = _media_type(kind, head)
        if kind not in _OURS:
            address = self._artifacts.address(sha256, media_type, name, _SIGNED_S)
            if address is not None:
                answer = Response(status=302, headers={"Location": address})
                answer.headers.update({**_HEADERS, "Cache-Control": "no-store"})
                return answer
        stream = self._artifacts.open(sha256)
        # A file of this machine is sent by the server itself, so that a slow reader holds no thread.
        is_file = _is_file(stream)
        body = wrap_file(request.environ, stream, _CHUNK) if is_file else _chunks(stream)
        answer = Response(body, content_type=media_type, direct_passthrough=is_file)
        answer.call_on_close(stream.close)
        answer.content_length = size_bytes
        answer.headers.update(
            {
                **_FILE_HEADERS,
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


def _is_file(stream: BinaryIO) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError):
        return False
    return True


def _page(text: str, policy: str = _PAGE_POLICY) -> Response:
    answer = Response(text.encode("utf-8", "replace"), content_type="text/html; charset=utf-8")
    answer.headers.update({**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": policy})
    return answer


def _asked_for_script() -> tuple[str, str]:
    """Read which file's script is asked for, and a notice where it is not known that a human did."""
    asked = request.args.get("script", "")
    fetch = {name: request.headers.get(f"Sec-Fetch-{name}") for name in ("Site", "Mode", "Dest", "User")}
    clicked = fetch == {"Site": "same-origin", "Mode": "navigate", "Dest": "document", "User": "?1"}
    if asked and (not clicked or _is_speculative()):
        return "", _UNASKED
    return asked, ""


def _is_our_frame() -> bool:
    """Check that the request fills a frame of a page of ours: what is in frames has no origin to name."""
    fetch = [request.headers.get(f"Sec-Fetch-{name}") for name in ("Site", "Mode", "Dest")]
    return fetch == ["same-origin", "navigate", "iframe"] and not _is_speculative()


def _is_speculative() -> bool:
    return bool(request.headers.get("Sec-Purpose") or request.headers.get("Purpose"))


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _with_error_answers(view: Callable[..., Response]) -> Callable[..., Response]:
    """Answer with a sentence on what is missing, without the store's address."""

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
    answer.headers.update({**_FILE_HEADERS, "Content-Security-Policy": _FILE_POLICY})
    return answer


def _media_type(kind: Kind, head: bytes) -> str:
    charset = charset_of(head) if kind in _TEXTS else None
    # An HTML file in an old encoding says so itself; it is shown after a click alone.
    named = charset == "utf-8" or (charset is not None and kind != "scripted")
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
