"""Programs that mean harm to the sandbox, its machine or other jobs.

Each function is the source of a program, which `test_harm.py` runs among honest jobs. It knows this
repository and the paths of the sandbox that it runs in (PREAMBLE is put in front of it), does as much harm as
it can, and prints HARM where it can tell by itself that it succeeded.
"""

# mypy: ignore-errors

import ctypes
import fcntl
import inspect
import mmap
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from draftloop.runs.job import MIB, Language

PREAMBLE = """
import ctypes, fcntl, mmap, os, shutil, signal, socket, struct, sys, threading, time
from contextlib import suppress
SANDBOX, INPUTS, PYTHON = {sandbox!r}, {inputs!r}, {python!r}
WORK = os.getcwd()
JOB, JOBS = os.path.dirname(WORK), os.path.dirname(os.path.dirname(WORK))
OUTSIDE = [SANDBOX, SANDBOX + "/socket", JOBS, JOB, JOB + "/out", JOB + "/script.py", SANDBOX + "/matplotlib",
           INPUTS, INPUTS + "/honest.csv", PYTHON, os.path.dirname(PYTHON), "/", "/proc", "/dev/null", "/usr"]
# System calls of x86_64 that wait, or end the caller.
WAITING = (0, 7, 22, 23, 34, 35, 58, 60, 61, 130, 202, 219, 230, 231, 232, 247, 270, 271, 281, 293, 441)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
def call(number, *arguments):
    return libc.syscall(ctypes.c_long(number), *[
        ctypes.c_long(one) if isinstance(one, int) else one for one in arguments])
def each(paths, *attempts):
    for path in paths:
        for attempt in attempts:
            with suppress(OSError, ValueError):
                attempt(path)
"""
LIMITS: dict[str, Any] = {
    "wall_s": 3.0,
    "cpu_s": 3,
    "memory_bytes": 600 * MIB,
    "disk_bytes": 200 * MIB,
    "processes": 24,
}


@dataclass(frozen=True)
class Harm:
    """A program that means harm, and how it is run."""

    code: str
    language: Language = "python"
    with_input: bool = False
    limits: dict[str, Any] = field(default_factory=dict)
    ended_for: str = ""  # words of the reason for which it must be ended; empty where it may end by itself


HARM: dict[str, Harm] = {}


def harm(with_input: bool = False, ended_for: str = "", **limits: Any) -> Callable[[Callable[[], None]], Any]:
    """Add the function that follows to HARM, as a program."""

    def add(function: Callable[[], None]) -> Any:
        name = function.__name__
        source = inspect.getsource(function)
        code = f"{PREAMBLE}{source[source.index('def ') :]}\n{name}()\n"
        HARM[name] = Harm(code, with_input=with_input, limits=limits, ended_for=ended_for)
        return function

    return add


# ---------------------------------------------------------------- names in its folder


@harm(with_input=True)
def renames_its_input_folder() -> None:
    os.rename("input", "x")


@harm(with_input=True)
def renames_its_input_folder_away_and_links_proc() -> None:
    with suppress(OSError):
        os.rename("input", "x")
    os.symlink("/proc", "input")


@harm()
def puts_a_link_to_proc_where_inputs_are() -> None:
    os.mkdir("input")
    os.symlink("/proc", "input/p")


@harm()
def puts_links_to_everything_where_inputs_are() -> None:
    os.mkdir("input")
    for n, path in enumerate(["/", "/dev", "/usr", "/proc/self", "/sys", *OUTSIDE]):
        os.symlink(path, f"input/{n}")


@harm()
def makes_the_input_folder_a_link() -> None:
    os.symlink("/proc", "input")


@harm()
def makes_the_input_folder_a_link_to_the_sandbox() -> None:
    os.symlink(SANDBOX, "input")


@harm()
def makes_the_input_folder_a_file() -> None:
    open("input", "w").write("x")


@harm()
def makes_the_input_folder_a_pipe() -> None:
    os.mkfifo("input")


@harm(with_input=True)
def removes_its_inputs() -> None:
    shutil.rmtree("input", ignore_errors=True)
    each(["input/honest.csv"], os.unlink, lambda path: os.rename(path, "mine"))


@harm()
def moves_its_own_folders() -> None:
    each(
        [WORK, JOB + "/tmp", JOB, JOB + "/script.py"],
        lambda path: os.rename(path, path + "-moved"),
        lambda path: os.rename(path, WORK + "/moved"),
    )


@harm(files=20000)
def nests_1_080_folders() -> None:
    for _ in range(1080):
        os.mkdir("d")
        os.chdir("d")


