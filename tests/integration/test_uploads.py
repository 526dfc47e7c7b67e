"""Real Label Studio serves what it is given once, from its own origin and behind its login."""

import json
from collections.abc import Iterator

import httpx
import pytest

from draftloop.execution.file_kinds import Kind
from draftloop.execution.uploads import _EARLIER_WORDS, _TITLES, TITLE, Uploads
from draftloop.labelstudio import LabelStudio
from tests.code_runs import png, sha256
from tests.conftest import LabelStudioServer

SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><g><text>\xe5\x9b\xbe</text></g></svg>"
CONTENTS: list[tuple[Kind, bytes, str]] = [
    ("png", png(7, 5), "image/png"),
    ("jpeg", b"\xff\xd8\xff\xe0" + b"x" * 50, "image/jpeg"),
    ("svg", SVG, "image/svg+xml"),
    ("pdf", b"%PDF-1.7 x", "application/pdf"),
    ("html", "<p>一</p>".encode("gb18030"), "text/html"),
    ("scripted", b"<script>x()</script>", "text/html"),
    ("csv", b"a,b\n", "text/csv"),
    ("json", b"[1, {]", "application/json"),
    ("text", b"\xff\xfe one", "text/plain"),
]


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


def helpers(studio: LabelStudio) -> list[int]:
    listed = studio.send("projects", "GET", "api/projects/", params={"title": TITLE})["results"]
    return [project["id"] for project in listed]


def test_every_kind_is_served_as_it_was_sent_to_whoever_is_logged_in(
    studio: LabelStudio, label_studio: LabelStudioServer
) -> None:
    uploads = Uploads(studio.send, studio.url)
    with label_studio.session() as logged_in, httpx.Client(trust_env=False) as nobody:
        for kind, content, media_type in CONTENTS:
            address = uploads.upload(sha256(content), kind, content)
            assert address.startswith("/data/upload/"), kind
            answer = logged_in.get(address)
            assert (answer.status_code, answer.content) == (200, content), kind
            assert answer.headers["Content-Type"].split(";")[0] == media_type
            assert "sandbox" in answer.headers["Content-Security-Policy"]
            assert nobody.get(f"{label_studio.url}{address}").status_code in (302, 401, 403)


def test_the_same_content_is_uploaded_once_by_whoever(studio: LabelStudio) -> None:
    content = png(11, 3)
    first = Uploads(studio.send, studio.url)
    address = first.upload(sha256(content), "png", content)
    assert first.upload(sha256(content), "png", content) == address
    later = Uploads(studio.send, studio.url)  # of a process that knows nothing
    assert later.upload(sha256(content), "png", content) == address
    (project,) = helpers(studio)
    held = studio.send("uploads", "GET", f"api/projects/{project}/file-uploads", params={"all": "true"})
    assert sum(sha256(content) in upload["file"] for upload in held) == 1
    assert studio.count_tasks(studio.project(project)) == 0
    assert project in studio.project_ids()


def test_the_project_of_uploads_says_what_it_is_wherever_projects_are_listed(studio: LabelStudio) -> None:
    number = Uploads(studio.send, studio.url).prepare()
    assert Uploads(studio.send, studio.url).prepare() == number == min(helpers(studio))
    address = f"api/projects/{number}/"

    def shown() -> tuple[str, str]:
        uploads = studio.send("the project", "GET", address)
        return uploads["description"], uploads["color"]

    def change(**fields: str) -> None:
        studio.send("the project", "PATCH", address, json.dumps(fields).encode())
        assert Uploads(studio.send, studio.url).prepare() == number

    ours = shown()
    assert ours[0].startswith("Nothing to label here.")
    change(title=_TITLES[1], description=_EARLIER_WORDS, color="#FFFFFF")  # as earlier versions made it
    assert shown() == ours
    change(title=TITLE, description="Ours.", color="#FFFFFF")
    assert shown() == ("Ours.", "#FFFFFF"), "what people wrote stays"
