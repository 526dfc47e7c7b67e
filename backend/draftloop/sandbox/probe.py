"""The proof of containment: code that tries what is forbidden, run as a job.

What it finds possible is named, and then the sandbox runs no code at all.
"""

import json
import resource
from collections.abc import Mapping
from dataclasses import replace

from draftloop.runs.job import MIB, Attempt, Limits, SandboxJob, SandboxProfile, Script
from draftloop.sandbox import seccomp
from draftloop.sandbox.containment import rlimits

LIMITS = replace(Limits(), wall_s=30, cpu_s=20, memory_bytes=1024 * MIB, file_bytes=1 * MIB)
_SYSTEM_CALLS = (
    "ptrace unshare setns mount bpf io_uring_setup keyctl shmget memfd_create perf_event_open userfaultfd "
    "process_vm_readv open_by_handle_at inotify_init1 fanotify_init pidfd_open "
    "landlock_create_ruleset"
).split()

# One line for each property; a try that raises OSError is one that was denied.
_CODE = r"""
import ctypes, json, mmap, os, resource, socket, sys
given = json.loads(GIVEN)
libc = ctypes.CDLL(None, use_errno=True)
possible = []

def forbidden(words, attempt):
    try:
        attempt()
    except OSError:
        return
    possible.append(words)

def unchanged(words, path, attempt):
    try:
        before = os.stat(path)
        attempt(path)
    except OSError:
        return
    after = os.stat(path)
    if any(getattr(before, name) != getattr(after, name) for name in ("st_mode", "st_uid", "st_mtime_ns")):
        possible.append(words)

def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "denied")

def tcp():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.connect(("127.0.0.1", 9))

secret = given["secret"]
forbidden("read another file", lambda: open(secret).read())
forbidden("write another file", lambda: open(secret, "a").close())
forbidden("truncate another file", lambda: os.truncate(secret, 0))
forbidden("truncate another file while opening it", lambda: os.open(secret, os.O_RDONLY | os.O_TRUNC))
forbidden("link another file", lambda: os.link(secret, "linked"))
forbidden("move another file", lambda: os.rename(secret, "moved"))
forbidden("read the sandbox's program", lambda: open(given["program"]).read())
forbidden("read attributes of another file", lambda: os.listxattr(given["program"]))
for path in (secret, given["jobs"], sys.argv[0], os.path.dirname(sys.argv[0])):
    unchanged("change the mode of another file", path, lambda path: os.chmod(path, 0o700))
    unchanged("change the times of another file", path, lambda path: os.utime(path, (1, 1)))
forbidden("list the folder of all jobs", lambda: os.listdir(given["jobs"]))
forbidden("write outside its folder", lambda: open(given["jobs"] + "/written", "w").close())
forbidden("read /etc/passwd", lambda: open("/etc/passwd").read())
forbidden("read another process's environment", lambda: open(f"/proc/{os.getppid()}/environ", "rb").read())
forbidden("signal another process", lambda: os.kill(os.getppid(), 0))
forbidden("limit another process", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE))
forbidden("become root", lambda: os.setuid(0) or os.getuid() == given["uid"] and call(-1))
for name, family in given["families"].items():
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        forbidden(f"open a {name} socket", lambda: socket.socket(family, kind).close())
if given["plain"]:
    forbidden("make a datagram pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    one, other = socket.socketpair()
    forbidden("send open files through a socket", lambda: socket.send_fds(one, [b"x"], [0]))
    if libc.prctl(4, 0, 0, 0, 0) == 0:
        possible.append("hide what it holds")
forbidden("share memory without a file", lambda: mmap.mmap(-1, 4096))
forbidden("make a device", lambda: os.mknod("device", 0o020666, os.makedev(1, 3)))
for name, number in given["calls"].items():
    forbidden(f"call {name}", lambda: call(number, 0, 0, 0, 0, 0))

header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, sets)
if any(sets):
    possible.append("use a capability")
if given["own_user"] and os.getuid() == given["uid"]:
    possible.append("run as the sandbox's own user")
if libc.prctl(39, 0, 0, 0, 0) != 1:
    possible.append("gain privileges")
for kind, value in given["rlimits"].items():
    soft = resource.getrlimit(int(kind))[0]
    if soft == resource.RLIM_INFINITY or soft > value:
        possible.append(f"exceed resource limit {kind}")
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
forbidden("allocate more than its memory", lambda: mmap.mmap(-1, given["memory_bytes"], private))
open("written", "w").write("ok")
print(json.dumps(possible))
"""
_FAMILIES = {"unix": 1, "TCP or UDP": 2, "IPv6": 10, "netlink": 16, "packet": 17, "vsock": 40}


def job(
    *, secret: str, program: str, jobs: str, uid: int, own_user: bool, profile: SandboxProfile
) -> SandboxJob:
    """Make the job that tries what is forbidden.

    Args:
        secret: A file that everybody may read, outside of every job.
        program: A file of the sandbox itself, which jobs may not read.
        jobs: The folder of all jobs.
        uid: The user of the sandbox itself.
        own_user: Jobs run as another user than the sandbox's.
        profile: Whose denials to try.
    """
    browser = profile == "browser"
    numbers = {name: seccomp.system_call(name) for name in _SYSTEM_CALLS}
    given = {
        "secret": secret,
        "program": program,
        "jobs": jobs,
        "uid": uid,
        "own_user": own_user,
        "families": {name: number for name, number in _FAMILIES.items() if not (browser and number == 1)},
        "plain": not browser,
        "calls": {name: number for name, number in numbers.items() if number >= 0},
        "rlimits": {str(kind): value for kind, value in rlimits(LIMITS, profile).items()}
        | {str(resource.RLIMIT_NPROC): 1 << 20},
        "memory_bytes": LIMITS.memory_bytes,
    }
    code = _CODE.replace("GIVEN", repr(json.dumps(given)))
    return SandboxJob((Script(code),), limits=LIMITS, profile=profile)


def judge(attempt: Attempt) -> list[str]:
    """Return what was possible and must not be; empty where the containment holds."""
    if attempt.outcome != "ok" or "written" not in {file.path for file in attempt.files}:
        return [f"run to its end ({attempt.reason} {attempt.stderr[-500:]})".replace("\n", " ")]
    possible: list[str] = json.loads(attempt.stdout)
    return list(dict.fromkeys(possible))


CHROMIUM = Script("chromium --version", "shell")
FFMPEG = Script("ffmpeg -version | head -n 1 | cut -d ' ' -f 3", "shell")
HELLO: Mapping[str, Script] = {
    "python": Script("import sys; print(sys.version.split()[0])"),
    "javascript": Script("console.log(process.versions.node)", "javascript"),
    "shell": Script('echo "${BASH_VERSION%%[^0-9.]*}"', "shell"),
}
