"""An SQLite file that threads and processes share: its URL, its connections, what a power cut may cost.

The only module that imports sqlite3.
"""

import sqlite3
import threading

from draftloop.errors import SetupError

Connection = sqlite3.Connection
Cursor = sqlite3.Cursor
SqliteError = sqlite3.Error  # what any call on a connection may raise

_PREFIX = "sqlite:///"


def path_from_url(url: str, setting: str) -> str:
    """Return the path that a URL names.

    Args:
        url: `sqlite:///relative/path` or `sqlite:////absolute/path`.
        setting: Where it was set, for the message.
    Raises:
        SetupError: Another kind of URL, or no path in it.
    """
    if not url.startswith(_PREFIX) or url == _PREFIX:
        raise SetupError(f"{setting} is {url!r}.", hint="Use sqlite:///file or sqlite:////folder/file.")
    return url.removeprefix(_PREFIX)


class SqliteFile:
    """A database in WAL mode, so that readers and a writer never wait for each other.

    Each thread has a connection of its own, opened when it first asks. Safe to call from several threads and
    processes.
    """

    def __init__(self, path: str, *, wait_s: float, survives_power_cut: bool) -> None:
        """Name the file; nothing is opened yet.

        Args:
            path: The file; made when it is first opened.
            wait_s: How long to wait for another writer before a call fails.
            survives_power_cut: Wait for the disk where SQLite must for the file to stay whole. A cache need
                not: what it loses is asked again, and its writes take no longer than memory does.
        """
        self.path = path
        self._wait_s = wait_s
        self._synchronous = "NORMAL" if survives_power_cut else "OFF"
        self._local = threading.local()

    def connection(self) -> Connection:
        """Return this thread's connection.

        Raises:
            SqliteError: The file cannot be opened.
        """
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=self._wait_s)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            self._local.connection = connection
        return connection
