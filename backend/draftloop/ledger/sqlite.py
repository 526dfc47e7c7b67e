"""The ledger: the one home of state that must outlive a process and be shared by workers.

SQLite in WAL mode. Holds what `/setup` said about each project (Label Studio does not repeat it with
`/predict`), which adapter drafts for it, what each version stands for, what came of each task, who drafts
which task, which job trains, and whose webhook carries a login that it should not.
"""

import json
import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from draftloop.errors import ServiceError, SetupError
from draftloop.prompting.prompt import Promoted
from draftloop.support.sqlite import Connection, SqliteError, SqliteFile, path_from_url

_SCHEMA = """
CREATE TABLE IF NOT EXISTS setups (project INTEGER PRIMARY KEY, extra_params TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS versions (version TEXT PRIMARY KEY, manifest TEXT NOT NULL,
    first_used TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS project_versions (project INTEGER NOT NULL, version TEXT NOT NULL,
    first_used TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (project, version));
CREATE TABLE IF NOT EXISTS drafts (project INTEGER NOT NULL, task INTEGER NOT NULL, version TEXT NOT NULL,
    status TEXT NOT NULL, reasons TEXT NOT NULL, raw TEXT NOT NULL,
    drafted TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (task, project, version));
CREATE TABLE IF NOT EXISTS claims (task INTEGER NOT NULL, version TEXT NOT NULL, project INTEGER NOT NULL,
    owner TEXT NOT NULL, until REAL NOT NULL, late INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (task, version));
CREATE TABLE IF NOT EXISTS promotions (id INTEGER PRIMARY KEY, project INTEGER NOT NULL, model TEXT NOT NULL,
    profile TEXT NOT NULL, promoted TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, ended TEXT);
CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, project INTEGER NOT NULL, why TEXT NOT NULL,
    annotations INTEGER NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL, told TEXT NOT NULL,
    begun TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, ended TEXT, owner TEXT NOT NULL, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS main_login_webhooks (project INTEGER PRIMARY KEY);
"""

# Those that hold are a pile: the last one drafts, and what a roll-back takes off shows the one below.
_ACTIVE = (
    "SELECT id, model, profile FROM promotions WHERE project = ? AND ended IS NULL ORDER BY id DESC LIMIT 1"
)


class KeptVersion(NamedTuple):
    """A version: when it was first used (UTC), in which projects, and how many drafts it made."""

    version: str
    first_used: str
    projects: list[int]
    drafts: int
    manifest: dict[str, Any]


class KeptDraft(NamedTuple):
    """What came of a task in one version; `drafted` is UTC."""

    project: int
    task: int
    version: str
    status: str
    reasons: list[str]
    raw: str
    drafted: str


