"""Attacks, each on one property: contained, nothing left, and described in words.

`place.run` demands after every run that no process, file, mount or System V object is left. Each test runs
beside an honest job.
"""

import os
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from draftloop.errors import SetupError
from draftloop.runs.job import MIB, Limits, SandboxJob, Script
from draftloop.sandbox.files import usage
from draftloop.support.trees import remove_tree
from tests.sandbox.conftest import CANARY, PLAIN_UID, Field
from tests.sandbox.ground import Ground
from tests.sandbox.ground import ground as ground  # noqa: PLC0414  a fixture

SHORT: dict[str, Any] = {"wall_s": 3.0, "cpu_s": 3}
# Calls into the kernel for which Python has no function; raises OSError where it says no.
CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[
        ctypes.c_long(one) if isinstance(one, int) else one for one in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""
X86_64 = os.uname().machine == "x86_64"


@pytest.fixture(autouse=True)
def among_honest_jobs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run an honest job beside each attack, and one after it; both must come out as ever."""
    if request.function.__module__ != __name__ or "place" not in request.fixturenames:
        yield
        return
    place: Ground = request.getfixturevalue("ground")
    before = place.state()
    with ThreadPoolExecutor(1) as threads:
        beside = threads.submit(place.run_honest, 0.2)
        yield
        beside.result()
    place.run_honest()
    assert place.state() == before


def denied(place: Field, code: str) -> str:
    """Run code that must fail on an OSError, and give the last line of its traceback."""
    attempt = place.run(CALLS + code + "\nprint('POSSIBLE')")
    assert attempt.outcome == "failed", attempt
    assert "POSSIBLE" not in attempt.stdout
    last = attempt.stderr.strip().splitlines()[-1]
    assert any(word in last for word in ("Error: [Errno", "OSError", "gaierror", "URLError")), attempt.stderr
    return last


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"),
        ("shell", ":(){ :|:& };:; while :; do :; done"),
    ],
)
def test_a_fork_bomb_stays_within_its_number_of_processes(place: Field, language: str, code: str) -> None:
    attempt = place.run(code, language, processes=24, **SHORT)  # type: ignore[arg-type]
    assert attempt.outcome in {"killed", "timeout"}, attempt
    assert "Stopped" in attempt.reason


def test_processes_that_outlive_their_script_are_ended(place: Field) -> None:
    daemon = """
import os, signal, time
for number in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for one in range(1, 32):
            try:
                signal.signal(one, signal.SIG_IGN)
            except OSError:
                pass
        time.sleep(600)
print("left")
"""
    attempt = place.run(daemon)
    assert (attempt.outcome, attempt.stdout) == ("ok", "left\n")
    assert any("outlived" in note for note in attempt.notes)


@pytest.mark.parametrize("tries", ["once", "for ever"])
def test_a_chain_of_processes_that_never_stand_still_is_ended(place: Field, tries: str) -> None:
    # Each link forks the next and ends at once, so that whoever looks finds only the dead.
    code = "import os\nif os.fork() == 0:\n    while True:\n"
    if tries == "for ever":
        code += (
            "        try:\n            if os.fork(): os._exit(0)\n        except OSError:\n            pass\n"
        )
    else:
        code += "        if os.fork(): os._exit(0)\n"
    for _ in range(8):  # it got away one time in forty, once
        attempt = place.run(f"{code}print(1)", **SHORT)
        assert attempt.outcome in {"ok", "killed", "timeout"}


def test_an_endless_loop_that_ignores_signals_is_ended_by_the_clock(place: Field) -> None:
    code = "import signal\nfor one in range(1, 65):\n    try:\n        signal.signal(one, signal.SIG_IGN)\n"
    code += "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    attempt = place.run(code, wall_s=1.5, cpu_s=30)
    assert attempt.outcome == "timeout"
    assert attempt.reason == "Stopped after 1.5 s, the limit of a run."
    attempt = place.run(code, wall_s=60, cpu_s=1)
    assert attempt.outcome == "timeout"
    assert "processor time" in attempt.reason


def test_the_processor_time_of_all_processes_counts_together(place: Field) -> None:
    code = "import os\nos.fork(); os.fork()\nwhile True:\n    pass"
    attempt = place.run(code, wall_s=60, cpu_s=2)
    assert attempt.outcome == "timeout"
    assert "processor time" in attempt.reason


# ---------------------------------------------------------------- memory


def test_ten_gigabytes_are_a_memory_error(place: Field) -> None:
    attempt = place.run("block = bytearray(10 << 30)")
    assert attempt.outcome == "failed"
    assert attempt.stderr.strip().endswith("MemoryError")


def test_processes_that_share_out_their_memory_are_counted_together(place: Field) -> None:
    code = """
import os, time
for number in range(8):
    if os.fork() == 0:
        block = bytearray(os.urandom(1 << 20) * 100)
        time.sleep(30)
time.sleep(30)
"""
    attempt = place.run(code, memory_bytes=500 * MIB, wall_s=20)
    assert attempt.outcome == "killed", attempt
    assert "of memory; the limit is 500 MB" in attempt.reason
    assert attempt.peak_memory_bytes >= 500 * MIB


def test_memory_that_no_process_owns_cannot_be_made(place: Field) -> None:
    numbers = (29, 68, 64, 240, 319) if X86_64 else (194, 186, 190, 180, 279)
    for number in numbers:  # shmget, msgget, semget, mq_open, memfd_create
        denied(place, f"call({number}, 0, 4096, 0o1600)")
    denied(place, "open('/dev/shm/block', 'w')")


# ---------------------------------------------------------------- output and disk


def test_endless_output_is_cut_and_ended(place: Field) -> None:
    attempt = place.run("while True:\n    print('x' * 1000)", output_bytes=100_000)
    assert attempt.outcome == "killed"
    assert "printed over" in attempt.reason
    assert len(attempt.stdout) < 101_000
    assert "bytes cut" in attempt.stdout


def test_long_output_keeps_its_head_and_its_tail(place: Field) -> None:
    code = "print('begin'); print('x' * 3_000_000); print('end')"
    attempt = place.run(code, output_bytes=1 * MIB)
    assert attempt.outcome == "ok"
    assert attempt.stdout.startswith("begin")
    assert attempt.stdout.endswith("end\n")
    cut = attempt.steps[0].stdout_cut_bytes
    assert cut == len("begin\n" + "end\n") + 3_000_001 - MIB
    assert f"[... {cut} bytes cut, 1 MB are kept ...]" in attempt.stdout


def test_a_disk_is_not_filled(place: Field) -> None:
    code = "import os\nfor number in range(10**6):\n    open(f'{number}', 'wb').write(bytes(4 << 20))"
    attempt = place.run(code, disk_bytes=64 * MIB)
    assert attempt.outcome == "killed", attempt
    assert "written to disk; the limit is 64 MB" in attempt.reason
    assert sum(file.size_bytes for file in attempt.files) <= 64 * MIB


@pytest.mark.parametrize("code", ["open(f'{number}', 'w')", "os.mkdir(f'{number}')"])
def test_a_million_files_are_not_made(place: Field, code: str) -> None:
    attempt = place.run(f"import os\nfor number in range(10**6):\n    {code}", files=200)
    assert attempt.outcome == "killed", attempt
    assert "over 200 files" in attempt.reason
    assert len(attempt.files) <= 200


def test_no_file_is_larger_than_it_may_be(place: Field) -> None:
    attempt = place.run("open('a', 'wb').truncate(1 << 40)", file_bytes=1 * MIB)
    assert attempt.outcome == "failed"
    assert "File too large" in attempt.stderr
    attempt = place.run("head -c 10000000 /dev/zero > a; echo $?; exit 1", "shell", file_bytes=1 * MIB)
    assert attempt.outcome == "failed"
    attempt = place.run("exec head -c 10000000 /dev/zero > a", "shell", file_bytes=1 * MIB)
    assert attempt.reason == "Stopped: a file may have 1 MB at most."


def test_sparse_files_are_not_handed_on_beyond_the_disk(place: Field) -> None:
    code = "for number in range(10):\n    open(f'{number}', 'wb').truncate(1 << 20)"
    attempt = place.run(code, file_bytes=1 * MIB, disk_bytes=4 * MIB)
    assert len(attempt.files) == 4
    assert len(attempt.refused) == 6
    assert "All files together" in attempt.refused[0].reason


def test_folders_as_deep_as_they_get_are_removed(place: Field) -> None:
    code = "import os\nfor number in range(400):\n    os.mkdir('d' * 20)\n    os.chdir('d' * 20)"
    attempt = place.run(code, files=20_000)
    assert attempt.outcome in {"ok", "killed"}
    assert attempt.files == ()


@pytest.mark.parametrize("mode", ["0", "0o1000", "0o1777", "0o3777"])
def test_a_folder_that_is_closed_or_sticky_is_removed(place: Field, mode: str) -> None:
    code = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.mkfifo('a/d')\n"
    code += f"os.chmod('a/b', {mode})\nos.chmod('a', {mode})"
    attempt = place.run(code)
    assert attempt.outcome in {"ok", "killed"}


def test_a_zip_bomb_ends_at_the_limit_of_a_file(place: Field) -> None:
    bomb = place.inputs / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(3):
            archive.writestr(f"{number}.csv", bytes(100 * MIB))
    assert bomb.stat().st_size < 3 * MIB
    code = "import zipfile; zipfile.ZipFile('input/bomb.zip').extractall()"
    attempt = place.run(code, inputs={"bomb.zip": str(bomb)}, file_bytes=20 * MIB)
    assert attempt.outcome == "failed"
    assert "File too large" in attempt.stderr


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/passwd", "/root", "/home", "/etc", "/var", "/tmp", "/"]
)
def test_the_machines_files_cannot_be_read(place: Field, path: str) -> None:
    denied(place, f"os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read()")


def test_a_file_that_everybody_may_read_cannot_be_read_or_changed(place: Field) -> None:
    secret = str(place.secret)
    for code in ("open({0!r})", "open({0!r}, 'a')", "os.truncate({0!r}, 0)", "os.link({0!r}, 'a')"):
        denied(place, code.format(secret))
    denied(place, f"os.open({secret!r}, os.O_RDONLY | os.O_TRUNC)")
    denied(place, f"os.symlink({secret!r}, 'a'); open('a').read()")
    assert place.secret.read_text() == "for nobody"


def test_the_hosts_environment_is_not_to_be_seen(place: Field) -> None:
    code = """
import os, glob
print(os.environ)
for path in glob.glob("/proc/[0-9]*/environ") + ["/proc/self/environ", "/proc/1/environ"]:
    try:
        print("OPENED", path, open(path).read())
    except OSError:
        pass
"""
    assert CANARY in os.environ  # was there when the sandbox started
    for cold in (False, True):
        attempt = place.run(code, cold=cold)
        assert attempt.outcome == "ok"
        assert "'USER': 'sandbox'" in attempt.stdout
        assert CANARY not in attempt.stdout
        assert "OPENED" not in attempt.stdout


@pytest.mark.parametrize(
    "path",
    [
        "/proc/kcore", "/proc/sysrq-trigger", "/proc/1/cmdline", "/proc/1/root/etc/passwd", "/proc/keys",
        "/proc/self/mem",
        "/proc/sys/kernel/core_pattern", "/sys/kernel", "/dev/mem", "/dev/vda", "/dev/tty",
    ],
)  # fmt: skip
def test_the_kernels_files_cannot_be_opened(place: Field, path: str) -> None:
    code = f"""
if os.path.isdir({path!r}):
    os.listdir({path!r})
elif os.fstat(open({path!r}, "r+b").fileno()).st_rdev == os.stat("/dev/null").st_rdev:
    raise OSError(13, "the container's engine covers it with /dev/null")
"""
    denied(place, code)


def test_another_tasks_folder_cannot_be_read_or_written(place: Field) -> None:
    folder = place.home / f"there-{place.mode}"
    folder.mkdir()
    first = "import os, time\nopen('mine', 'w').write('of task 1')\nos.chmod('.', 0o777)\n"
    first += "os.chmod('mine', 0o666)\ntime.sleep(4)"
    outcome = []

    def run_first() -> None:
        outcome.append(place.sandbox.run(SandboxJob((Script(first),)), str(folder)).outcome)

    thread = threading.Thread(target=run_first)
    thread.start()
    jobs = place.home / "sandbox" / "jobs"
    deadline = time.monotonic() + 5
    while not (mine := list(jobs.glob("*/work/mine"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    second = f"""
import os
for words, attempt in {{
    "listed": lambda: os.listdir({str(jobs)!r}),
    "read": lambda: open({str(mine[0])!r}).read(),
    "written": lambda: open({str(mine[0])!r}, "a"),
    "planted": lambda: open({str(mine[0].parent / "planted")!r}, "w"),
    "removed": lambda: os.unlink({str(mine[0])!r}),
    "parent": lambda: os.listdir("../.."),
}}.items():
    try:
        attempt()
        print("POSSIBLE", words)
    except OSError as error:
        print(error.strerror)
"""
    attempt = place.sandbox.run(SandboxJob((Script(second),)), str(folder))
    thread.join()
    assert attempt.outcome == "ok", attempt
    assert "POSSIBLE" not in attempt.stdout
    assert outcome == ["ok"]
    assert (folder / "mine").read_text() == "of task 1"
    place.demand_nothing_left()


# ---------------------------------------------------------------- sockets


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("AF_INET", "SOCK_STREAM"), ("AF_INET", "SOCK_DGRAM"), ("AF_INET", "SOCK_RAW"),
        ("AF_INET6", "SOCK_STREAM"), ("AF_INET6", "SOCK_DGRAM"), ("AF_UNIX", "SOCK_STREAM"),
        ("AF_UNIX", "SOCK_DGRAM"), ("AF_VSOCK", "SOCK_STREAM"),
        ("AF_NETLINK", "SOCK_RAW"), ("AF_PACKET", "SOCK_RAW"), ("AF_ALG", "SOCK_SEQPACKET"),
    ],
)  # fmt: skip
def test_no_socket_can_be_opened(place: Field, family: str, kind: str) -> None:
    last = denied(place, f"import socket; socket.socket(socket.{family}, socket.{kind})")
    assert "Operation not permitted" in last


def test_nothing_is_reached_that_listens(place: Field) -> None:
    path = str(place.home / "sandbox" / "socket")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0draftloop-{os.getpid()}-{place.mode}")
        abstract.listen()
        port, name = tcp.getsockname()[1], abstract.getsockname()
        for code in (
            f"socket.create_connection(('127.0.0.1', {port}), 2)",
            "socket.getaddrinfo('example.org', 80)",
            f"socket.socket(socket.AF_UNIX).connect({name!r})",
            f"socket.socket(socket.AF_UNIX).connect({path!r})",
            f"socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', {path!r})",
            f"socket.socketpair()[0].connect({path!r})",
        ):
            denied(place, f"import socket\n{code}")
        tcp.setblocking(False)
        abstract.setblocking(False)
        for listening in (tcp, abstract):
            with pytest.raises(BlockingIOError):
                listening.accept()
    denied(place, f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}/', timeout=2)")
    attempt = place.run(f"echo hello > /dev/tcp/127.0.0.1/{port}", "shell")
    assert attempt.outcome == "failed"
    attempt = place.run(
        "fetch('http://127.0.0.1:9/').catch(e => {console.error(e); process.exit(3)})", "javascript"
    )
    assert attempt.exit_status != 0


def test_a_pair_of_connected_sockets_works(place: Field) -> None:
    code = "import socket; a, b = socket.socketpair(); a.sendall(b'hello'); print(b.recv(9))"
    assert place.run(code).stdout == "b'hello'\n"


# ---------------------------------------------------------------- the kernel's doors


@pytest.mark.skipif(not X86_64, reason="numbers of x86_64")
@pytest.mark.parametrize(
    ("name", "number", "arguments"),
    [
        ("ptrace", 101, "16, os.getppid(), 0, 0"),
        ("process_vm_readv", 310, "os.getppid(), 0, 0, 0, 0, 0"),
        ("mount", 165, "b'none', b'.', b'tmpfs', 0, 0"),
        ("umount2", 166, "b'/proc', 2"),
        ("pivot_root", 155, "b'.', b'.'"),
        ("chroot", 161, "b'.'"),
        ("unshare", 272, "0x10000000"),
        ("setns", 308, "0, 0"),
        ("clone with a user namespace", 56, "0x10000011, 0, 0, 0, 0"),
        ("clone3", 435, "0, 0"),
        ("keyctl", 250, "0, -3, 1, 0, 0"),
        ("add_key", 248, "b'user', b'a', b'b', 1, -3"),
        ("bpf", 321, "0, 0, 0"),
        ("perf_event_open", 298, "0, 0, 0, 0, 0"),
        ("io_uring_setup", 425, "8, 0"),
        ("userfaultfd", 323, "0"),
        ("open_by_handle_at", 304, "0, 0, 0"),
        ("name_to_handle_at", 303, "-100, b'.', 0, 0, 0"),
        ("pidfd_open", 434, "os.getppid(), 0"),
        ("pidfd_getfd", 438, "0, 0, 0"),
        ("kcmp", 312, "1, 1, 0, 0, 0"),
        ("personality", 135, "0x40000"),
        ("init_module", 175, "0, 0, 0"),
        ("kexec_load", 246, "0, 0, 0, 0"),
        ("reboot", 169, "0, 0, 0, 0"),
        ("swapon", 167, "b'a', 0"),
        ("settimeofday", 164, "0, 0"),
        ("sethostname", 170, "b'a', 1"),
        ("quotactl", 179, "0, 0, 0, 0"),
        ("acct", 163, "b'a'"),
        ("seccomp", 317, "0, 0, 0"),
        ("landlock_create_ruleset", 444, "0, 0, 1"),
        ("prlimit64 of the parent", 302, "os.getppid(), 7, 0, 0"),
        ("fcntl F_SETOWN", 72, "1, 8, os.getppid()"),
        ("fcntl F_SETSIG", 72, "1, 10, 9"),
        ("ioctl TIOCSTI", 16, "0, 0x5412, b'x'"),
        ("a call of the x32 interface", 0x40000000 + 41, "2, 1, 0"),
        ("a call that does not exist", 1000, "0"),
    ],
)
def test_a_system_call_is_refused(place: Field, name: str, number: int, arguments: str) -> None:
    attempt = place.run(CALLS + f"call({number}, {arguments})\nprint('POSSIBLE')")
    assert "POSSIBLE" not in attempt.stdout, name
    if attempt.outcome == "failed":
        assert any(
            words in attempt.stderr
            for words in ("Operation not permitted", "Function not implemented", "Permission denied")
        ), attempt.stderr
    else:
        assert attempt.outcome == "killed", attempt  # the filter ends other architectures' calls


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1", "os.getpid() - 1"])
def test_no_other_process_can_be_signalled(place: Field, target: str) -> None:
    attempt = place.run(f"import os, signal, sys\nos.kill({target}, signal.SIGKILL)\nprint('POSSIBLE')")
    if target == "-1":
        assert attempt.outcome in {"ok", "failed", "killed"}  # it may end what is its own
    else:
        assert attempt.outcome == "failed", attempt
        assert "POSSIBLE" not in attempt.stdout
    assert place.run("print(1)").outcome == "ok"


def test_code_holds_no_capability_and_gains_none(place: Field) -> None:
    code = """
sets = (ctypes.c_uint32 * 6)()
libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets)
print(any(sets), libc.prctl(39, 0, 0, 0, 0), os.getuid() == 0)
"""
    assert place.run(CALLS + code).stdout == "False 1 False\n"
    for code in ("os.setuid(0)", "os.setgid(0)", "os.mknod('a', 0o020666, os.makedev(1, 3))"):
        denied(place, code)


# ---------------------------------------------------------------- inputs and outputs


def test_inputs_cannot_be_changed(place: Field) -> None:
    given = place.inputs / "given.csv"
    given.write_text("a,b\n1,2\n")
    if os.getuid() == 0 and place.mode.startswith("user"):
        os.chown(given, PLAIN_UID, PLAIN_UID)  # the sandbox's own user may do with it whatever it likes
    before = given.stat()
    code = """
