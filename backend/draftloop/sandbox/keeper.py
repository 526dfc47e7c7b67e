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
import shutil
import signal
import socket
import stat
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from draftloop.errors import DraftloopError, TaskError
from draftloop.runs.job import (
    INPUT_FOLDER,
    Attempt,
    Language,
    OutputFile,
    Refused,
    SandboxJob,
    SandboxProfile,
    Script,
    Step,
    attempt_to_json,
    job_from_json,
    size,
)
from draftloop.runs.tracebacks import shorten
from draftloop.sandbox import files, kernel, processes, runner, view
from draftloop.sandbox.cgroup import ControlGroup
from draftloop.sandbox.containment import BROWSER_PROGRAMS, RUNNER, Containment, package_folders
from draftloop.sandbox.printed import PrintedText, hide_paths
from draftloop.sandbox.watcher import CHUNK_BYTES, Ending, Watcher, judge_exit
from draftloop.support.trees import remove_tree

SUFFIXES: dict[Language, str] = {"python": ".py", "javascript": ".js", "shell": ".sh"}
_REQUEST_BYTES, _REQUEST_S = 64 << 20, 60
_TAKING_S = 600  # for the client to take the files
_INPUT = b"\0"  # begins a child's message about an input that it cannot read


# Exit statuses: nothing is left and nothing went wrong; a fault of the sandbox itself; a process or a file
# may be left.
CLEAN, FAILED, UNCLEAN = 0, 3, 4


@dataclass(frozen=True)
class SandboxPlace:
    """Where a sandbox keeps its jobs, what they may read, and how they are contained."""

    folder: str
    jobs: str
    inputs: tuple[str, ...]
    configuration: str  # of matplotlib
    containment: Containment
    browser: bool  # jobs may ask for the profile
    group: ControlGroup | None = None  # the sandbox's control group

    @property
    def mounts(self) -> bool:
        """Whether each job has mounts of its own; else inputs are symbolic links."""
        return "namespaces" in self.containment.layers


def keep(connection: socket.socket, place: SandboxPlace, uid: int | None) -> int:
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
            run = _JobRun(place, uid, folder, connection)
            attempt = run.attempt(job_from_json(json.loads(request)))
            answer = {"attempt": attempt_to_json(attempt), "outputs": f"{folder}/out"}
        except TaskError as error:
            answer = {"error": "task", "message": error.message, "hint": error.hint}
        except DraftloopError as error:
            answer = {"error": "service", "message": error.message, "hint": error.hint}
        except (
            Exception
        ) as error:  # the client gets an answer in any case, and the server proves its containment again
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
            chunk = connection.recv(CHUNK_BYTES)
            if not chunk:
                return b""
            total_bytes += len(chunk)
            if total_bytes > _REQUEST_BYTES:
                received.clear()  # the rest is read too, or the client would not read our answer
            received += chunk
    except OSError:
        return b""
    return bytes(received) if total_bytes <= _REQUEST_BYTES else b""


