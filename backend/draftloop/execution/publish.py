"""Shows runs in tasks: pictures are uploaded to Label Studio, other files are links to the backend.

Knows which entries of task data show a run. Does not know how files are kept or uploaded.
"""

import html
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import structlog

from draftloop.errors import DraftloopError
from draftloop.execution.file_kinds import PICTURES, Kind, kind_of, named_kind, wanted_bytes
from draftloop.execution.pictures import is_readable_picture
from draftloop.execution.run_page import file_address, run_address, task_fields
from draftloop.runs.job import OutputFile
from draftloop.runs.run import RUN_OUTPUT_KEY, Run

_log = structlog.get_logger("backend")

_CHARTS = 20  # shown in a task; all are on the run's page


class FileReader(Protocol):
    """Where files of runs are kept."""

    def open(self, sha256: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            TaskError: There is none.
            ServiceError: The store did not do its part.
        """
        ...


class PictureUploader(Protocol):
    """The part of Label Studio that stores and serves files."""

    def upload(self, sha256: str, kind: Kind, content: bytes) -> str:
        """Upload a file; return its address.

        Raises:
            DraftloopError: It does not.
        """
        ...


class Publisher:
    """Shows runs in tasks. Safe to call from several threads."""

    def __init__(self, files: FileReader, uploads: PictureUploader | None, base: str) -> None:
        """Prepare.

        Args:
            files: Where files of runs are kept.
            uploads: Takes pictures; None shows them on the run's page alone.
            base: Address of the backend, as annotators' browsers reach it.
        """
        self._files = files
        self._uploads = uploads
        self._base = base

    def __call__(self, run: Run) -> dict[str, Any]:
        """Return the entries of task data that show a run; a picture that is not uploaded is a link alone."""
        links = {file.path: file_address(self._base, file) for file in run.last.files}
        charts = dict(self._charts(run))
        shown = task_fields(
            run, links, run_url=run_address(self._base, run.key), charts=list(charts.values())
        )
        # Label Studio's <Image> breaks the whole page where a task has no picture, and most runs leave none.
        shown[RUN_OUTPUT_KEY] += "".join(_picture(path, address) for path, address in charts.items())
        return shown

    def _charts(self, run: Run) -> Iterator[tuple[str, str]]:
        pictures = [file for file in run.last.files if named_kind(file.path) in PICTURES]
        for file in pictures[:_CHARTS] if self._uploads else ():
            try:
                address = self._uploaded(file)
            except DraftloopError as error:
                _log.warning("chart not uploaded", run=run.key, error=str(error))
                continue
            if address:
                yield file.path, address

    def _uploaded(self, file: OutputFile) -> str:
        if file.size_bytes > wanted_bytes(file.path) or self._uploads is None:
            return ""
        with self._files.open(file.sha256) as stream:
            content = stream.read()
        kind = kind_of(file.path, content, file.size_bytes, is_readable_picture)
        return self._uploads.upload(file.sha256, kind, content) if kind in PICTURES else ""


def _picture(path: str, address: str) -> str:
    source, words = html.escape(address), html.escape(path.encode(errors="replace").decode())
    return f'<p><img src="{source}" alt="{words}" style="max-width: 100%"></p>'