@harm(files=20000)
def nests_5_000_folders_in_its_home() -> None:
    os.chdir(os.environ["HOME"])
    for _ in range(5000):
        os.mkdir("d")
        os.chdir("d")


@harm()
def nests_folders_and_swaps_them_for_links() -> None:
    os.makedirs("a/b/c")

    def swap():
        while True:
            with suppress(OSError):
                os.rename("a/b", "b")
                os.symlink("/", "a/b")
                os.unlink("a/b")
                os.rename("b", "a/b")

    threading.Thread(target=swap, daemon=True).start()
    time.sleep(1.5)


@harm()
def closes_its_folders() -> None:
    os.makedirs("a/b")
    open("a/b/c", "w").close()
    each(["a/b", "a", "."], lambda path: os.chmod(path, 0))


@harm()
def leaves_every_kind_of_file() -> None:
    os.mkfifo("pipe")
    os.symlink("/etc/passwd", "link")
    open("a", "w").close()
    os.link("a", "b")
    open(b"\xff\n", "w").close()
    os.chmod("a", 0o6777)
    each(["device"], lambda path: os.mknod(path, 0o020666, os.makedev(1, 3)))


# ---------------------------------------------------------------- files that are not its own


@harm()
def changes_modes_of_what_is_not_its_own() -> None:
    each(OUTSIDE, *[lambda path, mode=mode: os.chmod(path, mode) for mode in (0, 0o777, 0o6777)])
    for path in OUTSIDE:
        with suppress(OSError):
            fd = os.open(path, os.O_PATH)
            call(268, fd, b"", 0, 0)
            call(452, fd, b"", 0, 0x1000)
            os.chmod(f"/proc/self/fd/{fd}", 0)


@harm()
def changes_owners_of_what_is_not_its_own() -> None:
    each(
        OUTSIDE,
        lambda path: os.chown(path, os.getuid(), os.getgid()),
        lambda path: os.chown(path, 0, 0),
        lambda path: os.lchown(path, os.getuid(), -1),
    )


@harm()
def changes_times_of_what_is_not_its_own() -> None:
    each(OUTSIDE, lambda path: os.utime(path, (0, 0)), lambda path: os.utime(path))
    each(OUTSIDE, lambda path: call(132, path.encode(), 0), lambda path: call(235, path.encode(), 0))


@harm()
def changes_attributes_of_what_is_not_its_own() -> None:
    each(OUTSIDE, lambda path: os.setxattr(path, "user.a", b"b"), lambda path: os.removexattr(path, "user.a"))


@harm(with_input=True)
def changes_modes_through_open_files() -> None:
    for path in [*OUTSIDE, sys.executable, os.__file__]:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY)
            os.fchmod(fd, 0)
            os.fchown(fd, 0, 0)
            os.utime(fd, (0, 0))


@harm()
def changes_modes_of_another_job() -> None:
    for _ in range(20):
        with suppress(OSError):
            for name in os.listdir(JOBS):
                each([f"{JOBS}/{name}", f"{JOBS}/{name}/work"], lambda path: os.chmod(path, 0))
        for pid in range(os.getpid() - 60, os.getpid() + 60):
            each([f"/proc/{pid}/cwd", f"/proc/{pid}/cwd/.."], lambda path: os.chmod(path, 0))
        time.sleep(0.05)


@harm()
def watches_folders() -> None:
    for number in (253, 294):
        fd = call(number, 0)
        if fd >= 0:
            each(OUTSIDE, lambda path: call(254, fd, path.encode(), 0xFFF) >= 0 and print("HARM", path))


@harm()
def reads_attributes() -> None:
    each(OUTSIDE, lambda path: print("HARM", os.listxattr(path)))


@harm()
def removes_and_truncates() -> None:
    each(
        OUTSIDE,
        os.unlink,
        os.rmdir,
        lambda path: os.truncate(path, 0),
        lambda path: open(path, "a").close(),
        lambda path: os.rename(path, "mine"),
        lambda path: os.link(path, "linked"),
        lambda path: shutil.rmtree(path),
    )


@harm(with_input=True)
def locks_files_of_others() -> None:
    held = []
    for path in [*OUTSIDE, sys.executable]:
        with suppress(OSError):
            held.append(os.open(path, os.O_RDONLY))
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    time.sleep(0.3)


# ---------------------------------------------------------------- memory and disk that nobody shows


@harm(cpu_s=20, wall_s=10.0, ended_for="sockets")
def fills_the_buffers_of_sockets() -> None:
    pairs = []
    for _ in range(18):
        if os.fork() == 0:
            while True:
                with suppress(OSError):
                    pairs.append(socket.socketpair())
                    for one in pairs[-1]:
                        one.setblocking(False)
                        with suppress(BlockingIOError):
                            while True:
                                one.send(bytes(65536))
    time.sleep(30)


