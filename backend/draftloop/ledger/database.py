"""The SQLite file behind the ledger's stores: connections, transactions, and the process that owns claims.

Does not know what is stored.
"""

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draftloop.errors import ServiceError, SetupError
from draftloop.ledger.migrations import migrate
from draftloop.support.sqlite import Connection, Cursor, SqliteError, SqliteFile, path_from_url
from draftloop.support.text import replace_lone_surrogates


class Transaction:
    """Statements of one transaction. SQLite takes no lone surrogate: each becomes a question mark.

    Texts in JSON keep theirs, because they are stored with ASCII escapes.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Run a statement.

        Raises:
            SqliteError: It failed.
        """
        return self._connection.execute(sql, _storable(parameters))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> Cursor:
        """Run a statement once for each row of parameters.

        Raises:
            SqliteError: It failed.
        """
        return self._connection.executemany(sql, map(_storable, rows))

    def lock(self) -> None:
        """Begin to write: no other process writes between what is read from here on and the end."""
        self._connection.execute("BEGIN IMMEDIATE")


class LedgerDatabase:
    """The file of a ledger, and the owner in whose name tasks and jobs are claimed."""

    def __init__(self, url: str, *, owner: str | None = None, existing: bool = False) -> None:
        """Open or make the file, and bring its tables up to date.

        Args:
            url: `sqlite:///relative/path` or `sqlite:////absolute/path`.
            owner: In whose name tasks are claimed; this process's if not given.
            existing: Make no file where there is none.
        Raises:
            SetupError: Another kind of URL, a file that cannot be written, one that must exist and does not,
                or one that a newer program wrote.
        """
        path = path_from_url(url, "LEDGER_URL")
        if existing and not Path(path).is_file():
            raise SetupError(f"There is no ledger at {path}.", hint="Set LEDGER_URL to the backend's.")
        self._file = SqliteFile(path, wait_s=10, survives_power_cut=True)
        self._owner = owner or f"{socket.gethostname()}:{os.getpid()}:{_start_time(os.getpid())}"
        try:
            migrate(self._file.connection())
        except SqliteError as error:
            raise SetupError(
                f"The ledger at {path} cannot be opened: {error}.", hint="Correct LEDGER_URL."
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """Open a transaction on this thread's connection; an exception rolls it back.

        Raises:
            ServiceError: SQLite failed.
        """
        try:
            with self._file.connection() as connection:
                yield Transaction(connection)
        except SqliteError as error:
            raise ServiceError(
                f"The ledger failed: {error}.", hint="Look at its disk and permissions."
            ) from error


def is_gone(owner: str) -> bool:
    """Return whether an owner is a process of this host that has ended."""
    host, process, started = owner.rsplit(":", 2)
    return host == socket.gethostname() and _start_time(int(process)) != started


def _start_time(process: int) -> str:
    """Return when a process started, in clock ticks since boot; empty where it has ended.

    It tells a process from a later one that has got the same number.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _storable(parameters: Sequence[Any]) -> list[Any]:
    return [replace_lone_surrogates(part) if isinstance(part, str) else part for part in parameters]
