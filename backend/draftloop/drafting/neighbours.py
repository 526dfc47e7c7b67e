"""Earlier answers by similarity: MinHash bands in the SQLite file of the exact cache.

The only module that imports datasketch. Shared by all workers of a machine; bounded by rows, the oldest go
first. Compares texts of one version. Like the exact cache it never raises: at worst it returns nothing.
"""

import hashlib
import json
from collections.abc import Iterator

import structlog
from datasketch import MinHash

from draftloop.drafting.duplicates import MAX_CHARS, Neighbour, shingle_set, similarity
from draftloop.errors import SetupError
from draftloop.support.sqlite import SqliteError, SqliteFile, path_from_url

_log = structlog.get_logger("backend")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS neighbours (id INTEGER PRIMARY KEY, version TEXT NOT NULL, question TEXT NOT NULL,
    answer TEXT NOT NULL, score REAL NOT NULL, UNIQUE (version, question));
CREATE TABLE IF NOT EXISTS neighbour_bands (band INTEGER NOT NULL, id INTEGER NOT NULL,
    PRIMARY KEY (band, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS neighbour_bands_id ON neighbour_bands (id);
"""
# 16 bands of 4 hashes: two texts that share 0.7 of their shingles have a band in common in 99 of 100 cases.
_BANDS, _HASHES = 16, 4
_MIN_SIMILARITY = 0.7
_CANDIDATES = 8
_SWEEP_EVERY = 256


class SqliteNeighbours:
    """Answers by similarity of their questions. Safe to call from several threads and processes."""

    def __init__(self, url: str, *, max_rows: int, reuse: bool) -> None:
        """Open or make the file.

        Args:
            url: `sqlite:///relative/path` or `sqlite:////absolute/path`.
            max_rows: About so many answers are kept.
            reuse: Whether an answer may be reused; else it is only shown as an example.
        Raises:
            SetupError: Another kind of URL, or a file that cannot be opened.
        """
        try:
            path = path_from_url(url, "CACHE_URL")
        except SetupError as error:
            raise SetupError(
                "NEAR_DUPLICATES needs an SQLite cache.",
                hint="Set CACHE_URL to sqlite:///file, or NEAR_DUPLICATES to off.",
            ) from error
        self.reuse = reuse
        self._file = SqliteFile(path, wait_s=5, survives_power_cut=False)
        self._max_rows = max_rows
        # Stated, because bands of another scheme or seed match none that are stored.
        self._blank = MinHash(_BANDS * _HASHES, seed=1, scheme="affine32")
        self._puts = 0
        try:
            self._file.connection().executescript(_SCHEMA)
        except SqliteError as error:
            raise SetupError(
                f"The cache at {self._file.path} cannot be opened: {error}.", hint="Correct CACHE_URL."
            ) from error

    def find(self, version: str, question: str) -> Neighbour | None:
        """Return the most similar earlier question, if one is similar enough."""
        if len(question) > MAX_CHARS:
            return None
        bands = json.dumps(list(self._bands(version, question)))
        try:
            rows = self._file.connection().execute(
                "SELECT question, answer, score FROM neighbours WHERE version = ? AND id IN ("
                "SELECT id FROM neighbour_bands WHERE band IN (SELECT value FROM json_each(?)) "
                "GROUP BY id ORDER BY COUNT(*) DESC, id DESC LIMIT ?)",
                (version, bands, _CANDIDATES),
            )
            own = shingle_set(question)
            similar = [
                Neighbour(old, answer, score, similarity(own, shingle_set(old)))
                for old, answer, score in rows
            ]
        except SqliteError as error:
            _log.warning("neighbours not read", error=str(error))
            return None
        best = max(similar, key=lambda one: one.similarity, default=None)
        return best if best is not None and best.similarity >= _MIN_SIMILARITY else None

    def put(self, version: str, question: str, answer: str, score: float) -> None:
        """Keep an answer under its question."""
        if len(question) > MAX_CHARS:
            return
        try:
            connection = self._file.connection()
            with connection:
                made = connection.execute(
                    "INSERT OR IGNORE INTO neighbours (version, question, answer, score) VALUES (?, ?, ?, ?)",
                    (version, question, answer, score),
                )
                if not made.rowcount:
                    return
                connection.executemany(
                    "INSERT OR IGNORE INTO neighbour_bands VALUES (?, ?)",
                    [(band, made.lastrowid) for band in self._bands(version, question)],
                )
                self._puts += 1
                if self._puts % _SWEEP_EVERY == 0:
                    oldest = (int(made.lastrowid or 0) - self._max_rows,)
                    connection.execute("DELETE FROM neighbours WHERE id <= ?", oldest)
                    connection.execute("DELETE FROM neighbour_bands WHERE id <= ?", oldest)
        except SqliteError as error:
            _log.warning("neighbours not written", error=str(error))

    def _bands(self, version: str, question: str) -> Iterator[int]:
        sketch = self._blank.copy()
        sketch.update_batch([part.encode() for part in shingle_set(question)])
        for band in range(_BANDS):
            hashes = sketch.hashvalues[band * _HASHES : (band + 1) * _HASHES].tobytes()
            key = hashlib.blake2b(b"%s/%d/%b" % (version.encode(), band, hashes), digest_size=8).digest()
            yield int.from_bytes(key, "big", signed=True)
