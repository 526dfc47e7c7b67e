"""The exact cache in an SQLite file: answers to the very same version and input.

Shared by all workers of a machine; bounded by rows, and the least recently used go first. A cache that fails
costs a model call, never a draft: so nothing here raises for a full disk or a locked file.
"""

import time

import structlog

from draftloop.errors import SetupError
from draftloop.support.sqlite import SqliteError, SqliteFile, path_from_url

_log = structlog.get_logger("backend")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cache (key TEXT PRIMARY KEY, value BLOB NOT NULL, used REAL NOT NULL);
CREATE INDEX IF NOT EXISTS cache_used ON cache (used);
"""
_SWEEP_EVERY = 256  # puts between two looks at the size
_TOUCH_S = 3600.0  # a hit renews the time of use once an hour, so that most hits only read


class SqliteCache:
    """Answers by key. Safe to call from several threads and processes."""

    def __init__(self, url: str, *, max_rows: int) -> None:
        """Open or make the file.

        Args:
            url: `sqlite:///relative/path` or `sqlite:////absolute/path`.
            max_rows: About so many answers are kept.
        Raises:
            SetupError: Another kind of URL, or a file that cannot be opened.
        """
        self._file = SqliteFile(path_from_url(url, "CACHE_URL"), wait_s=5, survives_power_cut=False)
        self._max_rows = max_rows
        self._puts = 0
        try:
            self._file.connection().executescript(_SCHEMA)
        except SqliteError as error:
            raise SetupError(
                f"The cache at {self._file.path} cannot be opened: {error}.", hint="Correct CACHE_URL."
            ) from error

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        try:
            connection = self._file.connection()
            row = connection.execute("SELECT value, used FROM cache WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            if time.time() - row[1] > _TOUCH_S:
                with connection:
                    connection.execute("UPDATE cache SET used = ? WHERE key = ?", (time.time(), key))
            return bytes(row[0])
        except SqliteError as error:
            _log.warning("cache not read", error=str(error))
            return None

    def put(self, key: str, value: bytes) -> None:
        """Keep a value under a key."""
        try:
            connection = self._file.connection()
            with connection:
                connection.execute("INSERT OR REPLACE INTO cache VALUES (?, ?, ?)", (key, value, time.time()))
                self._puts += 1
                if self._puts % _SWEEP_EVERY == 1:
                    connection.execute(
                        "DELETE FROM cache WHERE key IN "
                        "(SELECT key FROM cache ORDER BY used DESC LIMIT -1 OFFSET ?)",
                        (self._max_rows,),
                    )
        except SqliteError as error:
            _log.warning("cache not written", error=str(error))
