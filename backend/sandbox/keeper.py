"""The keeper of one job: makes its folder, starts its scripts, watches, ends, collects, cleans up.

One process for each job, forked from the server and itself not contained; what it starts is. It answers on
the connection that the job came from. A connection that its client closes early cancels the job.

    jobs/ID/script.py    the script; read-only to itself
    jobs/ID/work/        the current folder of the code; work/input/ holds the inputs
    jobs/ID/tmp/         HOME and TMPDIR; not collected
    jobs/ID/out/         what was collected, ours alone
"""

import json
import os
import resource
import selectors
import shutil
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from backend.core.execution import (
    INPUT_FOLDER,
    Attempt,
    Job,
    Language,
    Limits,
    Outcome,
    OutputFile,
    Profile,
    Refused,
    Script,
    Step,
    attempt_to_json,
    job_from_json,
    seconds,
    size,
)
from backend.errors import DraftloopError, TaskError
from backend.sandbox import files, kernel, processes, runner
from backend.sandbox.containment import BROWSER_PROGRAMS, RUNNER, Containment

SUFFIXES: dict[Language, str] = {"python": ".py", "javascript": ".js", "shell": ".sh"}
_POLL_S = 0.05
_OUTPUT_FACTOR = 16  # a script that prints this many times what is kept is ended
_DISK_RESERVE_BYTES = 512 << 20  # jobs end before the disk is full
_REQUEST_BYTES = 64 << 20
_TAKING_S = 600  # for the client to take the files
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Place:
    """Where a sandbox keeps its jobs, what they may read, and how they are contained."""

    jobs: str
    inputs: tuple[str, ...]
    configuration: str  # of matplotlib
    containment: Containment
    bound: bool  # inputs are mounted, not linked
    socket: str
    browser: bool  # jobs may ask for the profile


@dataclass(frozen=True)
class _End:
    """Why the keeper ended a job."""

    outcome: Outcome
    reason: str


@dataclass
class _Text:
    """The head and the tail of a stream, each half of what is kept."""

    keep: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    total: int = 0

    def add(self, chunk: bytes) -> None:
        self.total += len(chunk)
        room = self.keep // 2 - len(self.head)
        if room > 0:
            self.head += chunk[:room]
            chunk = chunk[room:]
        self.tail += chunk
        if len(self.tail) > 2 * self.keep:
            del self.tail[: -self.keep]

    def text(self, hidden: tuple[str, ...]) -> tuple[str, int]:
        """Give the text with its folder's path hidden and the cut marked, and how many bytes were cut."""
        room = self.keep - self.keep // 2
        tail = bytes(self.tail[-room:]) if len(self.tail) > room else bytes(self.tail)
        cut = self.total - len(self.head) - len(tail)
        parts = [bytes(self.head).decode(errors="replace"), tail.decode(errors="replace")]
        if not cut:
            parts = [(bytes(self.head) + tail).decode(errors="replace")]
        joined = f"\n[... {cut} bytes cut, {size(self.keep)} are kept ...]\n".join(parts)
        for path in hidden:
            joined = joined.replace(path, "" if path.endswith("/") else ".")
        return joined.replace("\0", "\N{REPLACEMENT CHARACTER}"), cut


def keep(connection: socket.socket, place: Place, uid: int | None) -> bool:
    """Take one job from a connection, answer it there, and leave nothing behind.

    Args:
        connection: Where the job comes in and its attempt goes out, a line of JSON each. The client closes it
            once it has taken the files.
        place: The sandbox.
        uid: A user that runs nothing else; None where jobs run as the sandbox's own user.
    Returns:
        Whether nothing is left, no process and no file.
    """
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    request = _read_line(connection)
    if request is None:
        return True
    folder = os.path.join(place.jobs, f"{os.getpid()}-{os.urandom(4).hex()}")
    run = _Run(place, uid, folder, connection)
    try:
        try:
            attempt = run.attempt(job_from_json(json.loads(request)))
            answer = {"attempt": attempt_to_json(attempt), "outputs": f"{folder}/out"}
        except DraftloopError as error:
            kind = "task" if isinstance(error, TaskError) else "service"
            answer = {"error": kind, "message": error.message, "hint": error.hint}
        except (OSError, ValueError, TypeError, KeyError) as error:
            words = f"The sandbox failed: {type(error).__name__}: {error}"
            answer = {"error": "service", "message": words, "hint": ""}
        with suppress(OSError):
            connection.settimeout(_TAKING_S)
            connection.sendall(json.dumps(answer).encode() + b"\n")
            connection.recv(1)  # until the client has taken the files
    finally:
        clean = processes.end(uid)
        run.clear()
    return clean


