"""The sandbox after faults: it runs nothing that it cannot contain, and starts anew whatever was left."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.execution.sandbox import LastingSandbox, SandboxProcess, fresh_folder, own_prefix
from draftloop.runs.job import Limits, SandboxJob, Script
from draftloop.sandbox.containment import Containment
from tests.sandbox.conftest import TESTED, Field, descendants, fresh_home, python_of_sandbox, started
from tests.sandbox.ground import POOL

DAEMONS = """
import os, signal, time
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        open(f'begun-{os.getpid()}', 'w').close()
        time.sleep(600)
time.sleep(600)
"""


def until(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(met)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def lasting() -> Iterator[tuple[LastingSandbox, Path]]:
    """Start a sandbox that is started anew as the backend does it, and the folder that its folders are in."""
    with fresh_home(None) as home:
        python = python_of_sandbox()
        sandbox = LastingSandbox(
            lambda: SandboxProcess(python, fresh_folder(home / "sandbox"), log=home / "log")
        )
        try:
            yield sandbox, home
        finally:
            sandbox.close()


def hello(sandbox: LastingSandbox, home: Path) -> str:
    return sandbox.run(SandboxJob((Script("print('hello')"),)), str(home)).stdout


def test_more_bad_jobs_than_users_leave_every_user(place: Field) -> None:
    (place.inputs / "a.csv").write_text("1\n")
    inputs = {"a.csv": str(place.inputs / "a.csv")}
    for _ in range(34):
        place.run("import os\nos.rename('input', 'x')", inputs=inputs)
    users = {int(place.run("import os; print(os.getuid())").stdout) for _ in range(34)}
    if "pool-uid" in place.sandbox.report.layers:
        assert len(users) == 32
        assert users <= set(POOL)
    else:
        assert 0 not in users


def test_without_a_user_nothing_runs() -> None:
    contained = Containment(frozenset({"pool-uid"}), 0, {})
    child = os.fork()
    if child == 0:
        try:
            contained.apply(uid=None, limits=Limits(), profile="plain", read=(), write=())
        except RuntimeError:
            os._exit(7)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("mode", TESTED)
def test_a_killed_server_leaves_no_process(mode: str) -> None:
    with started(mode) as (sandbox, home):
        running = subprocess.Popen(["sleep", "600"])  # of ours: it must not be ended
        job = SandboxJob((Script(DAEMONS),))
        attempt = run_beside(sandbox, job, home)
        assert until(lambda: len(list((home / "sandbox" / "jobs").glob("*/work/begun-*"))) == 4)
        tree = descendants(sandbox.pid)
        server = next(iter(children(sandbox.pid)))
        os.kill(server, signal.SIGKILL)
        assert until(lambda: not any(alive(pid) for pid in tree)), [pid for pid in tree if alive(pid)]
        with pytest.raises(ServiceError):
            attempt()
        assert running.poll() is None
        running.kill()
        running.wait()
    # its folder, with what it left, is no obstacle: `started` removes it


def run_beside(sandbox: SandboxProcess | LastingSandbox, job: SandboxJob, home: Path) -> Callable[[], object]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(sandbox.run, job, str(home))
    pool.shutdown(wait=False)
    return lambda: future.result(timeout=30)


def children(pid: int) -> set[int]:
    return {one for one in descendants(pid) if parent(one) == pid}


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def test_what_a_killed_sandbox_left_does_not_stop_the_next(lasting: tuple[LastingSandbox, Path]) -> None:
    sandbox, home = lasting
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    old = home / "sandbox" / f"sandbox-{gone}-1-left"
    nest = old / "jobs" / "1-a" / "work"
    nest.mkdir(parents=True)
    here = Path.cwd()
    os.chdir(nest)
    try:
        for _ in range(5000):
            Path("d").mkdir()
            os.chdir("d")
    finally:
        os.chdir(here)
    assert own_prefix() not in old.name
    assert hello(sandbox, home) == "hello\n"
    assert not old.exists()


def test_a_sandbox_starts_in_the_folder_of_one_that_left_anything() -> None:
    with fresh_home(None) as home:
        work = home / "sandbox" / "jobs" / "1-a" / "work"
        target = home / "target"
        (target / "mounted").mkdir(parents=True)
        (work / "input").mkdir(parents=True)
        (work / "input" / "link").symlink_to(target / "mounted")
        (work / "input" / "proc").symlink_to("/proc")
        mounted = False
        if os.getuid() == 0:  # what it would unmount, and what it cannot remove
            busy = work / "busy"
            busy.mkdir()
            for folder in (target / "mounted", busy):
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
            mounted = True
        try:
            with SandboxProcess(python_of_sandbox(), home / "sandbox", log=home / "log") as sandbox:
                assert sandbox.run(SandboxJob((Script("print(1)"),)), str(home)).stdout == "1\n"
            assert Path("/proc/self/stat").exists()
            if mounted:
                assert os.path.ismount(target / "mounted")
                assert [path.name.rsplit("-", 1)[0] for path in (home / "sandbox").glob("left-*")] == [
                    "left-jobs"
                ]
                assert "remove it by hand" in (home / "log").read_text()
        finally:
            for folder in (target / "mounted", *(home / "sandbox").glob("**/busy")):
                if os.path.ismount(folder):
                    subprocess.run(["umount", str(folder)], check=True)


def test_a_fault_of_the_sandbox_makes_it_prove_itself_and_start_anew(
    lasting: tuple[LastingSandbox, Path],
) -> None:
    sandbox, home = lasting
    assert hello(sandbox, home) == "hello\n"
    (folder,) = (home / "sandbox").glob("sandbox-*")
    (folder / "jobs").rename(folder / "gone")
    assert hello(sandbox, home) == "hello\n"  # in a new one
    log = (home / "log").read_text()
    assert "FileNotFoundError" in log
    assert "the sandbox ends: The sandbox cannot run code" in log
    assert not folder.exists()


def test_without_a_restart_a_fault_is_reported_and_the_sandbox_ends() -> None:
    with (
        fresh_home(None) as home,
        SandboxProcess(python_of_sandbox(), home / "sandbox", log=home / "log") as sandbox,
    ):
        (home / "sandbox" / "jobs").rename(home / "sandbox" / "gone")
        with pytest.raises(ServiceError, match="failed: FileNotFoundError"):
            sandbox.run(SandboxJob((Script("print(1)"),)), str(home))
        assert sandbox.ends_within(10)


def test_readiness_tells_of_a_fault_until_a_job_has_run(lasting: tuple[LastingSandbox, Path]) -> None:
    sandbox, home = lasting
    sandbox.check()  # nobody needed it yet, which is no fault
    assert hello(sandbox, home) == "hello\n"
    sandbox.check()
    (guard,) = guards(home)
    for server in children(guard):
        os.kill(server, signal.SIGKILL)
    assert until(lambda: not alive(guard))
    with pytest.raises(ServiceError, match="being started again"):
        sandbox.check()

    def ready() -> bool:
        try:
            sandbox.check()
        except ServiceError:
            return False
        return True

    assert until(ready, 60)
    assert len(guards(home)) == 1


def test_a_job_that_a_killed_sandbox_took_along_is_run_once_more(
    lasting: tuple[LastingSandbox, Path],
) -> None:
    sandbox, home = lasting
    assert hello(sandbox, home) == "hello\n"
    (guard,) = guards(home)
    attempt = run_beside(sandbox, SandboxJob((Script("import time; time.sleep(1); print('slept')"),)), home)
    time.sleep(0.3)
    for server in children(guard):
        os.kill(server, signal.SIGKILL)
    assert "slept" in str(attempt())


def guards(home: Path) -> list[int]:
    """Return the first process of each sandbox below this folder."""
    return [pid for pid in children(os.getpid()) if str(home).encode() in command(pid)]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_job_that_is_too_long_is_refused_and_nobody_else_is_disturbed(place: Field) -> None:
    with pytest.raises(TaskError, match="at most 64 MB"):
        place.sandbox.run(SandboxJob((Script("#" * (65 << 20)),)), str(place.home))
    assert place.sandbox.alive
    assert place.run("print(1)").stdout == "1\n"


def test_input_folders_and_the_sandbox_lie_apart() -> None:
    with fresh_home(None) as home:
        for folder, inputs in ((home / "inputs" / "box", home / "inputs"), (home, home / "inputs")):
            with pytest.raises(SetupError, match="lie in each other"):
                SandboxProcess(python_of_sandbox(), folder, inputs=[inputs])


def test_the_kernel_limits_all_jobs_together_where_it_can() -> None:
    with started("root", jobs=1, job_memory_bytes=64 << 20) as (sandbox, home):
        if not any("cgroup" in words for words in sandbox.report.covers):
            assert any("cgroup" in words for words in sandbox.report.gaps)
            pytest.skip("no control group can be made here")
        code = "block = bytearray(4 << 30)\nfor at in range(0, len(block), 4096):\n    block[at] = 1"
        job = SandboxJob((Script(code),), {}, replace(Limits(), memory_bytes=8 << 30))
        attempt = sandbox.run(job, str(home))
        assert attempt.outcome == "killed"
        assert "the memory of all jobs together was used up" in attempt.reason
        assert sandbox.run(SandboxJob((Script("print(1)"),)), str(home)).stdout == "1\n"
        group = next(Path("/sys/fs/cgroup").glob(f"**/draftloop-sandbox-{sandbox.pid}"))
    assert not group.exists()


def _first_of_block(user: int) -> int:
    return user - (user - POOL[0]) % 32


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_left_over_process_is_ended_and_one_in_a_container_is_not() -> None:
    whoami = SandboxJob((Script("import os; print(os.getuid())"),))
    for _ in range(5):  # another sandbox on this machine may take the users between the two starts
        with started("root") as (sandbox, home):  # whose users the next one gets
            first = _first_of_block(int(sandbox.run(whoami, str(home)).stdout))
        become = ["setpriv", "--clear-groups", "--regid", str(first), "--reuid"]
        left = subprocess.Popen([*become, str(first), "sleep", "600"])
        contained = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", *become, str(first + 1), "sleep", "600"]
        )
        try:
            assert until(lambda: len(users_of(contained.pid)) == 2)  # noqa: B023  this round's
            with started("root") as (sandbox, home):
                if _first_of_block(int(sandbox.run(whoami, str(home)).stdout)) != first:
                    continue
                assert until(lambda: left.poll() == -signal.SIGKILL)  # noqa: B023  this round's
                assert contained.poll() is None
                users = {int(sandbox.run(whoami, str(home)).stdout) for _ in range(33)}
                # The first may count as busy until this process has waited for what was ended.
                assert users - {first} == set(range(first + 2, first + 32))
                return
        finally:
            for process in (left, contained):
                process.kill()
                process.wait()
    pytest.fail("another sandbox took the users five times")


def users_of(pid: int) -> set[int]:
    return {Path(f"/proc/{one}").stat().st_uid for one in descendants(pid)}