import os, pathlib
path = "input/given.csv"
for number, attempt in enumerate((
    lambda: open(path, "a"), lambda: open(path, "r+"), lambda: os.truncate(path, 0),
    lambda: os.unlink(os.path.realpath(path)) if os.path.islink(path) else os.unlink(path),
    lambda: os.rename(os.path.realpath(path), "mine"), lambda: os.link(os.path.realpath(path), "mine"),
    lambda: os.setxattr(path, "user.a", b"b"),
    lambda: os.chmod(path, 0o777), lambda: os.utime(path, (0, 0)),
    lambda: os.chmod(os.path.realpath(path), 0o777), lambda: os.chown(path, os.getuid(), 0),
)):
    try:
        attempt()
        print("POSSIBLE" if number < 7 else "reported as done", number)
    except OSError:
        pass
print(open(path).read())
"""
    attempt = place.run(code, inputs={"given.csv": str(given)})
    assert attempt.outcome == "ok", attempt
    assert "POSSIBLE" not in attempt.stdout
    assert ("reported as done" in attempt.stdout) == (place.sandbox.report.layers[0] == "landlock")
    assert "1,2" in attempt.stdout
    after = given.stat()
    assert given.read_text() == "a,b\n1,2\n"
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink, after.st_uid) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_nlink,
        before.st_uid,
    )


def test_only_regular_files_of_its_own_are_handed_on(place: Field) -> None:
    secret = str(place.secret)
    code = f"""
