"""The sandbox's server: finds out what the machine can contain, proves it, then runs jobs.

One process with the packages imported, which forks a keeper for each connection to its socket. It says what
it is in one line of JSON on standard output, and ends when its standard input does. Above it stands a guard,
a small process that ends what the server leaves if it is killed.

It fails closed: after a job whose keeper reports a fault of the sandbox, the server proves its containment
again before the next one starts. Where the proof fails, or no user is left to run jobs as, it ends with
status 1. Whoever started it starts it anew.

    python -m draftloop.sandbox --folder FOLDER [--inputs FOLDER ...] [--jobs N] [--browser] [--without LAYER]
"""

import argparse
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, get_args

from draftloop.errors import SetupError
from draftloop.runs.job import (
    LANGUAGES,
    Attempt,
    Job,
    Language,
    Layer,
    Limits,
    Package,
    Profile,
    SandboxReport,
    attempt_from_json,
    job_to_json,
    report_to_json,
)
from draftloop.sandbox import cgroup, keeper, kernel, probe, processes, seccomp, view, warm
from draftloop.sandbox.containment import DEVICES, SYSTEM, Containment, python_paths
from draftloop.support.trees import remove_or_set_aside, remove_tree

SOCKET = "socket"
# Between Debian's ranges for people and systemd's for services; a block for each sandbox of the machine.
_FIRST_UID, _UIDS, _BLOCKS = 60720, 32, 14
_OWN_MEMORY_BYTES = 1 << 30  # of the sandbox itself, its keepers and what is cached of files
_LEFT_OVER_S = 2.0  # for ending what a killed sandbox left
_RETRY_S = 10.0  # between two tries to end what a job left
_PACKAGE = Path(__file__).parents[1]
# Where it is imported from may be a link.
_CODE = tuple(dict.fromkeys((str(_PACKAGE), str(_PACKAGE.resolve()))))
_LAYERS: tuple[Layer, ...] = get_args(Layer)


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: str
    inputs: tuple[str, ...]
    jobs: int
    browser: bool
    without: frozenset[Layer]
    memory_bytes: int  # of all jobs and the sandbox together; 0 is no limit


def main() -> None:
    """Run the server until its standard input ends."""
    options = _options()
    os.umask(0o022)
    try:
        _check_apart(options.folder, options.inputs)
        group = _stand_guard(options)
        folder = _prepare_folder(options.folder)
        uids, lock = _pool(options)
        with lock:
            always: set[Layer] = {"rlimits", "landlock", "seccomp"}
            layers = always - options.without
            if uids:
                layers.add("pool-uid")
            if "namespaces" not in options.without and _enter_namespaces(folder, options.inputs):
                layers.add("namespaces")
            _Server(options, folder, frozenset(layers), uids, group).serve()
    except SetupError as error:
        _say({"refused": error.message, "hint": error.hint})
        sys.exit(1)
    except OSError as error:
        traceback.print_exc()
        _say({"refused": f"The sandbox could not start: {error}.", "hint": "Its log says where."})
        sys.exit(1)


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m draftloop.sandbox", description=__doc__)
    parser.add_argument("--folder", required=True, help="where jobs run and the socket is; made if missing")
    parser.add_argument("--inputs", action="append", default=[], help="a folder whose files jobs may read")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="jobs at once")
    parser.add_argument(
        "--job-memory",
        type=int,
        default=Limits().memory_bytes >> 20,
        help="MB that one job may have at most; the kernel limits all together, where it can; 0: no limit",
    )
    parser.add_argument("--browser", action="store_true", help="let jobs ask for the profile browser")
    parser.add_argument("--without", action="append", default=[], choices=_LAYERS, help="leave a layer out")
    given = parser.parse_args()
    without: frozenset[Layer] = frozenset(given.without)
    jobs = min(max(1, given.jobs), _UIDS)
    return Options(
        folder=os.path.realpath(given.folder),
        inputs=_input_roots(given.inputs),
        jobs=jobs,
        browser=given.browser,
        without=without,
        memory_bytes=(given.job_memory * jobs << 20) + _OWN_MEMORY_BYTES if given.job_memory else 0,
    )


