"""A run: the whole story of the code of one task, from the first draft to the attempt that counts.

Knows which code with which inputs a run belongs to. Does not know how code is executed (`execution`),
where files are kept or what a page shows of it.

A run is found by its key, the hash of the final script and its inputs: whoever submits code, however
edited, carries the run of exactly that code or none.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from backend.core.execution import Attempt, Script, attempt_from_json
from backend.errors import TaskError

# Keys of the data of a code task: given by the import, ...
INSTRUCTION_KEY = "instruction"  # what is wanted
INPUTS_KEY = "inputs"  # list of InputFile as JSON
PREVIEW_KEY = "input_preview"  # HTML of what the files hold, for the page
SCHEMA_KEY = "input_schema"  # the same as plain text, for the prompt
OUTPUTS_KEY = "output_files"  # names of files that the code must leave; may be missing
# ... and by whoever ran the code; all there at import, empty.
RUN_KEY = "run"  # the key of the run that the page shows
RUN_STATUS_KEY = "run_status"  # HTML: how it ended, and the way to the run page
RUN_OUTPUT_KEY = "run_output"  # HTML: what it printed
RUN_CHARTS_KEY = "run_charts"  # list of addresses of pictures
RUN_FILES_KEY = "run_files"  # HTML: links to the files
NO_RUN: Mapping[str, Any] = {
    RUN_KEY: "",
    RUN_STATUS_KEY: "",
    RUN_OUTPUT_KEY: "",
    RUN_CHARTS_KEY: [],
    RUN_FILES_KEY: "",
}

Origin = Literal["draft", "human", "gate"]


@dataclass(frozen=True)
class InputFile:
    """A file that code reads as `input/<name>`: its path relative to the input root, size, SHA-256 in hex."""

    name: str
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Run:
    """The attempts at one task's code, in order; the last one is that of the final script.

    `origin` tells who had the final script run: the draft's loop, a human in the page, or a gate.
    `at` is the time of its end, ISO 8601 in UTC; `version` that of the draft, empty for a human's code.
    """

    key: str
    instruction: str
    inputs: tuple[InputFile, ...]
    attempts: tuple[Attempt, ...]
    origin: Origin
    at: str
    version: str = ""

    @property
    def last(self) -> Attempt:
        """The attempt that counts."""
        return self.attempts[-1]

    @property
    def script(self) -> Script:
        """The final script: the last one of the attempt that counts."""
        return self.last.steps[-1].script

    @property
    def ok(self) -> bool:
        """Whether the final script ended well."""
        return self.last.outcome == "ok"


def run_key(scripts: Sequence[Script], inputs: Sequence[InputFile]) -> str:
    """Name the run of scripts on inputs: SHA-256 in hex of code, languages, and names and hashes of inputs.

    Line ends and blanks at the end of a script do not count: a page's text box changes them.
    """
    told = {
        "scripts": [[script.language, _settled(script.code)] for script in scripts],
        "inputs": sorted([file.name, file.sha256] for file in inputs),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def inputs_of(data: Mapping[str, Any]) -> tuple[InputFile, ...]:
    """Read the input files from task data; none where the task has no such key.

    Raises:
        TaskError: They are not as `import_tasks` writes them.
    """
    try:
        return tuple(InputFile(**file) for file in data.get(INPUTS_KEY) or ())
    except TypeError as error:
        raise TaskError(
            f"The task's {INPUTS_KEY!r} is not a list of input files.",
            hint="Import code tasks with scripts/import_tasks, which makes it.",
        ) from error


def run_to_json(run: Run) -> dict[str, Any]:
    """Give a run as JSON."""
    return asdict(run)


def run_from_json(given: Mapping[str, Any]) -> Run:
    """Read what `run_to_json` gave."""
    return Run(
        **{
            **given,
            "inputs": tuple(InputFile(**file) for file in given["inputs"]),
            "attempts": tuple(attempt_from_json(attempt) for attempt in given["attempts"]),
        }
    )


def _settled(code: str) -> str:
    return "\n".join(line.rstrip() for line in code.splitlines()).strip()
