"""The sandbox's client: starts its process once and sends it jobs over a socket.

Knows the server's command line and its two messages. Does not import it: the server runs in the environment
`sandbox`, this module in the backend's; JSON and files are all that passes between them.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import structlog

from draftloop.errors import ServiceError, SetupError, TaskError, Unreachable
from draftloop.runs.job import (
    Attempt,
    Layer,
    Limits,
    SandboxJob,
    SandboxReport,
    Script,
    attempt_from_json,
    job_to_json,
    report_from_json,
)
from draftloop.support.environments import NotInstalledError, find_environment, import_path
from draftloop.support.trees import is_set_aside, remove_or_set_aside

_START_S = 120  # imports on a cold disk
_STOP_S = 20
# What a job may take besides its own time: its place in the queue, collecting, cleaning.
_PATIENCE_S = 600
_FOLDER = "sandbox-"
_REFUSED_S = 60.0  # how long a refusal of this machine is reused
_ENDING_S = 3.0  # in which a sandbox after a fault proves its containment again, or ends
_HELLO = "print('hello')"
_log = structlog.get_logger("backend")


class SandboxProcess:
    """A sandbox in a process of its own. Safe to call from several threads; a context manager."""

    def __init__(
        self,
        python: Path,
        folder: Path,
        *,
        inputs: Sequence[Path] = (),
        jobs: int | None = None,
        browser: bool = False,
        without: Sequence[Layer] = (),
        job_memory_bytes: int = Limits().memory_bytes,
        log: Path | None = None,
    ) -> None:
        """Start the sandbox and wait until it has proved its containment.

        Args:
            python: The Python of the environment `sandbox`.
            folder: Where jobs run; made if missing, and used by one sandbox at a time.
            inputs: Folders whose files jobs may be given.
            jobs: How many run at once; the number of cores if not given.
            browser: Let jobs ask for the profile "browser", which is contained less.
            without: Layers to leave out, which the sandbox may then refuse to do without.
            job_memory_bytes: What one job may have; the kernel limits all jobs together, where it can.
            log: What receives the sandbox's own messages; by default nothing does.
        Raises:
            SetupError: It cannot contain code here, or does not start; nothing is run then.
        """
        command = [str(python), "-P", "-s", "-m", "draftloop.sandbox", "--folder", str(folder)]
        command += ["--job-memory", str(job_memory_bytes >> 20)]
        for path in inputs:
            command += ["--inputs", str(path)]
        if jobs is not None:
            command += ["--jobs", str(jobs)]
        if browser:
            command.append("--browser")
        for layer in without:
            command += ["--without", layer]
        # No variable of our own environment: every job inherits the memory of the process that starts here.
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(import_path()),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        messages: IO[bytes] | int = log.open("ab") if log else subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                start_new_session=True,
            )
        except OSError as error:
            raise SetupError(
                f"The sandbox's Python {python} does not start: {error.strerror}.",
                hint="Run draftloop setup sandbox.",
            ) from error
        finally:
            if not isinstance(messages, int):
                messages.close()
        try:
            said = self._first_words(log)
        except BaseException:
            self.stop()
            raise
        self.folder = folder
        self._report = report_from_json(said["report"])
        self._socket = str(said["socket"])

    @property
    def report(self) -> SandboxReport:
        """What is in force and what is installed."""
        return self._report

    @property
    def pid(self) -> int:
        """The process that everything of the sandbox descends from."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, at most this long; return whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def run(self, job: SandboxJob, outputs: str, *, cancelled: threading.Event | None = None) -> Attempt:
        """Run a job and wait for its end.

        Args:
            job: What to run.
            outputs: Absolute path of an existing folder, which receives the files of the attempt.
            cancelled: Ends the job when set; looked at every tenth of a second.
        Returns:
            What came of it, failing code included.
        Raises:
            TaskError: The job cannot be started: an input is missing, or may not be read.
            Unreachable: Nothing listens on the sandbox's socket.
            ServiceError: The sandbox did not do its part.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(self._socket)
            except OSError as error:
                raise Unreachable("The sandbox does not answer.", hint="Start it again.") from error
            try:
                with suppress(BrokenPipeError):  # it answers a job that it does not take, too
                    connection.sendall(json.dumps(job_to_json(job)).encode() + b"\n")
                answer = _answer(connection, job.limits.wall_s + _PATIENCE_S, cancelled)
            except ConnectionError as error:
                raise ServiceError(
                    "The sandbox ended while it ran this.", hint="Run it again; the sandbox's log says why."
                ) from error
            except OSError as error:
                raise ServiceError(f"The sandbox failed: {error}.") from error
            if "attempt" not in answer:
                kind = TaskError if answer["error"] == "task" else ServiceError
                raise kind(answer["message"], hint=answer["hint"])
            attempt = attempt_from_json(answer["attempt"])
            for file in attempt.files:
                target = Path(outputs, file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(answer["outputs"], file.path), target)
            with suppress(OSError):  # it closes when nothing of the job is left
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_STOP_S)
                connection.recv(1)
            return attempt

    def stop(self) -> None:
        """End the sandbox and every job in it."""
        process = self._process
        if process.stdin and not process.stdin.closed:
            process.stdin.close()
        for end in (process.terminate, process.kill):  # its guard ends the rest before it ends
            try:
                process.wait(_STOP_S)
                break
            except subprocess.TimeoutExpired:
                end()
        process.wait()
        if process.stdout:
            process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _first_words(self, log: Path | None) -> dict[str, Any]:
        timer = threading.Timer(_START_S, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else b""
        finally:
            timer.cancel()
        if not line:
            raise SetupError(
                "The sandbox ended before it was ready.", hint=f"See {log}." if log else "Give it a log."
            )
        said: dict[str, Any] = json.loads(line)
        if "refused" in said:
            raise SetupError(said["refused"], hint=said["hint"])
        return said


class LastingSandbox:
    """A sandbox that is started when it is first needed, and anew after it ended. Safe between threads."""

    def __init__(self, start: Callable[[], SandboxProcess]) -> None:
        """Prepare; the sandbox starts at the first job.

        Args:
            start: Starts one in a folder of its own, which is removed when it has ended.
        """
        self._start = start
        self._lock = threading.Lock()
        self._process: SandboxProcess | None = None
        self._refused: tuple[float, SetupError] | None = None  # when it may be tried again
        self._failed = False  # the last run ended with a fault of the sandbox
        self._recovery: threading.Thread | None = None

    @property
    def report(self) -> SandboxReport:
        """What is in force and what is installed.

        Raises:
            SetupError: It cannot contain code here, or does not start; it is tried again after a minute.
        """
        return self._running().report

    def run(self, job: SandboxJob, outputs: str, *, cancelled: threading.Event | None = None) -> Attempt:
        """Run a job, as `SandboxProcess.run` does; once more, where the sandbox ended over it.

        Raises:
            SetupError: It cannot contain code here, or does not start; it is tried again after a minute.
            TaskError: The job cannot be started.
            ServiceError: The sandbox did not do its part, or ended; the next call starts it anew.
        """
        process = self._running()
        try:
            attempt = self._run(process, job, outputs, cancelled)
        except ServiceError:
            if not process.ends_within(_ENDING_S):
                raise
            attempt = self._run(self._running(), job, outputs, cancelled)
        self._failed = False
        return attempt

    def _run(
        self, process: SandboxProcess, job: SandboxJob, outputs: str, cancelled: threading.Event | None
    ) -> Attempt:
        try:
            return process.run(job, outputs, cancelled=cancelled)
        except ServiceError as error:
            self._failed = True
            if isinstance(error, Unreachable) or not process.alive:
                with self._lock:
                    if self._process is process:
                        self._process = None
                _end(process)
            raise

    def check(self) -> None:
        """Return at once after a run without a fault of the sandbox; else test it and start it anew.

        It is not a fault that nobody needed it yet, or that this machine cannot contain code: `report` tells.

        Raises:
            SetupError: It was started again, and does not contain code any more.
            ServiceError: It is being started and tried; the next call knows more.
        """
        process = self._process
        if not self._failed and (process is None or process.alive):
            return
        if self._refused is not None and time.monotonic() < self._refused[0]:
            raise self._refused[1]
        if self._recovery is None or not self._recovery.is_alive():
            self._recovery = threading.Thread(target=self._recover, daemon=True, name="sandbox")
            self._recovery.start()
        raise ServiceError(
            "The sandbox met a fault and is being started again and tried.",
            hint="Its log says what went wrong.",
        )

    def _recover(self) -> None:
        with suppress(SetupError, TaskError, ServiceError), tempfile.TemporaryDirectory() as outputs:
            self.run(SandboxJob((Script(_HELLO),)), outputs)

    def close(self) -> None:
        """End the sandbox and every job in it; a later call starts it again."""
        if self._recovery is not None:
            self._recovery.join()  # it may be starting one just now
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _running(self) -> SandboxProcess:
        with self._lock:
            if self._process is not None and self._process.alive:
                return self._process
            if self._refused is not None and time.monotonic() < self._refused[0]:
                raise self._refused[1]
            gone = self._process
            if gone is not None:
                self._failed = True  # before it is gone: `check` reads both without the lock
                self._process = None
                _end(gone)
                _log.error("the sandbox ended by itself; it is started again")
            try:
                self._process = self._start()
            except SetupError as error:
                self._refused = (time.monotonic() + _REFUSED_S, error)
                raise
            self._refused = None
            return self._process


def _end(process: SandboxProcess) -> None:
    process.stop()
    _remove(process.folder)


def _remove(folder: Path) -> None:
    """Remove a sandbox's folder, or leave it with a warning: files that code left never stop a start."""
    try:
        why = remove_or_set_aside(folder)
    except OSError as error:
        why = f"{folder} can be neither removed nor renamed ({error.strerror or error})"
    if why:
        _log.warning("the folder of a sandbox is left", reason=why, hint="Remove it by hand.")


