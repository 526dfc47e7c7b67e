"""The backend's HTTP server, as draftloop serve starts it, among clients that are slow or send too much."""

import base64
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from draftloop.cli import servers
from draftloop.execution.artifacts import Artifacts
from draftloop.prompting.cases import Cases
from draftloop.runs.job import OutputFile
from draftloop.support.environments import ROOT, find_environment
from tests.code_runs import write
from tests.conftest import installed
from tests.fake_vllm import fake_vllm

CONFIG = Cases(ROOT / "label_config").config("sentiment")
SLOW = 500
LIMIT_S = 3
LOGIN, VIEWER = ("drafts", "the-password"), ("reader", "another-password")
FILE = b"0123456789abcdef" * (1 << 18)  # 4 MB: more than the server keeps of an answer


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OutputFile]:
    folder = tmp_path_factory.mktemp("artifacts")
    (left,) = write(folder / "left", {"large.txt": FILE})
    Artifacts(str(folder / "kept")).keep(folder / "left", (left,))
    return folder / "kept", left


def settings(folder: Path, **more: str) -> dict[str, str]:
    return {
        "BACKEND_ANSWER_S": str(LIMIT_S),
        "BACKEND_BODY_S": str(LIMIT_S),
        "BACKEND_HEADER_S": str(LIMIT_S),
        "BACKEND_MAX_BODY_MB": "2",
        "BACKEND_USER": LOGIN[0],
        "BACKEND_PASSWORD": LOGIN[1],
        "BACKEND_VIEWER_USER": VIEWER[0],
        "BACKEND_VIEWER_PASSWORD": VIEWER[1],
        "CACHE_URL": "",
        "EXECUTION": "off",
        "LEDGER_URL": f"sqlite:///{folder / 'ledger.sqlite3'}",
        **more,
    }


@pytest.fixture(scope="module")
def server(
    file: tuple[Path, OutputFile], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.ServerProcess]:
    folder = tmp_path_factory.mktemp("serving")
    with fake_vllm(context_tokens=4096) as fake, installed():
        ours = settings(folder, MODEL_NAME=fake.name, MODEL_URL=fake.url, ARTIFACTS_URL=str(file[0]))
        with servers.start_backend(ours, log=folder / "log") as started:
            yield started


def port_of(server: servers.ServerProcess) -> int:
    return int(server.url.rpartition(":")[2])


def basic(login: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(login).encode()).decode()


@contextmanager
def slow_clients(
    port: int, begin: bytes, drip: bytes = b"", *, count: int = SLOW, receives_bytes: int = 0
) -> Iterator[list[socket.socket]]:
    """Open connections that send a beginning, then a piece of `drip` at a time, and read nothing."""
    ends = threading.Event()
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            if receives_bytes:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives_bytes)
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
            client.sendall(begin)
            opened.append(client)

        def go_on() -> None:
            while drip and not ends.wait(0.3):
                for client in opened:
                    try:
                        client.send(drip)
                    except OSError:
                        continue  # closed by the server, which is what it should do

        dripping = threading.Thread(target=go_on)
        dripping.start()
        try:
            yield opened
        finally:
            ends.set()
            dripping.join()


def is_closed(client: socket.socket) -> bool:
    """Return whether the server has closed a connection, whatever it had sent."""
    client.settimeout(0)
    try:
        while client.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def until(done: Callable[[], bool], limit_s: float) -> bool:
    ends = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > ends:
            return False
        time.sleep(0.2)
    return True


def answers_everybody_else(server: servers.ServerProcess) -> None:
    """Ask a few times what Label Studio and admins ask; each has to come back within seconds."""
    for _ in range(3):
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=10).status_code == 200
        assert httpx.get(f"{server.url}/versions", auth=LOGIN, trust_env=False, timeout=10).is_success


