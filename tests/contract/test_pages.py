"""What browsers open of runs: who may, as what, and that nothing in it can reach out of its box."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from flask.testing import FlaskClient

from backend.answers import Answers
from backend.app import make_server
from backend.core.execution import OutputFile
from backend.core.runs import Run
from backend.edge.artifacts import Artifacts
from backend.edge.cases import Cases
from backend.edge.ledger import Ledger
from backend.edge.metrics import Metrics
from backend.edge.vllm import VllmModel
from backend.errors import SetupError
from backend.predict import Drafter
from backend.protocol import Server
from backend.settings import Settings
from scripts.servers import ROOT
from tests.code_runs import attempt, png, run, write

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>x()</script></svg>"
CONTENTS = {
    "图 1.png": png(),
    "broken.png": png()[:-9],
    "a.svg": SVG,
    "plot.html": b"<div><script>Plotly()</script></div>",
    "table.html": "<table><tr><td>一</table>".encode(),
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
def server(store: Artifacts, tmp_path: Path) -> Iterator[Server]:
    with VllmModel("http://127.0.0.1:9/v1", "nobody") as model:
        drafter = Drafter(model, profile="compact", temperature=0)
        cases, ledger = Cases(ROOT / "label_config"), Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
        answers = Answers(drafter, ledger, cases.find, None, deadline_s=5, metrics=Metrics())
        yield Server(drafter, cases, ledger, answers, *ADMIN, artifacts=store)
        drafter.close()


def client(server: Server, login: tuple[str, str] | None = ADMIN) -> FlaskClient:
    made = server.wsgi().test_client()
    if login:
        given = base64.b64encode(":".join(login).encode()).decode()
        made.environ_base["HTTP_AUTHORIZATION"] = f"Basic {given}"
    return made


def get(server: Server, file: OutputFile, name: str | None = None) -> Any:
    return client(server).get(f"/a/{file.sha256}", query_string={"name": file.path if name is None else name})


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
        ("plot.html", "text/html; charset=utf-8", "inline", SCRIPTED),
        ("table.html", "text/html; charset=utf-8", "inline", STILL),
        ("old.html", "text/html", "inline", STILL),
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
    server: Server, files: dict[str, OutputFile], name: str, media_type: str, how: str, policy: str
) -> None:
    answer = get(server, files[name])
    assert answer.status_code == 200
    assert answer.data == CONTENTS[name]
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Content-Length"] == str(len(CONTENTS[name]))
    assert answer.headers["Content-Disposition"].startswith(f"{how}; filename=")
    assert answer.headers["Content-Security-Policy"] == policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "private" in answer.headers["Cache-Control"]


def test_a_name_makes_nothing_of_bytes_that_they_are_not(
    server: Server, files: dict[str, OutputFile]
) -> None:
    for name in ("x.png", "x.svg", "x.pdf"):
        assert get(server, files["plot.html"], name).headers["Content-Type"] == "application/octet-stream"
    assert get(server, files["plot.html"], "").headers["Content-Type"] == "application/octet-stream"
    assert get(server, files["plot.html"], "x.txt").headers["Content-Type"].startswith("text/plain")


def test_a_hostile_name_makes_no_header_and_no_path(server: Server, files: dict[str, OutputFile]) -> None:
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
        told = answer.headers["Content-Disposition"]
        assert told.count('"') == 2
        assert "/" not in told
        assert ".." not in told
    assert (
        "filename*=UTF-8''%E5%9B%BE%201.png" in get(server, files["图 1.png"]).headers["Content-Disposition"]
    )
    assert len(get(server, files["a.txt"], "x" * 5000).headers["Content-Disposition"]) < 500


def test_a_run_page_allows_no_script_and_leads_to_its_files_below_any_prefix(
    server: Server, one: Run, files: dict[str, OutputFile]
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
def test_what_is_not_there_or_no_name_is_a_404(server: Server, one: Run, name: str) -> None:
    for path in (f"/a/{name}", f"/runs/{name}"):
        answer = client(server).get(path)
        assert answer.status_code == 404, path
        assert "Traceback" not in answer.text
        assert "kept" not in answer.text
    for path in ("/a/../runs/x", "/a/", "/runs/", "/a", "/a/x/y"):
        assert client(server).get(path).status_code == 404


def test_only_a_login_opens_them(server: Server, one: Run, files: dict[str, OutputFile]) -> None:
    paths = [f"/runs/{one.key}", f"/a/{files['a.txt'].sha256}?name=a.txt", "/a/x"]
    viewed = replace(server, viewer_user=VIEWER[0], viewer_password=VIEWER[1])
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


def test_the_viewers_login_opens_nothing_else(server: Server) -> None:
    viewed = client(replace(server, viewer_user=VIEWER[0], viewer_password=VIEWER[1]), VIEWER)
    for method, path in (
        *(("get", path) for path in ("/versions", "/metrics", "/runs", "/a", "/a/../metrics", "//a/x")),
        *(("post", path) for path in ("/setup", "/predict", "/webhook")),
    ):
        answer = getattr(viewed, method)(path)
        assert answer.status_code in (401, 404), path
    assert viewed.get("/versions").status_code == 401
    assert viewed.get("/metrics").status_code == 401


def test_without_a_login_of_its_own_a_backend_asks_viewers_only(
    server: Server, files: dict[str, OutputFile]
) -> None:
    path = f"/a/{files['a.txt'].sha256}?name=a.txt"
    free = replace(server, user="", password="")
    assert client(free, None).get(path).status_code == 200
    viewed = replace(free, viewer_user=VIEWER[0], viewer_password=VIEWER[1])
    assert client(viewed, None).get(path).status_code == 401
    assert client(viewed, VIEWER).get(path).status_code == 200
    assert client(viewed, None).get("/versions").status_code == 200


def test_only_reading_is_possible(server: Server, one: Run) -> None:
    for path in (f"/runs/{one.key}", f"/a/{'0' * 64}"):
        for method in ("post", "put", "delete", "patch"):
            assert getattr(client(server), method)(path).status_code == 405
    answer = client(server).head(f"/runs/{one.key}")
    assert (answer.status_code, answer.data) == (200, b"")


def test_a_store_that_fails_is_a_503_and_told_in_the_log_alone(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    with pytest.raises(SetupError, match="has no password"):
        make_server(Settings())


class Signing(Artifacts):
    """A folder that signs addresses, as S3 does; what S3 itself signs is tested with the store."""

    def address(self, sha256: str, media_type: str, name: str, seconds: int) -> str | None:
        return f"https://store.example/{sha256}?type={media_type}&name={name}&seconds={seconds}"


def test_downloads_come_from_a_store_that_signs_and_what_a_browser_shows_does_not(
    server: Server, files: dict[str, OutputFile], store: Artifacts
) -> None:
    signing = replace(server, artifacts=Signing(store.url))
    for name, file in files.items():
        answer = get(signing, file)
        if name in ("图 1.png", "a.svg", "plot.html", "table.html", "old.html"):
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
    server: Server, files: dict[str, OutputFile], store: Artifacts
) -> None:
    counting = Counting(store.url)
    counting.opened = []
    asked = client(replace(server, artifacts=counting))
    for file in files.values():
        asked.get(f"/a/{file.sha256}?name={file.path}").close()
        asked.head(f"/a/{file.sha256}?name={file.path}").close()
    assert len(counting.opened) >= 2 * len(files)
    assert all(stream.closed for stream in counting.opened)
