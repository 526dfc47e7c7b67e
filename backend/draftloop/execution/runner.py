"""Code of tasks, run: a conversation that mends a draft's script, or one attempt at somebody's final code.

Knows how attempts become a run, and how an attempt is described to a model. Does not know tasks, models or
Label Studio: the model's answers, the conversation loop, the sandbox and the store are passed in. Code that
fails is a value; a sandbox or a loop that fails is an error. Of a run's files only those in the store stay.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog

from draftloop.errors import ServiceError, SetupError
from draftloop.execution.inputs import InputRoot, Verified
from draftloop.execution.interpreter import InterpreterAnswer
from draftloop.execution.sandbox import own_prefix
from draftloop.prompting.prompt import Message
from draftloop.runs.job import Attempt, Limits, OutputFile, SandboxJob, SandboxReport, Script
from draftloop.runs.run import InputFile, Origin, Run, missing_outputs, normalize_script, run_key

_log = structlog.get_logger("backend")

_SHOWN_CHARS = 2000  # of each stream, its end: there stands why a program failed
_SHOWN_LINES = 10  # of notes, refused files and missing ones, each
_LOOP_S = 30  # what the loop itself may take besides what it waits for
_DONE = "Done."

# Gets the conversation since the first script: scripts and what came of them. None ends it.
AskAgain = Callable[[Sequence[Message]], Script | None]


class Sandbox(Protocol):
    """Contains and runs code; started when it is needed, and anew after it ended."""

    @property
    def report(self) -> SandboxReport:
        """What is in force and what is installed.

        Raises:
            SetupError: Code cannot be contained here.
            ServiceError: It did not start.
        """
        ...

    def run(self, job: SandboxJob, outputs: str, *, cancelled: threading.Event | None = None) -> Attempt:
        """Run a job and wait for its end; files go to an existing folder.

        Raises:
            TaskError: The job cannot be started.
            SetupError: Code cannot be contained here.
            ServiceError: The sandbox did not do its part.
        """
        ...

    def check(self) -> None:
        """Raise SetupError or ServiceError where a sandbox that ran code no longer does; return at once."""
        ...


class Loop(Protocol):
    """Leads conversations: Open Interpreter."""

    def converse(
        self,
        request: str,
        *,
        ask: Callable[[Sequence[Message]], InterpreterAnswer],
        run: Callable[[str], str],
        limit_s: float,
    ) -> list[Message]:
        """Ask, run the script, ask again with its output, until an answer has none."""
        ...


class RunStore(Protocol):
    """Keeps runs and their files."""

    def keep(self, folder: Path, files: Sequence[OutputFile]) -> None:
        """Keep files that stand in a folder, by their content."""
        ...

    def put_run(self, run: Run) -> None:
        """Keep a run under its key."""
        ...

    def run(self, key: str) -> Run | None:
        """Return the run of a key."""
        ...


class _Stop(threading.Event):
    """Set at a deadline, or when somebody else's event is."""

    def __init__(self, ends: float, cancelled: threading.Event | None) -> None:
        super().__init__()
        self._ends = ends
        self._cancelled = cancelled

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._ends

    def is_set(self) -> bool:
        """Return whether to stop."""
        return self.late or (self._cancelled is not None and self._cancelled.is_set())


