"""Object tags: what the annotator reads, as a model reads it, and where a quote of it stands.

Knows how Label Studio shows task data and how it counts positions in each tag. Does not know controls.

    Text          code points of the text
    Paragraphs    utterance and UTF-16 units within it; quotes are counted over all, joined by newlines
    HyperText     code points over the text nodes of the document that a browser makes of it, a <br> being one

Source:
    positions measured on Label Studio 1.23.2 with emoji, selected by hand and read back.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.attributes import (
    Attributes,
    as_text,
    cut_name,
    fill_in,
    look_up,
    variables,
    whole_variable,
)
from draftloop.labelling.hypertext import Run, read
from draftloop.labelling.regions import place_of, shortened, too_deep
from draftloop.support.strict_json import DEEPEST
from draftloop.support.text import has_lone_surrogate

OBJECTS = ("Text", "HyperText", "Paragraphs", "Table", "List", "Markdown", "Image")

# What `valueType` says of tags whose data stand in the task itself, as it does where it is left out.
_KINDS = {"Text": "text", "HyperText": "text", "Paragraphs": "json", "Table": "json"}


@dataclass(frozen=True)
class Task:
    """A Label Studio task: its id, the data that it was imported with, and its project where that matters.

    `project` decides which input files its code may read; 0 is none.
    """

    id: int
    data: Mapping[str, Any]
    project: int = 0


class Passage(Protocol):
    """A text that spans are quoted from, and the way to Label Studio's positions and back."""

    @property
    def text(self) -> str:
        """The text in which quotes stand and are counted."""
        ...

    def place(self, start: int, end: int) -> dict[str, Any] | None:
        """Give the position of `text[start:end]` as Label Studio's keys; None where it has none."""
        ...

    def find(self, value: Mapping[str, Any]) -> tuple[int, int]:
        """Read a position back.

        Raises:
            InvalidValue: It is outside the text.
        """
        ...


@dataclass(frozen=True)
class PlainPassage:
    """The passage of a Text."""

    text: str

    def place(self, start: int, end: int) -> dict[str, Any] | None:
        """Count in code points."""
        return {"start": start, "end": end, "text": self.text[start:end]}

    def find(self, value: Mapping[str, Any]) -> tuple[int, int]:
        """Take what was counted in code points."""
        start, end = place_of(value.get("start")), place_of(value.get("end"))
        if start is not None and end is not None and start < end <= len(self.text):
            return start, end
        span = f"{shortened(value.get('start'))}..{shortened(value.get('end'))}"
        raise InvalidValue(f"Span {span} is outside its {len(self.text)} characters.")


@dataclass(frozen=True)
class DialoguePassage:
    """The passage of a Paragraphs: its utterances, joined by newlines."""

    utterances: tuple[str, ...]
    text: str = ""
    starts: tuple[int, ...] = ()

    @classmethod
    def of(cls, utterances: Iterable[str]) -> "DialoguePassage":
        """Join utterances."""
        found = tuple(utterances)
        starts = tuple(accumulate((len(utterance) + 1 for utterance in found), initial=0))[: len(found)]
        return cls(found, "\n".join(found), starts)

    def place(self, start: int, end: int) -> dict[str, Any] | None:
        """Count in UTF-16 units from the start of the utterance."""
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, end - 1) - 1
        begin, stop = start - self.starts[first], end - self.starts[last]
        if begin >= len(self.utterances[first]) or stop > len(self.utterances[last]):
            return None  # it begins or ends with the newline between two utterances
        return {
            "start": str(first),
            "end": str(last),
            "startOffset": _units(self.utterances[first][:begin]),
            "endOffset": _units(self.utterances[last][:stop]),
            "text": self.text[start:end],
        }

    def find(self, value: Mapping[str, Any]) -> tuple[int, int]:
        """Take what was counted in UTF-16 units."""
        keys = ("start", "end", "startOffset", "endOffset")
        first, last, begin, stop = (place_of(value.get(key)) for key in keys)
        try:
            start = self.starts[first] + _code_points(self.utterances[first], begin)  # type: ignore[index,arg-type]
            end = self.starts[last] + _code_points(self.utterances[last], stop)  # type: ignore[index,arg-type]
        except (TypeError, ValueError, IndexError) as error:
            raise InvalidValue("A span is outside its utterances.") from error
        if not start < end:
            raise InvalidValue("A span is outside its utterances.")
        return start, end


