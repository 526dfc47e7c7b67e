"""What Label Studio does not show is never sent there."""

from typing import Any

import pytest

from draftloop.errors import TaskError
from draftloop.execution.file_kinds import MEDIA_TYPES
from draftloop.execution.uploads import _ENDINGS, TITLE, Uploads
from tests.code_runs import sha256


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was sent")


def test_a_kind_that_label_studio_does_not_serve_is_refused() -> None:
    uploads = Uploads(never, "http://127.0.0.1:8080")
    with pytest.raises(TaskError, match="no file of kind 'other'"):
        uploads.upload(sha256(b"x"), "other", b"x")
    with pytest.raises(TaskError):
        uploads.upload("../x", "png", b"x")


def test_every_kind_that_is_shown_has_an_ending_and_the_title_fits() -> None:
    assert set(_ENDINGS) == set(MEDIA_TYPES) - {"other"}
    assert len(TITLE) <= 50
