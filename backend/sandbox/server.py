"""The sandbox's server: finds out what the machine can contain, proves it, then runs jobs.

One process with the packages imported, which forks a keeper for each connection to its socket. It says what
it is in one line of JSON on standard output, and ends when its standard input does.

    python -m backend.sandbox --folder FOLDER [--inputs FOLDER ...] [--jobs N] [--browser] [--without LAYER]
"""

import argparse
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, get_args

from backend.core.execution import (
    LANGUAGES,
    Attempt,
    Job,
    Language,
    Layer,
    Package,
    Profile,
    SandboxReport,
    attempt_from_json,
    job_to_json,
    report_to_json,
)
from backend.errors import SetupError
from backend.sandbox import keeper, kernel, probe, processes, warm
from backend.sandbox.containment import DEVICES, SYSTEM, Containment, python_paths

SOCKET = "socket"
# Between Debian's ranges for people and systemd's for services; a block for each sandbox of the machine.
_FIRST_UID, _UIDS, _BLOCKS = 60720, 32, 14
_CODE = str(Path(__file__).parents[1])
_LAYERS: tuple[Layer, ...] = get_args(Layer)


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: str
    inputs: tuple[str, ...]
    jobs: int
    browser: bool
    without: frozenset[Layer]


def main() -> None:
    """Run the server until its standard input ends."""
    options = _options()
    os.umask(0o022)
    try:
        folder = _prepare_folder(options.folder)
        uids, lock = _pool(options)
        with lock:
            always: set[Layer] = {"rlimits", "landlock", "seccomp"}
            layers = always - options.without
            if uids:
                layers.add("pool-uid")
            if "namespaces" not in options.without and _enter_namespaces(folder, options.inputs):
                layers.add("namespaces")
            _Server(options, folder, frozenset(layers), uids).serve()
    except SetupError as error:
        _say({"refused": error.message, "hint": error.hint})
        sys.exit(1)
    except OSError as error:
        traceback.print_exc()
        _say({"refused": f"The sandbox could not start: {error}.", "hint": "Its log says where."})
        sys.exit(1)


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m backend.sandbox", description=__doc__)
    parser.add_argument("--folder", required=True, help="where jobs run and the socket is; made if missing")
    parser.add_argument("--inputs", action="append", default=[], help="a folder whose files jobs may read")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="jobs at once")
    parser.add_argument("--browser", action="store_true", help="let jobs ask for the profile browser")
    parser.add_argument("--without", action="append", default=[], choices=_LAYERS, help="leave a layer out")
    given = parser.parse_args()
    inputs = tuple(os.path.realpath(path) for path in given.inputs)
    without: frozenset[Layer] = frozenset(given.without)
    return Options(os.path.realpath(given.folder), inputs, max(1, given.jobs), given.browser, without)


def _say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


