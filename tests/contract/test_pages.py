"""What browsers open of runs: who may, as what, and that nothing in it can reach out of its box."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from flask.testing import FlaskClient

from draftloop.app import make_web_app
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.errors import SetupError
from draftloop.execution.artifacts import Artifacts
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.runs.job import OutputFile
from draftloop.runs.run import Run
from draftloop.serving.answers import Answers
from draftloop.serving.metrics import Metrics
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.web import WebApp
from draftloop.settings import Settings
from draftloop.support.environments import ROOT
from draftloop.support.logins import Logins
from tests.code_runs import attempt, png, run, write

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>x()</script></svg>"
CONTENTS = {
    "图 1.png": png(),
    "broken.png": png()[:-9],
    "a.svg": SVG,
    "plot.html": b"<div><script>Plotly()</script></div>",
    "table.html": "<table><tr><td>一</table>".encode(),
    "frame.html": b"<p>x<iframe src='http://data.example/'></iframe>",
    "old.html": '<meta charset="gbk"><p>汇总销售额'.encode("gbk"),
    "a.csv": "月,额\n".encode(),
    "gbk.csv": "月,额\n".encode("gbk"),
    "a.json": b'{"a": 1}',
    "a.txt": b"<script>x()</script>",
    "a.pdf": b"%PDF-1.7",
    "a.xlsx": b"PK\x03\x04",
    "large.txt": b"0123456789abcdef" * 65_536,
}
ADMIN, VIEWER = ("ann", "páss"), ("看", "view")


@pytest.fixture
def store(tmp_path: Path) -> Artifacts:
    return Artifacts(f"{tmp_path}/kept")


@pytest.fixture
def files(store: Artifacts, tmp_path: Path) -> dict[str, OutputFile]:
    left = write(tmp_path / "left", CONTENTS)
    store.keep(tmp_path / "left", left)
    return {file.path: file for file in left}


@pytest.fixture
def one(store: Artifacts, files: dict[str, OutputFile]) -> Run:
    made = run(attempt(files=tuple(files.values())))
    store.put_run(made)
    return made


@pytest.fixture
def server(store: Artifacts, tmp_path: Path) -> Iterator[WebApp]:
    with VllmModel("http://127.0.0.1:9/v1", "nobody") as model:
        drafter = Drafter(model, AskOptions(profile="compact", temperature=0))
        cases, ledger = Cases(ROOT / "label_config"), Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
        answers = Answers(drafter, ledger, cases.find, None, deadline_s=5, metrics=Metrics())
        protocol = ProtocolServer(drafter, cases, ledger, answers)
        yield WebApp(protocol, Logins(*ADMIN), artifacts=store)
        drafter.close()


def client(server: WebApp, login: tuple[str, str] | None = ADMIN) -> FlaskClient:
    made = server.wsgi().test_client()
    if login:
        given = base64.b64encode(":".join(login).encode()).decode()
        made.environ_base["HTTP_AUTHORIZATION"] = f"Basic {given}"
    return made


CLICK = {
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-User": "?1",
}
FRAME = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}


def get(
    server: WebApp,
    file: OutputFile,
    name: str | None = None,
    headers: dict[str, str] | None = None,
    how: str = "",
    script: str = "",
) -> Any:
    query = {"name": file.path if name is None else name, "as": how, "script": script}
    query = {key: part for key, part in query.items() if part or key == "name"}
    return client(server).get(f"/a/{file.sha256}", query_string=query, headers=headers)


SANDBOX = "sandbox; default-src 'none'"
STILL = f"{SANDBOX}; img-src data:; style-src 'unsafe-inline'"
SCRIPTED = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; img-src data:; "
    "style-src 'unsafe-inline'"
)


@pytest.mark.parametrize(
    ("name", "media_type", "how", "policy"),
    [
        ("图 1.png", "image/png", "inline", SANDBOX),
        ("broken.png", "application/octet-stream", "attachment", SANDBOX),
        ("a.svg", "image/svg+xml", "inline", STILL),
        ("table.html", "text/html; charset=utf-8", "inline", STILL),
        ("a.csv", "text/csv; charset=utf-8", "inline", SANDBOX),
        ("gbk.csv", "text/csv; charset=gb18030", "inline", SANDBOX),
        ("a.json", "application/json; charset=utf-8", "inline", SANDBOX),
        ("a.txt", "text/plain; charset=utf-8", "inline", SANDBOX),
        ("a.pdf", "application/pdf", "attachment", SANDBOX),
        ("a.xlsx", "application/octet-stream", "attachment", SANDBOX),
        ("large.txt", "text/plain; charset=utf-8", "inline", SANDBOX),
    ],
)
def test_a_file_is_sent_as_what_its_bytes_prove_and_in_a_box(
    server: WebApp, files: dict[str, OutputFile], name: str, media_type: str, how: str, policy: str
) -> None:
    answer = get(server, files[name], how="frame")
    assert answer.status_code == 200
    assert answer.data == CONTENTS[name]
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Content-Length"] == str(len(CONTENTS[name]))
    assert answer.headers["Content-Disposition"].startswith(f"{how}; filename=")
    assert answer.headers["Content-Security-Policy"] == policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "private" in answer.headers["Cache-Control"]
    assert answer.headers["Connection-Allowlist"] == "()"


def ours(answer: Any) -> bool:
    """Check whether an answer is a page of ours, without anything of the file."""
    return "default-src 'none'" in answer.headers["Content-Security-Policy"] and "Plotly()" not in answer.text


@pytest.mark.parametrize("name", ["plot.html", "old.html", "frame.html", "table.html"])
@pytest.mark.parametrize("headers", [{}, CLICK, FRAME, {**CLICK, "Sec-Fetch-Site": "cross-site"}])
@pytest.mark.parametrize("how", ["", "Script", "raw"])
def test_html_that_a_tab_is_opened_with_is_in_a_page_of_ours(
    server: WebApp, files: dict[str, OutputFile], name: str, headers: dict[str, str], how: str
) -> None:
    answer = get(server, files[name], headers=headers, how=how)
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"].endswith("frame-ancestors 'none'")
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    assert CONTENTS[name] not in answer.data
    assert ("<iframe" in answer.text) == (name == "table.html")
    assert "allow-scripts" not in answer.text
    assert "Run this file" in answer.text


def test_script_runs_after_a_click_in_a_page_of_ours_alone(
    server: WebApp, one: Run, files: dict[str, OutputFile]
) -> None:
    file = files["plot.html"]
    wrong = [
        {},
        {**CLICK, "Sec-Fetch-Site": "none"},
        {**CLICK, "Sec-Fetch-Site": "same-site"},
        {**CLICK, "Sec-Fetch-Site": "cross-site"},
        {**CLICK, "Sec-Fetch-Dest": "iframe"},
        {**CLICK, "Sec-Fetch-Mode": "no-cors"},
        {**CLICK, "Sec-Fetch-User": ""},
        {**CLICK, "Sec-Purpose": "prefetch"},
        {**CLICK, "Purpose": "prefetch"},
    ]
    for headers in wrong:
        for answer in (
            get(server, file, headers=headers, script="run"),
            client(server).get(f"/runs/{one.key}?script={file.sha256}", headers=headers),
        ):
            assert answer.status_code == 200
            assert "allow-scripts" not in answer.text
            assert "The script was not run" in answer.text
    answer = get(server, file, headers=CLICK, script="run")
    assert answer.text.count("allow-scripts") == 1
    assert "&amp;as=script" in answer.text
    assert "WebRTC" in answer.text, "the page names what a browser does not forbid"
    answer = client(server).get(f"/runs/{one.key}?script={file.sha256}", headers=CLICK)
    assert answer.text.count("allow-scripts") == 1
    assert f"src='../a/{file.sha256}?name=plot.html&amp;as=script'" in answer.text


def test_the_bytes_of_html_with_script_go_to_a_frame_of_ours_alone(
    server: WebApp, files: dict[str, OutputFile]
) -> None:
    file = files["plot.html"]
    answer = get(server, file, headers=FRAME, how="script")
    assert answer.data == CONTENTS["plot.html"]
    assert answer.headers["Content-Security-Policy"] == SCRIPTED
    assert answer.headers["Connection-Allowlist"] == "()"
    wrong = [
        {},
        CLICK,
        {**FRAME, "Sec-Fetch-Site": "cross-site"},
        {**FRAME, "Sec-Fetch-Site": "none"},
        {**FRAME, "Sec-Fetch-Dest": "document"},
        {**FRAME, "Sec-Fetch-Dest": "embed"},
        {**FRAME, "Sec-Purpose": "prefetch"},
    ]
    for headers in wrong:
        answer = get(server, file, headers=headers, how="script")
        assert answer.status_code == 403
        assert answer.headers["Content-Type"].startswith("text/plain")
    for headers in (*wrong, FRAME):
        answer = get(server, file, headers=headers, how="frame")
        assert "is not shown without a click" in answer.text
        assert ours(answer)


def test_a_picture_that_a_tab_is_opened_with_is_in_a_page_of_ours(
    server: WebApp, files: dict[str, OutputFile]
) -> None:
    answer = get(server, files["a.svg"], headers=CLICK)
    assert "<img src='?name=a.svg'" in answer.text
    assert "Run this file" not in answer.text
    assert get(server, files["a.svg"], headers={"Sec-Fetch-Dest": "image"}).data == SVG


def test_a_name_makes_nothing_of_bytes_that_they_are_not(
    server: WebApp, files: dict[str, OutputFile]
) -> None:
    for name in ("x.png", "x.svg", "x.pdf"):
        assert get(server, files["plot.html"], name).headers["Content-Type"] == "application/octet-stream"
    assert get(server, files["plot.html"], "").headers["Content-Type"] == "application/octet-stream"
    assert get(server, files["plot.html"], "x.txt").headers["Content-Type"].startswith("text/plain")


def test_a_hostile_name_makes_no_header_and_no_path(server: WebApp, files: dict[str, OutputFile]) -> None:
    for name in (
        'a"; filename="b.exe',
        "a\r\nSet-Cookie: x=1",
        "../../etc/passwd",
        "\\\\x\\..\\y.txt",
        "图\u202e.txt",
    ):
        answer = get(server, files["a.txt"], name)
        assert answer.status_code == 200
        assert "Set-Cookie" not in answer.headers
        disposition = answer.headers["Content-Disposition"]
        assert disposition.count('"') == 2
        assert "/" not in disposition
        assert ".." not in disposition
    assert (
        "filename*=UTF-8''%E5%9B%BE%201.png" in get(server, files["图 1.png"]).headers["Content-Disposition"]
    )
    assert len(get(server, files["a.txt"], "x" * 5000).headers["Content-Disposition"]) < 500


def test_a_run_page_allows_no_script_and_leads_to_its_files_below_any_prefix(
    server: WebApp, one: Run, files: dict[str, OutputFile]
) -> None:
    answer = client(server).get(f"/runs/{one.key}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith(
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-src 'self'"
    )
    assert "script-src" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for file in files.values():
        assert f"../a/{file.sha256}?name=" in answer.text
    assert "src='/" not in answer.text
    assert "href='/" not in answer.text


@pytest.mark.parametrize(
    "name", ["0" * 64, "x", "A" * 64, "..%2f..%2fetc%2fpasswd", "%2e%2e", "a" * 64 + "%0a"]
)
def test_what_is_not_there_or_no_name_is_a_404(server: WebApp, one: Run, name: str) -> None:
    for path in (f"/a/{name}", f"/runs/{name}"):
        answer = client(server).get(path)
        assert answer.status_code == 404, path
        assert "Traceback" not in answer.text
        assert "kept" not in answer.text
    for path in ("/a/../runs/x", "/a/", "/runs/", "/a", "/a/x/y"):
        assert client(server).get(path).status_code == 404


def test_only_a_login_opens_them(server: WebApp, one: Run, files: dict[str, OutputFile]) -> None:
    paths = [f"/runs/{one.key}", f"/a/{files['a.txt'].sha256}?name=a.txt", "/a/x"]
    viewed = replace(server, logins=Logins(*ADMIN, *VIEWER))
    for path in paths:
        for made, login in (
            (server, None),
            (server, VIEWER),
            (viewed, None),
            (viewed, ("看", "páss")),
            (viewed, ("", "")),
        ):
            answer = client(made, login).get(path)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="draftloop"'
    for path in paths[:2]:
        assert client(server, ADMIN).get(path).status_code == 200
        assert client(viewed, ADMIN).get(path).status_code == 200
        assert client(viewed, VIEWER).get(path).status_code == 200


def test_the_viewers_login_opens_nothing_else(server: WebApp) -> None:
    viewed = client(replace(server, logins=Logins(*ADMIN, *VIEWER)), VIEWER)
    for method, path in (
        *(("get", path) for path in ("/versions", "/metrics", "/runs", "/a", "/a/../metrics", "//a/x")),
        *(("post", path) for path in ("/setup", "/predict", "/webhook")),
    ):
        answer = getattr(viewed, method)(path)
        assert answer.status_code in (401, 404), path
    assert viewed.get("/versions").status_code == 401
    assert viewed.get("/metrics").status_code == 401


def test_without_a_login_everything_is_open_on_this_machine(
    server: WebApp, files: dict[str, OutputFile]
) -> None:
    path = f"/a/{files['a.txt'].sha256}?name=a.txt"
    free = client(replace(server, logins=Logins()), None)
    assert free.get(path).status_code == 200
    assert free.get(path, environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 403


def test_only_reading_is_possible(server: WebApp, one: Run) -> None:
    for path in (f"/runs/{one.key}", f"/a/{'0' * 64}"):
        for method in ("post", "put", "delete", "patch"):
            assert getattr(client(server), method)(path).status_code == 405
    answer = client(server).head(f"/runs/{one.key}")
    assert (answer.status_code, answer.data) == (200, b"")


def test_a_failing_store_is_a_503_and_named_in_the_log_only(
    server: WebApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no-folder").write_text("x")
    failing = client(replace(server, artifacts=Artifacts(f"{tmp_path}/no-folder")))
    for path in (f"/a/{'0' * 64}", f"/runs/{'0' * 64}"):
        answer = failing.get(path)
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text
    assert capsys.readouterr().out.count("no-folder") == 2


def test_a_viewer_without_a_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND_VIEWER_USER", "view")
    with pytest.raises(SetupError, match="BACKEND_VIEWER_USER is set without BACKEND_VIEWER_PASSWORD"):
        make_web_app(Settings())


class Signing(Artifacts):
    """A folder that signs addresses, as S3 does; what S3 itself signs is tested with the store."""

    def address(self, sha256: str, media_type: str, name: str, seconds: int) -> str | None:
        return f"https://store.example/{sha256}?type={media_type}&name={name}&seconds={seconds}"


def test_downloads_come_from_a_store_that_signs_and_what_a_browser_shows_does_not(
    server: WebApp, files: dict[str, OutputFile], store: Artifacts
) -> None:
    signing = replace(server, artifacts=Signing(store.url))
    for name, file in files.items():
        answer = get(signing, file)
        if name.endswith(".html"):
            assert ours(answer)
            answer = get(signing, file, headers=FRAME, how="script")
        if name.endswith((".html", ".svg")) or name == "图 1.png":
            assert answer.status_code == 200
            assert answer.data == CONTENTS[name]
            assert "sandbox" in answer.headers["Content-Security-Policy"]
        else:
            assert answer.status_code == 302
            assert answer.headers["Location"].startswith(f"https://store.example/{file.sha256}")
            assert answer.headers["Cache-Control"] == "no-store"
    assert client(signing).get(f"/a/{'0' * 64}?name=a.csv").status_code == 404
    assert client(signing, None).get(f"/a/{files['a.csv'].sha256}?name=a.csv").status_code == 401


class Counting(Artifacts):
    """A folder that notes what is still open."""

    opened: list[BinaryIO]

    def open(self, sha256: str) -> BinaryIO:
        stream = super().open(sha256)
        self.opened.append(stream)
        return stream


def test_every_file_that_is_opened_is_closed(
    server: WebApp, files: dict[str, OutputFile], store: Artifacts
) -> None:
    counting = Counting(store.url)
    counting.opened = []
    asked = client(replace(server, artifacts=counting))
    for file in files.values():
        asked.get(f"/a/{file.sha256}?name={file.path}").close()
        asked.head(f"/a/{file.sha256}?name={file.path}").close()
    assert len(counting.opened) >= 2 * len(files)
    assert all(stream.closed for stream in counting.opened)