def fresh_folder(base: Path) -> Path:
    """Make a folder that one sandbox has for itself; those of processes that are gone are removed.

    Raises:
        SetupError: It cannot be made.
    """
    try:
        base.mkdir(mode=0o711, parents=True, exist_ok=True)
        for old in base.glob(f"{_FOLDER}*"):
            pid, started, *_ = (*old.name.removeprefix(_FOLDER).split("-"), "")
            if pid.isdigit() and started != _started(pid) and not is_set_aside(old):
                _remove(old)
        return Path(tempfile.mkdtemp(prefix=own_prefix(), dir=base))
    except OSError as error:
        raise SetupError(
            f"The sandbox's folder {base} cannot be used: {error.strerror}.",
            hint="Set SANDBOX_FOLDER to another.",
        ) from error


def own_prefix() -> str:
    """Return the prefix of this process's folders; `fresh_folder` removes those of dead processes."""
    pid = str(os.getpid())
    return f"{_FOLDER}{pid}-{_started(pid)}-"


def _started(pid: str) -> str:
    """Return when a process started: in containers a later one often has the same number."""
    try:
        text = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:
        return ""
    return text[text.rindex(")") + 2 :].split()[19]


def installed_python(environment: str) -> Path:
    """Find the Python of an environment that draftloop setup made.

    Raises:
        SetupError: It is not there.
    """
    try:
        return find_environment(environment) / "bin" / "python"
    except NotInstalledError as error:
        raise SetupError(
            f"The environment '{environment}' is not installed.", hint=f"Run draftloop setup {environment}."
        ) from error


def _answer(
    connection: socket.socket, patience_s: float, cancelled: threading.Event | None
) -> dict[str, Any]:
    """Read one line of JSON; a `cancelled` that is set closes our half, on which the job is ended."""
    connection.settimeout(0.1 if cancelled else patience_s)
    received = bytearray()
    while not received.endswith(b"\n"):
        try:
            chunk = connection.recv(1 << 20)
        except TimeoutError:
            if cancelled is None:
                raise
            if cancelled.is_set():
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(patience_s)
                cancelled = None
            continue
        if not chunk:
            raise ConnectionResetError("closed")
        received += chunk
    answer: dict[str, Any] = json.loads(received)
    return answer
