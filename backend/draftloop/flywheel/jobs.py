"""Training jobs: what sets one off, and its steps; one at a time over all projects and workers.

Knows when a job begins, which verbs it runs, and who is told. Does not know what the verbs do, nor HTTP.
`Jobs` is in the server and starts a process, draftloop retrain, in which `Training` runs the verbs. A job
that dies is seen by whoever looks at the ledger next; what drafts drafts on until the last step has promoted.
"""

import hashlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import structlog

from draftloop.dataset.folder import MANIFEST
from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.flywheel.adapters import Adapters
from draftloop.ledger.sqlite import JobRecord, Ledger
from draftloop.support.progress import Progress

_log = structlog.get_logger("backend")

LEASE_S = 120.0  # a job that is not heard of for so long counts as killed
_BEAT_S = 20.0  # it says so often that it goes on
_PATIENCE_S = 60.0  # for a verb that was told to stop: a training writes its checkpoint
_LAST_CHARS = 500  # of what a verb said before it failed
REFUSED = 3  # exit status of draftloop promote where an adapter is not better
BUTTON = "Label Studio's button"
_WITH_US = ("setpriv", "--pdeathsig", "TERM")  # the kernel stops a verb whose parent is killed


class Process(Protocol):
    """A started process."""

    def wait(self) -> int:
        """Wait for its end; gives its exit status."""
        ...


