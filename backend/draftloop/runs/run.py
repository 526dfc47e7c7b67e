"""A run: all attempts at the code of one task, from the first draft to the attempt that counts.

Knows which code with which inputs a run belongs to. Does not know how code is executed (`execution`),
where files are kept or what a page shows of it.

A run is stored under its key, the hash of the final script and its inputs: whoever submits code, however
edited, carries the run of exactly that code or none.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from draftloop.errors import TaskError
from draftloop.runs.job import Attempt, Script, attempt_from_json
from draftloop.runs.tracebacks import shorten

# Keys of the data of a code task: given by the import, ...
INSTRUCTION_KEY = "instruction"  # what is wanted
INPUTS_KEY = "inputs"  # list of InputFile as JSON
PREVIEW_KEY = "input_preview"  # HTML of what the files hold, for the page
SCHEMA_KEY = "input_schema"  # the same as plain text, for the prompt
OUTPUTS_KEY = "output_files"  # names of files that the code must leave; may be missing
# ... and by whoever ran the code; all there at import, empty.
RUN_KEY = "run"  # the key of the run that the page shows
RUN_STATUS_KEY = "run_status"  # HTML: how it ended, and the way to the run page
RUN_OUTPUT_KEY = "run_output"  # HTML: what it printed, and its charts
RUN_CHARTS_KEY = "run_charts"  # list of addresses of pictures
RUN_FILES_KEY = "run_files"  # HTML: links to the files
NO_RUN: Mapping[str, Any] = {
    RUN_KEY: "",
    RUN_STATUS_KEY: "",
    RUN_OUTPUT_KEY: "",
    RUN_CHARTS_KEY: [],
    RUN_FILES_KEY: "",
}

MAX_INPUTS = 200  # files of one task, and files that its code must leave; each is a mount in the sandbox
_PATH_BYTES = 4095  # PATH_MAX of Linux
_NAME_BYTES = 255  # NAME_MAX
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Strings of Python that may go on over line ends: with three quotes, or with braces in them (Python 3.12).
_LONG_STRING = re.compile(r"""\'{3}|"{3}|[ft]r?['"]""", re.IGNORECASE)
_ENTRY = {"name", "path", "size_bytes", "sha256"}

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

    `origin` is who had the final script run: the draft's loop, a human in the page, or a gate.
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


# Makes a run's files available to annotators; returns the entries of task data that show it.
Publish = Callable[[Run], Mapping[str, Any]]


def normalize_script(script: Script) -> Script:
    """Return a script as it is run: without line feeds at its end, and with one form of line ends.

    A page's text box changes both. For a shell a carriage return is a character like any other. Blanks at
    the ends of Python's lines go where no string can hold them; other characters stay everywhere, and
    whatever follows a backslash that joins lines.
    """
    code = script.code
    if script.language != "shell":
        code = code.replace("\r\n", "\n").replace("\r", "\n")
    if script.language == "python" and not _LONG_STRING.search(code):
        lines = [line.rstrip(" \t") for line in code.split("\n")]
        if not any(line.endswith("\\") for line in lines):
            code = "\n".join(lines)
    bare = code.rstrip("\n")
    return replace(script, code=code if bare.endswith("\\") else bare)


def run_key(scripts: Sequence[Script], inputs: Sequence[InputFile]) -> str:
    """Name the run of scripts on inputs: SHA-256 in hex of code, languages, and names and hashes of inputs.

    Scripts have one key only where `normalize_script` makes them equal: then the same bytes are run.
    """
    content = {
        "scripts": [[script.language, normalize_script(script).code] for script in scripts],
        "inputs": sorted([file.name, file.sha256] for file in inputs),
    }
    words = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()


def inputs_of(data: Mapping[str, Any]) -> tuple[InputFile, ...]:
    """Read the input files from task data; none where the task has no such key.

    Raises:
        TaskError: They are not as `import_tasks` writes them.
    """
    entries = data.get(INPUTS_KEY)
    if entries is None or entries == "":
        return ()
    if not isinstance(entries, list | tuple):
        raise _no_inputs("is not a list of input files")
    if len(entries) > MAX_INPUTS:
        raise _no_inputs(f"names {len(entries)} files; {MAX_INPUTS} are the limit")
    files = tuple(_input_file(entry, number) for number, entry in enumerate(entries, start=1))
    names = [file.name for file in files]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise _no_inputs(f"has two files named {double!r}")
    return files


def outputs_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the names of the files that the code must leave; none where the task has no such key.

    Raises:
        TaskError: They are no list of names.
    """
    names = data.get(OUTPUTS_KEY)
    if names is None or names == "":
        return ()
    if not isinstance(names, list | tuple) or not all(_is_path(name) and name.strip() for name in names):
        raise TaskError(
            f"The task's {OUTPUTS_KEY!r} is not a list of file names.",
            hint='Write ["report.md"], or leave it out.',
        )
    if len(names) > MAX_INPUTS:
        raise TaskError(
            f"The task's {OUTPUTS_KEY!r} has {len(names)} file names; {MAX_INPUTS} are the limit.",
            hint="Have the code leave fewer files, or one archive.",
        )
    return tuple(name.strip().removeprefix("./") for name in names)


def is_file_name(name: Any) -> bool:
    """Check that a name is one that code can read as `input/<name>`, and that can be shown."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and name.isprintable()
        and len(name.encode()) <= _NAME_BYTES
    )


def is_inner_path(path: Any) -> bool:
    """Check that a path is relative and does not lead out of its folder."""
    if not _is_path(path):
        return False
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return bool(parts) and not path.startswith("/") and ".." not in parts


def missing_outputs(attempt: Attempt, outputs: Sequence[str]) -> tuple[str, ...]:
    """List those of the declared files that an attempt did not leave, or left empty."""
    left = {file.path for file in attempt.files if file.size_bytes}
    return tuple(name for name in outputs if name not in left)


def run_to_json(run: Run) -> dict[str, Any]:
    """Return a run as JSON."""
    return asdict(run)


def run_from_json(given: Mapping[str, Any]) -> Run:
    """Read what `run_to_json` returned; stack traces of runs that an earlier version kept are shortened."""
    return Run(
        **{
            **given,
            "inputs": tuple(InputFile(**file) for file in given["inputs"]),
            "attempts": tuple(_shortened(attempt_from_json(attempt)) for attempt in given["attempts"]),
        }
    )


def _shortened(attempt: Attempt) -> Attempt:
    steps = (
        replace(step, stdout=shorten(step.stdout), stderr=shorten(step.stderr)) for step in attempt.steps
    )
    return replace(attempt, steps=tuple(steps))


def _input_file(entry: Any, number: int) -> InputFile:
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        raise _no_inputs(f"is not a list of input files: see entry {number}")
    size_bytes, sha256 = entry["size_bytes"], entry["sha256"]
    if not is_file_name(entry["name"]):
        raise _no_inputs(f"has no plain file name in entry {number}")
    if not is_inner_path(entry["path"]):
        raise _no_inputs(f"has no relative path in entry {number}")
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or not 0 <= size_bytes < 2**63:
        raise _no_inputs(f"has no size in bytes in entry {number}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _no_inputs(f"has no SHA-256 in entry {number}")
    return InputFile(**entry)


def _is_path(path: Any) -> bool:
    if not isinstance(path, str) or not path or "\0" in path:
        return False
    try:
        return len(path.encode()) <= _PATH_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _no_inputs(words: str) -> TaskError:
    return TaskError(
        f"The task's {INPUTS_KEY!r} {words}.",
        hint="Import code tasks with draftloop import-tasks, which makes it.",
    )
