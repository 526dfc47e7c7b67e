"""What each version of drafts stands for, and what came of each task in it."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from draftloop.ledger.database import LedgerDatabase


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


class DraftStore(LedgerDatabase):
    """Versions and drafts, by project and task."""

    def remember_version(self, project: int, version: str, manifest: dict[str, Any]) -> None:
        """Keep what a version stands for, and that the project used it."""
        with self._transaction() as transaction:
            transaction.execute(
                "INSERT OR IGNORE INTO versions (version, manifest) VALUES (?, ?)",
                (version, json.dumps(manifest)),
            )
            transaction.execute(
                "INSERT OR IGNORE INTO project_versions (project, version) VALUES (?, ?)", (project, version)
            )

    def versions(self, project: int | None = None) -> list[str]:
        """List versions, oldest first: of one project, or all."""
        with self._transaction() as transaction:
            if project is None:
                rows = transaction.execute("SELECT version FROM versions ORDER BY first_used, rowid")
            else:
                rows = transaction.execute(
                    "SELECT version FROM project_versions WHERE project = ? ORDER BY first_used, rowid",
                    (project,),
                )
            return [row[0] for row in rows]

    def version_rows(self, project: int | None = None) -> list[KeptVersion]:
        """List versions with what they stand for, oldest first: of one project, or all."""
        with self._transaction() as transaction:
            rows = transaction.execute(
                "SELECT version, first_used, manifest, "
                "(SELECT json_group_array(project) FROM project_versions AS used "
                " WHERE used.version = versions.version ORDER BY project), "
                "(SELECT COUNT(*) FROM drafts WHERE drafts.version = versions.version "
                " AND drafts.project = coalesce(?, drafts.project)) "
                "FROM versions ORDER BY first_used, rowid",
                (project,),
            )
            versions = [
                KeptVersion(version, first_used, json.loads(projects), drafts, json.loads(manifest))
                for version, first_used, manifest, projects, drafts in rows
            ]
        return [row for row in versions if project is None or project in row.projects]

    def manifest(self, version: str) -> dict[str, Any] | None:
        """Return what a version stands for; None if it was never used here."""
        with self._transaction() as transaction:
            row = transaction.execute(
                "SELECT manifest FROM versions WHERE version = ?", (version,)
            ).fetchone()
        manifest: dict[str, Any] | None = json.loads(row[0]) if row else None
        return manifest

    def remember_drafts(self, rows: Sequence[tuple[int, int, str, str, list[str], str]]) -> None:
        """Keep what came of tasks; a later draft of the same version replaces an earlier one.

        Args:
            rows: Project, task, version, status, reasons in words, raw answer.
        """
        with self._transaction() as transaction:
            transaction.executemany(
                "INSERT OR REPLACE INTO drafts (project, task, version, status, reasons, raw) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (project, task, version, status, json.dumps(reasons), raw)
                    for project, task, version, status, reasons, raw in rows
                ],
            )

    def drafts_of(self, task: int, project: int | None = None) -> list[KeptDraft]:
        """List what came of a task, oldest first: in one project, or in every one that has its number."""
        with self._transaction() as transaction:
            rows = transaction.execute(
                "SELECT project, task, version, status, reasons, raw, drafted FROM drafts "
                "WHERE task = ? AND project = coalesce(?, project) ORDER BY drafted, rowid",
                (task, project),
            )
            return [
                KeptDraft(owner, number, version, status, json.loads(reasons), raw, drafted)
                for owner, number, version, status, reasons, raw, drafted in rows
            ]

    def reasons_of(self, project: int, task: int) -> list[tuple[str, str, list[str]]]:
        """List version, status and reasons of a task's drafts that have reasons."""
        return [
            (kept.version, kept.status, kept.reasons)
            for kept in self.drafts_of(task, project)
            if kept.reasons
        ]
