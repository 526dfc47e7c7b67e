"""The objects of one long answer of Label Studio, parsed while it arrives and kept on disk.

Knows JSON arrays and the tasks that their objects belong to. Does not know requests.
"""

import json
import re
import tempfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, Self

import orjson

Json = Any

_BETWEEN = re.compile(r"[\s,\[]*")


def loads(content: bytes) -> Json:
    """Parse JSON, with lone surrogates too, which Label Studio's database keeps and orjson refuses.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)


class Listing:
    """The objects of a listing by task; memory holds 24 bytes of each. A context manager."""

    def __init__(self) -> None:
        """Make an empty listing."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self._tasks, self._starts, self._sizes = array("q"), array("q"), array("q")  # sorted by task

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fill(self, chunks: Iterable[str]) -> None:
        """Replace the objects of the listing by those of an answer.

        Raises:
            ValueError: It is no array of objects with a `task`, or its end is missing.
        """
        tasks, sizes = array("q"), array("q")
        self._file.seek(0)
        for entry, text in _objects(chunks):
            task = entry.get("task") if isinstance(entry, dict) else None
            if not isinstance(task, int):
                raise ValueError("an entry that belongs to no task")  # noqa: TRY004
            tasks.append(task)
            sizes.append(self._file.write(text.encode()))
        starts = array("q", accumulate(sizes, initial=0))
        order = sorted(range(len(tasks)), key=tasks.__getitem__)
        self._tasks, self._starts, self._sizes = (
            array("q", (column[place] for place in order)) for column in (tasks, starts, sizes)
        )

    def of(self, task: int) -> list[Json]:
        """Return the objects of a task, in the order of the listing."""
        objects = []
        for place in range(bisect_left(self._tasks, task), bisect_right(self._tasks, task)):
            self._file.seek(self._starts[place])
            objects.append(loads(self._file.read(self._sizes[place])))
        return objects


def _objects(chunks: Iterable[str]) -> Iterator[tuple[Json, str]]:
    """Yield each object of an array, and its text."""
    decode = json.JSONDecoder().raw_decode
    text = ""
    for chunk in chunks:
        text += chunk
        at = 0
        while True:
            begin = len(text) if (match := _BETWEEN.match(text, at)) is None else match.end()
            try:
                entry, end = decode(text, begin)
            except ValueError:  # its end has not arrived
                break
            yield entry, text[begin:end]
            at = end
        text = text[at:]
    if _BETWEEN.sub("", text, count=1).strip() != "]":
        raise ValueError("the end of the answer is missing")
