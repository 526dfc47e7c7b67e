"""Rows of code tasks: their input files are looked up, hashed and previewed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from draftloop.errors import SetupError, TaskError
from draftloop.execution.heads import look
from draftloop.execution.inputs import find_input
from draftloop.execution.preview import to_html, to_text
from draftloop.importing.rows import Row
from draftloop.runs.run import (
    INPUTS_KEY,
    NO_RUN,
    OUTPUTS_KEY,
    PREVIEW_KEY,
    SCHEMA_KEY,
    InputFile,
)


class CodeTasks:
    """Turns rows into data of code tasks; reads a file once that many rows name.

    expected   whether the project has code tasks: its config shows input files or parts of a run
    """

    def __init__(self, label_config: str, root: Path | None, project: int = 0) -> None:
        self.expected = any(f'"${key}"' in label_config for key in (PREVIEW_KEY, *NO_RUN))
        self._root = root
        self._project = project
        self._known: dict[str, tuple[InputFile, str, str]] = {}

    def fill(self, row: Row) -> Row:
        """Return a row with its input files described and empty keys for its runs; else the row itself.

        Raises:
            TaskError: A file does not exist or may not be read, or a key is not a list of paths.
            SetupError: Files are named and there is no input root.
        """
        if not self.expected:
            return row
        seen = [self._look(path) for path in _paths(row, INPUTS_KEY)]
        names = [file.name for file, _, _ in seen]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise TaskError(f"Two inputs are called {double!r}.", hint="Code could read only one: rename it.")
        outputs = _paths(row, OUTPUTS_KEY)
        for path in outputs:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise TaskError(
                    f"Output {path!r} lies outside of the run's folder.", hint="Name it relative to that."
                )
        return {
            **row,
            INPUTS_KEY: [asdict(file) for file, _, _ in seen],
            PREVIEW_KEY: "".join(html for _, _, html in seen),
            SCHEMA_KEY: "\n\n".join(text for _, text, _ in seen),
            **({OUTPUTS_KEY: outputs} if OUTPUTS_KEY in row else {}),
            **NO_RUN,
        }

    def _look(self, path: str) -> tuple[InputFile, str, str]:
        if self._root is None:
            raise SetupError(
                f"A row names the input file {path!r}, and there is no input root.",
                hint="Say where the files are with --input-root or INPUT_ROOT.",
            )
        if path not in self._known:
            file, real = find_input(self._root, path, self._project)
            head = look(real, file.name)
            self._known[path] = (file, to_text(head), to_html(head))
        return self._known[path]


def _paths(row: Mapping[str, Any], key: str) -> list[str]:
    """Read a list of paths: strings, a cell of a CSV, or files as an exported task has them."""
    given = row.get(key) or []
    if isinstance(given, str):
        given = [part.strip() for part in given.split(";") if part.strip()]
    if not isinstance(given, list):
        raise TaskError(f"{key!r} is not a list of paths.", hint='Write ["sales.csv"].')
    paths = [file.get("path") if isinstance(file, dict) else file for file in given]
    if not all(isinstance(path, str) and path.strip() for path in paths):
        raise TaskError(f"{key!r} holds something that is no path.", hint='Write ["sales.csv"].')
    return [str(path) for path in paths]
