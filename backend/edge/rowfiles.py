"""Rows as the content of a file: JSONL, JSONL under zstd, Parquet.

The only file that imports pyarrow. The same rows always give the same bytes.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet

Rows = Sequence[dict[str, Any]]


def jsonl(rows: Rows) -> bytes:
    """Write one JSON object a line, keys in the order of the rows."""
    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def zstd(rows: Rows) -> bytes:
    """Write JSONL and compress it."""
    packed: bytes = pa.Codec("zstd").compress(jsonl(rows), asbytes=True)
    return packed


def parquet(rows: Rows) -> bytes:
    """Write a Parquet table; a key that some rows lack is null there, as tables have it."""
    stream = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(list(rows)), stream, compression="zstd")
    return stream.getvalue()


class Kind(NamedTuple):
    """A kind of file: what it is called, how its names end, and its content."""

    name: str
    ending: str
    content: Callable[[Rows], bytes]


KINDS: tuple[Kind, ...] = (
    Kind("jsonl", "jsonl", jsonl),
    Kind("zstd", "jsonl.zst", zstd),
    Kind("parquet", "parquet", parquet),
)
