"""Sandboxes in each setting that they run in, and what a run left behind.

root         root on a machine of its own: every layer
root-bare    root in a container without extra privileges: no namespaces
user         a plain user of a machine that lets users make namespaces
user-bare    a plain user in a container: Landlock, seccomp and rlimits alone

SANDBOX_MODES names those to test, or "all"; by default the one with most layers and the one with fewest.
"""

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from draftloop.execution.sandbox import SandboxProcess
from draftloop.runs.job import Attempt, Language, Limits, SandboxJob, Script
from draftloop.support.environments import find_environment
from tests.conftest import installed

MODES = ("root", "root-bare", "user", "user-bare")
_ASKED = os.environ.get("SANDBOX_MODES", "root user-bare" if os.getuid() == 0 else "user user-bare")
TESTED = MODES if _ASKED == "all" else tuple(_ASKED.split())
PLAIN_UID = 1500
USERS = {*range(60720, 61168), PLAIN_UID} if os.getuid() == 0 else {os.getuid()}
CANARY = "DRAFTLOOP_TEST_CANARY"  # in the environment of whoever starts a sandbox
# An environment under /root is nobody's but root's: show it to others, where root installed it there.
_REACHED = """\
#!/bin/sh
exec unshare --mount --propagation private sh -ec '
    number=0
    for path in {paths}; do
        number=$((number + 1))
        mkdir {stage}/$number
        mount --rbind "$path" {stage}/$number
    done
    mount -t tmpfs -o mode=755 tmpfs /root
    number=0
    for path in {paths}; do
        number=$((number + 1))
        mkdir -p "$path"
        mount --rbind {stage}/$number "$path"
    done
    exec {become} "$0" "$@"' {python} "$@"
"""


@dataclass(frozen=True)
class Left:
    """What of a sandbox exists outside of it: processes, files, mounts, System V objects."""

    processes: frozenset[int]
    files: frozenset[str]
    mounts: int
    ipc: frozenset[str]


@dataclass
class Field:
    """A sandbox in one of the modes, its folders, and what it looked like before any run."""

    mode: str
    sandbox: SandboxProcess
    home: Path
    inputs: Path
    before: Left
    secret: Path
    outputs: Path = field(init=False)

    def run(
        self,
        code: str,
        language: Language = "python",
        *,
        inputs: dict[str, str] | None = None,
        cold: bool = False,
        **limits: Any,
    ) -> Attempt:
        """Run one script and demand that nothing of it is left but its outputs."""
        return self.run_job(
            SandboxJob((Script(code, language),), inputs or {}, replace(Limits(), **limits), cold=cold)
        )

    def run_job(self, job: SandboxJob) -> Attempt:
        """Run a job and demand that nothing of it is left but its outputs."""
        self.outputs = Path(tempfile.mkdtemp(dir=self.home))
        attempt = self.sandbox.run(job, str(self.outputs))
        self.demand_nothing_left()
        if attempt.outcome != "ok":
            assert attempt.reason.endswith("."), attempt
        names = {str(path.relative_to(self.outputs)) for path in self.outputs.rglob("*") if path.is_file()}
        assert names == {file.path for file in attempt.files}
        return attempt

    def demand_nothing_left(self) -> None:
        """Wait a moment for what has ended to be gone, then demand that it is."""
        deadline = time.monotonic() + 10
        while (now := self.look()) != self.before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert now == self.before

    def look(self) -> Left:
        """Look at the machine from outside."""
        return look(self.sandbox, self.home)


def look(sandbox: SandboxProcess, home: Path) -> Left:
    tree = descendants(sandbox.pid)
    places = (home / "sandbox" / "jobs", Path("/dev/shm"), Path("/dev/mqueue"))
    files = {str(path) for one in places if one.is_dir() for path in one.iterdir() if of_a_job(path)}
    mounts = 0
    for pid in tree:
        try:
            mounts = max(mounts, len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()))
        except OSError:
            continue
    ipc = set()
    for kind in ("shm", "sem", "msg"):
        header, *rows = Path("/proc/sysvipc", kind).read_text().splitlines()
        column = header.split().index("uid")
        ipc |= {row for row in rows if int(row.split()[column]) in USERS}
    return Left(frozenset(tree), frozenset(files), mounts, frozenset(ipc))


def of_a_job(path: Path) -> bool:
    """Check whether a user made this file that jobs run as; others use the machine too."""
    try:
        return path.parent.name == "jobs" or path.lstat().st_uid in USERS
    except FileNotFoundError:
        return False


def descendants(root: int) -> set[int]:
    """Return the processes below `root`, zombies too."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text(errors="replace")
            except OSError:
                continue
            parents[int(folder.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    pids = {root}
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return pids


def python_of_sandbox() -> Path:
    """Return the Python of the environment `sandbox`; skip, or fail in CI, where it is missing."""
    with installed():
        return find_environment("sandbox") / "bin" / "python"


@contextmanager
def fresh_home(owner: int | None) -> Iterator[Path]:
    """Make a folder that every user can pass through, with inputs and a secret beside them."""
    home = Path(tempfile.mkdtemp(prefix="sandbox-", dir="/var/tmp"))
    home.chmod(0o755)
    (home / "inputs").mkdir(mode=0o755)
    (home / "sandbox").mkdir()
    (home / "secret").write_text("for nobody")
    if owner is not None:
        os.chown(home / "sandbox", owner, owner)
    try:
        yield home
    finally:
        shutil.rmtree(home)


@contextmanager
def started(mode: str, **options: Any) -> Iterator[tuple[SandboxProcess, Path]]:
    """Start a sandbox in a mode; skip where this user cannot."""
    if mode.startswith("root") and os.getuid() != 0:
        pytest.skip("needs root")
    python, owner = python_of_sandbox(), None
    os.environ[CANARY] = "sings"
    if mode.startswith("user") and os.getuid() == 0:
        owner = PLAIN_UID
    with fresh_home(owner) as home:
        if os.getuid() == 0 and mode != "root":
            python = _reached(python, home, owner)
        without = [*options.pop("without", []), *(["namespaces"] if mode.endswith("bare") else [])]
        with SandboxProcess(
            python,
            home / "sandbox",
            inputs=[home / "inputs"],
            without=without,
            log=home / "log",
            **options,
        ) as sandbox:
            assert owner is None or (home / "sandbox" / "socket").stat().st_uid == owner
            yield sandbox, home


def _reached(python: Path, home: Path, uid: int | None) -> Path:
    prefixes = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix); print(sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    hidden = [path for path in prefixes if path.startswith("/root/")]
    (home / "stage").mkdir()
    wrapper = home / "python"
    become = "" if uid is None else f"setpriv --reuid {uid} --regid {uid} --clear-groups --"
    wrapper.write_text(
        _REACHED.format(paths=" ".join(hidden), stage=home / "stage", become=become, python=python)
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return wrapper


@pytest.fixture(scope="session", params=TESTED)
def place(request: pytest.FixtureRequest) -> Iterator[Field]:
    """Start a sandbox of each mode, the same one to all tests."""
    with started(request.param) as (sandbox, home):
        yield Field(
            request.param, sandbox, home, home / "inputs", look(sandbox, home), secret=home / "secret"
        )


@pytest.fixture(scope="session")
def one_place() -> Iterator[Field]:
    """Start a sandbox with every layer that this user can have."""
    mode = "root" if os.getuid() == 0 else "user"
    with started(mode) as (sandbox, home):
        yield Field(mode, sandbox, home, home / "inputs", look(sandbox, home), secret=home / "secret")
