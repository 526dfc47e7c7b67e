"""A sandbox, a loop and a store in memory, for the flow around them; the real ones have their own tests."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from draftloop.errors import DraftloopError
from draftloop.execution.interpreter import InterpreterAnswer
from draftloop.prompting.prompt import Message
from draftloop.runs.job import (
    Attempt,
    OutputFile,
    Package,
    RunOutcome,
    SandboxJob,
    SandboxReport,
    Script,
    Step,
)
from draftloop.runs.run import Run

REPORT = SandboxReport(
    layers=("landlock", "seccomp", "rlimits"),
    landlock_abi=6,
    languages=("python",),
    programs=(Package("Python", "3.11.2"),),
    packages=(Package("pandas", "3.0.0"),),
    covers=(),
    gaps=(),
)


@dataclass
class FakeSandbox:
    """Does what comments say: `# fail WORDS`, `# exit N`, `# hang`, `# leave NAME`, `# print WORDS`.

    It plays the gates' program that looks at files as well: those that were left are right.
    """

    trouble: DraftloopError | None = None  # raised by everything
    jobs: list[SandboxJob] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @property
    def report(self) -> SandboxReport:
        """What is in force and what is installed."""
        if self.trouble is not None:
            raise self.trouble
        return REPORT

    def check(self) -> None:
        """Raise what everything raises."""
        if self.trouble is not None:
            raise self.trouble

    def run(self, job: SandboxJob, outputs: str, *, cancelled: threading.Event | None = None) -> Attempt:
        """Play a job."""
        if self.trouble is not None:
            raise self.trouble
        self.jobs.append(job)
        self.folders.append(Path(outputs))
        steps: list[Step] = []
        files: list[OutputFile] = []
        outcome: RunOutcome = "ok"
        reason = ""
        for script in job.scripts:
            out, err, status = "", "", 0
            if script.code.startswith("WANTED = "):
                out = _missing(script, files)
            for line in script.code.split("\n"):
                order, _, words = line.removeprefix("# ").partition(" ")
                if order == "print":
                    out += f"{words}\n"
                elif order == "leave":
                    content = f"content of {words}".encode()
                    Path(outputs, words).write_bytes(content)
                    files.append(OutputFile(words, len(content), hashlib.sha256(content).hexdigest()))
                elif order in ("fail", "exit"):
                    status = int(words) if order == "exit" else 1
                    err = (
                        "" if order == "exit" else f"Traceback (most recent call last):\nKeyError: {words}\n"
                    )
                    outcome, reason = "failed", f"script.py ended with exit status {status}."
                elif order == "hang":
                    late = _hang(job.limits.wall_s, cancelled)
                    outcome, status = ("timeout" if late else "killed"), -9
                    reason = "Stopped after the limit of a run." if late else "Cancelled."
            steps.append(Step(script, status, out, err, 0.1))
            if outcome != "ok":
                break
        return Attempt(outcome, reason, tuple(steps), 0.1, 0.1, 1 << 20, tuple(files))


def _hang(wall_s: float, cancelled: threading.Event | None) -> bool:
    """Wait for the limit or for a cancellation; return whether the limit was reached."""
    ends = time.monotonic() + wall_s
    while time.monotonic() < ends and not (cancelled and cancelled.is_set()):
        time.sleep(0.01)
    return time.monotonic() >= ends


def _missing(script: Script, files: list[OutputFile]) -> str:
    """Print which wanted files were not left, as the gate's script does."""
    wanted = json.loads(script.code.split("\n")[0].removeprefix("WANTED = "))
    left = [file.path for file in files]
    return json.dumps({name: "is not there" for name in wanted if name not in left})


@dataclass
class FakeLoop:
    """Leads conversations as Open Interpreter does: tests/integration/test_interpreter.py says how."""

    trouble: DraftloopError | None = None
    ends_after: int = 0  # scripts, after which it breaks; 0 is never
    troubles: list[DraftloopError] = field(default_factory=list)  # of the next conversations
    begun: int = 0

    def converse(
        self,
        request: str,
        *,
        ask: Callable[[Sequence[Message]], InterpreterAnswer],
        run: Callable[[str], str],
        limit_s: float,
    ) -> list[Message]:
        """Ask, run, ask again."""
        self.begun += 1
        if self.troubles:
            raise self.troubles.pop()
        if self.trouble is not None and not self.ends_after:
            raise self.trouble
        messages, ran = [Message("user", request)], 0
        while True:
            answer = ask(list(messages))
            if answer.say:
                messages.append(Message("assistant", answer.say))
            if answer.script is None:
                return messages
            messages.append(Message("assistant", answer.script))
            messages.append(Message("user", run(answer.script)))
            ran += 1
            if self.trouble is not None and ran == self.ends_after:
                raise self.trouble


@dataclass
class FakeStore:
    """Keeps runs, and the contents of their files by hash."""

    runs: dict[str, Run] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    trouble: DraftloopError | None = None

    def keep(self, folder: Path, files: Sequence[OutputFile]) -> None:
        """Keep files."""
        for file in files:
            self.contents[file.sha256] = Path(folder, file.path).read_bytes()

    def put_run(self, run: Run) -> None:
        """Keep a run."""
        self.runs[run.key] = run

    def run(self, key: str) -> Run | None:
        """Return the run of a key."""
        if self.trouble is not None:
            raise self.trouble
        return self.runs.get(key)


def python(code: str) -> Script:
    """Make a script in Python."""
    return Script(code)
