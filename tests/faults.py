"""What the tests of faults share: a gate between two servers, projects to lose something in, patience."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from demo.corpus import generate
from draftloop.cli import servers
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from tests.conftest import BackendServer, Restartable, backend_server, installed

CASES = Cases(ROOT / "label_config")
_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "content-encoding", "date"}


@dataclass
class Call:
    """One request through a gate, and its answer once there is one."""

    method: str
    path: str
    body: bytes
    status: int = 0
    answer: bytes = b""

    @property
    def drafts(self) -> bool:
        """Check whether a model is asked for a draft; a backend that starts probes it besides."""
        constrained = b'"name":"value"' in self.body or b'"structured_outputs":{"grammar"' in self.body
        return self.path.endswith("/chat/completions") and constrained


@dataclass
class Gate:
    """A proxy to a server; records every call and holds answers back on request.

    A server that is gone shows as a connection that ends without an answer.
    """

    upstream: str
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    on_answer: Callable[[Call], None] = lambda _: None
    _open: threading.Event = field(default_factory=threading.Event)
    _let_through: float = float("inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def drafting(self) -> int:
        """Count how often a model was asked for a draft."""
        return sum(call.drafts for call in list(self.calls))

    def hold_after(self, count: int) -> None:
        """Let so many more drafts of the model through and hold the rest back, until `release`."""
        with self._lock:
            self._let_through = count
            self._open.clear()

    def release(self) -> None:
        """Let everything through, what was held back first."""
        with self._lock:
            self._let_through = float("inf")
            self._open.set()

    def asked(self, path: str) -> list[Call]:
        """List the calls of a path."""
        return [call for call in list(self.calls) if call.path.endswith(path)]

    def answered(self, call: Call) -> None:
        """Decide on an answer that has come: through at once, or held."""
        self.on_answer(call)
        if call.drafts:
            with self._lock:
                self._let_through -= 1
                through = self._let_through >= 0
            if not through:
                self._open.wait()


@contextmanager
def gate_to(upstream: str) -> Iterator[Gate]:
    """Open a gate to a server on a free port of the loopback."""
    gate = Gate(upstream)
    # A connection for each call: a kept one may lead to a process that the test has stopped.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    client = httpx.Client(timeout=None, trust_env=False, limits=limits)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            call = Call(self.command, self.path.split("?")[0], body)
            gate.calls.append(call)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            try:
                answer = client.request(self.command, upstream + self.path, content=body, headers=headers)
            except httpx.HTTPError:
                self.close_connection = True
                return
            call.status, call.answer = answer.status_code, answer.content
            gate.answered(call)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = _pass  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed is what some tests are about

    server = Server((servers.LOCALHOST, 0), Handler)
    gate.url = f"http://{servers.LOCALHOST}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        gate.release()
        server.shutdown()
        server.server_close()
        thread.join()
        client.close()


@dataclass(frozen=True)
class Backend:
    """A backend of one test, which may be killed."""

    server: BackendServer
    process: Restartable

    def get(self, path: str) -> httpx.Response:
        """Ask as an admin does."""
        login = (self.server.user, self.server.password)
        return httpx.get(f"{self.server.url}{path}", auth=login, timeout=60, trust_env=False)

    def late(self) -> int:
        """Count what is promised and not written, as /metrics reports it."""
        lines = self.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith("draftloop_late_tasks ")).split()[1]))

    def log(self) -> str:
        """Read the log so far."""
        return self.server.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def backend_with(settings: dict[str, str], folder: Path, *, workers: int = 1) -> Iterator[Backend]:
    """Start a backend under gunicorn, with its log in a folder."""
    with installed():
        process = Restartable(
            lambda port: servers.start_backend(
                settings, log=folder / "backend.log", port=port, workers=workers
            )
        )
    try:
        yield Backend(backend_server(process.url, settings, process.log), process)
    finally:
        process.stop()


def project_of(studio: LabelStudio, case: str, count: int, *, seed: int = 11) -> tuple[Project, list[int]]:
    """Make a project of a case with so many tasks; return it and the tasks' ids."""
    project = studio.create_project(f"faults {case} {time.time_ns()}", CASES.config(case))
    rows = ({"text": row.text, "draft_status": ""} for row in generate(case, "held_out", count, seed=seed))
    return project, [task_id for ids in studio.import_tasks(project, rows) for task_id in ids]


def connect(
    studio: LabelStudio, project: Project, backend: BackendServer, case: str, *, url: str = ""
) -> None:
    """Connect a project to a backend, or to the gate before it."""
    studio.connect_backend(
        project,
        url or backend.url,
        **backend.logins,
        extra_params={"case": case} if case else {},
    )


def opened(studio: LabelStudio, task_id: int) -> dict[str, Any]:
    """Open a task as its labelling page does, which has it drafted; return what the page shows."""
    shown: dict[str, Any] = studio._get(f"task {task_id}", f"api/tasks/{task_id}/")
    return shown


def stored(studio: LabelStudio, project: Project) -> Counter[int]:
    """Count the tasks of a project by how many predictions each has."""
    return Counter(len(task["predictions"]) for task in studio.tasks(project, full=True))


def until(true: Callable[[], bool], limit_s: float = 120) -> None:
    """Wait for something that must come."""
    ends = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.1)


def results_of(call: Call) -> list[dict[str, Any]]:
    """Return the items of the answer to a /predict."""
    results: list[dict[str, Any]] = json.loads(call.answer)["results"]
    return results


def fill(file: Path) -> None:
    """Write until the disk takes no more byte."""
    with file.open("wb", buffering=0) as stream:
        for size in (65536, 4096, 1):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError as error:
                assert "No space left" in str(error)  # noqa: PT017