HALF_A_HEADER = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "
POST = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HALF_A_BODY = f"{POST}Authorization: {basic(LOGIN)}\r\nContent-Length: 100000\r\n\r\n{{".encode()
HALF_A_CHUNK = f"{POST}Authorization: {basic(LOGIN)}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{".encode()


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(HALF_A_HEADER, b"", id="half a header"),
        pytest.param(HALF_A_HEADER, b"x", id="a header, byte by byte"),
        pytest.param(b"\r\n", b"\r\n", id="empty lines for ever"),
        pytest.param(HALF_A_BODY, b"", id="half a body"),
        pytest.param(HALF_A_BODY, b" ", id="a body, byte by byte"),
        pytest.param(HALF_A_CHUNK, b"", id="half a chunk"),
    ],
)
def test_five_hundred_slow_clients_hold_up_nobody_and_are_closed(
    server: servers.ServerProcess, begin: bytes, drip: bytes
) -> None:
    with slow_clients(port_of(server), begin, drip) as clients:
        answers_everybody_else(server)
        assert not all(map(is_closed, clients)), "they were still there while the others were answered"
        assert until(lambda: all(map(is_closed, clients)), LIMIT_S + 15)
    answers_everybody_else(server)


def test_five_hundred_clients_that_do_not_read_a_file_hold_up_nobody_and_are_closed(
    server: servers.ServerProcess, file: tuple[Path, OutputFile]
) -> None:
    path = f"/a/{file[1].sha256}?name=large.txt"
    begin = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {basic(VIEWER)}\r\n\r\n".encode()
    with slow_clients(port_of(server), begin, receives_bytes=4096) as clients:
        answers_everybody_else(server)
        assert until(lambda: open_connections(server) < 20, LIMIT_S + 30)
        assert until(lambda: all(map(is_closed, clients)), 30)  # they read what was on its way
    answer = httpx.get(f"{server.url}{path}", auth=VIEWER, trust_env=False, timeout=30)
    assert answer.content == FILE


def open_connections(server: servers.ServerProcess) -> int:
    """Count the server's established connections."""
    port = f"{port_of(server):04X}"
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(row[1].endswith(f":{port}") and row[3] == "01" for row in rows)


def test_more_connections_than_there_may_be_close_the_longest_idle_ones(
    server: servers.ServerProcess,
) -> None:
    with slow_clients(port_of(server), HALF_A_HEADER, count=700) as clients:
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=5).status_code == 200
        assert until(lambda: sum(map(is_closed, clients[:101])) == 101, 2)


def test_a_client_that_keeps_its_connection_is_not_closed_while_it_asks(
    server: servers.ServerProcess,
) -> None:
    with httpx.Client(base_url=server.url, auth=LOGIN, trust_env=False, timeout=5) as client:
        ends = time.monotonic() + 2 * LIMIT_S + 1
        ports = set()
        while time.monotonic() < ends:
            answer = client.get("/versions")
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
            time.sleep(0.3)
    assert len(ports) == 1