@harm()
def keeps_open_files_in_sockets() -> None:
    one, other = socket.socketpair()
    for number in range(200):
        with open(f"{number}", "wb") as file:
            os.unlink(file.name)
            socket.send_fds(one, [b"x"], [file.fileno()])
    print("HARM")


@harm(wall_s=20.0, cpu_s=20, ended_for="written to disk")
def keeps_files_without_a_name() -> None:
    held = []
    while True:
        held.append(open("a", "wb"))
        os.unlink("a")
        for _ in range(40):
            held[-1].write(bytes(1 << 20))


@harm(wall_s=20.0, cpu_s=20, ended_for="written to disk")
def maps_files_without_a_name() -> None:
    held = []
    while True:
        with open("a", "w+b") as file:
            file.write(bytes(40 << 20))
            file.flush()
            held.append(mmap.mmap(file.fileno(), 40 << 20))
            os.unlink("a")


@harm()
def shares_memory_and_lets_go_of_it() -> None:
    held = 0
    for _ in range(40):
        at = libc.mmap(None, 100 << 20, 3, 0x21, -1, 0)
        if at == ctypes.c_void_p(-1).value:
            continue
        ctypes.memset(at, 1, 100 << 20)
        libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(100 << 20), 4)
        held += 100
    if held > 900:
        print("HARM", held)


@harm(cpu_s=20, wall_s=10.0, ended_for="/dev/zero")
def shares_dev_zero_and_lets_go_of_it() -> None:
    zero = os.open("/dev/zero", os.O_RDWR)
    while True:
        at = libc.mmap(None, 50 << 20, 3, 1, zero, 0)
        ctypes.memset(at, 1, 50 << 20)
        libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(50 << 20), 4)


@harm(cpu_s=30, wall_s=20.0, ended_for="locks")
def holds_a_million_locks() -> None:
    file = open("a", "w+b")
    for _ in range(20):
        if os.fork() == 0:
            for at in range(os.getpid() % 2, 10**6, 2):
                fcntl.lockf(file, fcntl.LOCK_SH, 1, at * 2)
    time.sleep(30)


@harm()
def holds_locks_of_no_process() -> None:
    file = open("a", "w+b")
    for at in range(1000):
        fcntl.fcntl(file, 37, struct.pack("hhqqi4x", 0, 0, at * 2, 1, 0))
    print("HARM")


@harm()
def splits_its_memory_into_pieces() -> None:
    for _ in range(20):
        if os.fork() == 0:
            for n in range(60000):
                libc.mmap(None, ctypes.c_size_t(4096), 1 + n % 2 * 2, 0x22, -1, ctypes.c_long(0))
            time.sleep(30)
    time.sleep(2)


@harm()
def fills_pipes() -> None:
    held = []
    for _ in range(20):
        if os.fork() == 0:
            with suppress(OSError):
                while True:
                    read, write = os.pipe()
                    held.append(read)
                    os.set_blocking(write, False)
                    with suppress(OSError):
                        fcntl.fcntl(write, 1031, 1 << 20)
                    with suppress(BlockingIOError):
                        while True:
                            os.write(write, bytes(65536))
            time.sleep(30)
    time.sleep(2)


@harm()
def uses_up_timers_and_waiting_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 60))
    for _ in range(100000):
        with suppress(OSError):
            os.kill(os.getpid(), 40)
    timer = ctypes.c_void_p()
    for _ in range(100000):
        libc.timer_create(0, None, ctypes.byref(timer))


@harm()
def hides_what_it_holds() -> None:
    print("HARM" if libc.prctl(4, 0, 0, 0, 0) == 0 else "")


# ---------------------------------------------------------------- processes and signals


@harm(ended_for="SIGRTMIN+6")
def ends_itself_by_a_signal_without_a_name() -> None:
    os.kill(os.getpid(), 40)


@harm()
def ends_itself_by_every_signal() -> None:
    for number in range(1, 65):
        if os.fork() == 0:
            with suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(0)
        with suppress(OSError):
            os.waitpid(-1, os.WNOHANG)


@harm()
def ends_everything_in_reach() -> None:
    for pid in (os.getppid(), 1, 2, 3, 0x7FFFFFFF):
        for number in (9, 19, 15):
            each([pid], lambda pid: os.kill(pid, number), lambda pid: os.killpg(pid, number))
    os.kill(-1, 9)


@harm()
def leaves_daemons() -> None:
    for _ in range(8):
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            for number in range(1, 65):
                with suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_IGN)
            libc.prctl(36, 1, 0, 0, 0)
            libc.prctl(1, 0, 0, 0, 0)
            os.chdir("/")
            while True:
                time.sleep(0.01)


