"""The HTTP server: waitress inside a gunicorn worker, with limits for clients that are slow or send too much.

Knows sockets, deadlines and sizes. Does not know what is served, nor who may ask: the application says so
in `app.extensions[KEY]`. One thread of the process reads every request and writes every answer; the
`--threads` of gunicorn only run the application, on requests that have arrived whole. So a client that sends
half a request, or does not read its answer, costs a socket and no thread. An answer over 1 MB that the
application makes piece by piece is the exception; files go out whole through `wsgi.file_wrapper`.

    gunicorn 'draftloop.app:create_app()' --worker-class draftloop.serving.server.Worker --threads 64

gunicorn does what it does for its own workers: it binds, forks `--workers` processes, replaces those that
die or hang, and passes signals on. Its options about requests (`--keep-alive`, `--limit-request-line`,
`--forwarded-allow-ips`, `--max-requests`, ...) have no effect. No header names a prefix, an address or a
scheme here: headers with an underscore and `X-Forwarded-*` do not reach the application.

Source:
    waitress 3.0.2, channel.py, parser.py, server.py; gunicorn 27.0.1, workers/base.py and workers/gthread.py
"""

import json
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker as GunicornWorker
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer, UnixWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher

_log = structlog.get_logger("backend")

KEY = "draftloop-serving"  # of `app.extensions`
_HEADER_BYTES = 32 << 10  # all headers of a request; Label Studio sends under 1 KB
_MOST_AHEAD = 32  # requests that a client sends without waiting for an answer; each takes memory
_ANSWER_BYTES_PER_S = 64 << 10  # a client that reads at this rate is waited for without end
_ANSWER_BYTES = 1 << 20  # of an answer that are kept in memory; what makes more waits for the client
_PIECE_BYTES = 1 << 18  # read of a file at once, though the client may take less of it
_LINGER_S = 2.0  # a refused body is read and thrown away for so long, or the client would not see why


class Guard(Protocol):
    """Decides about requests; implemented by the application."""

    def refusal_to_listen(self, address: str) -> str | None:
        """Return why the application must not be served at an address; None if it may."""
        ...

    def takes_body(self, method: str, path: str, authorization: str, address: str) -> bool:
        """Return whether a request's body is worth reading; without it the request is refused."""
        ...


@dataclass(frozen=True)
class HttpLimits:
    """What a client may cost.

    body_bytes   of one request; more is refused with 413
    header_s     from the connection, or the last answer, to the end of the headers
    body_s       from there to the end of its body
    answer_s     to read an answer, and as much longer as it is read at 64 KB/s
    connections  at once; beyond them, the one that has waited longest without a whole request is closed
    """

    body_bytes: int = 32 << 20
    header_s: float = 10
    body_s: float = 60
    answer_s: float = 60
    connections: int = 600


@dataclass(frozen=True)
class Serving:
    """What an application asks of its server.

    guard  refuses addresses and bodies
    pools  threads of their own for paths that begin so; all others share those of gunicorn's `--threads`
    """

    limits: HttpLimits
    guard: Guard | None = None
    pools: tuple[tuple[str, int], ...] = ()


