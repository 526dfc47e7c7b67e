"""A job for the sandbox and its result, as both sides exchange them.

Knows the limits and how to say them in words. Does not know how code is contained: `sandbox/` does that
in a process and an environment of its own, `execution/sandbox.py` talks to it. Code that
fails is a value here, never an exception.

    SandboxJob   scripts that run one after another in one fresh folder, with inputs, within limits
    Attempt      its result: every script's output, the files it left, what was cut or refused
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from draftloop.errors import SetupError, TaskError

Language = Literal["python", "javascript", "shell"]
RunOutcome = Literal["ok", "failed", "timeout", "killed"]
Layer = Literal["namespaces", "pool-uid", "landlock", "seccomp", "rlimits"]
SandboxProfile = Literal["plain", "browser"]

LANGUAGES: tuple[Language, ...] = get_args(Language)
INPUT_FOLDER = "input"
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much one job may use. Counts and sizes are totals over all its processes unless said otherwise."""

    wall_s: float = 60
    cpu_s: int = 60
    memory_bytes: int = 2048 * MIB
    processes: int = 64
    file_bytes: int = 256 * MIB  # of one file
    disk_bytes: int = 512 * MIB
    files: int = 1000  # files and folders together
    output_bytes: int = 1 * MIB  # kept of each stream of each script

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) <= 0:
                raise SetupError(
                    f"The limit {limit.name} is {getattr(self, limit.name)}.", hint="Use a positive number."
                )

    def describe(self) -> str:
        """Return the limits in words, for a model's prompt and for a human."""
        return (
            f"A run may take {seconds(self.wall_s)} and {seconds(self.cpu_s)} of processor time, "
            f"use {size(self.memory_bytes)} of memory and {self.processes} processes, "
            f"and write {self.files} files of at most {size(self.file_bytes)} each, "
            f"{size(self.disk_bytes)} together. "
            f"Of what a script prints, {size(self.output_bytes)} are kept. There is no network. "
            f"Input files are read-only, as `{INPUT_FOLDER}/<name>`; read large ones in chunks. "
            f"Files written to the current folder are kept."
        )


@dataclass(frozen=True)
class Script:
    """One complete program."""

    code: str
    language: Language = "python"


@dataclass(frozen=True)
class SandboxJob:
    """Scripts to run one after another in one fresh folder; the first that fails ends the job.

    `inputs` maps the name under `input/` to the absolute path of the file, which must lie under one of
    the sandbox's input folders. A cold job starts Python anew instead of forking the pre-imported one.
    The profile "browser" denies less, so that Chromium runs; a sandbox has it only where it was asked to.
    """

    scripts: tuple[Script, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    cold: bool = False
    profile: SandboxProfile = "plain"

    def __post_init__(self) -> None:
        if not self.scripts:
            raise TaskError("The job has no script.", hint="Give it at least one.")
        for script in self.scripts:
            if script.language not in LANGUAGES:
                raise TaskError(
                    f"The sandbox does not run {script.language!r}.", hint=f"It runs {', '.join(LANGUAGES)}."
                )
        for name, path in self.inputs.items():
            if name in {"", ".", ".."} or "/" in name or not name.isprintable() or len(name.encode()) > 255:
                raise TaskError(f"Input name {name!r} is no plain file name.", hint="Rename it in the task.")
            if not path.startswith("/") or "\0" in path:
                raise TaskError(f"Input {name!r} has the path {path!r}.", hint="Give an absolute path.")


@dataclass(frozen=True)
class Step:
    """The result of one script. `exit_status` is negative where a signal ended it, as in `subprocess`."""

    script: Script
    exit_status: int
    stdout: str
    stderr: str
    wall_s: float
    stdout_cut_bytes: int = 0
    stderr_cut_bytes: int = 0


@dataclass(frozen=True)
class OutputFile:
    """A regular file that the code left: path relative to its folder, size, and SHA-256 in hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Refused:
    """A file that the code left and that is not collected, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Attempt:
    """The result of a job: one step for each script that was started, in order.

    `reason` says in words why it did not end well, empty where it did. `files` are sorted by path;
    `notes` say in words what was cut or left out.
    """

    outcome: RunOutcome
    reason: str
    steps: tuple[Step, ...]
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    files: tuple[OutputFile, ...] = ()
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def stdout(self) -> str:
        """What all scripts printed, one after another."""
        return "".join(step.stdout for step in self.steps)

    @property
    def stderr(self) -> str:
        """What all scripts printed to standard error, one after another."""
        return "".join(step.stderr for step in self.steps)

    @property
    def exit_status(self) -> int:
        """The exit status of the last script that was started."""
        return self.steps[-1].exit_status if self.steps else -1


@dataclass(frozen=True)
class Package:
    """A package that code in the sandbox can import, or a program that it can start."""

    name: str
    version: str


@dataclass(frozen=True)
class SandboxReport:
    """What a running sandbox says of itself, measured at its start.

    `layers` are those in force; `covers` and `gaps` say in words what that means.
    """

    layers: tuple[Layer, ...]
    landlock_abi: int
    languages: tuple[Language, ...]
    programs: tuple[Package, ...]
    packages: tuple[Package, ...]
    covers: tuple[str, ...]
    gaps: tuple[str, ...]
    profiles: tuple[SandboxProfile, ...] = ("plain",)


def seconds(duration_s: float) -> str:
    """Format a duration: "1.5 s"."""
    return f"{duration_s:g} s" if duration_s < 10 else f"{duration_s:.0f} s"


def size(size_bytes: float) -> str:
    """Format a size: "1.5 GB", in powers of 1024."""
    for unit in ("bytes", "KB", "MB"):
        if size_bytes < 1024:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} GB"


def job_to_json(job: SandboxJob) -> dict[str, Any]:
    """Return a job as JSON."""
    return {**asdict(job), "inputs": dict(job.inputs)}


def job_from_json(given: Mapping[str, Any]) -> SandboxJob:
    """Read what `job_to_json` returned."""
    return SandboxJob(
        scripts=tuple(Script(**script) for script in given["scripts"]),
        inputs=dict(given["inputs"]),
        limits=Limits(**given["limits"]),
        cold=given["cold"],
        profile=given["profile"],
    )


def attempt_to_json(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt as JSON."""
    return asdict(attempt)


def attempt_from_json(given: Mapping[str, Any]) -> Attempt:
    """Read what `attempt_to_json` returned."""
    return Attempt(
        **{
            **given,
            "steps": tuple(Step(**{**step, "script": Script(**step["script"])}) for step in given["steps"]),
            "files": tuple(OutputFile(**file) for file in given["files"]),
            "refused": tuple(Refused(**refused) for refused in given["refused"]),
            "notes": tuple(given["notes"]),
        }
    )


def report_to_json(report: SandboxReport) -> dict[str, Any]:
    """Return a report as JSON."""
    return asdict(report)


def report_from_json(given: Mapping[str, Any]) -> SandboxReport:
    """Read what `report_to_json` returned."""
    return SandboxReport(
        layers=tuple(given["layers"]),
        landlock_abi=given["landlock_abi"],
        languages=tuple(given["languages"]),
        programs=tuple(Package(**package) for package in given["programs"]),
        packages=tuple(Package(**package) for package in given["packages"]),
        covers=tuple(given["covers"]),
        gaps=tuple(given["gaps"]),
        profiles=tuple(given["profiles"]),
    )
