"""The sandbox as the backend sees it: a process that is started once and given jobs over a socket.

Knows the server's command line and its two messages. Does not import it: the server runs in the environment
`sandbox`, this file in the backend's, and nothing but JSON and files passes between them.
"""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
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