class Job(NamedTuple):
    """A training job; times are UTC.

    why          what set it off
    annotations  how many its project had then
    state        running, promoted, refused, failed, stopped, or killed: its process ended without a word
    step         what it does, or did last
    told         what came of it, in words
    owner        host, number and start of its process
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


class Ledger:
    """The ledger in an SQLite file. Safe to call from several threads and processes."""

    def __init__(self, url: str, *, owner: str | None = None, existing: bool = False) -> None:
        """Open or make the file.

        Args:
            url: `sqlite:///relative/path` or `sqlite:////absolute/path`.
            owner: In whose name tasks are claimed; this process's if not given.
            existing: Make no file where there is none.
        Raises:
            SetupError: Another kind of URL, a file that cannot be written, or one that must be there.
        """
        path = path_from_url(url, "LEDGER_URL")
        if existing and not Path(path).is_file():
            raise SetupError(f"There is no ledger at {path}.", hint="Set LEDGER_URL to the backend's.")
        self._file = SqliteFile(path, wait_s=10, survives_power_cut=True)
        self._owner = owner or f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"
        try:
            with self._connection() as connection:
                connection.executescript(_SCHEMA)
        except ServiceError as error:
            raise SetupError(
                f"The ledger at {path} cannot be opened: {error.message}", hint="Correct LEDGER_URL."
            ) from error

    def remember_setup(self, project: int, extra_params: dict[str, Any]) -> None:
        """Keep what `/setup` said about a project; writes only what is new, so a full disk stops nothing."""
        if extra_params == self.setup_of(project):
            return
        with self._connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO setups VALUES (?, ?)",
                (project, json.dumps(extra_params)),
            )

    def setup_of(self, project: int) -> dict[str, Any]:
        """Give what `/setup` said about a project; empty if it was never seen."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT extra_params FROM setups WHERE project = ?", (project,)
            ).fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {}
        return found

    def promoted(self, project: int) -> Promoted | None:
        """Give the adapter that drafts for a project; None where it is the configured model."""
        with self._connection() as connection:
            row = connection.execute(_ACTIVE, (project,)).fetchone()
        return Promoted(*row[1:]) if row else None

    def all_promoted(self) -> dict[int, Promoted]:
        """Give the adapter of every project that has one."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT DISTINCT project FROM promotions WHERE ended IS NULL"
            ).fetchall()
        found = {project: self.promoted(project) for (project,) in rows}
        return {project: promoted for project, promoted in found.items() if promoted is not None}

    def promote(self, project: int, promoted: Promoted) -> None:
        """Have an adapter draft for a project from the next request on, in every process."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute(_ACTIVE, (project,)).fetchone()
            if row is None or Promoted(*row[1:]) != promoted:
                connection.execute(
                    "INSERT INTO promotions (project, model, profile) VALUES (?, ?, ?)", (project, *promoted)
                )

    def roll_back(self, project: int) -> tuple[Promoted, Promoted | None]:
        """Take a project's last promotion back; gives what drafted, and what drafts now.

        Raises:
            SetupError: It has none.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute(_ACTIVE, (project,)).fetchone()
            if row is None:
                raise SetupError(
                    f"Project {project} has no promoted version: there is nothing to roll back.",
                    hint="LEDGER_URL must be the backend's.",
                )
            connection.execute("UPDATE promotions SET ended = CURRENT_TIMESTAMP WHERE id = ?", (row[0],))
            below = connection.execute(_ACTIVE, (project,)).fetchone()
        return Promoted(*row[1:]), Promoted(*below[1:]) if below else None

    def remember_version(self, project: int, version: str, manifest: dict[str, Any]) -> None:
        """Keep what a version stands for, and that the project used it."""
        with self._connection() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO versions (version, manifest) VALUES (?, ?)",
                (version, json.dumps(manifest, ensure_ascii=False)),
            )
            connection.execute(
                "INSERT OR IGNORE INTO project_versions (project, version) VALUES (?, ?)", (project, version)
            )

    def versions(self, project: int | None = None) -> list[str]:
        """List versions, oldest first: of one project, or all."""
        with self._connection() as connection:
            if project is None:
                rows = connection.execute("SELECT version FROM versions ORDER BY first_used, rowid")
            else:
                rows = connection.execute(
                    "SELECT version FROM project_versions WHERE project = ? ORDER BY first_used, rowid",
                    (project,),
                )
            return [row[0] for row in rows]

    def remember_webhook(self, project: int, *, with_main_login: bool) -> bool:
        """Keep whether a project's webhook carries the main login; returns whether that is new."""
        if (project in self.webhooks_with_main_login()) == with_main_login:
            return False
        with self._connection() as connection:
            if with_main_login:
                connection.execute("INSERT OR IGNORE INTO main_login_webhooks VALUES (?)", (project,))
            else:
                connection.execute("DELETE FROM main_login_webhooks WHERE project = ?", (project,))
        return True

    def webhooks_with_main_login(self) -> list[int]:
        """List projects whose webhook carried the main login when it came last."""
        with self._connection() as connection:
            rows = connection.execute("SELECT project FROM main_login_webhooks ORDER BY project")
            return [project for (project,) in rows]

    def version_rows(self, project: int | None = None) -> list[KeptVersion]:
        """List versions with what they stand for, oldest first: of one project, or all."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT version, first_used, manifest, "
                "(SELECT json_group_array(project) FROM project_versions AS used "
                " WHERE used.version = versions.version ORDER BY project), "
                "(SELECT COUNT(*) FROM drafts WHERE drafts.version = versions.version "
                " AND drafts.project = coalesce(?, drafts.project)) "
                "FROM versions ORDER BY first_used, rowid",
                (project,),
            )
            found = [
                KeptVersion(version, first_used, json.loads(projects), drafts, json.loads(manifest))
                for version, first_used, manifest, projects, drafts in rows
            ]
        return [row for row in found if project is None or project in row.projects]

    def manifest(self, version: str) -> dict[str, Any] | None:
        """Give what a version stands for; None if it was never used here."""
        with self._connection() as connection:
            row = connection.execute("SELECT manifest FROM versions WHERE version = ?", (version,)).fetchone()
        found: dict[str, Any] | None = json.loads(row[0]) if row else None
        return found

    def remember_drafts(self, rows: Sequence[tuple[int, int, str, str, list[str], str]]) -> None:
        """Keep what came of tasks; a later draft of the same version replaces an earlier one.

        Args:
            rows: Project, task, version, status, reasons in words, raw answer.
        """
        with self._connection() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO drafts (project, task, version, status, reasons, raw) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (project, task, version, status, json.dumps(reasons, ensure_ascii=False), raw)
                    for project, task, version, status, reasons, raw in rows
                ],
            )

    def drafts_of(self, task: int, project: int | None = None) -> list[KeptDraft]:
        """List what came of a task, oldest first: in one project, or in every one that has its number."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT project, task, version, status, reasons, raw, drafted FROM drafts "
                "WHERE task = ? AND project = coalesce(?, project) ORDER BY drafted, rowid",
                (task, project),
            )
            return [
                KeptDraft(found, number, version, status, json.loads(reasons), raw, drafted)
                for found, number, version, status, reasons, raw, drafted in rows
            ]

    def reasons_of(self, project: int, task: int) -> list[tuple[str, str, list[str]]]:
        """List a task's troubles as version, status, reasons."""
        return [
            (kept.version, kept.status, kept.reasons)
            for kept in self.drafts_of(task, project)
            if kept.reasons
        ]

    def claim(self, project: int, tasks: Collection[int], version: str, lease_s: float) -> set[int]:
        """Take the tasks that nobody is drafting in this version; a claim ends with its lease.

        Returns:
            Those that were taken; the others are somebody else's.
        """
        now = time.time()
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM claims WHERE until < ? AND late = 0", (now,))
            return {
                task
                for task in set(tasks)
                if connection.execute(
                    "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?, ?, 0)",
                    (task, version, project, self._owner, now + lease_s),
                ).rowcount
            }

    def extend(self, tasks: Collection[int], version: str, lease_s: float, *, late: bool) -> None:
        """Keep claims for longer; `late` ones outlive this process and are found by `abandoned`."""
        until = time.time() + lease_s
        with self._connection() as connection:
            connection.executemany(
                "UPDATE claims SET until = ?, late = ? WHERE task = ? AND version = ?",
                [(until, int(late), task, version) for task in tasks],
            )

    def release(self, tasks: Collection[int], version: str) -> None:
        """Give claims back."""
        with self._connection() as connection:
            connection.executemany(
                "DELETE FROM claims WHERE task = ? AND version = ?", [(task, version) for task in tasks]
            )

    def abandoned(self, lease_s: float) -> dict[int, list[tuple[int, str]]]:
        """Take over late tasks whose owner is gone: a process of this host that ended, or a lease that did.

        Returns:
            By project, tasks and the version that they were promised in.
        """
        now = time.time()
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(
                "SELECT task, version, project, owner, until FROM claims WHERE late = 1"
            )
            mine: dict[int, list[tuple[int, str]]] = {}
            for task, version, project, owner, until in rows.fetchall():
                if until < now or (owner != self._owner and _is_gone(owner)):
                    mine.setdefault(project, []).append((task, version))
                    connection.execute(
                        "UPDATE claims SET owner = ?, until = ? WHERE task = ? AND version = ?",
                        (self._owner, now + lease_s, task, version),
                    )
            # What such a process was asked for and never answered is asked for again.
            for (owner,) in connection.execute("SELECT DISTINCT owner FROM claims WHERE late = 0").fetchall():
                if owner != self._owner and _is_gone(owner):
                    connection.execute("DELETE FROM claims WHERE owner = ? AND late = 0", (owner,))
        return mine

    def late(self) -> int:
        """Count the tasks that were promised and are not written yet."""
        with self._connection() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM claims WHERE late = 1").fetchone()[0])

    def begin_job(self, project: int, why: str, annotations: int, lease_s: float) -> tuple[Job, bool]:
        """Begin a training job, unless one goes on: of any project, in any process.

        Args:
            project: Whose.
            why: What set it off.
            annotations: How many the project has.
            lease_s: Time within which `take_job` or `keep_job` is called, or it counts as killed.
        Returns:
            The job that goes on now, and whether it is this one.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            _bury(connection)
            row = connection.execute(f"{_JOB} WHERE state = 'running'").fetchone()
            if row is not None:
                return Job(*row), False
            row = connection.execute(
                "INSERT INTO jobs (project, why, annotations, state, step, told, owner, until) "
                "VALUES (?, ?, ?, 'running', 'start', '', ?, ?) RETURNING id",
                (project, why, annotations, self._owner, time.time() + lease_s),
            ).fetchone()
            return Job(*connection.execute(f"{_JOB} WHERE id = ?", row).fetchone()), True

    def take_job(self, job: int, lease_s: float) -> Job:
        """Take over a running job that another process has begun.

        Raises:
            SetupError: It does not run.
        """
        with self._connection() as connection:
            taken = connection.execute(
                "UPDATE jobs SET owner = ?, until = ? WHERE id = ? AND state = 'running'",
                (self._owner, time.time() + lease_s, job),
            )
            if not taken.rowcount:
                raise SetupError(f"Job {job} does not run.", hint="Begin another one.")
            return Job(*connection.execute(f"{_JOB} WHERE id = ?", (job,)).fetchone())

    def keep_job(self, job: int, step: str, lease_s: float) -> bool:
        """Keep a job for longer; False where it is this process's no more."""
        with self._connection() as connection:
            kept = connection.execute(
                "UPDATE jobs SET step = ?, until = ? WHERE id = ? AND state = 'running' AND owner = ?",
                (step, time.time() + lease_s, job, self._owner),
            )
            return bool(kept.rowcount)

    def end_job(self, job: int, state: str, told: str) -> None:
        """Say what came of a job; nothing happens where it is this process's no more."""
        with self._connection() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, told = ?, ended = CURRENT_TIMESTAMP "
                "WHERE id = ? AND state = 'running' AND owner = ?",
                (state, told, job, self._owner),
            )

    def jobs(self, project: int | None = None, *, most: int = 50) -> list[Job]:
        """List training jobs, newest first: of one project, or all."""
        with self._connection() as connection:
            _bury(connection)
            rows = connection.execute(
                f"{_JOB} WHERE project = coalesce(?, project) ORDER BY id DESC LIMIT ?", (project, most)
            )
            return [Job(*row) for row in rows]

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Give this thread's connection inside one transaction."""
        try:
            connection = self._file.connection()
            with connection:
                yield connection
        except SqliteError as error:
            raise ServiceError(
                f"The ledger failed: {error}.", hint="Look at its disk and permissions."
            ) from error


def _bury(connection: Connection) -> None:
    """Mark running jobs whose process is gone, or let its lease end."""
    rows = connection.execute("SELECT id, owner, until FROM jobs WHERE state = 'running'").fetchall()
    for job, owner, until in rows:
        if until < time.time() or _is_gone(owner):
            connection.execute(
                "UPDATE jobs SET state = 'killed', ended = CURRENT_TIMESTAMP, "
                "told = 'Its process ended without a word.' WHERE id = ? AND owner = ?",
                (job, owner),
            )


def _is_gone(owner: str) -> bool:
    """Tell whether an owner is a process of this host that has ended."""
    host, process, started = owner.rsplit(":", 2)
    return host == socket.gethostname() and _started(int(process)) != started


def _started(process: int) -> str:
    """Give when a process started, so that a number used again is not taken for it; empty if it ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