@harm()
def adopts_its_children() -> None:
    libc.prctl(36, 1, 0, 0, 0)
    for _ in range(6):
        if os.fork() == 0:
            if os.fork():
                os._exit(0)
            os.setsid()
            time.sleep(60)
    os._exit(0)


@harm(ended_for="Stopped")
def bombs_with_forks() -> None:
    while True:
        with suppress(OSError):
            os.fork()


@harm(ended_for="Stopped")
def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@harm()
def closes_all_it_has() -> None:
    os.closerange(0, 256)


@harm()
def raises_its_limits() -> None:
    import resource

    for kind in range(16):
        each(
            [kind],
            lambda kind: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2),
            lambda kind: resource.prlimit(os.getppid(), kind, (0, 0)),
        )
    each(
        [-20],
        os.nice,
        lambda n: os.setpriority(0, os.getppid(), 19),
        lambda n: os.sched_setaffinity(os.getppid(), [0]),
    )
    with suppress(OSError):
        open("/proc/self/oom_score_adj", "w").write("-1000")


@harm(ended_for="printed over")
def floods_its_output() -> None:
    while True:
        os.write(1, bytes(1 << 16))


@harm()
def allocates_without_end() -> None:
    held = []
    while True:
        with suppress(MemoryError):
            held.append(bytearray(10 << 20))


@harm()
def replaces_itself_without_end() -> None:
    os.execv(sys.executable, [sys.executable, "-c", "while True: pass"])


@harm()
def writes_text_that_is_none() -> None:
    os.write(1, b"\xed\xa0\x80\0\xff" * 1000)
    os.write(2, b"\x1b[2J\0")


# ---------------------------------------------------------------- the kernel's doors


@harm(wall_s=20.0, cpu_s=20)
def tries_every_system_call() -> None:
    for number in (*range(470), *range(0x40000000, 0x40000000 + 470)):
        if number in WAITING:
            continue
        if os.fork() == 0:
            signal.alarm(1)
            call(number, 0, 0, 0, 0, 0, 0)
            call(number, -1, -1, -1, -1, -1, -1)
            os._exit(0)
        os.wait()


@harm()
def calls_as_a_32_bit_program() -> None:
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    page.write(b"\xb8\x14\0\0\0\xcd\x80\xc3")
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CFUNCTYPE(ctypes.c_int)(at)() == os.getpid():
        print("HARM")


@harm()
def asks_for_handles_keys_queues_and_rings() -> None:
    for number, arguments in {
        303: (-100, b".", 0, 0, 0),
        300: (0, 0),
        323: (0,),
        310: (1, 0, 0, 0, 0, 0),
        434: (os.getppid(), 0),
        424: (3, 9, 0, 0),
        444: (0, 0, 1),
        240: (b"/a", 0o102, 0o600, 0),
        248: (b"user", b"a", b"b", 1, -3),
        298: (0, 0, -1, -1, 0),
        425: (8, 0),
        319: (b"a", 0),
        447: (0,),
        272: (0x10000000,),
        435: (0, 0),
        161: (b".",),
        165: (b"none", b".", b"tmpfs", 0, 0),
        166: (b"/proc", 10),
        428: (-100, b"/", 1),
        429: (3, b"", -100, b"/", 4),
        442: (-100, b"/", 0, 0, 0),
        457: (0, 0, 0, 0),
    }.items():
        if call(number, *arguments) >= 0:
            print("HARM", number)


@harm()
def sends_signals_through_files() -> None:
    each(
        [os.getppid()],
        lambda pid: fcntl.fcntl(0, 8, pid),
        lambda pid: fcntl.fcntl(1, 10, 9),
        lambda pid: fcntl.fcntl(1, 1026, 1),
        lambda pid: fcntl.fcntl(1, 1024, 1),
    )
    each([0x5412], lambda request: fcntl.ioctl(0, request, b"x"))


HARM["is_a_shell_that_removes_everything"] = Harm(
    "rm -rf --no-preserve-root / .. ../.. * 2>/dev/null; chmod -R 0 / 2>/dev/null; exit 0",
    language="shell",
    limits={"wall_s": 20.0, "cpu_s": 20},
)


HARM["is_a_node_that_spawns"] = Harm(
    "const {spawn} = require('child_process')\n"
    "for (let i = 0; i < 30; i++) {\n"
    "  try { spawn('sleep', ['60'], {detached: true}).on('error', () => {}) } catch {}\n"
    "}\n"
    "setTimeout(() => process.exit(0), 300)",
    language="javascript",
    limits={"processes": 64},
)
