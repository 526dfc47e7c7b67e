"""What Label Studio showed of each project, and does not repeat: its `/setup`, the login of its webhook."""

import json
from typing import Any

from draftloop.ledger.database import LedgerDatabase


class SetupStore(LedgerDatabase):
    """Extra params by project, and projects whose webhook carries a login that it should not."""

    def remember_setup(self, project: int, extra_params: dict[str, Any]) -> None:
        """Keep the extra params of a `/setup`; only changes are written, so a full disk stops nothing."""
        if extra_params == self.setup_of(project):
            return
        with self._transaction() as transaction:
            transaction.execute(
                "INSERT OR REPLACE INTO setups VALUES (?, ?)", (project, json.dumps(extra_params))
            )

    def setup_of(self, project: int) -> dict[str, Any]:
        """Return the extra params of a project's last `/setup`; empty if there was none."""
        with self._transaction() as transaction:
            row = transaction.execute(
                "SELECT extra_params FROM setups WHERE project = ?", (project,)
            ).fetchone()
        extra_params: dict[str, Any] = json.loads(row[0]) if row else {}
        return extra_params

    def remember_webhook(self, project: int, *, with_main_login: bool) -> bool:
        """Keep whether a project's webhook carries the main login; returns whether that is new."""
        if (project in self.webhooks_with_main_login()) == with_main_login:
            return False
        with self._transaction() as transaction:
            if with_main_login:
                transaction.execute("INSERT OR IGNORE INTO main_login_webhooks VALUES (?)", (project,))
            else:
                transaction.execute("DELETE FROM main_login_webhooks WHERE project = ?", (project,))
        return True

    def webhooks_with_main_login(self) -> list[int]:
        """List the projects whose last webhook carried the main login."""
        with self._transaction() as transaction:
            rows = transaction.execute("SELECT project FROM main_login_webhooks ORDER BY project")
            return [project for (project,) in rows]