import os
open("good.txt", "w").write("good")
os.symlink({secret!r}, "link.txt")
os.symlink("/etc", "folder")
os.symlink("good.txt", "own-link.txt")
open("one", "w").write("1"); os.link("one", "two")
os.mkfifo("pipe")
open("two\\nlines.txt", "w").write("x")
open(b"\\xff.txt", "w").write("x")
open("\\x1b[31m.txt", "w").write("x")
os.makedirs("/".join("abcdefghijklmnopqrst")); open("/".join("abcdefghijklmnopqrst") + "/deep", "w")
os.makedirs("文件夹"); open("文件夹/表格.csv", "w").write("值")
"""
    attempt = place.run(code)
    assert attempt.outcome == "ok", attempt
    assert [file.path for file in attempt.files] == ["good.txt", "文件夹/表格.csv"]
    reasons = {refused.path: refused.reason for refused in attempt.refused}
    assert reasons["link.txt"] == reasons["folder"] == reasons["own-link.txt"] == "It is a symbolic link."
    assert reasons["one"] == reasons["two"] == "It has more than one name (hard link)."
    assert reasons["pipe"] == "It is not a regular file."
    assert reasons["'two\\nlines.txt'"] == "Its name holds characters that cannot be shown."
    assert sum("cannot be shown" in reason for reason in reasons.values()) == 3
    assert any("deep" in reason for reason in reasons.values())
    assert (place.outputs / "good.txt").read_text() == "good"


@pytest.mark.parametrize(
    "path", ["../escaped", "../../escaped", "../script.py", "/tmp/escaped", "../out/escaped"]
)
def test_nothing_is_written_outside_the_folder(place: Field, path: str) -> None:
    denied(place, f"open({path!r}, 'w')")
    assert not Path("/tmp/escaped").exists()


def test_nul_bytes_and_broken_text_do_not_break_the_answer(place: Field) -> None:
    attempt = place.run("import os; os.write(1, b'a\\0b\\xff\\n' + '值'.encode()[:2])")
    assert attempt.outcome == "ok"
    assert attempt.stdout == "a�b�\n�"


def test_the_reason_describes_an_abnormal_exit(place: Field) -> None:
    assert place.run("import os; os._exit(7)").reason == "script.py ended with exit status 7."
    attempt = place.run("import os; os.abort()")
    assert attempt.outcome == "killed"
    assert attempt.reason == "script.py was ended by SIGABRT."
    assert place.run("kill -SEGV $$ 2>/dev/null; exit 9", "shell").outcome in {"killed", "failed"}


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SetupError, match="wall_s"):
        Limits(wall_s=0)


def test_a_folder_of_any_depth_and_width_is_removed() -> None:
    place, here = Path(tempfile.mkdtemp(dir="/dev/shm")), Path.cwd()
    os.chdir(place)
    try:
        for number in range(5000):
            Path("f").touch()
            Path("d" * 20).mkdir(mode=0o000 if number % 500 == 499 and os.getuid() == 0 else 0o700)
            os.chdir("d" * 20)
    finally:
        os.chdir(here)
    assert usage(str(place), 100_000).hidden
    remove_tree(str(place))
    assert not place.exists()
