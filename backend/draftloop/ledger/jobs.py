"""Training jobs: one at a time, over all projects and processes."""

import time
from typing import NamedTuple

from draftloop.errors import SetupError
from draftloop.ledger.database import LedgerDatabase, Transaction, is_gone


class JobRecord(NamedTuple):
    """A training job; times are UTC.

    why          what set it off
    annotations  how many its project had then
    state        running, promoted, refused, failed, stopped, or killed: its process ended without a word
    step         what it does, or did last
    told         what came of it, in words
    owner        host, number and start time of its process
    """

    id: int
    project: int
    why: str
    annotations: int
    state: str
    step: str
    told: str
    begun: str
    ended: str | None
    owner: str


_JOB = "SELECT id, project, why, annotations, state, step, told, begun, ended, owner FROM jobs"


class JobStore(LedgerDatabase):
    """Training jobs, each with an owner and a lease while it runs."""

    def begin_job(self, project: int, why: str, annotations: int, lease_s: float) -> tuple[JobRecord, bool]:
        """Begin a training job, unless one runs: of any project, in any process.

        Args:
            project: Whose.
            why: What set it off.
            annotations: How many the project has.
            lease_s: Time within which `take_job` or `keep_job` is called, or it counts as killed.
        Returns:
            The job that runs now, and whether it is this one.
        """
        with self._transaction() as transaction:
            transaction.lock()
            _mark_dead_jobs(transaction)
            row = transaction.execute(f"{_JOB} WHERE state = 'running'").fetchone()
            if row is not None:
                return JobRecord(*row), False
            row = transaction.execute(
                "INSERT INTO jobs (project, why, annotations, state, step, told, owner, until) "
                "VALUES (?, ?, ?, 'running', 'start', '', ?, ?) RETURNING id",
                (project, why, annotations, self._owner, time.time() + lease_s),
            ).fetchone()
            return JobRecord(*transaction.execute(f"{_JOB} WHERE id = ?", row).fetchone()), True

    def take_job(self, job: int, lease_s: float) -> JobRecord:
        """Take over a running job that another process has begun.

        Raises:
            SetupError: It does not run.
        """
        with self._transaction() as transaction:
            taken = transaction.execute(
                "UPDATE jobs SET owner = ?, until = ? WHERE id = ? AND state = 'running'",
                (self._owner, time.time() + lease_s, job),
            )
            if not taken.rowcount:
                raise SetupError(f"Job {job} does not run.", hint="Begin another one.")
            return JobRecord(*transaction.execute(f"{_JOB} WHERE id = ?", (job,)).fetchone())

    def keep_job(self, job: int, step: str, lease_s: float) -> bool:
        """Renew a job's lease; returns False where this process does not own it any more."""
        with self._transaction() as transaction:
            kept = transaction.execute(
                "UPDATE jobs SET step = ?, until = ? WHERE id = ? AND state = 'running' AND owner = ?",
                (step, time.time() + lease_s, job, self._owner),
            )
            return bool(kept.rowcount)

    def end_job(self, job: int, state: str, words: str) -> None:
        """Keep what came of a job; nothing happens where this process does not own it any more."""
        with self._transaction() as transaction:
            transaction.execute(
                "UPDATE jobs SET state = ?, told = ?, ended = CURRENT_TIMESTAMP "
                "WHERE id = ? AND state = 'running' AND owner = ?",
                (state, words, job, self._owner),
            )

    def jobs(self, project: int | None = None, *, most: int = 50) -> list[JobRecord]:
        """List training jobs, newest first: of one project, or all."""
        with self._transaction() as transaction:
            _mark_dead_jobs(transaction)
            rows = transaction.execute(
                f"{_JOB} WHERE project = coalesce(?, project) ORDER BY id DESC LIMIT ?", (project, most)
            )
            return [JobRecord(*row) for row in rows]


def _mark_dead_jobs(transaction: Transaction) -> None:
    """Mark running jobs as killed whose process has ended, or whose lease has."""
    rows = transaction.execute("SELECT id, owner, until FROM jobs WHERE state = 'running'").fetchall()
    for job, owner, until in rows:
        if until < time.time() or is_gone(owner):
            transaction.execute(
                "UPDATE jobs SET state = 'killed', ended = CURRENT_TIMESTAMP, "
                "told = 'Its process ended without a word.' WHERE id = ? AND owner = ?",
                (job, owner),
            )
