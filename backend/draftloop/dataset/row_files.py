"""Files of rows: JSONL, JSONL compressed by zstd, Parquet; written and read row by row, in constant memory.

The only module that imports pyarrow. The same rows always give the same bytes.
"""

import tempfile
from collections.abc import Callable, Iterator
from io import BufferedReader, RawIOBase
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet

from draftloop.errors import SetupError

FileRow = dict[str, Any]

_BATCH = 1000  # rows of a Parquet row group


class RowFile(Protocol):
    """A file of rows that is being written."""

    def write(self, line: bytes) -> None:
        """Append a row, serialized by `line_of`."""
        ...

    def close(self) -> None:
        """Write the rest; the underlying stream stays open."""
        ...


class Jsonl:
    """Writes one JSON object a line, keys in the order of the rows."""

    def __init__(self, stream: RawIOBase) -> None:
        """Start without rows."""
        self._stream = stream

    def write(self, line: bytes) -> None:
        """Append a row."""
        self._stream.write(line)

    def close(self) -> None:
        """Do nothing: rows are written at once."""


class Zstd:
    """Writes JSONL in one zstd frame."""

    def __init__(self, stream: RawIOBase) -> None:
        """Start without rows."""
        self._below = pa.PythonFile(stream, mode="w")
        self._stream = pa.CompressedOutputStream(self._below, "zstd")

    def write(self, line: bytes) -> None:
        """Append a row."""
        self._stream.write(line)

    def close(self) -> None:
        """End the frame."""
        self._stream.close()


class Parquet:
    """Writes a Parquet table; a key that a row lacks is null.

    Columns are known only after the last row, so rows wait in an unnamed file until then.
    """

    def __init__(self, stream: RawIOBase) -> None:
        """Start without rows."""
        self._stream = stream
        self._rows: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close

    def write(self, line: bytes) -> None:
        """Append a row."""
        self._rows.write(line)

    def close(self) -> None:
        """Write the table."""
        schema = pa.schema([])
        for batch in self._batches():
            row_type = pa.array(batch).type  # a table would take only the columns of its first row
            fields = pa.schema([row_type.field(number) for number in range(row_type.num_fields)])
            schema = pa.unify_schemas([schema, fields], promote_options="permissive")
        with pa.parquet.ParquetWriter(
            pa.PythonFile(self._stream, mode="w"), schema, compression="zstd"
        ) as table:
            for batch in self._batches():
                table.write_table(pa.Table.from_pylist(batch, schema=schema))
        self._rows.close()

    def _batches(self) -> Iterator[list[FileRow]]:
        self._rows.seek(0)
        while batch := [orjson.loads(line) for line in islice(self._rows, _BATCH)]:
            yield batch


def line_of(row: FileRow) -> bytes:
    """Serialize a row as a line of JSON."""
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


class RowFileKind(NamedTuple):
    """A kind of file: its name, its file names' ending, and its writer."""

    name: str
    ending: str
    writer: Callable[[RawIOBase], RowFile]


KINDS: tuple[RowFileKind, ...] = (
    RowFileKind("jsonl", "jsonl", Jsonl),
    RowFileKind("zstd", "jsonl.zst", Zstd),
    RowFileKind("parquet", "parquet", Parquet),
)


def read(path: Path) -> Iterator[FileRow]:
    """Yield the rows of a file as they were written, without keys that are null in Parquet only.

    Raises:
        SetupError: It cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            with pa.parquet.ParquetFile(path) as table:
                for batch in table.iter_batches(_BATCH):
                    yield from map(_without_null, batch.to_pylist())
            return
        with path.open("rb") as below:
            plain = (
                BufferedReader(pa.CompressedInputStream(below, "zstd")) if path.suffix == ".zst" else below
            )
            yield from map(orjson.loads, plain)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SetupError(f"{path} cannot be read: {error}.", hint="Run the sync again.") from error


def _without_null(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _without_null(value) for key, value in part.items() if value is not None}
    return [_without_null(entry) for entry in part] if isinstance(part, list) else part
