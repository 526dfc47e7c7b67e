"""Which process drafts which task, until when, and what a process promised and did not write."""

import time
from collections.abc import Collection

from draftloop.ledger.database import LedgerDatabase, is_gone


class ClaimStore(LedgerDatabase):
    """Claims of tasks by version, each with an owner and a lease."""

    def claim(self, project: int, tasks: Collection[int], version: str, lease_s: float) -> set[int]:
        """Claim the tasks that nobody drafts in this version; a claim ends with its lease.

        Returns:
            The tasks that were claimed; others draft the rest.
        """
        now = time.time()
        with self._transaction() as transaction:
            transaction.lock()
            transaction.execute("DELETE FROM claims WHERE until < ? AND late = 0", (now,))
            return {
                task
                for task in set(tasks)
                if transaction.execute(
                    "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?, ?, 0)",
                    (task, version, project, self._owner, now + lease_s),
                ).rowcount
            }

    def extend(self, tasks: Collection[int], version: str, lease_s: float, *, late: bool) -> None:
        """Renew claims; `late` ones outlive this process, and `abandoned` returns them then."""
        until = time.time() + lease_s
        with self._transaction() as transaction:
            transaction.executemany(
                "UPDATE claims SET until = ?, late = ? WHERE task = ? AND version = ?",
                [(until, int(late), task, version) for task in tasks],
            )

    def release(self, tasks: Collection[int], version: str) -> None:
        """End claims."""
        with self._transaction() as transaction:
            transaction.executemany(
                "DELETE FROM claims WHERE task = ? AND version = ?", [(task, version) for task in tasks]
            )

    def abandoned(self, lease_s: float) -> dict[int, list[tuple[int, str]]]:
        """Take over late tasks whose process has ended (on this host), or whose lease has.

        Returns:
            By project, tasks and the version that they were promised in.
        """
        now = time.time()
        with self._transaction() as transaction:
            transaction.lock()
            rows = transaction.execute(
                "SELECT task, version, project, owner, until FROM claims WHERE late = 1"
            )
            taken: dict[int, list[tuple[int, str]]] = {}
            for task, version, project, owner, until in rows.fetchall():
                if until < now or (owner != self._owner and is_gone(owner)):
                    taken.setdefault(project, []).append((task, version))
                    transaction.execute(
                        "UPDATE claims SET owner = ?, until = ? WHERE task = ? AND version = ?",
                        (self._owner, now + lease_s, task, version),
                    )
            # What an ended process claimed and did not promise is free: Label Studio asks for it again.
            owners = transaction.execute("SELECT DISTINCT owner FROM claims WHERE late = 0").fetchall()
            for (owner,) in owners:
                if owner != self._owner and is_gone(owner):
                    transaction.execute("DELETE FROM claims WHERE owner = ? AND late = 0", (owner,))
        return taken

    def late(self) -> int:
        """Count the tasks that were promised and are not written yet."""
        with self._transaction() as transaction:
            return int(transaction.execute("SELECT COUNT(*) FROM claims WHERE late = 1").fetchone()[0])