class _Settings(Adjustments):  # type: ignore[misc]  # waitress is untyped
    serving: Serving


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Reads one request; leaves out the body of a request that will be refused."""

    adj: _Settings
    body_rcv: Any
    content_length: int
    address = ""
    discarding = False  # what else comes on this connection is thrown away

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        serving = self.adj.serving
        if self.body_rcv is None:
            return
        if self.content_length > serving.limits.body_bytes:
            self.expect_continue = False  # waitress would ask for the body before it refuses it
        guard = serving.guard
        authorization = self.headers.get("AUTHORIZATION", "")
        if guard is not None and not guard.takes_body(self.command, self.path, authorization, self.address):
            self.discarding = True
            self.expect_continue = self.chunked = False
            self.body_rcv, self.content_length = None, 0
            self.headers.pop("CONTENT_LENGTH", None)
            self.headers["CONNECTION"] = "close"


class _Error(ErrorTask):  # type: ignore[misc]
    """Answers malformed and too large requests with a JSON error like the application's."""

    def execute(self) -> None:
        error, limits = self.request.error, self.channel.adj.serving.limits
        words, hint = f"{error.reason}: {error.body}.", "Send HTTP/1.1 with short headers."
        if error.code == 413:
            words = f"The body is larger than {limits.body_bytes >> 20} MB."
            hint = "Send less at once, or set BACKEND_MAX_BODY_MB."
            _log.error("request refused", path=self.request.path, error=words, hint=hint)
        elif error.code >= 500:
            words, hint = "The backend failed on this request.", "See its log."
        body = json.dumps({"error": words, "hint": hint}).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection, with deadlines for each of its states."""

    adj: _Settings
    close_when_flushed: bool
    sendbuf_len: int
    error_task_class = _Error

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._state = ("", 0)
        self._since = self._opened = time.monotonic()
        self._sent_bytes = self._sent_before = self._answers = 0
        self._discarding = self._lingering = False
        super().__init__(*arguments, **options)
        self.sendbuf_len = min(self.sendbuf_len, _PIECE_BYTES)

    def parser_class(self, settings: _Settings) -> _Parser:
        """Make the parser of a request, as waitress's class attribute of this name does."""
        parser = _Parser(settings)
        parser.address = self.addr[0]
        return parser

    @property
    def opened(self) -> float:
        """When the connection was made, or its last answer was sent."""
        return self._opened

    def is_waiting(self) -> bool:
        """Return whether no whole request has come, and no answer goes out."""
        return not self.requests and not self.total_outbufs_len

    def received(self, data: bytes) -> bool:
        if self._discarding:
            return True
        taken = bool(super().received(data))
        if len(self.requests) > _MOST_AHEAD:
            self.handle_close()
        return taken

    def send(self, data: bytes, do_close: bool = True) -> int:  # noqa: FBT001, FBT002  as waitress has it
        sent: int = super().send(data, do_close)
        self._sent_bytes += sent or 0
        return sent

    def service(self) -> None:
        request = self.requests[0]
        # The end of a refused body is unknown, so nothing after it is a request. What was read as one
        # meanwhile is dropped with the answer, which closes.
        self._discarding = bool(request.error or request.discarding)
        super().service()
        self._answers += 1

    def handle_write(self) -> None:
        if not (self._discarding and self.close_when_flushed) or self.will_close:
            super().handle_write()
            return
        if self.total_outbufs_len:
            self._flush_exception(self._flush_some)
        if self.will_close:
            self.handle_close()
        elif not self.total_outbufs_len:
            # Closed with bytes unread, the kernel would send a reset, and the client lose our answer.
            self.close_when_flushed, self._lingering = False, True
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.handle_close()

    def is_overdue(self, now: float) -> bool:
        """Return whether the client has had its time; called about once a second."""
        limits = self.adj.serving.limits
        state, limit_s = self._state_now(limits)
        if (state, self._answers) != self._state:
            self._state, self._since = (state, self._answers), now
            self._sent_before = self._sent_bytes
            if state == "header":
                self._opened = now
        if state == "answer":
            limit_s += (self._sent_bytes - self._sent_before) / _ANSWER_BYTES_PER_S
        return now - self._since > limit_s

    def _state_now(self, limits: HttpLimits) -> tuple[str, float]:
        if self._lingering:
            return "linger", _LINGER_S
        if self.total_outbufs_len:
            return "answer", limits.answer_s
        if self.requests or self.close_when_flushed:
            return "application", float("inf")
        request = self.request
        if request is not None and request.headers_finished:
            return "body", limits.body_s
        return "header", limits.header_s


class _Closing:
    """Closes connections whose time is up, in addition to waitress's own rules."""

    channel_class = _Channel
    active_channels: dict[int, _Channel]
    adj: _Settings
    pools: dict[str, ThreadedTaskDispatcher]
    task_dispatcher: ThreadedTaskDispatcher

    def add_task(self, channel: _Channel) -> None:
        """Hand a connection's next request to the threads that run it."""
        path = f"/{channel.requests[0].path.lstrip('/')}" if not channel.requests[0].error else ""
        pools = (pool for begin, pool in self.pools.items() if path.startswith(begin))
        next(pools, self.task_dispatcher).add_task(channel)

    def maintenance(self, _: float) -> None:
        """Close overdue connections; waitress calls this about once a second."""
        now = time.monotonic()
        # At once: `will_close` waits until the client reads, which is what it does not do.
        for channel in [*self.active_channels.values()]:
            if channel.is_overdue(now):
                channel.handle_close()

    def handle_accept(self) -> None:
        """Accept a connection; where there are too many, close the one that has waited longest."""
        super().handle_accept()  # type: ignore[misc]
        # Up to two open files for each, and some for everything else.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if len(self.active_channels) > min(self.adj.serving.limits.connections, (files - 128) // 2):
            waiting = [channel for channel in self.active_channels.values() if channel.is_waiting()]
            if waiting:
                min(waiting, key=lambda channel: channel.opened).handle_close()