def ask(server: servers.ServerProcess, *pieces: bytes) -> tuple[int, bytes]:
    """Send pieces, then read the whole answer; return its status and body."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as client:
        for piece in pieces:
            client.sendall(piece)
        answer = b""
        while received := client.recv(1 << 16):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def post(
    server: servers.ServerProcess, size: int, login: tuple[str, str] = LOGIN, path: str = "/predict"
) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return httpx.post(
        f"{server.url}{path}", content=b" " * size, headers=headers, auth=login, trust_env=False, timeout=30
    )


def test_a_body_that_is_too_large_is_refused_in_words(server: servers.ServerProcess) -> None:
    assert post(server, (2 << 20)).status_code == 400  # taken, and no JSON
    for size in ((2 << 20) + 1, 30 << 20):
        answer = post(server, size)
        assert (answer.status_code, answer.json()["error"]) == (413, "The body is larger than 2 MB.")
        assert "BACKEND_MAX_BODY_MB" in answer.json()["hint"]

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100_000

    headers = {"Content-Type": "application/json"}
    chunked = httpx.post(
        f"{server.url}/predict", content=chunks(), headers=headers, auth=LOGIN, trust_env=False, timeout=30
    )
    assert chunked.status_code == 413
    assert "/predict" in server.log.read_text()
    assert "larger than 2 MB" in server.log.read_text()


def test_the_body_of_whoever_has_no_login_is_not_read(server: servers.ServerProcess) -> None:
    for path, login in (("/predict", ("x", "y")), ("/setup", VIEWER), ("/nowhere", ("x", "y"))):
        assert post(server, 30 << 20, login, path).status_code == 401
    # Nobody asks for it either.
    head = (
        POST + f"Authorization: {basic(('x', 'y'))}\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
    )
    status, _ = ask(server, head.encode())
    assert status == 401
    # What stands in such a body is no request.
    hidden = f"GET /versions HTTP/1.1\r\nHost: x\r\nAuthorization: {basic(LOGIN)}\r\n\r\n".encode()
    head = POST + f"Content-Length: {len(hidden)}\r\n\r\n"
    status, rest = ask(server, head.encode() + hidden)
    assert status == 401
    assert b"HTTP/1.1" not in rest


def test_a_chunked_and_an_expected_body_arrive_whole(server: servers.ServerProcess) -> None:
    body = b'{"action":"ANNOTATION_CREATED","project":{"id":7}}'
    login = f"Authorization: {basic(LOGIN)}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head = f"POST /webhook HTTP/1.1\r\nHost: x\r\n{login}"
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:half], body[half:], b""))
    assert ask(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), chunks)[0] == 200
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as client:
        client.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused_in_words(
    server: servers.ServerProcess, request_: bytes, status: int
) -> None:
    actual, body = ask(server, request_)
    assert actual == status
    assert b'"error"' in body
    assert b"waitress" not in body


def test_no_header_moves_the_application_or_its_client(server: servers.ServerProcess) -> None:
    headers = {
        "SCRIPT_NAME": "/metrics",
        "Script-Name": "/metrics",
        "PATH_INFO": "/health",
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Prefix": "/metrics",
        "X-Script-Name": "/metrics",
        "Forwarded": "for=10.0.0.1",
    }
    for path in ("/metrics", "/metrics/health", "/versions"):
        for name, value in headers.items():
            answer = httpx.get(f"{server.url}{path}", headers={name: value}, trust_env=False, timeout=5)
            assert answer.status_code == 401, (path, name)


@contextmanager
def own_server(folder: Path, delay_s: float) -> Iterator[servers.ServerProcess]:
    """Start a backend of one test, whose model takes its time."""
    with fake_vllm(context_tokens=4096) as fake, installed():
        fake.delay_s = delay_s
        ours = settings(folder, MODEL_NAME=fake.name, MODEL_URL=fake.url, ARTIFACTS_URL=str(folder / "kept"))
        with servers.start_backend(ours, log=folder / "log") as started:
            yield started


def predict(server: servers.ServerProcess, number: int) -> httpx.Response:
    body = {
        "tasks": [{"id": number, "data": {"text": f"text {number}"}}],
        "label_config": CONFIG,
        "project": "7.1",
    }
    return httpx.post(f"{server.url}/predict", json=body, auth=LOGIN, trust_env=False, timeout=60)


def test_predictions_that_fill_all_threads_leave_health_alone(tmp_path: Path) -> None:
    with own_server(tmp_path, delay_s=4) as server, ThreadPoolExecutor(80) as people:
        drafts = [people.submit(predict, server, number) for number in range(80)]
        time.sleep(1)
        assert not any(draft.done() for draft in drafts)
        for _ in range(3):
            assert httpx.get(f"{server.url}/health", trust_env=False, timeout=1).status_code == 200
        assert {draft.result().status_code for draft in drafts} == {200}


def test_what_has_arrived_is_answered_before_the_server_stops(tmp_path: Path) -> None:
    with own_server(tmp_path, delay_s=3) as server, ThreadPoolExecutor(1) as people:
        draft = people.submit(predict, server, 1)
        time.sleep(1)
        server.process.terminate()
        assert draft.result().json()["results"][0]["result"]
        assert server.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            predict(server, 2)


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    with own_server(tmp_path, delay_s=0) as server:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        (worker,) = children.read_text(encoding="ascii").split()
        os.kill(int(worker), signal.SIGKILL)

        def answers() -> bool:
            try:
                return httpx.get(f"{server.url}/health", trust_env=False, timeout=5).is_success
            except httpx.HTTPError:
                return False

        assert until(answers, 60)
        assert children.read_text(encoding="ascii").split() not in ([], [worker])


def test_requests_that_do_not_wait_for_answers_are_answered_in_order_up_to_a_number(
    server: servers.ServerProcess,
) -> None:
    asked = [b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in (b"/health", b"/versions", b"/ready")]
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as client:
        client.sendall(b"".join(asked[:1] * 2 + asked[2:] + asked[1:2]))
        answer = b""
        while answer.count(b"HTTP/1.1 ") < 4 or not answer.endswith(b"}\n"):
            answer += client.recv(1 << 16)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"200", b"401"]
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server)), timeout=20))
            for _ in range(SLOW)
        ]
        for client in clients:
            client.sendall(asked[1] * 200)
        answers_everybody_else(server)
        assert until(lambda: all(map(is_closed, clients)), LIMIT_S + 15)


def test_no_bytes_stop_the_server(server: servers.ServerProcess) -> None:
    pieces = [
        b"GET ",
        b"POST ",
        b"/predict",
        b"/",
        b" HTTP/1.1",
        b" HTTP/9.9",
        b"\r\n",
        b"\n",
        b"\x00",
        b"\xff" * 9,
    ]
    pieces += [
        b"Content-Length: ",
        b"Transfer-Encoding: chunked",
        b"99999999999999999999",
        b"-1",
        b"\r\n\r\n",
        b": ",
    ]
    pieces += [
        b"Host: x",
        b"ffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"Expect: 100-continue",
        b"http://[",
        b"%",
        b"[::1",
    ]
    chance = random.Random(7)
    for _ in range(400):
        sent = b"".join(chance.choices(pieces, k=chance.randint(1, 12)))
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(LIMIT_S + 10)
            with suppress(ConnectionResetError):
                answer = client.recv(1 << 16)
                assert b"Traceback" not in answer
    answers_everybody_else(server)
    assert "Traceback" not in server.log.read_text()


def test_the_server_has_no_socket_for_commands(server: servers.ServerProcess) -> None:
    assert "Control socket" not in server.log.read_text()


CLOSED = ("/metrics", "/versions", "/jobs", "/a/" + "0" * 64, "/runs/" + "0" * 64)
SPELLINGS = (
    *("{0}", "/{0}", "//{0}", "{0}/", "{0}/.", "{0}%00", "{0}%20", "{0};x", "{0}?/health", "{0}#/health"),
    *("/health/..{0}", "/health/%2e%2e{0}", "/ready/..%2f{0}", "/%2f{0}", "/./{0}", "/\\{0}", "*{0}"),
    *("http://x{0}", "http://127.0.0.1/health/..{0}"),
)
SENT = ("GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "X")


def test_no_spelling_of_a_path_opens_it(server: servers.ServerProcess) -> None:
    escaped = [f"/%{ord(path[1]):x}{path[2:]}" for path in CLOSED]
    for path in (*CLOSED, *escaped, *map(str.upper, CLOSED)):
        for spelling in SPELLINGS:
            for method in SENT:
                line = f"{method} {spelling.format(path)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                status, _ = ask(server, line.encode())
                assert status in (400, 401, 404, 405), line
    for path in ("/", "/health", "/ready", "//health"):
        line = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert ask(server, line.encode())[0] == 200


def test_an_open_backend_is_served_to_other_machines_only_where_that_is_said(tmp_path: Path) -> None:
    with installed():
        python = str(find_environment("backend") / "bin" / "python")
    ours = settings(tmp_path, ARTIFACTS_URL=str(tmp_path / "artifacts"))
    logins = ("BACKEND_USER", "BACKEND_PASSWORD", "BACKEND_VIEWER_USER", "BACKEND_VIEWER_PASSWORD")
    environment = {name: value for name, value in ours.items() if name not in logins}
    environment["PYTHONPATH"] = servers.PYTHONPATH
    port = servers.free_port()
    command = [
        python,
        "-m",
        "gunicorn",
        "draftloop.app:create_app()",
        "--worker-class=draftloop.serving.server.Worker",
    ]
    command += [f"--bind=0.0.0.0:{port}"]

    refused = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode != 0
    assert "The backend has no login, and 0.0.0.0 may be reached from other machines" in refused.stderr
    assert "BACKEND_OPEN=true" in refused.stderr

    with subprocess.Popen(command, env={**environment, "BACKEND_OPEN": "true"}, cwd=tmp_path) as started:

        def answers() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/versions", trust_env=False, timeout=5).is_success
            except httpx.HTTPError:
                return False

        try:
            assert until(answers, 60)
        finally:
            started.terminate()
    assert started.returncode == 0
