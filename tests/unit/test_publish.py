"""Runs in tasks: pictures uploaded, everything linked, and no upload that fails costs more than itself."""

import hashlib
import io
from typing import BinaryIO

import pytest

from draftloop.errors import ServiceError, TaskError
from draftloop.execution.file_kinds import Kind
from draftloop.execution.publish import Publisher
from draftloop.runs.job import Attempt, OutputFile, Script, Step
from draftloop.runs.run import NO_RUN, Run

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0h9"/></svg>'
CONTENTS = {"图.svg": SVG, "fake.png": b"MZ no picture", "table.csv": b"a,b\n1,2\n"}
FILES = tuple(
    OutputFile(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in CONTENTS.items()
)
RUN = Run(
    key="ab" * 32,
    instruction="Draw",
    inputs=(),
    attempts=(Attempt("ok", "", (Step(Script("1"), 0, "42\n", "", 0.1),), 0.1, 0.1, 1, FILES),),
    origin="draft",
    at="2026-01-02T03:04:05+00:00",
)


class Kept:
    """Files by hash."""

    def open(self, sha256: str) -> BinaryIO:
        for content in CONTENTS.values():
            if hashlib.sha256(content).hexdigest() == sha256:
                return io.BytesIO(content)
        raise TaskError("There is no such file.")


class Taken:
    """Label Studio's uploads."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.trouble = trouble
        self.kinds: list[Kind] = []

    def upload(self, sha256: str, kind: Kind, content: bytes) -> str:
        if self.trouble is not None:
            raise self.trouble
        assert hashlib.sha256(content).hexdigest() == sha256
        self.kinds.append(kind)
        return f"/data/upload/{sha256[:8]}"


def test_pictures_are_uploaded_and_every_file_is_linked() -> None:
    taken = Taken()
    shown = Publisher(Kept(), taken, "http://drafts:9090/")(RUN)
    assert shown.keys() == NO_RUN.keys()
    assert (shown["run"], shown["run_charts"]) == (RUN.key, [f"/data/upload/{FILES[0].sha256[:8]}"])
    assert taken.kinds == ["svg"], "a name alone makes no picture"
    assert f"http://drafts:9090/runs/{RUN.key}" in shown["run_status"]
    for file in FILES:
        assert f"http://drafts:9090/a/{file.sha256}" in shown["run_files"]
    assert "42" in shown["run_output"]
    assert f'<img src="{shown["run_charts"][0]}" alt="图.svg"' in shown["run_output"]


@pytest.mark.parametrize("taken", [None, Taken(ServiceError("Label Studio stays away."))])
def test_a_picture_that_cannot_be_uploaded_is_a_link(taken: Taken | None) -> None:
    shown = Publisher(Kept(), taken, "http://drafts:9090")(RUN)
    assert shown["run_charts"] == []
    assert "<img" not in shown["run_output"]
    assert FILES[0].sha256 in shown["run_files"]