def _prepare_folder(path: str) -> Path:
    """Make the sandbox's folder empty; others may pass through it, and see nothing."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "jobs").exists():  # of a sandbox that was killed
            for job in (folder / "jobs").iterdir():
                keeper.clear(str(job))
        for name in ("jobs", "matplotlib", "root"):
            shutil.rmtree(folder / name, ignore_errors=True)
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
        return list(range(first, first + _UIDS)), lock
    raise SetupError(f"{_BLOCKS} sandboxes run on this machine; there are no users left.")


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
                paths = (*SYSTEM, *python_paths(), _CODE, *inputs)
                kernel.enter_view(str(folder / "root"), read=paths, write=(str(folder),), devices=DEVICES)
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


class _Server:
    """The server once it knows its layers."""

    def __init__(self, options: Options, folder: Path, layers: frozenset[Layer], uids: list[int]) -> None:
        self._options = options
        self._folder = folder
        self._uids = uids
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
                hint="Start without it, or where namespaces can be had: docs/sandbox.md.",
            )
        if uids:
            _check_open_to_others(folder, *python_paths())
        signals = bool(uids) or self._landlock_abi >= 6
        try:
            old = self._landlock_abi < 3
            seccomp: dict[Profile, bytes] = {
                profile: kernel.seccomp_filter(
                    signals=signals, guard_truncate=old, browser=profile == "browser"
                )
                for profile in self._profiles()
            }
        except OSError as error:
            raise SetupError(
                f"System calls cannot be filtered: {error}.", hint="Install Debian's libseccomp2."
            ) from error
        self._containment = Containment(layers, self._landlock_abi, seccomp)
        self._place = keeper.Place(
            jobs=str(folder / "jobs"),
            inputs=options.inputs,
            configuration=str(folder / "matplotlib"),
            containment=self._containment,
            bound="namespaces" in layers,
            socket=str(folder / SOCKET),
            browser=options.browser,
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
            self._loop(listening)

    # ------------------------------------------------------------ the loop

    def _loop(self, listening: socket.socket) -> None:
        accepting = False
        while True:
            room = len(self._keepers) < self._options.jobs
            if room and not accepting:
                self._selector.register(listening, selectors.EVENT_READ)
            elif accepting and not room:
                self._selector.unregister(listening)
            accepting = room
            for key, _ in self._selector.select():
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
                    self._bury(key.fd)

    def _fork_keeper(self, connection: socket.socket, other: socket.socket) -> int:
        """Start a keeper for a connection; gives the descriptor that becomes readable when it ends."""
        uid = self._uids.pop(0) if self._uids else None
        pid = os.fork()
        if pid == 0:
            clean = False
            try:
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
                other.close()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(2, 1)
                clean = keeper.keep(connection, self._place, uid)
            finally:
                os._exit(0 if clean else 1)
        connection.close()
        fd = os.pidfd_open(pid)
        self._keepers[fd] = (pid, uid)
        return fd

    def _bury(self, fd: int) -> None:
        """Take notice of a keeper's end, and clean up after one that could not."""
        pid, uid = self._keepers.pop(fd)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        clean = status == 0 or self._clean_after_crash(pid, uid)
        if uid is not None and clean:
            self._uids.append(uid)

    def _clean_after_crash(self, pid: int, uid: int | None) -> bool:
        """End what a dead keeper left; its processes become the server's own children."""
        print(f"keeper {pid} ended without cleaning up", file=sys.stderr, flush=True)
        if not processes.end(uid, {pid for pid, _ in self._keepers.values()}):
            return False
        for folder in (self._folder / "jobs").glob(f"{pid}-*"):
            try:
                keeper.clear(str(folder))
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
            keeper.clear(str(job))
        (self._folder / SOCKET).unlink(missing_ok=True)

    # ------------------------------------------------------------ the proof

    def _run(self, job: Job) -> Attempt:
        ours, theirs = socket.socketpair()
        with ours:
            fd = self._fork_keeper(theirs, ours)
            ours.sendall(json.dumps(job_to_json(job)).encode() + b"\n")
            with ours.makefile("r") as answers:
                answer = json.loads(answers.readline() or "{}")
        self._bury(fd)
        if "attempt" not in answer:
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
                jobs=self._place.jobs,
                uid=os.geteuid(),
                own_user=bool(self._uids),
                profile=profile,
            )
            possible += probe.judge(self._run(job))
        secret.unlink(missing_ok=True)
        if possible:
            raise SetupError(
                f"The containment does not hold: code could {', '.join(possible)}.",
                hint="docs/sandbox.md says what the sandbox needs.",
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
        covers, gaps = _in_words(layers, self._landlock_abi, family)
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


def _in_words(layers: frozenset[Layer], abi: int, family: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    covers = [
        "Code reads the system's programs, its inputs and its own folder, and writes to its own folder."
    ]
    covers.append("Code opens no socket.")
    gaps = ["The memory and the disk of a whole run are measured every 50 ms, not by the kernel."]
    if "pool-uid" in layers:
        covers.append("Each run has a user of its own.")
    else:
        gaps.append("All runs have the sandbox's own user; Landlock and seccomp alone keep them apart.")
        if abi < 6:
            gaps.append("Code cannot signal its own children (Landlock before ABI 6).")
    if "namespaces" in layers:
        covers.append("Runs see neither the machine's processes nor its network nor any other file.")
        covers.append("Inputs are mounted read-only.")
    else:
        gaps.append("Runs can see that files and processes exist, though not what is in them.")
        gaps.append("Inputs are symbolic links: use find -L, tar -h, gzip -c.")
        if "pool-uid" not in layers:
            gaps.append("Code can change the mode and times of inputs that are the sandbox's own files.")
    if not family:
        gaps.append("There is no Chinese font: install Debian's fonts-noto-cjk.")
    return tuple(covers), tuple(gaps)
