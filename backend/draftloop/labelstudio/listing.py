"""Everything that one long answer of Label Studio lists, taken apart while it comes and kept on disk.

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
    """Read JSON; half characters too, which SQLite keeps and orjson refuses.

    Raises:
        ValueError: It is none.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)


class Listing:
    """The objects of a listing by task; memory holds 24 bytes of each. A context manager."""

    def __init__(self) -> None:
        """Begin without an object."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self._tasks, self._starts, self._sizes = array("q"), array("q"), array("q")  # sorted by task

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fill(self, chunks: Iterable[str]) -> None:
        """Take the objects of an answer; those of an earlier one are forgotten.

        Raises:
            ValueError: It is no array of objects with a `task`, or its end is missing.
        """
        tasks, sizes = array("q"), array("q")
        self._file.seek(0)
        for found, text in _objects(chunks):
            task = found.get("task") if isinstance(found, dict) else None
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
        """Give the objects of a task, in the order of the listing."""
        found = []
        for place in range(bisect_left(self._tasks, task), bisect_right(self._tasks, task)):
            self._file.seek(self._starts[place])
            found.append(loads(self._file.read(self._sizes[place])))
        return found


def _objects(chunks: Iterable[str]) -> Iterator[tuple[Json, str]]:
    """Give each object of an array, and the text that it was."""
    decode = json.JSONDecoder().raw_decode
    text = ""
    for chunk in chunks:
        text += chunk
        at = 0
        while True:
            begin = len(text) if (match := _BETWEEN.match(text, at)) is None else match.end()
            try:
                found, end = decode(text, begin)
            except ValueError:  # the rest is on its way
                break
            yield found, text[begin:end]
            at = end
        text = text[at:]
    if _BETWEEN.sub("", text, count=1).strip() != "]":
        raise ValueError("the end of the answer is missing")
