"""Object tags: what the annotator reads, as a model reads it, and where a quote of it stands.

Knows how Label Studio shows task data and how it counts positions in each tag. Does not know controls.

    Text          code points of the text
    Paragraphs    utterance and UTF-16 units within it; quotes are counted over all, joined by newlines
    HyperText     code points over the text nodes of the document that a browser makes of it, a <br> being one

Source:
    positions measured on Label Studio 1.23.2 with emoji, selected by hand and read back.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from selectolax.lexbor import LexborHTMLParser, LexborNode

from backend.errors import InvalidValue, SetupError, TaskError

OBJECTS = ("Text", "HyperText", "Paragraphs", "Table", "List", "Markdown", "Image")

_VARIABLE = re.compile(r"\$([\w.\[\]]+)")
_STEP = re.compile(r"[^.\[\]]+")
_WORD = re.compile(r"\s+|\S+(?: \S+)*")  # single spaces stay as they are
_HALF = re.compile(r"[\ud800-\udfff]")
_BREAKS = frozenset("p div br li tr h1 h2 h3 h4 h5 h6 section article ul ol table".split())
_CELLS = frozenset({"td", "th"})
_DROPPED = frozenset({"script", "iframe"})  # Label Studio takes them out, with what they hold
_HIDDEN = frozenset({"style", "title", "template"})  # in the document, but nobody reads them


@dataclass(frozen=True)
class Task:
    """A Label Studio task: its id and the data that it was imported with."""

    id: int
    data: Mapping[str, Any]


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
        start, end = value.get("start"), value.get("end")
        if isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(self.text):
            return start, end
        raise InvalidValue(f"Span {start}..{end} is outside its {len(self.text)} characters.")


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
        try:
            first, last = int(value["start"]), int(value["end"])
            start = self.starts[first] + _code_points(self.utterances[first], value["startOffset"])
            end = self.starts[last] + _code_points(self.utterances[last], value["endOffset"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InvalidValue("A span is outside its utterances.") from error
        if not 0 <= start < end or first < 0:
            raise InvalidValue("A span is outside its utterances.")
        return start, end


class _Run(NamedTuple):
    """Characters that follow each other in the text and in the document; `place` is -1 for layout alone."""

    at: int
    place: int
    length: int


@dataclass(frozen=True)
class HtmlPassage:
    """The passage of a HyperText: what a browser shows of it, one line per block.

    `runs` map the text to places in the document; a break that only the layout makes has no place.
    """

    text: str
    runs: tuple[_Run, ...] = field(repr=False)
    anchored: tuple[_Run, ...] = field(repr=False)  # those with a place

    @classmethod
    def of(cls, html: str, *, inline: bool = False, images: bool = False) -> "HtmlPassage":
        """Read HTML as a browser does, once Label Studio has taken out its scripts and comments.

        Args:
            html: The HTML.
            inline: Whether it becomes a part of the page rather than a document of its own.
            images: Whether images are named in the text.
        """
        reader = _Reader(images=images)
        parser = LexborHTMLParser(html, is_fragment=inline)
        node = parser.root if inline else parser.body and parser.body.child
        while node is not None:
            reader.read(node)
            node = node.next
        runs = tuple(reader.runs)
        return cls("".join(reader.parts), runs, tuple(run for run in runs if run.place >= 0))

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
        offsets = value.get("globalOffsets") or {}
        start, end = offsets.get("start"), offsets.get("end")
        if not isinstance(start, int) or not isinstance(end, int):
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


class _Reader:
    """Walks a document and folds white space: one space between words, one break between blocks."""

    def __init__(self, *, images: bool) -> None:
        self.parts: list[str] = []
        self.runs: list[_Run] = []
        self._images = images
        self._at = 0  # in the document
        self._length = 0  # of the text
        self._gap: tuple[str, int] | None = None

    def read(self, node: LexborNode) -> None:
        """Read a node and all below it, in order; without recursion, for HTML may be nested deeply."""
        pending = [(node, False)]
        while pending:
            current, leaving = pending.pop()
            tag = current.tag or ""
            if leaving:
                self._pause(" " if tag in _CELLS else "\n")
            elif tag == "-text":
                self._read_text(current)
            elif tag == "br":
                self._pause("\n")
                self._at += 1
            elif not tag.startswith("-") and tag not in _DROPPED:
                if self._images and tag == "img":
                    source = current.attributes.get("alt") or current.attributes.get("src") or ""
                    self._pause(" ")
                    self._write(f"[image: {source[:200]}]")
                    self._pause(" ")
                if tag in _BREAKS:
                    self._pause("\n")
                if tag in _BREAKS or tag in _CELLS:
                    pending.append((current, True))
                children = []
                child = current.child
                while child is not None:
                    children.append((child, False))
                    child = child.next
                pending.extend(reversed(children))

    def _read_text(self, node: LexborNode) -> None:
        text = node.text_content or ""
        if node.parent is None or node.parent.tag not in _HIDDEN:
            for found in _WORD.finditer(text):
                place = self._at + found.start()
                if found[0].isspace():
                    self._pause(" ", place)
                else:
                    self._write(found[0], place)
        self._at += len(text)

    def _pause(self, character: str, place: int = -1) -> None:
        if self._gap is None or (character == "\n" and self._gap[0] == " "):
            self._gap = (character, place)

    def _write(self, words: str, place: int = -1) -> None:
        if self._gap is not None and self._length:
            self._append(*self._gap)
        self._gap = None
        self._append(words, place)

    def _append(self, words: str, place: int) -> None:
        self.parts.append(words)
        last = self.runs[-1] if self.runs else None
        if last and place >= 0 and last.place >= 0 and last.place + last.length == place:
            self.runs[-1] = last._replace(length=last.length + len(words))
        else:
            self.runs.append(_Run(self._length, place, len(words)))
        self._length += len(words)


@dataclass(frozen=True)
class Source:
    """An object tag that the annotator reads: its name, tag, and the key of task data it shows.

    `key` is empty where the config itself holds the words; such a source is not told to a model.
    """

    name: str
    tag: str
    key: str
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_attributes(cls, tag: str, attributes: Mapping[str, str]) -> "Source":
        """Read an object tag.

        Raises:
            SetupError: It shows something that is not in the task itself.
        """
        name = attributes.get("name", "")
        words = attributes.get("valueList") or attributes.get("value", "")
        kind = _attribute(attributes, "valueType") or ""
        if (tag != "Image" and kind not in ("", "text", "json")) or _attribute(
            attributes, "encoding"
        ) not in (None, "none"):
            raise SetupError(
                f"Object '{name}' ({tag}) does not show text from task data.",
                hint='Give it value="$key" and no valueType or encoding.',
            )
        return cls(name, tag, words[1:] if words.startswith("$") and " " not in words else "", attributes)

    @property
    def several(self) -> bool:
        """Tell whether it shows several things, one at a time."""
        return self.tag == "Image" and "valueList" in self.attributes

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
            return HtmlPassage.of(html, inline=self.attributes.get("inline") == "true")
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
            return HtmlPassage.of(
                self._string(task), inline=self.attributes.get("inline") == "true", images=True
            ).text
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
        if not self.key:
            words = self.attributes.get("value", "")
            return _VARIABLE.sub(lambda found: _shown(look_up(task, found[1])) or "", words)
        found = look_up(task, self.key)
        text = _shown(found)
        if text is None:
            raise TaskError(
                f"Task {task.id}: key '{self.key}' is {'missing' if found is None else 'not text'}.",
                hint=f"The config shows ${self.key}; import the task with this key.",
            )
        return text

    def _utterances(self, task: Task) -> list[tuple[str, str]]:
        name_key = _attribute(self.attributes, "nameKey") or "author"
        text_key = _attribute(self.attributes, "textKey") or "text"
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
        found = look_up(task, self.key)
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except ValueError:
                found = None
        if not isinstance(found, Mapping):
            raise TaskError(
                f"Task {task.id}: key '{self.key}' is not a table.",
                hint='Import an object: {"name": "value", ...}.',
            )
        rows = sorted(found.items(), key=lambda row: str(row[0]).lower())  # as the page does
        return "\n".join(
            f"{name}: {json.dumps(cell, ensure_ascii=False) if isinstance(cell, dict | list) else cell}"
            for name, cell in rows
        )

    def _whole(self, text: str, task: Task) -> str:
        if _HALF.search(text):
            raise TaskError(
                f"Task {task.id}: the text under '{self.key}' holds half a character (a lone surrogate).",
                hint="Correct the text where it comes from.",
            )
        return text


def look_up(task: Task, key: str) -> Any:
    """Give what task data holds under a key, `a.b` and `a[0]` included; None where there is nothing."""
    if key in task.data:
        return task.data[key]
    found: Any = task.data
    for step in _STEP.findall(key):
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def entries(task: Task, key: str) -> list[Any]:
    """Give a list of task data.

    Raises:
        TaskError: The task has no list there.
    """
    found = look_up(task, key)
    if not isinstance(found, list):
        raise TaskError(
            f"Task {task.id}: key '{key}' is {'missing' if found is None else 'not a list'}.",
            hint=f"The config takes a list from ${key}; import the task with it.",
        )
    return found


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


def _attribute(attributes: Mapping[str, str], name: str) -> str | None:
    """Give an attribute; Label Studio reads `nameKey` and `namekey` alike."""
    return attributes.get(name, attributes.get(name.lower()))


def _shown(found: Any) -> str | None:
    """Give what the page shows of a value; None where that is nothing that one can read."""
    if isinstance(found, bool):
        return None
    if isinstance(found, list):
        # The page makes one string of a list as JavaScript does.
        parts = [_shown(part) for part in found]
        return None if None in parts else ",".join(part or "" for part in parts)
    if isinstance(found, float) and found.is_integer():
        return str(int(found))
    return str(found) if isinstance(found, str | int | float) else None


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