@dataclass(frozen=True)
class HtmlPassage:
    """The passage of a HyperText: what a browser shows of it, one line per block.

    `runs` map the text to places in the document; a break that only the layout makes has no place.
    """

    text: str
    runs: tuple[Run, ...] = field(repr=False)
    anchored: tuple[Run, ...] = field(repr=False)  # those with a place

    @classmethod
    def of(cls, html: str, *, inline: bool = False, images: bool = False) -> "HtmlPassage":
        """Read HTML as Label Studio and a browser do.

        Args:
            html: The HTML.
            inline: Whether it becomes a part of the page rather than a document of its own.
            images: Whether images are named in the text.
        """
        text, runs = read(html, inline=inline, images=images)
        return cls(text, runs, tuple(run for run in runs if run.place >= 0))

    def place(self, start: int, end: int) -> dict[str, Any] | None:
        """Count in code points over the document; Label Studio finds the nodes from that."""
        first, last = self._place(start), self._place(end - 1)
        if first is None or last is None:
            return None
        return {
            "start": "",
            "end": "",
            "startOffset": 0,
            "endOffset": 0,
            "globalOffsets": {"start": first, "end": last + 1},
            "text": self.text[start:end],
        }

    def find(self, value: Mapping[str, Any]) -> tuple[int, int]:
        """Take `globalOffsets`, which Label Studio writes beside its node paths."""
        offsets = value.get("globalOffsets")
        ends = (offsets.get("start"), offsets.get("end")) if isinstance(offsets, Mapping) else (None, None)
        start, end = place_of(ends[0]), place_of(ends[1])
        if start is None or end is None:
            raise InvalidValue("A span has no globalOffsets.")
        # White space that is folded away belongs to no run: the first at or after, the last before.
        first = bisect_right(self.anchored, start, key=lambda run: run.place + run.length)
        last = bisect_left(self.anchored, end, key=lambda run: run.place) - 1
        if first > last or last < 0:
            raise InvalidValue(f"Span {start}..{end} holds no text of the document.")
        head, tail = self.anchored[first], self.anchored[last]
        begin = head.at + max(0, start - head.place)
        stop = tail.at + min(tail.length, end - tail.place)
        if begin >= stop:
            raise InvalidValue(f"Span {start}..{end} holds no text of the document.")
        return begin, stop

    def _place(self, index: int) -> int | None:
        run = self.runs[bisect_right(self.runs, index, key=lambda run: run.at) - 1]
        return run.place + index - run.at if run.place >= 0 else None


