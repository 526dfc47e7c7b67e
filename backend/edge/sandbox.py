"""The sandbox as the backend sees it: a process that is started once and given jobs over a socket.

Knows the server's command line and its two messages. Does not import it: the server runs in the environment
`sandbox`, this file in the backend's, and nothing but JSON and files passes between them.
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

from backend.core.execution import (
    Attempt,
    Job,
    Layer,
    SandboxReport,
    attempt_from_json,
    job_to_json,
    report_from_json,
)
from backend.errors import ServiceError, SetupError, TaskError, Unreachable

_ROOT = Path(__file__).parents[2]
_START_S = 120  # imports on a cold disk
_STOP_S = 20
# What a job may take besides its own time: its place in the queue, collecting, cleaning.
_PATIENCE_S = 600
_FOLDER = "sandbox-"
_REFUSED_S = 60.0  # so long a machine that cannot contain code is not asked again


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
            log: What receives the sandbox's own messages; by default nothing does.
        Raises:
            SetupError: It cannot contain code here, or does not start; nothing is run then.
        """
        command = [str(python), "-P", "-s", "-m", "backend.sandbox", "--folder", str(folder)]
        for path in inputs:
            command += ["--inputs", str(path)]
        if jobs is not None:
            command += ["--jobs", str(jobs)]
        if browser:
            command.append("--browser")
        for layer in without:
            command += ["--without", layer]
        # Nothing of our own environment: every job inherits the memory of the process that starts here.
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(_ROOT),
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
                hint="Run scripts/setup sandbox.",
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

    def run(self, job: Job, outputs: str, *, cancelled: threading.Event | None = None) -> Attempt:
        """Run a job and wait for its end.

        Args:
            job: What to run.
            outputs: Absolute path of an existing folder, which receives the files of the attempt.
            cancelled: Ends the job when set; looked at every tenth of a second.
        Returns:
            What came of it, failing code included.
        Raises:
            TaskError: The job cannot be started: an input is missing, or may not be read.
            ServiceError: The sandbox did not do its part.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(self._socket)
                connection.sendall(json.dumps(job_to_json(job)).encode() + b"\n")
                answer = _answer(connection, job.limits.wall_s + _PATIENCE_S, cancelled)
            except (ConnectionError, FileNotFoundError) as error:
                raise Unreachable("The sandbox does not answer.", hint="Start it again.") from error
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
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
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
        """Remember how to start it.

        Args:
            start: Starts one in a folder of its own, which is removed when it has ended.
        """
        self._start = start
        self._lock = threading.Lock()
        self._process: SandboxProcess | None = None
        self._refused: tuple[float, SetupError] | None = None  # when it may be tried again

    @property
    def report(self) -> SandboxReport:
        """What is in force and what is installed.

        Raises:
            SetupError: It cannot contain code here, or does not start; it is tried again after a minute.
        """
        return self._running().report

    def run(self, job: Job, outputs: str, *, cancelled: threading.Event | None = None) -> Attempt:
        """Run a job, as `SandboxProcess.run` does.

        Raises:
            SetupError: It cannot contain code here, or does not start; it is tried again after a minute.
            TaskError: The job cannot be started.
            ServiceError: The sandbox did not do its part, or ended; the next call starts it anew.
        """
        process = self._running()
        try:
            return process.run(job, outputs, cancelled=cancelled)
        except Unreachable:
            with self._lock:
                if self._process is process:
                    self._process = None
            _end(process)
            raise

    def close(self) -> None:
        """End the sandbox and every job in it; a later call starts it again."""
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
            gone, self._process = self._process, None
            if gone is not None:
                _end(gone)
            try:
                self._process = self._start()
            except SetupError as error:
                self._refused = (time.monotonic() + _REFUSED_S, error)
                raise
            self._refused = None
            return self._process


def _end(process: SandboxProcess) -> None:
    process.stop()
    shutil.rmtree(process.folder, ignore_errors=True)


def fresh_folder(base: Path) -> Path:
    """Make a folder that one sandbox has for itself; those of processes that are gone are removed.

    Raises:
        SetupError: It cannot be made.
    """
    try:
        base.mkdir(mode=0o711, parents=True, exist_ok=True)
        for old in base.glob(f"{_FOLDER}*"):
            pid, started, *_ = (*old.name.removeprefix(_FOLDER).split("-"), "")
            if pid.isdigit() and started != _started(pid):
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=own_prefix(), dir=base))
    except OSError as error:
        raise SetupError(
            f"The sandbox's folder {base} cannot be used: {error.strerror}.",
            hint="Set SANDBOX_FOLDER to another.",
        ) from error


def own_prefix() -> str:
    """Give what this process's folders are called at first; `fresh_folder` removes them when it is gone."""
    pid = str(os.getpid())
    return f"{_FOLDER}{pid}-{_started(pid)}-"


def _started(pid: str) -> str:
    """Say when a process started, which tells it from a later one of its number, as containers have them."""
    try:
        text = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:
        return ""
    return text[text.rindex(")") + 2 :].split()[19]


def installed_python(environment: str) -> Path:
    """Find the Python of an environment that scripts/setup made.

    Raises:
        SetupError: It is not there.
    """
    missing = SetupError(
        f"The environment '{environment}' is not installed.", hint=f"Run scripts/setup {environment}."
    )
    command = [str(_ROOT / "scripts" / "setup"), "--print", environment]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:  # an image of the backend alone
        raise missing from error
    if found.returncode:
        raise missing
    return Path(found.stdout.strip(), "bin", "python")


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