class _JobRun:
    """One job while it runs."""

    def __init__(self, place: SandboxPlace, uid: int | None, folder: str, connection: socket.socket) -> None:
        self._place = place
        self._uid = uid
        self._folder = folder
        self._work, self._tmp = f"{folder}/work", f"{folder}/tmp"
        self._inputs: dict[str, view.CheckedFile] = {}
        self._watcher = Watcher(connection, (self._work, self._tmp), uid, place.group)

    def attempt(self, job: SandboxJob) -> Attempt:
        """Run the job's scripts and collect their files."""
        if job.profile == "browser" and not self._place.browser:
            raise TaskError(
                'This sandbox does not run jobs of the profile "browser".',
                hint="An admin switches it on where the machine has namespaces: docs/explanation/sandbox.md.",
            )
        self._make_folder(job)
        self._watcher.began = time.monotonic()
        steps: list[Step] = []
        end = Ending("ok", "")
        for number, script in enumerate(job.scripts, start=1):
            name = _name(job, number)
            step, stopped = self._step(job, script, f"{self._folder}/{name}")
            steps.append(step)
            end = stopped or judge_exit(step, name, job.limits)
            if end.outcome != "ok":
                break
        wall_s = time.monotonic() - self._watcher.began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        collected: list[OutputFile] = []
        refused: list[Refused] = []
        if not files.usage(self._work, 20 * job.limits.files + 1000).hidden:
            collected, refused, notes = files.collect(self._work, f"{self._folder}/out", job.limits)
            self._watcher.notes += notes
        else:
            self._watcher.notes.append(
                "No file was collected: a folder nests too deep or is closed to its own user."
            )
        return Attempt(
            outcome=end.outcome,
            reason=end.reason,
            steps=tuple(steps),
            wall_s=round(wall_s, 3),
            cpu_s=round(used.ru_utime + used.ru_stime, 3),
            peak_memory_bytes=max(self._watcher.peak_bytes, used.ru_maxrss * 1024),
            files=tuple(collected),
            refused=tuple(refused),
            notes=tuple(self._watcher.notes),
        )

    # ------------------------------------------------------------ the folder

    def _make_folder(self, job: SandboxJob) -> None:
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

    def _checked_input(self, name: str, path: str) -> view.CheckedFile:
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
        return view.CheckedFile(real, kind.st_dev, kind.st_ino)

    # ------------------------------------------------------------ one script

    def _step(self, job: SandboxJob, script: Script, path: str) -> tuple[Step, Ending | None]:
        began = time.monotonic()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        setup_read, setup_write = os.pipe()
        child = os.fork()
        if child == 0:
            self._become(job, script, path, (out_write, err_write, setup_write))
        for fd in (out_write, err_write, setup_write):
            os.close(fd)
        texts = {
            out_read: PrintedText(job.limits.output_bytes),
            err_read: PrintedText(job.limits.output_bytes),
        }
        try:
            with open(setup_read, "rb") as setup:
                trouble = setup.read()
            if trouble:
                os.waitpid(child, 0)
                raise _trouble(trouble)
            end, status = self._watcher.watch(job.limits, child, texts)
        finally:
            for fd in texts:
                os.close(fd)
        own = (f"{self._work}/", self._work, f"{self._folder}/")
        stdout, stdout_cut = texts[out_read].text(own)
        stderr, stderr_cut = texts[err_read].text(own)
        stdout, stderr = (
            hide_paths(shorten(stdout), package_folders()),
            hide_paths(shorten(stderr), package_folders()),
        )
        wall_s = round(time.monotonic() - began, 3)
        return Step(script, status, stdout, stderr, wall_s, stdout_cut, stderr_cut), end

    def _become(self, job: SandboxJob, script: Script, path: str, pipes: tuple[int, int, int]) -> None:
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

    def _show(self, job: SandboxJob) -> None:
        """Mount the view of the job in this child, where it can have mounts of its own."""
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

    def _environment(self, profile: SandboxProfile) -> dict[str, str]:
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


def _renumber(standard: tuple[int, int, int], setup: int) -> int:
    """Make these descriptors 0, 1, 2, the other one 3, and close everything else."""
    moved = [os.dup2(fd, 200 + number, inheritable=False) for number, fd in enumerate((*standard, setup))]
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    os.closerange(4, 1 << 20)
    return 3


def _name(job: SandboxJob, number: int) -> str:
    # What follows a script does not change its name: tracebacks and warnings hold it.
    return f"script{number if number > 1 else ''}{SUFFIXES[job.scripts[number - 1].language]}"


def _trouble(said: bytes) -> Exception:
    """Return what a child said before it became the job's code: a task's fault, or the sandbox's own."""
    words = said.removeprefix(_INPUT).decode(errors="replace")
    if said.startswith(_INPUT):
        return TaskError(words, hint="Give others the right to read it.")
    return OSError(words)