def _input_roots(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the input folders that exist, without links and without those that lie in another one."""
    roots = sorted({os.path.realpath(path) for path in paths if os.path.isdir(path)})
    return tuple(
        root
        for root in roots
        if not any(root != other and Path(root).is_relative_to(other) for other in roots)
    )


def _check_apart(folder: str, inputs: Sequence[str]) -> None:
    for root in inputs:
        if Path(folder).is_relative_to(root) or Path(root).is_relative_to(folder):
            raise SetupError(
                f"The sandbox's folder {folder} and the input folder {root} lie in each other.",
                hint="Set SANDBOX_FOLDER or INPUT_ROOT to another folder.",
            )


def _stand_guard(options: Options) -> cgroup.Group | None:
    """Go on in a child. This process waits for its end, ends what it left, and ends as it did.

    Code that outlives its keeper and the server becomes a child of this process, which no job can reach.

    Returns:
        The control group of the sandbox, which the guard removes; None where it may not make one.
    """
    group = cgroup.make_group(options.memory_bytes) if options.memory_bytes else None
    child = os.fork()
    if child == 0:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            if group is not None:
                group.enter()
        except OSError as error:  # the report says that the kernel sets no limit
            print(f"no control group: {error}", file=sys.stderr, flush=True)
            return None
        return group
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    status = _wait(child)
    processes.end(None)
    if group is not None:
        group.remove()
    os._exit(status)


def _say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


def _prepare_folder(path: str) -> Path:
    """Make the sandbox's folder empty; others may pass through it, and see nothing."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("jobs", "matplotlib", "root"):
            if os.path.lexists(folder / name) and (why := remove_or_set_aside(folder / name)):
                print(f"{why}; remove it by hand", file=sys.stderr, flush=True)
            (folder / name).mkdir(mode=0o711)
        folder.chmod(0o711)
        (folder / "matplotlib").chmod(0o755)
        (folder / SOCKET).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(f"The sandbox's folder {path} cannot be used: {error.strerror}.") from error
    return folder


def _pool(options: Options) -> tuple[list[int], IO[str]]:
    """Take users that no other sandbox of this machine has; none where this is not root."""
    if os.geteuid() != 0:
        return [], Path(os.devnull).open()
    missing = [name for name, one in kernel.OTHER_USERS.items() if not kernel.has_capabilities(one)]
    if missing or "pool-uid" in options.without:
        reason = f"it lacks the capabilities {', '.join(missing)}" if missing else "the layer was left out"
        raise SetupError(
            "The sandbox is root, which has no limit on processes, and cannot give runs to other users: "
            f"{reason}.",
            hint=f"Run it as a plain user, or as root with {', '.join(kernel.OTHER_USERS)}.",
        )
    for block in range(_BLOCKS):
        first = _FIRST_UID + block * _UIDS
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        path = f"{tempfile.gettempdir()}/draftloop-sandbox-{first}.lock"
        lock = open(os.open(path, flags, 0o600), "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if uids := _free_uids(range(first, first + _UIDS)):
            return uids, lock
        lock.close()
    raise SetupError(
        f"No users are left to run jobs as: {_BLOCKS} sandboxes run on this machine, or processes of earlier "
        "ones cannot be ended.",
        hint=f"Look for processes of the users {_FIRST_UID} to {_FIRST_UID + _BLOCKS * _UIDS - 1}.",
    )


def _free_uids(uids: Sequence[int]) -> list[int]:
    """Return the users that run nothing, after ending what a killed sandbox left of theirs."""
    deadline = time.monotonic() + _LEFT_OVER_S
    while (left_over := processes.of_users(uids)) and time.monotonic() < deadline:
        for pid in left_over:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    busy = set(processes.threads_of_users())
    if left := sorted(busy & set(uids)):
        print(f"users {left} run processes of others; no job gets them", file=sys.stderr, flush=True)
    return [uid for uid in uids if uid not in busy]


def _check_open_to_others(*paths: str | Path) -> None:
    for path in map(Path, paths):
        for one in (path, *path.parents):
            if not one.stat().st_mode & 0o001:
                raise SetupError(
                    f"Jobs run as users of their own, and {one} on the way to {path} is closed to them.",
                    hint=f"chmod o+x {one}, or another folder.",
                )


def _enter_namespaces(folder: Path, inputs: Sequence[str]) -> bool:
    """Go on as process 1 of namespaces of its own, which show only what jobs need.

    Returns:
        False where the machine has none for us. Where it has, this returns in a child alone; its parent waits
        and ends as it does.
    """
    read, write = os.pipe()
    child = os.fork()  # a failure half-way leaves a process that nobody can use
    if child == 0:
        os.close(read)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            kernel.unshare(user=not kernel.has_capabilities(kernel.CAP_SYS_ADMIN))
            inner = os.fork()
            if inner == 0:
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
                paths = (*SYSTEM, *python_paths(), *_CODE, *inputs)
                view.enter_sandbox_view(
                    str(folder / "root"), read=paths, write=(str(folder),), devices=DEVICES
                )
                os.write(write, b"1")
                os.close(write)
                return True
            os.close(write)
            os._exit(_wait(inner))
        except BaseException as error:
            print(f"no namespaces: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os.close(write)
    with open(read, "rb") as entered:
        if not entered.read():
            os.waitpid(child, 0)
            return False
    os._exit(_wait(child))


def _wait(child: int) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
    os.closerange(0, 2)  # the child alone holds them
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


class _Broken(Exception):
    """The sandbox cannot go on: its containment does not hold any more, or no user is left."""


class _Server:
    """The server once it knows its layers."""

    def __init__(
        self,
        options: Options,
        folder: Path,
        layers: frozenset[Layer],
        uids: list[int],
        group: cgroup.Group | None,
    ) -> None:
        self._options = options
        self._folder = folder
        self._uids = uids  # those that run nothing
        self._own_users = bool(uids)
        self._left: list[tuple[int, int | None]] = []  # pid and uid of keepers whose jobs left something
        self._retry_at = 0.0
        self._keepers: dict[int, tuple[int, int | None]] = {}  # pidfd -> pid, uid
        self._selector = selectors.DefaultSelector()
        self._landlock_abi = kernel.landlock_abi()
        if not self._landlock_abi and "landlock" in layers:
            raise SetupError(
                "This kernel has no Landlock, so code cannot be kept from files.",
                hint="It needs Linux 5.13 or later with 'landlock' in its lsm= list; in a container also "
                "an engine whose seccomp profile lets it through.",
            )
        if options.browser and not {"namespaces", "landlock", "seccomp"} <= layers:
            raise SetupError(
                'The profile "browser" opens unix sockets, and only namespaces keep these from whatever else '
                "listens on the machine. There are none to be had here.",
                hint="Start without it, or where namespaces can be had: docs/explanation/sandbox.md.",
            )
        if uids:
            _check_open_to_others(folder, *python_paths())
        signals = bool(uids) or self._landlock_abi >= 6
        try:
            old = self._landlock_abi < 3
            filters: dict[Profile, bytes] = {
                profile: seccomp.make_filter(
                    signals=signals,
                    guard_truncate=old,
                    own_files=bool(uids) or "namespaces" in layers,
                    browser=profile == "browser",
                )
                for profile in self._profiles()
            }
        except OSError as error:
            raise SetupError(
                f"System calls cannot be filtered: {error}.", hint="Install Debian's libseccomp2."
            ) from error
        self._containment = Containment(layers, self._landlock_abi, filters)
        self._place = keeper.Place(
            folder=str(folder),
            jobs=str(folder / "jobs"),
            inputs=options.inputs,
            configuration=str(folder / "matplotlib"),
            containment=self._containment,
            browser=options.browser,
            group=group,
        )

    def serve(self) -> None:
        """Prove the containment, warm up, then take jobs.

        Raises:
            SetupError: The containment does not hold, or Python does not run in it.
        """
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        self._prove()
        programs = self._programs()
        os.environ["MPLCONFIGDIR"] = self._place.configuration
        family = warm.warm_up(Path(self._place.configuration))
        report = self._report(programs, family)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            os.umask(0o177)
            listening.bind(str(self._folder / SOCKET))
            os.umask(0o022)
            listening.listen(128)
            listening.setblocking(False)
            _say({"report": report_to_json(report), "socket": str(self._folder / SOCKET)})
            self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            try:
                self._loop(listening)
            except (_Broken, SetupError, OSError) as error:
                traceback.print_exc()
                print(f"the sandbox ends: {error}", file=sys.stderr, flush=True)
                self._stop()
                sys.exit(1)

    # ------------------------------------------------------------ the loop

    def _loop(self, listening: socket.socket) -> None:
        accepting = False
        while True:
            room = len(self._keepers) < self._options.jobs and (bool(self._uids) or not self._own_users)
            if room and not accepting:
                self._selector.register(listening, selectors.EVENT_READ)
            elif accepting and not room:
                self._selector.unregister(listening)
            accepting = room
            for key, _ in self._selector.select(_RETRY_S if self._left else None):
                if key.fileobj is listening:
                    with suppress(BlockingIOError):
                        connection, _ = listening.accept()
                        self._selector.register(
                            self._fork_keeper(connection, listening), selectors.EVENT_READ
                        )
                elif key.fd == sys.stdin.fileno():
                    if not os.read(key.fd, 4096):
                        self._stop()
                        return
                else:
                    self._selector.unregister(key.fd)
                    if self._finish_keeper(key.fd) != keeper.CLEAN:
                        self._prove()
            self._retry_cleaning()

    def _fork_keeper(self, connection: socket.socket, other: socket.socket) -> int:
        """Start a keeper for a connection.

        Returns:
            The descriptor that becomes readable when it ends.
        Raises:
            _Broken: Jobs have users of their own, and none is free.
        """
        if self._own_users and not self._uids:
            raise _Broken("no user is left to run jobs as")
        uid = self._uids.pop(0) if self._own_users else None
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
                other.close()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(2, 1)
                status = keeper.keep(connection, self._place, uid)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        connection.close()
        fd = os.pidfd_open(pid)
        self._keepers[fd] = (pid, uid)
        return fd

    def _finish_keeper(self, fd: int) -> int:
        """Take note of a keeper's end, and clean up after one that could not; return its exit status."""
        pid, uid = self._keepers.pop(fd)
        os.close(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status in (keeper.CLEAN, keeper.FAILED) or self._clean_after(pid, uid):
            self._release(uid)
        else:
            self._left.append((pid, uid))
            self._retry_at = time.monotonic() + _RETRY_S
        return status

    def _release(self, uid: int | None) -> None:
        if uid is not None:
            self._uids.append(uid)

    def _retry_cleaning(self) -> None:
        """Try again to end and remove what jobs left; without it their users cannot run others.

        Raises:
            _Broken: No user is free and none is about to be.
        """
        waited = time.monotonic() >= self._retry_at
        for left in list(self._left) if waited else ():
            self._retry_at = time.monotonic() + _RETRY_S
            if self._clean_after(*left):
                self._left.remove(left)
                self._release(left[1])
        if self._own_users and not self._uids and not self._keepers:
            raise _Broken("jobs left processes or files behind, of every user that jobs may have")

    def _clean_after(self, pid: int, uid: int | None) -> bool:
        """End what the job of a dead keeper left, whose processes have become this one's children.

        Returns:
            Whether nothing is left.
        """
        print(f"keeper {pid} ended without cleaning up", file=sys.stderr, flush=True)
        if not processes.end(uid, {pid for pid, _ in self._keepers.values()}):
            return False
        for folder in (self._folder / "jobs").glob(f"{pid}-*"):
            try:
                remove_tree(str(folder))
            except OSError as error:  # the others' jobs go on
                print(f"{folder} could not be removed: {error}", file=sys.stderr, flush=True)
                return False
        return uid is None or processes.threads_of(uid) == 0

    def _stop(self) -> None:
        """End every job and remove what they made."""
        for pid, _ in self._keepers.values():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        processes.end(None)
        for job in (self._folder / "jobs").iterdir():
            if why := remove_or_set_aside(job):
                print(why, file=sys.stderr, flush=True)
        (self._folder / SOCKET).unlink(missing_ok=True)

    # ------------------------------------------------------------ the proof

    def _run(self, job: Job) -> Attempt:
        ours, theirs = socket.socketpair()
        with ours:
            fd = self._fork_keeper(theirs, ours)
            ours.sendall(json.dumps(job_to_json(job)).encode() + b"\n")
            with ours.makefile("r") as answers:
                answer = json.loads(answers.readline() or "{}")
        status = self._finish_keeper(fd)
        if "attempt" not in answer or status != keeper.CLEAN:
            raise SetupError(f"The sandbox cannot run code: {answer.get('message', 'its keeper died')}")
        return attempt_from_json(answer["attempt"])

    def _prove(self) -> None:
        secret = self._folder / "secret"
        secret.write_text("for nobody")
        secret.chmod(0o644)
        possible = []
        for profile in self._profiles():
            job = probe.job(
                secret=str(secret),
                program=f"{_PACKAGE.resolve()}/errors.py",
                jobs=self._place.jobs,
                uid=os.geteuid(),
                own_user=self._own_users,
                profile=profile,
            )
            possible += probe.judge(self._run(job))
        secret.unlink(missing_ok=True)
        if possible:
            raise SetupError(
                f"The containment does not hold: code could {', '.join(possible)}.",
                hint="docs/explanation/sandbox.md says what the sandbox needs.",
            )

    def _programs(self) -> dict[Language, Package]:
        found: dict[Language, Package] = {}
        for language in LANGUAGES:
            attempt = self._run(Job((probe.HELLO[language],), limits=probe.LIMITS, cold=True))
            if attempt.outcome == "ok":
                found[language] = Package(_PROGRAMS[language], attempt.stdout.strip())
            elif language == "python":
                raise SetupError(f"Python does not run in the sandbox: {attempt.reason} {attempt.stderr}")
            else:
                print(f"no {language}: {attempt.reason} {attempt.stderr}", file=sys.stderr, flush=True)
        return found

    def _profiles(self) -> tuple[Profile, ...]:
        return ("plain", "browser") if self._options.browser else ("plain",)

    def _tools(self) -> Iterator[Package]:
        """Name the other programs that code may start: ffmpeg, and Chromium in its profile."""
        attempt = self._run(Job((probe.FFMPEG,), limits=probe.LIMITS))
        if version := attempt.stdout.strip():
            yield Package("ffmpeg", version)
        if not self._options.browser:
            return
        attempt = self._run(Job((probe.CHROMIUM,), limits=probe.LIMITS, profile="browser"))
        if attempt.outcome != "ok":
            raise SetupError(
                f"Chromium does not run in the sandbox: {attempt.reason} {attempt.stderr[-500:]}",
                hint="Install Debian's chromium, or start without the profile.",
            )
        yield Package("Chromium", attempt.stdout.split()[1])

    def _report(self, programs: dict[Language, Package], family: str) -> SandboxReport:
        layers = self._containment.layers
        covers, gaps = _in_words(layers, self._landlock_abi, family, grouped=self._place.group is not None)
        if self._options.browser:
            words = "open unix sockets, read the sandbox's /proc, and reserve any address space."
            gaps += (f'Jobs of the profile "browser" {words}',)
        return SandboxReport(
            layers=tuple(layer for layer in _LAYERS if layer in layers),
            landlock_abi=self._landlock_abi,
            languages=tuple(programs),
            programs=(*programs.values(), *self._tools()),
            packages=warm.installed(),
            covers=covers,
            gaps=gaps,
            profiles=self._profiles(),
        )


_PROGRAMS: dict[Language, str] = {"python": "Python", "javascript": "Node.js", "shell": "Bash"}


def _in_words(
    layers: frozenset[Layer], abi: int, family: str, *, grouped: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    covers = [
        "Code reads the system's programs, its inputs and its own folder, and writes to its own folder."
    ]
    covers.append("Code opens no socket.")
    gaps = ["The memory and the disk of a whole run are measured 5 to 20 times a second."]
    if grouped:
        covers.append("The kernel limits the memory of all runs together (cgroup).")
    else:
        gaps.append("The memory of all runs together is not limited by the kernel (no cgroup can be made).")
    if "pool-uid" in layers:
        covers.append("Each run has a user of its own.")
    else:
        gaps.append("All runs have the sandbox's own user; Landlock, seccomp and mounts keep them apart.")
        if abi < 6:
            gaps.append("Code cannot signal its own children (Landlock before ABI 6).")
    if "namespaces" in layers:
        covers.append("Runs see neither the machine's processes nor its network nor any other file.")
        covers.append("All but a run's own folder is mounted read-only, its inputs too.")
    else:
        gaps.append("Runs can see that files and processes exist, and sizes and times, not what is in them.")
        gaps.append("Inputs are symbolic links: use find -L, tar -h, gzip -c.")
        if "pool-uid" not in layers:
            gaps.append(
                "chmod, chown and utime report success and do nothing: run a script as `bash script`."
            )
    if not family:
        gaps.append("There is no Chinese font: install Debian's fonts-noto-cjk.")
    return tuple(covers), tuple(gaps)
