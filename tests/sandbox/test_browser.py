"""The profile "browser": off unless asked for, refused without namespaces, and no way to any network."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from draftloop.errors import SetupError, TaskError
from draftloop.runs.job import Attempt, Language, Limits, SandboxJob, Script
from tests.conftest import CHROMIUM, missing
from tests.sandbox.conftest import TESTED, Field, look, started

LIMITS = replace(Limits(), processes=400)
MODES = [mode for mode in TESTED if not mode.endswith("bare")]


@pytest.fixture(scope="module", params=MODES)
def browsing(request: pytest.FixtureRequest) -> Iterator[Field]:
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} is missing. Run: scripts/setup --browser")
    with started(request.param, browser=True) as (sandbox, home):
        before = look(sandbox, home)
        yield Field(request.param, sandbox, home, home / "inputs", before, secret=home / "secret")


def run(place: Field, code: str, language: Language = "python", **inputs: str) -> Attempt:
    return place.run_job(SandboxJob((Script(code, language),), inputs, LIMITS, profile="browser"))


@pytest.mark.parametrize("mode", [mode for mode in TESTED if mode.endswith("bare")])
def test_without_namespaces_there_is_no_such_profile(mode: str) -> None:
    with pytest.raises(SetupError, match="only namespaces keep these"), started(mode, browser=True):
        pass


def test_it_is_off_unless_asked_for(place: Field) -> None:
    assert place.sandbox.report.profiles == ("plain",)
    with pytest.raises(TaskError, match="does not run jobs of the profile"):
        run(place, "print(1)")
    place.demand_nothing_left()


def test_the_report_names_the_browser(browsing: Field) -> None:
    report = browsing.sandbox.report
    assert report.profiles == ("plain", "browser")
    assert report.programs[-1].name == "Chromium"
    assert any("browser" in gap for gap in report.gaps)


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"])
def test_it_opens_unix_sockets_alone(browsing: Field, family: str) -> None:
    attempt = run(browsing, f"import socket; socket.socket(socket.{family}, socket.SOCK_STREAM)")
    assert attempt.stderr.strip().endswith("[Errno 1] Operation not permitted")


def test_nothing_outside_is_reached_by_a_unix_socket(browsing: Field) -> None:
    named = str(browsing.inputs / "listening")
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as path:
        abstract.bind(f"\0draftloop-browser-{os.getpid()}-{browsing.mode}")
        path.bind(named)
        Path(named).chmod(0o777)
        for one in (abstract, path):
            one.listen()
            one.setblocking(False)
        own = str(browsing.home / "sandbox" / "socket")
        for name in (abstract.getsockname(), own):
            attempt = run(browsing, f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})")
            assert attempt.outcome == "failed", attempt
            assert "Error" in attempt.stderr.splitlines()[-1]
        for one in (abstract, path):
            with pytest.raises(BlockingIOError):
                one.accept()
    Path(named).unlink()


def test_two_jobs_do_not_meet(browsing: Field) -> None:
    listening = (
        "import socket, time\nopened = socket.socket(socket.AF_UNIX)\nopened.bind('\\0here')\n"
        "opened.listen()\nopened.settimeout(6)\n"
        "try:\n    opened.accept()\n    print('MET')\nexcept TimeoutError:\n    print('alone')"
    )
    printed: list[str] = []

    def listen() -> None:
        job = SandboxJob((Script(listening),), {}, LIMITS, profile="browser")
        printed.append(browsing.sandbox.run(job, str(browsing.home)).stdout)

    thread = threading.Thread(target=listen)
    thread.start()
    code = (
        "import socket, time\nfor _ in range(30):\n    time.sleep(0.1)\n    try:\n"
        "        socket.socket(socket.AF_UNIX).connect('\\0here')\n        print('MET')\n"
        "    except OSError:\n        pass"
    )
    job = SandboxJob((Script(code),), {}, LIMITS, profile="browser")
    assert browsing.sandbox.run(job, str(browsing.home)).stdout == ""
    thread.join()
    assert printed == ["alone\n"]
    browsing.demand_nothing_left()


def test_what_it_may_not_read_stays_so(browsing: Field) -> None:
    code = """
import os
for path in ("/etc/passwd", "/etc/shadow", SECRET, "/proc/1/environ", f"/proc/{os.getppid()}/environ",
             f"/proc/{os.getppid()}/mem", "/proc/1/root/etc/passwd", "/root"):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read()
        print("POSSIBLE", path)
    except OSError:
        pass
""".replace("SECRET", repr(str(browsing.secret)))
    attempt = run(browsing, code)
    assert (attempt.outcome, attempt.stdout) == ("ok", "")


def test_plain_jobs_beside_it_are_contained_as_ever(browsing: Field) -> None:
    attempt = browsing.run("import socket; socket.socket(socket.AF_UNIX)")
    assert "Operation not permitted" in attempt.stderr


def test_a_page_reaches_no_server(browsing: Field) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        page = f"<img src='http://127.0.0.1:{server.getsockname()[1]}/a.png'>seen"
        (browsing.inputs / "page.html").write_text(page)
        code = "chromium --dump-dom file://$PWD/input/page.html"
        attempt = run(browsing, code, "shell", **{"page.html": str(browsing.inputs / "page.html")})
        assert "seen" in attempt.stdout, attempt
        with pytest.raises(BlockingIOError):
            server.accept()
