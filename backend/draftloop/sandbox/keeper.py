"""The keeper of one job: makes its folder, starts its scripts, watches, ends, collects, cleans up.

One process for each job, forked from the server and itself not contained; what it starts is. It answers on
the connection that the job came from. A connection that its client closes early cancels the job.

    jobs/ID/script.py    the script; read-only to itself
    jobs/ID/work/        the current folder of the code; work/input/ holds the inputs
    jobs/ID/tmp/         HOME and TMPDIR; not collected
    jobs/ID/out/         what was collected, ours alone

Code owns `work` and `tmp` and what is in them, and may rename and replace all of it: a name in there is never
followed. The keeper mounts nothing: each script has mounts of its own (`view`), which end with it.
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
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from draftloop.errors import DraftloopError, TaskError
from draftloop.runs.job import (
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
from draftloop.runs.tracebacks import shorten
from draftloop.sandbox import files, holdings, kernel, processes, runner, view
from draftloop.sandbox.cgroup import Group
from draftloop.sandbox.containment import BROWSER_PROGRAMS, RUNNER, Containment, package_folders
from draftloop.support.trees import remove_tree

SUFFIXES: dict[Language, str] = {"python": ".py", "javascript": ".js", "shell": ".sh"}
_POLL_S = 0.05
_LOOK_EVERY = 4  # polls between two looks at what processes hold
_OUTPUT_FACTOR = 16  # a script that prints this many times what is kept is ended
_DISK_RESERVE_BYTES = 512 << 20  # jobs end before the disk is full
_REQUEST_BYTES, _REQUEST_S = 64 << 20, 60
_TAKING_S = 600  # for the client to take the files
_CHUNK_BYTES = 1 << 16
_INPUT = b"\0"  # begins what a child says of an input that it cannot read


# How a keeper ends: nothing is left and nothing went wrong; the sandbox met a fault of its own; a process
# or a file may be left.
CLEAN, FAILED, UNCLEAN = 0, 3, 4


@dataclass(frozen=True)
class Place:
    """Where a sandbox keeps its jobs, what they may read, and how they are contained."""

    folder: str
    jobs: str
    inputs: tuple[str, ...]
    configuration: str  # of matplotlib
    containment: Containment
    browser: bool  # jobs may ask for the profile
    group: Group | None = None  # the sandbox's control group

    @property
    def mounts(self) -> bool:
        """Whether each job has mounts of its own; else inputs are symbolic links."""
        return "namespaces" in self.containment.layers


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
        return _hide(joined, hidden).replace("\0", "\N{REPLACEMENT CHARACTER}"), cut


def _hide(text: str, paths: tuple[str, ...]) -> str:
    """Return a text in which folders are the current one: what it says is the same on every machine."""
    for path in paths:
        text = text.replace(path, "" if path.endswith("/") else ".")
    return text


def keep(connection: socket.socket, place: Place, uid: int | None) -> int:
    """Take one job from a connection, answer it there, and leave nothing behind.

    Args:
        connection: Where the job comes in and its attempt goes out, a line of JSON each. The client closes it
            once it has taken the files.
        place: The sandbox.
        uid: A user that runs nothing else; None where jobs run as the sandbox's own user.
    Returns:
        CLEAN, FAILED or UNCLEAN.
    """
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    request = _read_line(connection)
    folder = os.path.join(place.jobs, f"{os.getpid()}-{os.urandom(4).hex()}")
    status = CLEAN
    try:
        try:
            if not request:
                raise TaskError(
                    f"The job is not a line of JSON of at most {size(_REQUEST_BYTES)}.",
                    hint="Are its scripts too long?",
                )
            run = _Run(place, uid, folder, connection)
            attempt = run.attempt(job_from_json(json.loads(request)))
            answer = {"attempt": attempt_to_json(attempt), "outputs": f"{folder}/out"}
        except TaskError as error:
            answer = {"error": "task", "message": error.message, "hint": error.hint}
        except DraftloopError as error:
            answer = {"error": "service", "message": error.message, "hint": error.hint}
        except Exception as error:  # whatever it is, the client gets an answer and the server looks into it
            traceback.print_exc()
            status = FAILED
            words = f"The sandbox failed: {type(error).__name__}: {error}"
            answer = {"error": "service", "message": words, "hint": "Its log says where."}
        with suppress(OSError):
            connection.settimeout(_TAKING_S)
            connection.sendall(json.dumps(answer).encode() + b"\n")
            connection.recv(1)  # until the client has taken the files
    finally:
        ended = processes.end(uid)
        remove_tree(folder)
    return status if ended else UNCLEAN


def _read_line(connection: socket.socket) -> bytes:
    """Read a line; empty where the client says nothing within a minute, or too much."""
    ends = time.monotonic() + _REQUEST_S
    received, total_bytes = bytearray(), 0
    try:
        while not received.endswith(b"\n"):
            connection.settimeout(max(0.001, ends - time.monotonic()))
            chunk = connection.recv(_CHUNK_BYTES)
            if not chunk:
                return b""
            total_bytes += len(chunk)
            if total_bytes > _REQUEST_BYTES:
                received.clear()  # the rest is read all the same, so that the client reads our answer
            received += chunk
    except OSError:
        return b""
    return bytes(received) if total_bytes <= _REQUEST_BYTES else b""


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
        self._inputs: dict[str, view.InputFile] = {}
        self._polls = 0
        self._held = holdings.Holdings()
        self._ended_before = place.group.count_ended() if place.group else 0

    def attempt(self, job: Job) -> Attempt:
        """Run the job's scripts and collect their files."""
        if job.profile == "browser" and not self._place.browser:
            raise TaskError(
                'This sandbox does not run jobs of the profile "browser".',
                hint="An admin switches it on where the machine has namespaces: docs/explanation/sandbox.md.",
            )
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

    # ------------------------------------------------------------ the folder

    def _make_folder(self, job: Job) -> None:
        os.mkdir(self._folder, 0o711)
        for path in (self._work, self._tmp):
            os.mkdir(path, 0o700)
        inputs = f"{self._work}/{INPUT_FOLDER}"
        if job.inputs:
            os.mkdir(inputs, 0o755)
        for name, path in job.inputs.items():
            self._inputs[name] = self._checked_input(name, path)
            if self._place.mounts:
                Path(inputs, name).touch()  # what it is mounted on
            else:
                os.symlink(self._inputs[name].path, f"{inputs}/{name}")
        for file in os.scandir(self._place.configuration):
            shutil.copy(file.path, self._tmp)
        if self._uid is not None:
            for path in (self._work, self._tmp, *map(str, Path(self._tmp).iterdir())):
                os.chown(path, self._uid, self._uid)
        for number, script in enumerate(job.scripts, start=1):
            Path(self._folder, _name(job, number)).write_text(script.code, encoding="utf-8", errors="replace")

    def _checked_input(self, name: str, path: str) -> view.InputFile:
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
        return view.InputFile(real, kind.st_dev, kind.st_ino)

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
                raise _trouble(trouble)
            end, status = self._watch(job.limits, child, texts)
        finally:
            for fd in texts:
                os.close(fd)
        own = (f"{self._work}/", self._work, f"{self._folder}/")
        stdout, stdout_cut = texts[out_read].text(own)
        stderr, stderr_cut = texts[err_read].text(own)
        stdout, stderr = _hide(shorten(stdout), package_folders()), _hide(shorten(stderr), package_folders())
        wall_s = round(time.monotonic() - began, 3)
        return Step(script, status, stdout, stderr, wall_s, stdout_cut, stderr_cut), end

    def _become(self, job: Job, script: Script, path: str, pipes: tuple[int, int, int]) -> None:
        """Turn this child into the contained code; it never returns."""
        out, err, setup = pipes
        try:
            os.setsid()
            null = os.open("/dev/null", os.O_RDONLY)
            setup = _renumber((null, out, err), setup)
            os.umask(0o022)
            environment = self._environment(job.profile)
            Path("/proc/self/oom_score_adj").write_text("1000")
            self._show(job)
            os.chdir(self._work)
            read = (path, *(file.path for file in self._inputs.values()))
            if self._place.mounts:
                mounted = f"{self._work}/{INPUT_FOLDER}"
                read = (path, *(f"{mounted}/{name}" for name in self._inputs))
            self._place.containment.apply(
                uid=self._uid,
                limits=job.limits,
                profile=job.profile,
                read=read,
                write=(self._work, self._tmp),
            )
            for name in job.inputs:
                try:
                    os.close(os.open(f"{INPUT_FOLDER}/{name}", os.O_RDONLY))
                except OSError as error:
                    os.write(
                        setup,
                        _INPUT + f"Input {name!r} cannot be read by the sandbox: {error.strerror}.".encode(),
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
                os.write(setup, f"The code could not be started: {error!r}".encode(errors="replace"))
        finally:
            os._exit(1)

    def _show(self, job: Job) -> None:
        """Give this child the view of the job, where it can have mounts of its own."""
        if self._place.mounts:
            view.enter_job_view(
                view.JobView(
                    folder=self._place.folder,
                    job=self._folder,
                    writable=(self._work, self._tmp),
                    input_folder=f"{self._work}/{INPUT_FOLDER}",
                    inputs=self._inputs,
                    input_roots=self._place.inputs,
                    network=job.profile == "browser",
                )
            )

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
        self._held = holdings.Holdings()
        for fd, text in texts.items():
            with suppress(BlockingIOError):
                while chunk := os.read(fd, _CHUNK_BYTES):
                    text.add(chunk)
        code = os.waitstatus_to_exitcode(status)
        return end or self._ended_by_kernel(code) or self._over_files(limits), code

    def _ended_by_kernel(self, exit_status: int) -> _End | None:
        group = self._place.group
        if exit_status != -signal.SIGKILL or group is None or group.count_ended() == self._ended_before:
            return None
        return _End("killed", "Stopped by the kernel: the memory of all jobs together was used up.")

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
        if self._polls % _LOOK_EVERY == 0:
            self._held = holdings.measure([process.pid for process in found], self._uid)
            if end := _over_holdings(self._held):
                return end
        self._polls += 1
        memory_bytes = holdings.memory(found, limits.memory_bytes, self._uid) + self._held.kernel_bytes
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
        disk_bytes, count = self._held.unlinked_bytes, 0
        for folder in (self._work, self._tmp):
            found = files.usage(folder, limits.files + 100)
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
        return _End("killed", f"{name} was ended by {_signal_name(-status)}.")
    return _End("failed", f"{name} ended with exit status {status}.")


def _signal_name(number: int) -> str:
    """Return a signal's name; those between SIGRTMIN and SIGRTMAX have none but their distance."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"signal {number}"


def _trouble(said: bytes) -> Exception:
    """Return what a child said before it became the job's code: a task's fault, or the sandbox's own."""
    words = said.removeprefix(_INPUT).decode(errors="replace")
    if said.startswith(_INPUT):
        return TaskError(words, hint="Give others the right to read it.")
    return OSError(words)


def _over_holdings(held: holdings.Holdings) -> _End | None:
    if held.hidden:
        return _End("killed", "Stopped: one of its processes does not let the sandbox see what it holds.")
    if held.shared:
        return _End("killed", "Stopped: it maps /dev/zero as shared memory; map a file instead.")
    if held.sockets > holdings.MOST_SOCKETS:
        return _End("killed", f"Stopped with {held.sockets} sockets; the limit is {holdings.MOST_SOCKETS}.")
    if held.locks > holdings.MOST_LOCKS:
        return _End(
            "killed", f"Stopped with too many locks of parts of files; the limit is {holdings.MOST_LOCKS}."
        )
    return None