def clear(folder: str) -> None:
    """Remove a job's folder, its inputs first: they are the user's own files, mounted."""
    inputs = Path(folder, "work", INPUT_FOLDER)
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in inputs.iterdir():
            with suppress(OSError):
                kernel.unmount(str(path))
    files.remove(folder)


def _read_line(connection: socket.socket) -> bytes | None:
    """Read a line; None where the client says nothing, or too much."""
    connection.settimeout(60)
    received = bytearray()
    try:
        while not received.endswith(b"\n"):
            chunk = connection.recv(_CHUNK_BYTES)
            if not chunk or len(received) > _REQUEST_BYTES:
                return None
            received += chunk
    except OSError:
        return None
    return bytes(received)


class _Run:
    """One job while it runs."""

    def __init__(self, place: Place, uid: int | None, folder: str, connection: socket.socket) -> None:
        self._place = place
        self._uid = uid
        self._folder = folder
        self._work, self._tmp = f"{folder}/work", f"{folder}/tmp"
        self._connection = connection
        self._began = time.monotonic()
        self._peak_bytes = 0
        self._notes: list[str] = []
        self._readable: list[str] = []
        self._inputs: set[tuple[int, int]] = set()  # device and inode

    def attempt(self, job: Job) -> Attempt:
        """Run the job's scripts and collect their files."""
        if job.profile == "browser":
            self._leave_the_others()
        self._make_folder(job)
        self._began = time.monotonic()
        steps: list[Step] = []
        end = _End("ok", "")
        for number, script in enumerate(job.scripts, start=1):
            name = _name(job, number)
            step, stopped = self._step(job, script, f"{self._folder}/{name}")
            steps.append(step)
            end = stopped or _judge(step, name, job.limits)
            if end.outcome != "ok":
                break
        wall_s = time.monotonic() - self._began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found: list[OutputFile] = []
        refused: list[Refused] = []
        if not files.usage(self._work, 20 * job.limits.files + 1000).hidden:
            found, refused, notes = files.collect(self._work, f"{self._folder}/out", job.limits)
            self._notes += notes
        else:
            self._notes.append("No file was collected: a folder nests too deep or is closed to its own user.")
        return Attempt(
            outcome=end.outcome,
            reason=end.reason,
            steps=tuple(steps),
            wall_s=round(wall_s, 3),
            cpu_s=round(used.ru_utime + used.ru_stime, 3),
            peak_memory_bytes=max(self._peak_bytes, used.ru_maxrss * 1024),
            files=tuple(found),
            refused=tuple(refused),
            notes=tuple(self._notes),
        )

    def clear(self) -> None:
        """Remove everything of this job."""
        clear(self._folder)

    def _leave_the_others(self) -> None:
        """Give this job's keeper namespaces of its own: neither other jobs nor the sandbox can be reached."""
        if not self._place.browser:
            raise TaskError(
                'This sandbox does not run jobs of the profile "browser".',
                hint="An admin switches it on, where the machine has namespaces: see docs/sandbox.md.",
            )
        kernel.unshare_again()
        if os.path.exists(self._place.socket):  # not yet where the containment is being proved
            kernel.bind("/dev/null", self._place.socket, read_only=True)

    # ------------------------------------------------------------ the folder

    def _make_folder(self, job: Job) -> None:
        os.mkdir(self._folder, 0o711)
        for path in (self._work, self._tmp):
            os.mkdir(path, 0o700)
        inputs = f"{self._work}/{INPUT_FOLDER}"
        if job.inputs:
            os.mkdir(inputs, 0o755)
        for name, path in job.inputs.items():
            self._add_input(name, path, f"{inputs}/{name}")
        for file in os.scandir(self._place.configuration):
            shutil.copy(file.path, self._tmp)
        if self._uid is not None:
            for path in (self._work, self._tmp, *map(str, Path(self._tmp).iterdir())):
                os.chown(path, self._uid, self._uid)
        for number, script in enumerate(job.scripts, start=1):
            Path(self._folder, _name(job, number)).write_text(script.code, encoding="utf-8", errors="replace")

    def _add_input(self, name: str, path: str, target: str) -> None:
        real = os.path.realpath(path)
        if not any(Path(real).is_relative_to(root) for root in self._place.inputs):
            raise TaskError(
                f"Input {name!r} at {path} is not under an input folder of the sandbox.",
                hint=f"It reads {', '.join(self._place.inputs)}."
                if self._place.inputs
                else "It was started without one: INPUT_ROOT must be there before the backend starts.",
            )
        try:
            kind = os.stat(real)
        except OSError as error:
            raise TaskError(f"Input {name!r} at {path} cannot be read: {error.strerror}.") from error
        if not stat.S_ISREG(kind.st_mode):
            raise TaskError(f"Input {name!r} at {path} is not a regular file.")
        if self._place.bound:
            Path(target).touch()
            kernel.bind(real, target, read_only=True)
        else:
            os.symlink(real, target)
        self._readable.append(real)
        self._inputs.add((kind.st_dev, kind.st_ino))

    # ------------------------------------------------------------ one script

    def _step(self, job: Job, script: Script, path: str) -> tuple[Step, _End | None]:
        began = time.monotonic()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        setup_read, setup_write = os.pipe()
        child = os.fork()
        if child == 0:
            self._become(job, script, path, (out_write, err_write, setup_write))
        for fd in (out_write, err_write, setup_write):
            os.close(fd)
        texts = {out_read: _Text(job.limits.output_bytes), err_read: _Text(job.limits.output_bytes)}
        try:
            with open(setup_read, "rb") as setup:
                trouble = setup.read()
            if trouble:
                os.waitpid(child, 0)
                raise TaskError(trouble.decode(errors="replace"), hint="Give others the right to read it.")
            end, status = self._watch(job.limits, child, texts)
        finally:
            for fd in texts:
                os.close(fd)
        hidden = (f"{self._work}/", self._work, f"{self._folder}/")
        stdout, stdout_cut = texts[out_read].text(hidden)
        stderr, stderr_cut = texts[err_read].text(hidden)
        wall_s = round(time.monotonic() - began, 3)
        return Step(script, status, stdout, stderr, wall_s, stdout_cut, stderr_cut), end

    def _become(self, job: Job, script: Script, path: str, pipes: tuple[int, int, int]) -> None:
        """Turn this child into the contained code; it never returns."""
        out, err, setup = pipes
        try:
            os.setsid()
            null = os.open("/dev/null", os.O_RDONLY)
            setup = _renumber((null, out, err), setup)
            os.chdir(self._work)
            os.umask(0o022)
            environment = self._environment(job.profile)
            self._place.containment.apply(
                uid=self._uid,
                limits=job.limits,
                profile=job.profile,
                read=(path, *self._readable),
                write=(self._work, self._tmp),
            )
            for name in job.inputs:
                try:
                    os.close(os.open(f"{INPUT_FOLDER}/{name}", os.O_RDONLY))
                except OSError as error:
                    os.write(
                        setup, f"Input {name!r} cannot be read by the sandbox: {error.strerror}.".encode()
                    )
                    os._exit(1)
            os.set_inheritable(setup, False)
            for number in (signal.SIGPIPE, signal.SIGXFSZ) if script.language != "python" or job.cold else ():
                signal.signal(number, signal.SIG_DFL)
            if script.language == "python" and not job.cold:
                runner.forked(environment)
                os.close(setup)
                runner.run(path)
            command = {
                "python": [sys.executable, "-s", RUNNER, path],
                "javascript": ["node", path],
                "shell": ["bash", path],
            }[script.language]
            os.execvpe(command[0], command, environment)
        except BaseException as error:
            with suppress(OSError):
                os.write(setup, f"The code could not be started: {error}".encode())
        finally:
            os._exit(1)

    def _environment(self, profile: Profile) -> dict[str, str]:
        browser = f"{BROWSER_PROGRAMS}:" if profile == "browser" else ""
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return {
            "PATH": f"{browser}{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": self._tmp,
            "TMPDIR": self._tmp,
            "USER": "sandbox",
            "LOGNAME": "sandbox",
            "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": self._tmp,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
            **one_thread,
        }

    # ------------------------------------------------------------ watching

    def _watch(self, limits: Limits, child: int, texts: dict[int, _Text]) -> tuple[_End | None, int]:
        """Read what the child prints and hold it to its limits until it ends or is ended.

        Returns:
            Why it was ended, None where it ended by itself; its exit status.
        """
        end = self._follow(limits, child, texts)
        if end is not None:
            os.kill(child, signal.SIGKILL)
        elif left := len(processes.descendants(os.getpid())):
            # The child itself is dead but not yet waited for, so it is not counted.
            self._notes.append(f"{left} processes outlived their script and were ended.")
        _, status = os.waitpid(child, 0)
        if not processes.end(self._uid):
            raise OSError("a process could not be ended")
        for fd, text in texts.items():
            with suppress(BlockingIOError):
                while chunk := os.read(fd, _CHUNK_BYTES):
                    text.add(chunk)
        return end or self._over_files(limits), os.waitstatus_to_exitcode(status)

    def _follow(self, limits: Limits, child: int, texts: dict[int, _Text]) -> _End | None:
        """Watch until the child ends (None) or has to be ended."""
        ended = os.pidfd_open(child)
        try:
            with selectors.DefaultSelector() as selector:
                for fd in (*texts, ended, self._connection.fileno()):
                    selector.register(fd, selectors.EVENT_READ)
                for fd in texts:
                    os.set_blocking(fd, False)
                next_poll = time.monotonic() + _POLL_S / 2
                while True:
                    ready = {key.fd for key, _ in selector.select(max(0.0, next_poll - time.monotonic()))}
                    for fd in texts.keys() & ready:
                        if end := self._take(selector, fd, texts[fd]):
                            return end
                    if ended in ready:
                        return None
                    if self._connection.fileno() in ready:
                        return _End("killed", "Cancelled.")
                    if time.monotonic() >= next_poll:
                        if end := self._over(limits):
                            return end
                        next_poll = time.monotonic() + _POLL_S
        finally:
            os.close(ended)

    def _take(self, selector: selectors.BaseSelector, fd: int, text: _Text) -> _End | None:
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return None
        if not chunk:
            selector.unregister(fd)
        text.add(chunk)
        if text.total > _OUTPUT_FACTOR * text.keep:
            return _End(
                "killed", f"Stopped: it printed over {size(text.total)}, of which {size(text.keep)} are kept."
            )
        return None

    def _over(self, limits: Limits) -> _End | None:
        wall_s = time.monotonic() - self._began
        if wall_s > limits.wall_s:
            return _End("timeout", f"Stopped after {seconds(limits.wall_s)}, the limit of a run.")
        found = processes.descendants(os.getpid())
        memory_bytes = processes.memory(found, limits.memory_bytes)
        self._peak_bytes = max(self._peak_bytes, memory_bytes)
        if memory_bytes > limits.memory_bytes:
            used, allowed = size(memory_bytes), size(limits.memory_bytes)
            return _End("killed", f"Stopped at {used} of memory; the limit is {allowed}.")
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = sum(process.cpu_s for process in found) + spent.ru_utime + spent.ru_stime
        if cpu_s > limits.cpu_s + 1:
            return _End("timeout", f"Stopped after {seconds(limits.cpu_s)} of processor time, the limit.")
        threads = sum(process.threads for process in found)
        if threads > limits.processes:
            return _End("killed", f"Stopped with {threads} processes; the limit is {limits.processes}.")
        return self._over_files(limits)

    def _over_files(self, limits: Limits) -> _End | None:
        disk_bytes, count = 0, 0
        for folder in (self._work, self._tmp):
            found = files.usage(folder, limits.files + 100, self._inputs)
            disk_bytes, count = disk_bytes + found.disk_bytes, count + found.files
            if found.hidden:
                return _End("killed", "Stopped: a folder nests too deep or is closed to its own user.")
        if count > limits.files + 100:  # a hundred for what libraries and inputs need
            return _End("killed", f"Stopped with over {limits.files} files, the limit.")
        if disk_bytes > limits.disk_bytes:
            used, allowed = size(disk_bytes), size(limits.disk_bytes)
            return _End("killed", f"Stopped with {used} written to disk; the limit is {allowed}.")
        free = os.statvfs(self._work)
        if free.f_bavail * free.f_frsize < _DISK_RESERVE_BYTES:
            return _End("killed", "Stopped: the sandbox's disk is nearly full.")
        return None


