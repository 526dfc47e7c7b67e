"""Reruns of submitted programs for the gates of code tasks, many at once, with stored results.

Knows which runs of a program are stored, and when a stored rerun is still valid. Does not know what is judged
(`code_gates`), how code is contained (`runner`) or Label Studio. Reruns are kept in the store of artifacts,
under the hash of code, inputs, limits and sandbox, so a killed sync continues where it stopped, and reruns by
other machines with the same store count too.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice

from draftloop.dataset.code_gates import CodeTask, finalize_sample, run_again
from draftloop.dataset.gates import Rejected
from draftloop.dataset.sample import Sample, canonical
from draftloop.errors import SetupError
from draftloop.execution.runner import Runner, RunStore
from draftloop.runs.job import Attempt, Script
from draftloop.runs.run import InputFile, Run, run_key
from draftloop.support.retry import retrying

_TRIES = 3  # where the sandbox fails; each try starts a new one
_AHEAD = 2  # programs in memory for each that runs, however many there are
_LOCKS = 256
_UNRUN = "Or export code as it is with --no-rerun: samples and manifest say so then."

Work = tuple[Sample, CodeTask]


class Reruns:
    """Runs submitted programs again. Safe to call from several threads."""

    def __init__(
        self,
        store: RunStore,
        runner: Runner | None,
        jobs: int,
        remote_runner: Callable[[Work], int] | None = None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            store: Keeps runs and their files.
            runner: Runs code; None where that is switched off.
            jobs: How many programs run at once.
            remote_runner: Passes a sample through its gates in another process with the same store, and
                returns how many programs it ran. It is pickled. None: everything runs in this process.
        """
        self._store = store
        self._runner = runner
        self._jobs = jobs
        self.remote_runner = remote_runner
        # Equal programs do not run at the same time: the second one reads the stored run of the first.
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._counting = threading.Lock()
        self.ran = 0  # programs that this object ran

    def judged(
        self, work: Iterable[Work], *, rerun: bool = True, mask: str = ""
    ) -> Iterator[Sample | Rejected]:
        """Pass samples of code tasks through their gates, many at once; yield them in order of completion.

        Args:
            work: Samples, each with its program.
            rerun: Whether programs are run again; otherwise their samples carry a note.
            mask: As in `code_gates.finalize_sample`.
        Raises:
            SetupError: Code cannot be run here.
            ServiceError: The sandbox or the store failed.
        """
        left = iter(work)
        pool = ThreadPoolExecutor(self._jobs, "rerun")
        running: set[Future[Sample | Rejected]] = set()
        try:
            while True:
                room = self._jobs * _AHEAD - len(running)
                running |= {
                    pool.submit(self._judged, sample, task, rerun=rerun, mask=mask)
                    for sample, task in islice(left, room)
                }
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            # After an error, running programs are not waited for: the sandbox ends with this process.
            pool.shutdown(wait=not running, cancel_futures=True)

    def fill(self, work: Work) -> int:
        """Run a sample's program and store its runs; return how many programs ran."""
        before = self.ran
        self._judged(*work, rerun=True, mask="")
        return self.ran - before

    def _judged(self, sample: Sample, task: CodeTask, *, rerun: bool, mask: str) -> Sample | Rejected:
        key = run_key(task.scripts, task.inputs)
        own = self._store.run(key)
        draft = self._store.run(run_key([task.drafted], task.inputs)) if task.drafted else None
        task = replace(
            task,
            # A stored run may have timed out under load; the rerun's attempt replaces it.
            run=None if own is not None and rerun and not own.ok else own,
            draft=None if draft is not None and draft.origin == "gate" else draft,
        )
        since = str(sample.metadata.get("updated_at", ""))

        def again(scripts: Sequence[Script], inputs: Sequence[InputFile], limit_s: float) -> Attempt:
            return self._run_cold(scripts, inputs, limit_s, since, sample.project)

        checked = run_again(task, again if rerun else None)
        run = task.run
        if run is None and checked.attempt is not None:
            if own is None:
                run = Run(key, task.instruction, task.inputs, (checked.attempt,), "gate", _now())
            else:
                run = replace(own, attempts=(*own.attempts, checked.attempt))
            self._store.put_run(run)
        return finalize_sample(sample, task, checked, run, mask=mask)

    def _run_cold(
        self,
        scripts: Sequence[Script],
        inputs: Sequence[InputFile],
        limit_s: float,
        since: str,
        project: int,
    ) -> Attempt:
        """Run scripts in a new interpreter, or return a stored attempt that is still valid.

        A program that was stopped (timeout, killed) is run again once its annotation has changed: `since`.
        """
        runner = self._runner
        if runner is None:
            raise SetupError("Code is not run here: EXECUTION is off.", hint=f"Set it to ask. {_UNRUN}")
        limits = replace(runner.limits, wall_s=min(limit_s, runner.limits.wall_s))
        try:
            report = runner.report
        except SetupError as error:
            raise SetupError(
                f"Code cannot be run again: {error.message}", hint=f"{error.hint} {_UNRUN}".strip()
            ) from error
        identity = {
            "scripts": [[script.language, script.code] for script in scripts],
            "inputs": sorted([file.name, file.sha256] for file in inputs),
            "limits": asdict(limits),
            "sandbox": [report.layers, *map(asdict, (*report.programs, *report.packages))],
        }
        key = hashlib.sha256(canonical(identity).encode(errors="surrogatepass")).hexdigest()
        with self._locks[int(key, 16) % _LOCKS]:
            known = self._store.run(key)
            if known is not None and (
                known.ok or known.last.outcome == "failed" or not _before(known, since)
            ):
                return known.last
            run = retrying(attempts=_TRIES)(
                runner.rerun,
                scripts,
                inputs,
                origin="gate",
                project=project,
                cold=True,
                limits=limits,
                limit_s=math.inf,
            )
            self._store.put_run(replace(run, key=key))
        with self._counting:
            self.ran += 1
        return run.last


def _before(run: Run, moment: str) -> bool:
    try:
        return datetime.fromisoformat(run.at) < datetime.fromisoformat(moment)
    except (ValueError, TypeError):  # no time, or one without a zone
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
