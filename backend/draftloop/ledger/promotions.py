"""Which adapter drafts for each project."""

from draftloop.errors import SetupError
from draftloop.ledger.database import LedgerDatabase
from draftloop.prompting.prompt import Promoted

# A project's promotions that have not ended are a stack: the newest one drafts, and ending it by a roll-back
# makes the one below draft again.
_ACTIVE = (
    "SELECT id, model, profile FROM promotions WHERE project = ? AND ended IS NULL ORDER BY id DESC LIMIT 1"
)


class PromotionStore(LedgerDatabase):
    """Promotions and roll-backs by project."""

    def promoted(self, project: int) -> Promoted | None:
        """Return the adapter that drafts for a project; None where it is the configured model."""
        with self._transaction() as transaction:
            row = transaction.execute(_ACTIVE, (project,)).fetchone()
        return Promoted(*row[1:]) if row else None

    def all_promoted(self) -> dict[int, Promoted]:
        """Return the adapter of every project that has one."""
        with self._transaction() as transaction:
            rows = transaction.execute(
                "SELECT DISTINCT project FROM promotions WHERE ended IS NULL"
            ).fetchall()
        adapters = {project: self.promoted(project) for (project,) in rows}
        return {project: adapter for project, adapter in adapters.items() if adapter is not None}

    def promote(self, project: int, promoted: Promoted) -> None:
        """Have an adapter draft for a project from the next request on, in every process."""
        with self._transaction() as transaction:
            transaction.lock()
            row = transaction.execute(_ACTIVE, (project,)).fetchone()
            if row is None or Promoted(*row[1:]) != promoted:
                transaction.execute(
                    "INSERT INTO promotions (project, model, profile) VALUES (?, ?, ?)", (project, *promoted)
                )

    def roll_back(self, project: int) -> tuple[Promoted, Promoted | None]:
        """End a project's last promotion.

        Returns:
            What drafted until now, and what drafts from now on; None is the configured model.
        Raises:
            SetupError: It has none.
        """
        with self._transaction() as transaction:
            transaction.lock()
            row = transaction.execute(_ACTIVE, (project,)).fetchone()
            if row is None:
                raise SetupError(
                    f"Project {project} has no promoted version: there is nothing to roll back.",
                    hint="LEDGER_URL must be the backend's.",
                )
            transaction.execute("UPDATE promotions SET ended = CURRENT_TIMESTAMP WHERE id = ?", (row[0],))
            below = transaction.execute(_ACTIVE, (project,)).fetchone()
        return Promoted(*row[1:]), Promoted(*below[1:]) if below else None
