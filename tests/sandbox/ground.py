"""Ground for attacks: a sandbox with honest jobs in it, and a look at all that must be as it was."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from draftloop.runs.job import Attempt, Limits, SandboxJob, Script
from tests.sandbox.conftest import Field, Left, descendants
from tests.sandbox.harm import HARM, LIMITS

HONEST = """
import os, time
open('half', 'w').write('1')
time.sleep(SECONDS)
os.chmod('half', 0o600)
rows = open('input/honest.csv').read().split()
os.mkdir('made'); open('made/sum.txt', 'w').write(str(sum(map(int, rows))))
os.unlink('half')
print(os.getuid())
"""
POOL = range(60720, 61168)


@dataclass(frozen=True)
class State:
    """What must be the same after an attack."""

    left: Left
    files: dict[str, tuple[int, ...]]


@dataclass
class Ground:
    """A sandbox with an honest input, which the user owns that the sandbox runs as."""

    place: Field
    python: str  # of the sandbox, which its user may own

    @property
    def honest_input(self) -> Path:
        return self.place.inputs / "honest.csv"

    def folder(self, kind: str) -> Path:
        made = self.place.home / f"{kind}-{time.monotonic_ns()}"
        made.mkdir()
        return made

    def run_honest(self, seconds: float = 0.0) -> int:
        """Run an honest job, check all that came of it, and return the user that it ran as."""
        outputs = self.folder("honest")
        code = HONEST.replace("SECONDS", str(seconds))
        job = SandboxJob((Script(code),), {"honest.csv": str(self.honest_input)})
        attempt = self.place.sandbox.run(job, str(outputs))
        assert (attempt.outcome, attempt.reason, attempt.stderr) == ("ok", "", ""), attempt
        assert [file.path for file in attempt.files] == ["made/sum.txt"]
        assert (outputs / "made" / "sum.txt").read_text() == "6"
        user = int(attempt.stdout)
        if "pool-uid" in self.place.sandbox.report.layers:
            assert user in POOL
        else:
            assert user == self.owner
        return user

    @property
    def owner(self) -> int:
        """The user that the sandbox runs as."""
        return (self.place.home / "sandbox").stat().st_uid

    def attack(self, name: str, **limits: Any) -> Attempt:
        """Run a program that means harm; whatever comes of it, the sandbox says so in words.

        With `limits` of its own it may be out of time before it has done what it would be ended for.
        """
        harm = HARM[name]
        code = harm.code.replace("{sandbox!r}", repr(str(self.place.home / "sandbox")))
        code = code.replace("{inputs!r}", repr(str(self.place.inputs)))
        code = code.replace("{python!r}", repr(self.python))
        inputs = {"honest.csv": str(self.honest_input)} if harm.with_input else {}
        job = SandboxJob(
            (Script(code, harm.language),), inputs, replace(Limits(), **{**LIMITS, **limits, **harm.limits})
        )
        attempt = self.place.sandbox.run(job, str(self.folder("harm")))
        assert "HARM" not in attempt.stdout, attempt.stdout
        assert attempt.outcome == "ok" or attempt.reason.endswith("."), attempt
        assert harm.ended_for in attempt.reason or (limits and attempt.outcome == "timeout"), attempt
        return attempt

    def state(self) -> State:
        """Look at what outlasts jobs: modes and owners of all of it, links, sizes and times of files."""
        self.place.demand_nothing_left()
        box = self.place.home / "sandbox"
        folders = [box, box / "jobs", box / "matplotlib", self.place.inputs, self.place.home]
        files = [*sorted((box / "matplotlib").iterdir()), box / "socket", self.honest_input]
        files += [self.place.secret]
        if Path(self.python).exists():  # not in a container
            files.append(Path(self.python))
        seen: dict[str, tuple[int, ...]] = {}
        for path in (*folders, *files, Path("/dev/null")):
            status = path.stat()
            seen[str(path)] = (status.st_mode, status.st_uid, status.st_gid)
            if path in files:
                seen[str(path)] += (status.st_nlink, status.st_size, status.st_mtime_ns)
        return State(self.place.look(), seen)

    def pool(self) -> set[int]:
        """Run more jobs than there are users, one after another, and return the users that they had."""
        return {self.run_honest() for _ in range(33)}

    def resident_bytes(self) -> int:
        """Measure the sandbox's own processes."""
        pages = 0
        for pid in descendants(self.place.sandbox.pid):
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def ground(place: Field) -> Iterator[Ground]:
    python = place.run("import sys; print(sys.executable)").stdout.strip()
    made = Ground(place, python)
    made.honest_input.write_text("1\n2\n3\n")
    if os.getuid() == 0:
        os.chown(made.honest_input, made.owner, made.owner)
    yield made
    place.demand_nothing_left()
