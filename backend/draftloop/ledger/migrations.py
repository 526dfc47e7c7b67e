"""The tables of the ledger, and how an older file gets them.

A file says in `PRAGMA user_version` how many of `MIGRATIONS` it has had. The others are applied when it is
opened, each in a transaction of its own, so that a crash leaves it between two of them and never inside one.
A migration that has been released is never changed: a change of the tables is a new one at the end.
"""

from collections.abc import Sequence

from draftloop.errors import SetupError
from draftloop.support.sqlite import Connection

# The statements of one migration.
Migration = Sequence[str]

MIGRATIONS: Sequence[Migration] = (
    # Files from before there were migrations hold these tables, and version 0.
    (
        """CREATE TABLE IF NOT EXISTS setups (project INTEGER PRIMARY KEY, extra_params TEXT NOT NULL)""",
        """CREATE TABLE IF NOT EXISTS versions (version TEXT PRIMARY KEY, manifest TEXT NOT NULL,
            first_used TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)""",
        """CREATE TABLE IF NOT EXISTS project_versions (project INTEGER NOT NULL, version TEXT NOT NULL,
            first_used TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (project, version))""",
        """CREATE TABLE IF NOT EXISTS drafts (project INTEGER NOT NULL, task INTEGER NOT NULL,
            version TEXT NOT NULL, status TEXT NOT NULL, reasons TEXT NOT NULL, raw TEXT NOT NULL,
            drafted TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (task, project, version))""",
        """CREATE TABLE IF NOT EXISTS claims (task INTEGER NOT NULL, version TEXT NOT NULL,
            project INTEGER NOT NULL, owner TEXT NOT NULL, until REAL NOT NULL,
            late INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (task, version))""",
        """CREATE TABLE IF NOT EXISTS promotions (id INTEGER PRIMARY KEY, project INTEGER NOT NULL,
            model TEXT NOT NULL, profile TEXT NOT NULL,
            promoted TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, ended TEXT)""",
        """CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, project INTEGER NOT NULL,
            why TEXT NOT NULL, annotations INTEGER NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL,
            told TEXT NOT NULL, begun TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, ended TEXT,
            owner TEXT NOT NULL, until REAL NOT NULL)""",
        """CREATE TABLE IF NOT EXISTS main_login_webhooks (project INTEGER PRIMARY KEY)""",
    ),
)


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply the migrations that a file lacks. Several processes may do so at once.

    Args:
        connection: To the file; no transaction is open.
        migrations: All of them, the oldest first.
    Raises:
        SetupError: The file has had more migrations than there are: a newer program wrote it.
        SqliteError: The file cannot be read or written.
    """
    # Read without a lock first: almost every opening finds nothing to do.
    while _version_of(connection) != len(migrations):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            version = _version_of(connection)  # another process may have migrated it meanwhile
            if version > len(migrations):
                raise SetupError(
                    f"The ledger has version {version} of its tables; this program knows {len(migrations)}.",
                    hint="Install the version of draftloop that wrote it, or set LEDGER_URL to another file.",
                )
            if version < len(migrations):
                for statement in migrations[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")


def _version_of(connection: Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