@dataclass(frozen=True)
class Source:
    """A tag that shows something of a task: its name, the words of its `value`, and what it is called.

    `key` is the key of task data where the words are one variable and nothing else, else empty. `heading` is
    the name under which a model reads it; empty where it shows nothing of a task and no model is told.
    """

    name: str
    tag: str
    key: str
    words: str = ""
    heading: str = ""
    attributes: Attributes = field(default_factory=Attributes, repr=False)

    @classmethod
    def of(cls, attributes: Attributes) -> "Source":
        """Read a tag.

        Raises:
            SetupError: It shows something that is not in the task itself, or a variable that the page does
                not take.
        """
        tag, name = attributes.tag, attributes.get("name", "")
        is_list = tag == "Image" and bool(attributes.get("valueList"))
        words = attributes["valueList"] if is_list else attributes.value
        kind = _KINDS.get(tag)
        if kind and (
            attributes.get("valueType", kind) != kind or attributes.get("encoding", "none") != "none"
        ):
            raise SetupError(
                f"Object '{name}' ({tag}) does not show text from task data.",
                hint='Give it value="$key" and no valueType or encoding.',
            )
        if cut_name(words):
            raise SetupError(
                f"{tag} '{name}' has value=\"{words}\", which the page does not read as one key.",
                hint="Give the key a name of ASCII letters, digits and _, in the data and here.",
            )
        key = whole_variable(words)
        if not key and variables(words) and (is_list or tag in ("Table", "List", "Paragraphs")):
            raise SetupError(
                f"Object '{name}' ({tag}) has value=\"{words}\".",
                hint='It shows one key of task data: value="$key".',
            )
        source = cls(name, tag, key, words, key or name or "_".join(variables(words)), attributes)
        if tag == "HyperText":
            source.is_inline  # noqa: B018  refuses what is neither true nor false
        return source if variables(words) else replace(source, heading="")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of task data that it shows."""
        return tuple(variables(self.words))

    @property
    def is_inline(self) -> bool:
        """Whether its HTML becomes a part of the page rather than a document of its own."""
        return self.attributes.flag("inline")

    @property
    def several(self) -> bool:
        """Tell whether it shows several things, one at a time."""
        return self.tag == "Image" and bool(self.attributes.get("valueList"))

    def text(self, task: Task) -> str:
        """Give what a model reads.

        Raises:
            TaskError: The task lacks the key, or holds something that cannot be read as text.
        """
        return self._whole(self._text(task), task)

    def passage(self, task: Task) -> Passage:
        """Give the text that spans are quoted from.

        Raises:
            TaskError: As `text`.
        """
        if self.tag == "HyperText":
            html = self._whole(self._string(task), task)
            return HtmlPassage.of(html, inline=self.is_inline)
        if self.tag == "Paragraphs":
            return DialoguePassage.of(self._whole(words, task) for _, words in self._utterances(task))
        return PlainPassage(self.text(task))

    def entries(self, task: Task) -> list[Any]:
        """Give the entries of a list of task data.

        Raises:
            TaskError: It is not a list.
        """
        return entries(task, self.key)

    def _text(self, task: Task) -> str:
        if self.tag == "HyperText":
            return HtmlPassage.of(self._string(task), inline=self.is_inline, images=True).text
        if self.tag == "Paragraphs":
            return "\n".join(f"{name}: {words}" if name else words for name, words in self._utterances(task))
        if self.tag == "Table":
            return self._table(task)
        if self.tag == "List":
            return "\n".join(_listed(entry) for entry in self.entries(task))
        if self.tag == "Image":
            found = self.entries(task) if self.several else [self._string(task)]
            return "\n".join(f"[image: {str(address)[:200]}]" for address in found)
        return self._string(task)

    def _string(self, task: Task) -> str:
        found = {key: look_up(task.data, key) for key in self.keys}
        odd = [key for key, part in found.items() if part is not None and not _is_readable(part)]
        # Among other words the page writes "undefined" for what is missing; alone it is no task.
        if found and (odd or all(part is None for part in found.values())):
            if self.tag not in OBJECTS:
                return ""  # the page leaves it out
            key = odd[0] if odd else self.keys[0]
            raise TaskError(
                f"Task {task.id}: key '{key}' is {'not text' if odd else 'missing'}.",
                hint=f"The config shows ${key}; import the task with this key.",
            )
        text = fill_in(self.words, task.data)
        # The page makes HTML of a Text, whose parser drops NUL characters: they have no position.
        return text if self.tag == "HyperText" else text.replace("\0", "")

    def _utterances(self, task: Task) -> list[tuple[str, str]]:
        name_key = self.attributes.get("nameKey") or "author"
        text_key = self.attributes.get("textKey") or "text"
        found = []
        for entry in self.entries(task):
            words = _shown(entry.get(text_key)) if isinstance(entry, Mapping) else None
            if words is None:
                raise TaskError(
                    f"Task {task.id}: an entry of '{self.key}' has no text under '{text_key}'.",
                    hint=f'It is a list of {{"{name_key}": ..., "{text_key}": ...}}.',
                )
            found.append((_shown(entry.get(name_key)) or "", words))
        return found

    def _table(self, task: Task) -> str:
        found = look_up(task.data, self.key)
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except (ValueError, RecursionError):
                found = None
            found = None if too_deep(found) else found
        if isinstance(found, list) and found and all(isinstance(row, Mapping) for row in found):
            return "\n".join(" | ".join(_row(row)) for row in found)
        if isinstance(found, list):
            found = {str(place): cell for place, cell in enumerate(found)}
        elif isinstance(found, Mapping):
            found = dict(sorted(found.items(), key=lambda row: str(row[0]).lower()))  # as the page does
        else:
            raise TaskError(
                f"Task {task.id}: key '{self.key}' is not a table.",
                hint='Import an object: {"name": "value", ...}, or a list of them.',
            )
        return "\n".join(_row(found))

    def _whole(self, text: str, task: Task) -> str:
        if has_lone_surrogate(text):
            raise _half_character(task, self.key)
        return text


def check_data(task: Task) -> None:
    """Check that a task's data can be gone through.

    Raises:
        TaskError: They are nested without an end.
    """
    if too_deep(dict(task.data)):
        raise TaskError(
            f"Task {task.id}: its data are nested deeper than {DEEPEST} levels.",
            hint="Import it without the part that is nested so deeply.",
        )


def entries(task: Task, key: str) -> list[Any]:
    """Give a list of task data.

    Raises:
        TaskError: The task has no list there.
    """
    found = look_up(task.data, key)
    if not isinstance(found, list):
        raise TaskError(
            f"Task {task.id}: key '{key}' is {'missing' if found is None else 'not a list'}.",
            hint=f"The config takes a list from ${key}; import the task with it.",
        )
    if any(map(has_lone_surrogate, _texts(found))):
        raise _half_character(task, key)
    return found


def _texts(part: Any) -> Iterator[str]:
    """List the texts of a list of task data, keys included."""
    pending = [part]
    while pending:
        current = pending.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, Mapping):
            pending.extend((*current.keys(), *current.values()))
        elif isinstance(current, list):
            pending.extend(current)


def _half_character(task: Task, key: str) -> TaskError:
    return TaskError(
        f"Task {task.id}: the text under '{key}' holds half a character (a lone surrogate).",
        hint="Correct the text where it comes from.",
    )


def plain(html: str) -> str:
    """Give the text that a browser would show of some HTML, one line per block, images named."""
    return HtmlPassage.of(html, inline=True, images=True).text


def occurrences(text: str, quote: str) -> list[int]:
    """List where a quote starts, overlapping occurrences included ("aa" stands in "aaa" twice)."""
    return list(_starts(text, quote))


def _starts(text: str, quote: str) -> Iterator[int]:
    at = text.find(quote)
    while at >= 0:
        yield at
        at = text.find(quote, at + 1)


def _row(cells: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {json.dumps(cell, ensure_ascii=False) if isinstance(cell, dict | list) else cell}"
        for name, cell in cells.items()
    ]


def _is_readable(value: Any) -> bool:
    """Check whether the page shows a value as something that one can read."""
    if isinstance(value, list):
        return all(part is None or _is_readable(part) for part in value)
    return isinstance(value, str | int | float)


def _shown(value: Any) -> str | None:
    return as_text(value) if _is_readable(value) else None


def _listed(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    parts = [str(entry.get(key)) for key in ("title", "body") if entry.get(key)]
    if entry.get("html"):
        parts.append(plain(str(entry["html"])))
    return f"[{entry.get('id')}] " + "\n".join(parts)


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def _code_points(text: str, units: int) -> int:
    """Turn a count of UTF-16 units into one of code points.

    Raises:
        ValueError: It lies outside the text or between the halves of a character.
    """
    encoded = text.encode("utf-16-le")
    if not 0 <= units * 2 <= len(encoded):
        raise ValueError("outside the text")
    return len(encoded[: units * 2].decode("utf-16-le"))
