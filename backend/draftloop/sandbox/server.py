"""The sandbox's server: measures how the machine can contain code, proves it, then runs jobs.

One process with the packages imported, which forks a keeper for each connection to its socket. It says what
it is in one line of JSON on standard output, and ends when its standard input does. Above it stands a guard,
a small process that ends what the server leaves if it is killed.

It fails closed: after a job whose keeper reports a fault of the sandbox, the server proves its containment
again before the next one starts. Where the proof fails, or no user is left to run jobs as, it ends with
status 1. Whoever started it starts it anew.

    python -m draftloop.sandbox --folder FOLDER [--inputs FOLDER ...] [--jobs N] [--browser] [--without LAYER]
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from draftloop.errors import SetupError
from draftloop.runs.job import (
    LANGUAGES,
    Attempt,
    Language,
    Layer,
    Package,
    SandboxJob,
    SandboxProfile,
    SandboxReport,
    attempt_from_json,
    job_to_json,
    report_to_json,
)
from draftloop.sandbox import cgroup, keeper, kernel, probe, processes, seccomp, warm
from draftloop.sandbox.containment import Containment, python_paths
from draftloop.sandbox.layers import describe_layers
from draftloop.sandbox.options import LAYERS, ServerOptions, check_apart, read_options
from draftloop.sandbox.startup import (
    PACKAGE,
    SOCKET,
    enter_namespaces,
    prepare_folder,
    send_line,
    stand_guard,
)
from draftloop.sandbox.users import check_open_to_others, take_users
from draftloop.support.trees import remove_or_set_aside, remove_tree

_RETRY_S = 10.0  # between two tries to end what a job left
_PROGRAMS: dict[Language, str] = {"python": "Python", "javascript": "Node.js", "shell": "Bash"}


def main() -> None:
    """Run the server until its standard input ends."""
    options = read_options(__doc__)
    os.umask(0o022)
    try:
        check_apart(options.folder, options.inputs)
        group = stand_guard(options.memory_bytes)
        folder = prepare_folder(options.folder)
        uids, lock = take_users(left_out="pool-uid" in options.without)
        with lock:
            always: set[Layer] = {"rlimits", "landlock", "seccomp"}
            layers = always - options.without
            if uids:
                layers.add("pool-uid")
            if "namespaces" not in options.without and enter_namespaces(folder, options.inputs):
                layers.add("namespaces")
            _Server(options, folder, frozenset(layers), uids, group).serve()
    except SetupError as error:
        send_line({"refused": error.message, "hint": error.hint})
        sys.exit(1)
    except OSError as error:
        traceback.print_exc()
        send_line({"refused": f"The sandbox could not start: {error}.", "hint": "Its log says where."})
        sys.exit(1)


class _Broken(Exception):
    """The sandbox cannot go on: its containment does not hold any more, or no user is left."""


class _Server:
    """The server, once the layers are known: forks keepers and cleans up after them."""

    def __init__(
        self,
        options: ServerOptions,
        folder: Path,
        layers: frozenset[Layer],
        uids: list[int],
        group: cgroup.ControlGroup | None,
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
            check_open_to_others(folder, *python_paths())
        signals = bool(uids) or self._landlock_abi >= 6
        try:
            old = self._landlock_abi < 3
            filters: dict[SandboxProfile, bytes] = {
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
        self._place = keeper.SandboxPlace(
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
            send_line({"report": report_to_json(report), "socket": str(self._folder / SOCKET)})
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
        """Reap a keeper, clean up after one that could not, and return its exit status."""
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
        """Try again to end and remove what jobs left; until then their users are not used.

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
        """End the processes of a dead keeper's job, which are children of this process now; remove its files.

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

    def _run(self, job: SandboxJob) -> Attempt:
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
                program=f"{PACKAGE.resolve()}/errors.py",
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
        programs: dict[Language, Package] = {}
        for language in LANGUAGES:
            attempt = self._run(SandboxJob((probe.HELLO[language],), limits=probe.LIMITS, cold=True))
            if attempt.outcome == "ok":
                programs[language] = Package(_PROGRAMS[language], attempt.stdout.strip())
            elif language == "python":
                raise SetupError(f"Python does not run in the sandbox: {attempt.reason} {attempt.stderr}")
            else:
                print(f"no {language}: {attempt.reason} {attempt.stderr}", file=sys.stderr, flush=True)
        return programs

    def _profiles(self) -> tuple[SandboxProfile, ...]:
        return ("plain", "browser") if self._options.browser else ("plain",)

    def _tools(self) -> Iterator[Package]:
        """Yield the other programs that code may start: ffmpeg, and Chromium in its profile."""
        attempt = self._run(SandboxJob((probe.FFMPEG,), limits=probe.LIMITS))
        if version := attempt.stdout.strip():
            yield Package("ffmpeg", version)
        if not self._options.browser:
            return
        attempt = self._run(SandboxJob((probe.CHROMIUM,), limits=probe.LIMITS, profile="browser"))
        if attempt.outcome != "ok":
            raise SetupError(
                f"Chromium does not run in the sandbox: {attempt.reason} {attempt.stderr[-500:]}",
                hint="Install Debian's chromium, or start without the profile.",
            )
        yield Package("Chromium", attempt.stdout.split()[1])

    def _report(self, programs: dict[Language, Package], family: str) -> SandboxReport:
        layers = self._containment.layers
        covers, gaps = describe_layers(
            layers, self._landlock_abi, family, grouped=self._place.group is not None
        )
        if self._options.browser:
            words = "open unix sockets, read the sandbox's /proc, and reserve any address space."
            gaps += (f'Jobs of the profile "browser" {words}',)
        return SandboxReport(
            layers=tuple(layer for layer in LAYERS if layer in layers),
            landlock_abi=self._landlock_abi,
            languages=tuple(programs),
            programs=(*programs.values(), *self._tools()),
            packages=warm.installed(),
            covers=covers,
            gaps=gaps,
            profiles=self._profiles(),
        )