class _TcpServer(_Closing, TcpWSGIServer):  # type: ignore[misc]
    pass


class _UnixServer(_Closing, UnixWSGIServer):  # type: ignore[misc]
    pass


class Worker(GunicornWorker):  # type: ignore[misc]
    """A process of gunicorn that serves with waitress."""

    def run(self) -> None:
        """Serve until gunicorn says stop; then answer what has arrived, for `--graceful-timeout` at most."""
        serving: Serving = _serving(self.wsgi)
        if self.cfg.preload_app and serving.guard is not None:
            self.log.error(
                "--preload makes the backend in a process that answers nothing. Start it without that option."
            )
            sys.exit(Arbiter.APP_LOAD_ERROR)
        for listener in self.sockets:
            self._check_address(serving, listener)
        for name in ("waitress", "waitress.queue"):
            logging.getLogger(name).setLevel(logging.ERROR)
        sockets: dict[int, Any] = {}
        pools = {begin: _threads(count) for begin, count in serving.pools}
        others = _threads(self.cfg.threads)
        servers = [self._server(serving, listener, others, sockets) for listener in self.sockets]
        for server in servers:
            server.pools = pools
        while self.alive and self.ppid == os.getppid():
            self.notify()
            wasyncore.loop(timeout=1, use_poll=True, map=sockets, count=1)
        for server in servers:
            server.accepting = False
            server.del_channel()  # the socket stays open: other workers have it too
        until = time.monotonic() + self.cfg.graceful_timeout
        while time.monotonic() < until and any(
            not channel.is_waiting() for server in servers for channel in server.active_channels.values()
        ):
            self.notify()
            wasyncore.loop(timeout=0.1, use_poll=True, map=sockets, count=1)
        for pool in (others, *pools.values()):
            pool.shutdown(timeout=0)

    def _check_address(self, serving: Serving, listener: Any) -> None:
        name = listener.getsockname()
        address = name[0] if isinstance(name, tuple) else "127.0.0.1"  # a file of this machine
        refusal = serving.guard and serving.guard.refusal_to_listen(address)
        if refusal:
            self.log.error(refusal)
            sys.exit(Arbiter.APP_LOAD_ERROR)  # the exit status on which gunicorn does not try again

    def _server(
        self, serving: Serving, listener: Any, threads: ThreadedTaskDispatcher, sockets: dict[int, Any]
    ) -> Any:
        limits, sock = serving.limits, listener.sock
        settings = _Settings(
            sockets=[sock],
            threads=self.cfg.threads,
            backlog=self.cfg.backlog,
            outbuf_overflow=2 * _ANSWER_BYTES,
            outbuf_high_watermark=_ANSWER_BYTES,
            max_request_header_size=_HEADER_BYTES,
            max_request_body_size=limits.body_bytes + 1,
            connection_limit=1 << 30,  # ours closes one instead of accepting none
            cleanup_interval=1,
            ident="draftloop",
            log_socket_errors=False,
        )
        settings.serving = serving
        kind = _UnixServer if sock.family == socket.AF_UNIX else _TcpServer
        return kind(
            self.wsgi,
            sockets,
            _sock=sock,
            dispatcher=threads,
            adj=settings,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )


def _threads(count: int) -> ThreadedTaskDispatcher:
    pool = ThreadedTaskDispatcher()
    pool.set_thread_count(count)
    return pool


def _serving(application: Any) -> Serving:
    extensions: Mapping[str, Any] = getattr(application, "extensions", {})
    serving = extensions.get(KEY)
    return serving if isinstance(serving, Serving) else Serving(HttpLimits())
