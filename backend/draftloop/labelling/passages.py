"""Texts that spans are quoted from: positions in a quote's text to Label Studio's positions and back.

    Text          code points of the text
    Paragraphs    utterance, and UTF-16 units within it; the text is all utterances, joined by newlines
    HyperText     code points over the text nodes of the document that a browser makes; a <br> counts as one

Does not know tasks, object tags or controls.

Source:
    positions measured on Label Studio 1.23.2 with emoji, selected by hand and read back.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from draftloop.errors import InvalidValue
from draftloop.labelling.hypertext import TextRun, read
from draftloop.labelling.regions import place_of, shortened


class Passage(Protocol):
    """A text that spans are quoted from; converts positions to Label Studio's and back."""

    @property
    def text(self) -> str:
        """The text that quotes are substrings of."""
        ...

    def place(self, start: int, end: int) -> dict[str, Any] | None:
        """Return the position of `text[start:end]` as Label Studio's keys; None where it has none."""
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
        """Return the position in code points."""
        return {"start": start, "end": end, "text": self.text[start:end]}

    def find(self, value: Mapping[str, Any]) -> tuple[int, int]:
        """Read a position counted in code points."""
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
        parts = tuple(utterances)
        starts = tuple(accumulate((len(utterance) + 1 for utterance in parts), initial=0))[: len(parts)]
        return cls(parts, "\n".join(parts), starts)

    def place(self, start: int, end: int) -> dict[str, Any] | None:
        """Return the position in UTF-16 units from the start of the utterance."""
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, end - 1) - 1
        begin, stop = start - self.starts[first], end - self.starts[last]
        if begin >= len(self.utterances[first]) or stop > len(self.utterances[last]):
            return None  # it begins or ends at the newline between two utterances
        return {
            "start": str(first),
            "end": str(last),
            "startOffset": _units(self.utterances[first][:begin]),
            "endOffset": _units(self.utterances[last][:stop]),
            "text": self.text[start:end],
        }

    def find(self, value: Mapping[str, Any]) -> tuple[int, int]:
        """Read a position counted in UTF-16 units."""
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

    runs           map the text to places in the document; a break that only the layout makes has no place
    placed_runs    the runs that have a place
    """

    text: str
    runs: tuple[TextRun, ...] = field(repr=False)
    placed_runs: tuple[TextRun, ...] = field(repr=False)

    @classmethod
    def of(cls, html: str, *, inline: bool = False, images: bool = False) -> "HtmlPassage":
        """Read HTML as Label Studio and a browser do.

        Args:
            html: The HTML.
            inline: Whether the page inserts it into its own document rather than into an iframe.
            images: Whether to write a placeholder for each image.
        """
        text, runs = read(html, inline=inline, images=images)
        return cls(text, runs, tuple(run for run in runs if run.place >= 0))

    def place(self, start: int, end: int) -> dict[str, Any] | None:
        """Return the position in code points of the document; Label Studio derives the nodes from it."""
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
        """Read `globalOffsets`, which Label Studio writes beside its node paths."""
        offsets = value.get("globalOffsets")
        ends = (offsets.get("start"), offsets.get("end")) if isinstance(offsets, Mapping) else (None, None)
        start, end = place_of(ends[0]), place_of(ends[1])
        if start is None or end is None:
            raise InvalidValue("A span has no globalOffsets.")
        # Folded white space belongs to no run: take the first run at or after it, and the last one before.
        first = bisect_right(self.placed_runs, start, key=lambda run: run.place + run.length)
        last = bisect_left(self.placed_runs, end, key=lambda run: run.place) - 1
        if first > last or last < 0:
            raise InvalidValue(f"Span {start}..{end} holds no text of the document.")
        head, tail = self.placed_runs[first], self.placed_runs[last]
        begin = head.at + max(0, start - head.place)
        stop = tail.at + min(tail.length, end - tail.place)
        if begin >= stop:
            raise InvalidValue(f"Span {start}..{end} holds no text of the document.")
        return begin, stop

    def _place(self, index: int) -> int | None:
        run = self.runs[bisect_right(self.runs, index, key=lambda run: run.at) - 1]
        return run.place + index - run.at if run.place >= 0 else None


def plain_text(html: str) -> str:
    """Return the text that a browser shows of HTML, one line per block, one placeholder per image."""
    return HtmlPassage.of(html, inline=True, images=True).text


def occurrences(text: str, quote: str) -> list[int]:
    """List where a quote starts, overlapping occurrences included ("aa" occurs in "aaa" twice)."""
    return list(_starts(text, quote))


def _starts(text: str, quote: str) -> Iterator[int]:
    at = text.find(quote)
    while at >= 0:
        yield at
        at = text.find(quote, at + 1)


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def _code_points(text: str, units: int) -> int:
    """Convert a count of UTF-16 units to a count of code points.

    Raises:
        ValueError: It lies outside the text or between the halves of a character.
    """
    encoded = text.encode("utf-16-le")
    if not 0 <= units * 2 <= len(encoded):
        raise ValueError("outside the text")
    return len(encoded[: units * 2].decode("utf-16-le"))
