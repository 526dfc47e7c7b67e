"""Training jobs: their triggers and their steps; one job at a time over all projects and workers.

Knows when a job starts, which verbs it runs, and where its state is written. Does not know HTTP, nor what the
verbs do. `Jobs` is in the server and starts a process, `draftloop retrain`, in which `Training` runs the
verbs. A job that died is marked by the next reader of the ledger. The current version drafts until the last
step has promoted the new one.
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

LEASE_S = 120.0  # a job that has not renewed its lease for this long counts as killed
_BEAT_S = 20.0  # between renewals of the lease
_PATIENCE_S = 60.0  # for a verb to stop: a training writes its checkpoint
_LAST_CHARS = 500  # of the output of a failed verb
REFUSED = 3  # exit status of draftloop promote where an adapter is not better
BUTTON = "Label Studio's button"
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")  # the kernel stops a verb whose parent is killed


class JobProcess(Protocol):
    """A started process."""

    def wait(self) -> int:
        """Wait until it ends; return its exit status."""
        ...


class Jobs:
    """Starts jobs. Safe to call from several threads."""

    def __init__(
        self,
        ledger: Ledger,
        start: Callable[[JobRecord], JobProcess],
        *,
        after: int = 0,
        check: Callable[[], object] = lambda: None,
        count: Callable[[int], int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            ledger: Stores jobs, for all workers.
            start: Starts the process of a job, which takes the job over.
            after: Number of new annotations that starts a job automatically; 0: never.
            check: Raises a SetupError where training cannot succeed.
            count: Returns a project's number of annotations from Label Studio, before a job starts
                automatically; None trusts the number in the webhook.
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
            annotations: Its number of annotations.
            why: The reason, for people.
        Returns:
            The job, and whether this call started it; False: it was running already.
        Raises:
            SetupError: A job of another project is running, or training is not set up.
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
        """Start a job where a project has enough new annotations.

        Anyone who knows the webhooks' secret can send any number, so Label Studio's count decides.
        """
        if not self._after or not project:
            return
        last = next(iter(self._ledger.jobs(project, most=1)), None)
        before = last.annotations if last else 0
        if annotations - before < self._after:
            return
        if self._count is not None:
            if not self._counting.acquire(blocking=False):
                return  # another thread is counting; the next event counts again
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
        """Return jobs, newest first, of one project or of all."""
        return [job._asdict() for job in self._ledger.jobs(project)]

    def _attend(self, job: JobRecord) -> None:
        """Start a job's process and wait for it; log and store a failure that it could not store itself."""
        about = {"job": job.id, "project": job.project}
        _log.info("job", **about, doing=f"begun by {job.why}")
        try:
            code = self._start(job).wait()
            # Has an effect only where the process ended before it took the job over.
            self._ledger.end_job(job.id, "failed", f"It could not begin (exit status {code}); see the log.")
            ended = next(one for one in self._ledger.jobs(job.project) if one.id == job.id)
            if code < 0 or ended.step == "start":
                _log.error("job", **about, doing=f"{ended.state}: {ended.told}")
        except (DraftloopError, OSError) as error:
            _log.error("job", **about, doing=f"lost: {error}")


def starter(command: Sequence[str]) -> Callable[[JobRecord], JobProcess]:
    """Return a function that starts a job's process: the command, with the job's project and number.

    The process stays in the server's process group: stopping the server stops it, the end of one worker does
    not.
    """
    return lambda job: subprocess.Popen(
        [*command, "--project", str(job.project), "--job", str(job.id)], stdin=subprocess.DEVNULL
    )


@dataclass(frozen=True)
class VerbRunner:
    """Runs the verbs of a job one after another, and keeps the job's lease while they run.

    command   returns the command line that runs a verb
    log       file for the verbs' output; None: the terminal
    progress  shows the steps
    """

    ledger: Ledger
    job: JobRecord
    command: Callable[[str], Sequence[str]]
    log: Path | None
    progress: Progress

    def run(self, verb: str, *arguments: object, also: int = 0) -> int:
        """Run a verb to its end; return its exit status, 0 or `also`."""
        self.progress.begin(verb)
        with self._output() as output:
            start = output.tell() if output else 0
            # In its own process group, so that Ctrl-C reaches it only once, through `_stop`.
            process = subprocess.Popen(
                [*_DIE_WITH_PARENT, *self.command(verb), *map(str, arguments)],
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
            reason = _last_words(output, start) if output else "see above"
        raise ServiceError(f"draftloop {verb} failed (exit status {code}): {reason}")

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


@dataclass(frozen=True)
class Training:
    """A job in its own process: sync, train, promote.

    verbs     runs the verbs of the job
    home      folder of the project's dataset and runs
    base      folder of the base model
    options   further options of draftloop train
    adapters  the registry
    """

    verbs: VerbRunner
    home: Path
    base: Path
    options: Sequence[str]
    adapters: Adapters

    def run(self) -> str:
        """Run all steps and store the result in the ledger; return `promoted` or `refused`.

        Raises:
            ServiceError: A verb failed, or others marked the job as killed.
        """
        state, summary = "failed", "It failed; see the log."
        try:
            state, summary = self._steps()
        except KeyboardInterrupt:
            state, summary = "stopped", "It was told to stop."
            raise
        except DraftloopError as error:
            summary = str(error)
            raise
        finally:
            self.verbs.ledger.end_job(self.verbs.job.id, state, summary)
            self.verbs.progress.begin(f"{state}: {summary}")
        return state

    def _steps(self) -> tuple[str, str]:
        job = self.verbs.job
        project = ("--project", job.project)
        dataset = self.home / "dataset"
        self.verbs.run("sync", *project, "--out", dataset)
        # The run is named by its inputs, so that equal inputs continue from the last checkpoint.
        about = ((dataset / MANIFEST).read_bytes(), str(self.base), *self.options)
        run = self.home / "runs" / hashlib.sha256(repr(about).encode()).hexdigest()[:12]
        for begun in run.parent.glob("*.part"):
            if begun.name != f"{run.name}.part":  # unfinished, of other inputs
                shutil.rmtree(begun, ignore_errors=True)
        given = ("--dataset", dataset, "--base", self.base, "--out", run, "--resume")
        self.verbs.run("train", *given, *self.options)
        code = self.verbs.run("promote", run, *project, "--out", self.home / "drafts.jsonl", also=REFUSED)
        if code == REFUSED:
            decisions = [one for one in self.adapters.journal() if one["project"] == job.project]
            return "refused", f"{decisions[-1]['adapter']}: {' '.join(decisions[-1]['reasons'])}"
        promoted = self.verbs.ledger.promoted(job.project)
        return "promoted", f"{promoted.model} drafts." if promoted else "It was rolled back meanwhile."


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(output: IO[bytes], start: int) -> str:
    """Return the error message at the end of a verb's output, else the end of the output."""
    output.seek(start)
    text = output.read().decode(errors="replace").strip()
    return text[max(0, text.rfind("error: ")) :].removeprefix("error: ")[-_LAST_CHARS:]