def _renumber(standard: tuple[int, int, int], setup: int) -> int:
    """Make these descriptors 0, 1, 2, the other one 3, and close everything else."""
    moved = [os.dup2(fd, 200 + number, inheritable=False) for number, fd in enumerate((*standard, setup))]
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    os.closerange(4, 1 << 20)
    return 3


def _name(job: Job, number: int) -> str:
    # What follows a script does not change its name: tracebacks and warnings hold it.
    return f"script{number if number > 1 else ''}{SUFFIXES[job.scripts[number - 1].language]}"


def _judge(step: Step, name: str, limits: Limits) -> _End:
    status = step.exit_status
    if status == 0:
        return _End("ok", "")
    if status == -signal.SIGXCPU:
        return _End("timeout", f"Stopped after {seconds(limits.cpu_s)} of processor time, the limit.")
    if status == -signal.SIGXFSZ:
        return _End("killed", f"Stopped: a file may have {size(limits.file_bytes)} at most.")
    if status == -signal.SIGKILL and step.wall_s >= limits.cpu_s:
        return _End("timeout", f"Stopped after {seconds(limits.cpu_s)} of processor time, the limit.")
    if status < 0:
        return _End("killed", f"{name} was ended by {signal.Signals(-status).name}.")
    return _End("failed", f"{name} ended with exit status {status}.")