class Runner:
    """Runs code of tasks. Safe to call from several threads."""

    def __init__(
        self,
        sandbox: Sandbox,
        loop: Loop,
        store: RunStore,
        *,
        inputs_root: Path,
        limits: Limits | None = None,
        turns: int = 3,
        total_s: float = 180.0,
        folder: Path | None = None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            sandbox: Contains and runs code.
            loop: Leads the conversations of drafts.
            store: Keeps runs and files.
            inputs_root: Folder below which the input files of projects are.
            limits: Of one attempt.
            turns: Scripts that are run for one draft, at most.
            total_s: Time for one draft's conversation, runs and questions to the model together.
            folder: Where files of a run are until they are kept; the system's temporary folder by default.
        """
        self._sandbox = sandbox
        self._loop = loop
        self._store = store
        self._inputs = InputRoot(inputs_root)
        self._limits = limits or Limits()
        self._turns = turns
        self._total_s = total_s
        self._folder = folder
        self._trouble = ""

    @property
    def limits(self) -> Limits:
        """Those of one attempt."""
        return self._limits

    @property
    def report(self) -> SandboxReport:
        """What the sandbox says of itself.

        Raises:
            SetupError: Code cannot be contained here.
            ServiceError: It did not start.
        """
        return self._sandbox.report

    def check(self) -> None:
        """Check that code can still be run, where it could; return at once.

        Raises:
            SetupError: The sandbox does not contain code any more.
            ServiceError: It met a fault and is being started again.
        """
        self._sandbox.check()

    def describe(self) -> str:
        """Describe where code runs, for a model's prompt: limits, languages, packages; empty where it cannot.

        The words are the same until the sandbox's environment or its limits change.
        """
        try:
            report = self._sandbox.report
        except (SetupError, ServiceError) as error:
            if error.message != self._trouble:  # it is asked for often
                _log.warning("no sandbox: code is not run", error=error.message, hint=error.hint)
            self._trouble = error.message
            return ""
        programs, packages = (
            ", ".join(f"{one.name} {one.version}" for one in listed)
            for listed in (report.programs, report.packages)
        )
        return f"{self._limits.describe()}\nPrograms: {programs}.\nPython packages: {packages}."

    def parts(self) -> dict[str, Any]:
        """Return what the result of code depends on, for manifests."""
        return {
            "limits": asdict(self._limits),
            "turns": self._turns,
            "total_s": self._total_s,
            "environment": self.describe(),
        }

    def stored(self, key: str) -> Run | None:
        """Return the run of a key, None where there is none, or the store does not answer."""
        try:
            return self._store.run(key)
        except ServiceError as error:
            _log.warning("run not read", key=key, error=str(error))
            return None

    def draft(  # noqa: PLR0913  one each of what a run is made of
        self,
        instruction: str,
        inputs: Sequence[InputFile],
        outputs: Sequence[str],
        first: Script,
        ask_again: AskAgain,
        *,
        limit_s: float,
        project: int = 0,
        version: str = "",
        cancelled: threading.Event | None = None,
    ) -> Run:
        """Run a draft's script; as long as it does not end well, ask for a better one and run that.

        An attempt that ended well and left every declared file is the last one: the model is not asked again.

        Args:
            instruction: What the task wants.
            inputs: Its files.
            outputs: Names of files that must be left, not empty.
            first: The script of the draft.
            ask_again: Asks the model for another script; None ends the conversation.
            limit_s: Time for all of it; a script that runs then is ended.
            project: That of the task, whose input files it may read; 0 reads shared ones alone.
            version: That of the draft.
            cancelled: Ends it when set.
        Returns:
            The run, with at least one attempt; it is stored.
        Raises:
            TaskError: An input is missing, or not what it was.
            SetupError: Code cannot be contained here, or the loop is not installed; nothing was run.
            ServiceError: Sandbox, loop or store did not do their part.
        """
        stop = _Stop(time.monotonic() + min(limit_s, self._total_s), cancelled)
        # Check what can be checked before the conversation begins: one that breaks off costs its process.
        files = self._verified(inputs, project)
        _ = self._sandbox.report
        attempts: list[Attempt] = []
        script = first

        def ask(messages: Sequence[Message]) -> InterpreterAnswer:
            nonlocal script
            if not attempts:
                return InterpreterAnswer("", script.code)
            last = attempts[-1]
            good = last.outcome == "ok" and not missing_outputs(last, outputs)
            if good or len(attempts) >= self._turns or stop.is_set():
                return InterpreterAnswer(_DONE, None)
            better = ask_again(messages[1:])
            if better is None or stop.is_set():
                return InterpreterAnswer(_DONE, None)
            script = better
            return InterpreterAnswer("", script.code)

        def run(_: str) -> str:
            attempts.append(self._attempt([script], files, self._limits, stop=stop))
            return describe_attempt(attempts[-1], missing_outputs(attempts[-1], outputs))

        try:
            limit_s = min(limit_s, self._total_s) + _LOOP_S
            self._loop.converse(instruction, ask=ask, run=run, limit_s=limit_s)
        except ServiceError as error:
            if not attempts:
                raise
            _log.warning("conversation ended early", attempts=len(attempts), error=str(error))
        scripts = [step.script for step in attempts[-1].steps]
        return self._make_run(scripts, attempts, inputs, "draft", instruction=instruction, version=version)

    def rerun(  # noqa: PLR0913  one each of what a run is made of
        self,
        scripts: Sequence[Script],
        inputs: Sequence[InputFile],
        *,
        origin: Origin,
        project: int = 0,
        instruction: str = "",
        version: str = "",
        cold: bool = False,
        limits: Limits | None = None,
        limit_s: float | None = None,
    ) -> Run:
        """Run final code once, exactly as it is but for what `normalize_script` takes away.

        Args:
            scripts: What to run, one after another.
            inputs: The task's files.
            origin: Who wants it. A gate's run is not stored here: the page goes on showing the one it checks.
            project: That of the task, whose input files it may read; 0 reads shared ones alone.
            instruction: What the task wants.
            version: That of the draft, where it is a draft's code.
            cold: Start Python anew, as a check of final code should.
            limits: Instead of the usual ones.
            limit_s: Time until the code is ended, besides `limits`.
        Returns:
            A run with one attempt.
        Raises:
            TaskError: An input is missing, or not what it was.
            SetupError: Code cannot be contained here.
            ServiceError: Sandbox or store did not do their part.
        """
        stop = _Stop(time.monotonic() + (self._total_s if limit_s is None else limit_s), None)
        files = self._verified(inputs, project)
        attempt = self._attempt(scripts, files, limits or self._limits, cold=cold, stop=stop)
        return self._make_run(scripts, [attempt], inputs, origin, instruction=instruction, version=version)

    def _attempt(
        self,
        scripts: Sequence[Script],
        files: Sequence[Verified],
        limits: Limits,
        *,
        cold: bool = False,
        stop: _Stop,
    ) -> Attempt:
        # What has one key is the same bytes: else code that reads itself could tell them apart.
        job = SandboxJob(
            tuple(map(normalize_script, scripts)),
            {file.file.name: str(file.path) for file in files},
            limits,
            cold,
        )
        try:
            if self._folder is not None:
                self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            # Named as a sandbox's folder: what a kill leaves goes when the next sandbox starts there.
            outputs = tempfile.TemporaryDirectory(
                prefix=f"{own_prefix()}run-", dir=self._folder, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise ServiceError(
                f"No folder can be made for what a run leaves: {error.strerror}.", hint="Is the disk full?"
            ) from error
        with outputs as folder:
            attempt = self._sandbox.run(job, folder, cancelled=stop)
            for file in files:  # else it may have read other bytes than those of its run's key
                self._inputs.verify_again(file)
            self._store.keep(Path(folder), attempt.files)
        steps = (replace(step, script=script) for step, script in zip(attempt.steps, scripts, strict=False))
        attempt = replace(attempt, steps=tuple(steps))
        if attempt.outcome == "killed" and stop.late:
            return replace(attempt, outcome="timeout", reason="Stopped: the time for this task was over.")
        return attempt

    def check_inputs(self, inputs: Sequence[InputFile], project: int) -> None:
        """Check that a task's input files are those of its project, unchanged since the import.

        Raises:
            TaskError: One is not.
        """
        self._verified(inputs, project)

    def _verified(self, inputs: Sequence[InputFile], project: int) -> list[Verified]:
        return [self._inputs.verified(file, project) for file in inputs]

    def _make_run(
        self,
        scripts: Sequence[Script],
        attempts: Sequence[Attempt],
        inputs: Sequence[InputFile],
        origin: Origin,
        *,
        instruction: str,
        version: str,
    ) -> Run:
        run = Run(
            key=run_key(scripts, inputs),
            instruction=instruction,
            inputs=tuple(inputs),
            attempts=tuple(attempts),
            origin=origin,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            version=version,
        )
        if origin != "gate":
            self._store.put_run(run)
        return run


@dataclass(frozen=True)
class Execution:
    """What runs code, and whose: of drafts and of humans (`auto`), or only what a human asks for (`ask`)."""

    runner: Runner
    mode: Literal["auto", "ask"] = "auto"


def describe_attempt(attempt: Attempt, missing: Sequence[str] = ()) -> str:
    """Describe an attempt to a model: how it ended, the ends of what it printed, what is missing.

    Args:
        attempt: What came of it.
        missing: Declared files that it did not leave.
    Returns:
        At most about 6000 characters, however much was printed.
    """
    lines = [f"exit status {attempt.exit_status}"]
    if attempt.reason:
        lines.append(attempt.reason)
    lines += [f"Missing or empty: {name}" for name in missing[:_SHOWN_LINES]]
    lines += [f"Not kept: {one.path}: {one.reason}"[:200] for one in attempt.refused[:_SHOWN_LINES]]
    lines += [note[:200] for note in attempt.notes[:_SHOWN_LINES]]
    for name, text in (("stdout", attempt.stdout), ("stderr", attempt.stderr)):
        if text.strip():
            cut = len(text) - _SHOWN_CHARS
            mark = f" (the last {_SHOWN_CHARS} of {len(text)} characters)" if cut > 0 else ""
            lines.append(f"{name}{mark}:\n{text[-_SHOWN_CHARS:].rstrip()}")
    if attempt.files:
        names = ", ".join(file.path for file in attempt.files[:_SHOWN_LINES])
        lines.append(f"Files left: {names}"[:400])
    return "\n".join(lines)