class Jobs:
    """Starts jobs. Safe to call from several threads."""

    def __init__(
        self,
        ledger: Ledger,
        start: Callable[[JobRecord], Process],
        *,
        after: int = 0,
        check: Callable[[], object] = lambda: None,
        count: Callable[[int], int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            ledger: Where jobs are kept, for all workers.
            start: Starts the process of a job that was begun; it takes the job over.
            after: New annotations after which a project is trained by itself; 0 is never.
            check: Raises a SetupError where training cannot go well.
            count: Asks Label Studio how many annotations a project has, before a job starts by itself; None
                believes what the webhook says.
        """
        self._ledger = ledger
        self._start = start
        self._after = after
        self._check = check
        self._count = count
        self._counting = threading.Lock()

    def ask(self, project: int, annotations: int, why: str = BUTTON) -> tuple[JobRecord, bool]:
        """Start a job for a project.

        Args:
            project: The project.
            annotations: How many it has.
            why: What sets the job off.
        Returns:
            The job, and whether it was started just now; else it goes on already.
        Raises:
            SetupError: A job of another project goes on, or training is not set up.
        """
        if not project:
            raise SetupError("The call does not say which project to train.", hint="Send it as `project`.")
        self._check()
        job, new = self._ledger.begin_job(project, why, annotations, LEASE_S)
        if job.project != project:
            raise SetupError(
                f"A training job of project {job.project} goes on (step: {job.step}).",
                hint="One at a time: start this one when that has ended, see /jobs.",
            )
        if new:
            # The thread that starts the process also waits for it, so that none is left as a zombie.
            threading.Thread(target=self._attend, args=[job], daemon=True, name="job").start()
        return job, new

    def note(self, project: int, annotations: int) -> None:
        """Take note that a project may have so many annotations; enough new ones start a job.

        Whoever reads the webhooks' secret can write any number, so Label Studio has the last word.
        """
        if not self._after or not project:
            return
        last = next(iter(self._ledger.jobs(project, most=1)), None)
        before = last.annotations if last else 0
        if annotations - before < self._after:
            return
        if self._count is not None:
            if not self._counting.acquire(blocking=False):
                return  # one question at a time; the next event asks again
            try:
                annotations = self._count(project)
            except DraftloopError as error:
                _log.warning("not trained yet", project=project, error=error.message)
                return
            finally:
                self._counting.release()
        new = annotations - before
        if new < self._after:
            return
        try:
            self.ask(project, annotations, f"new annotations: {new}")
        except SetupError as error:
            _log.warning("not trained yet", project=project, error=error.message)

    def listed(self, project: int | None) -> list[dict[str, Any]]:
        """List jobs, newest first: of one project, or all."""
        return [job._asdict() for job in self._ledger.jobs(project)]

    def _attend(self, job: JobRecord) -> None:
        """Start a job's process and wait for it; what it cannot say itself is said here."""
        about = {"job": job.id, "project": job.project}
        _log.info("job", **about, doing=f"begun by {job.why}")
        try:
            code = self._start(job).wait()
            # Only where it ended before it took the job over.
            self._ledger.end_job(job.id, "failed", f"It could not begin (exit status {code}); see the log.")
            ended = next(found for found in self._ledger.jobs(job.project) if found.id == job.id)
            if code < 0 or ended.step == "start":
                _log.error("job", **about, doing=f"{ended.state}: {ended.told}")
        except (DraftloopError, OSError) as error:
            _log.error("job", **about, doing=f"lost: {error}")


def starter(command: Sequence[str]) -> Callable[[JobRecord], Process]:
    """Make what starts a job's process: the command, with the job's project and number.

    It stays in the process group, so whoever stops the server stops it too; a worker that ends does not.
    """
    return lambda job: subprocess.Popen(
        [*command, "--project", str(job.project), "--job", str(job.id)], stdin=subprocess.DEVNULL
    )


@dataclass(frozen=True)
class Training:
    """A job in its own process: sync, train, promote.

    command   gives the command line that runs a verb
    home      keeps the project's dataset and runs
    base      folder of the model to train on
    options   more of them for the training
    adapters  the registry
    log       where the verbs write; None for the terminal
    progress  shows what is done
    """

    ledger: Ledger
    job: JobRecord
    command: Callable[[str], Sequence[str]]
    home: Path
    base: Path
    options: Sequence[str]
    adapters: Adapters
    log: Path | None
    progress: Progress

    def run(self) -> str:
        """Go all the way, and say in the ledger what came of it; gives `promoted` or `refused`.

        Raises:
            ServiceError: A verb failed, or the job was given up by others.
        """
        state, told = "failed", "It failed; see the log."
        try:
            state, told = self._steps()
        except KeyboardInterrupt:
            state, told = "stopped", "It was told to stop."
            raise
        except DraftloopError as error:
            told = str(error)
            raise
        finally:
            self.ledger.end_job(self.job.id, state, told)
            self.progress.begin(f"{state}: {told}")
        return state

    def _steps(self) -> tuple[str, str]:
        project = ("--project", self.job.project)
        dataset = self.home / "dataset"
        self._verb("sync", *project, "--out", dataset)
        # What is trained gives the run its name: the same again goes on from its last checkpoint.
        about = ((dataset / MANIFEST).read_bytes(), str(self.base), *self.options)
        run = self.home / "runs" / hashlib.sha256(repr(about).encode()).hexdigest()[:12]
        for begun in run.parent.glob("*.part"):
            if begun.name != f"{run.name}.part":  # of other samples: nobody goes on there
                shutil.rmtree(begun, ignore_errors=True)
        given = ("--dataset", dataset, "--base", self.base, "--out", run, "--resume")
        self._verb("train", *given, *self.options)
        code = self._verb("promote", run, *project, "--out", self.home / "drafts.jsonl", also=REFUSED)
        if code == REFUSED:
            decisions = [one for one in self.adapters.journal() if one["project"] == self.job.project]
            return "refused", f"{decisions[-1]['adapter']}: {' '.join(decisions[-1]['reasons'])}"
        promoted = self.ledger.promoted(self.job.project)
        return "promoted", f"{promoted.model} drafts." if promoted else "It was rolled back meanwhile."

    def _verb(self, verb: str, *arguments: object, also: int = 0) -> int:
        """Run a verb to its end; gives its exit status: 0, or what it may end with besides."""
        self.progress.begin(verb)
        with self._output() as output:
            start = output.tell() if output else 0
            # A group of its own: Ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                [*_WITH_US, *self.command(verb), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
            try:
                code = self._wait(process, verb)
            finally:
                _stop(process)
            if code in (0, also):
                return code
            said = _last_words(output, start) if output else "see above"
        raise ServiceError(f"draftloop {verb} failed (exit status {code}): {said}")

    def _wait(self, process: subprocess.Popen[bytes], verb: str) -> int:
        while self.ledger.keep_job(self.job.id, verb, LEASE_S):
            try:
                return process.wait(_BEAT_S)
            except subprocess.TimeoutExpired:
                continue
        raise ServiceError(f"Job {self.job.id} was not heard of for {LEASE_S:.0f} s and counts as killed.")

    @contextmanager
    def _output(self) -> Iterator[IO[bytes] | None]:
        if self.log is None:
            yield None
            return
        with self.log.open("ab+") as stream:
            yield stream


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(output: IO[bytes], start: int) -> str:
    """Give the error that a verb ended with, else its last words."""
    output.seek(start)
    said = output.read().decode(errors="replace").strip()
    return said[max(0, said.rfind("error: ")) :].removeprefix("error: ")[-_LAST_CHARS:]
