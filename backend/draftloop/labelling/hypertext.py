"""HTML as Label Studio's page shows it: its text as people read it, and the position of each piece.

The page does not show HTML as it is written: sanitize-html rewrites it (`sanitizing`), then the browser
parses the result with scripting enabled, so that `<noscript>` holds text. A position counts code points over
the text nodes of that document, hidden ones included; a `<br>` counts as one.

Does not know tasks or controls.

Source:
    Label Studio 1.23.2: utils/html.js, tags/object/RichText.
"""

import re
from typing import NamedTuple

from selectolax.lexbor import LexborHTMLParser, LexborNode

from draftloop.labelling.sanitizing import sanitized

_LINE = re.compile(r"\n|[^\n]+")
_WORD = re.compile(r"\s+|\S+(?: \S+)*")  # single spaces stay as they are
_BREAKS = frozenset(
    "address article aside blockquote caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr legend li listing main menu nav ol "
    "optgroup option p plaintext pre search section summary table tr ul xmp".split()
)
_CELLS = frozenset({"td", "th"})
# Elements of the document that a browser does not show.
_HIDDEN = frozenset(
    "annotation annotation-xml audio canvas datalist desc iframe metadata meter noembed noframes progress rp "
    "script style template title video".split()
)
_NOT_DISPLAYED = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_AS_WRITTEN = frozenset("listing plaintext pre textarea xmp".split())  # their white space is kept


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    return (
        node.tag in _HIDDEN
        or "hidden" in attributes
        or (node.tag == "dialog" and "open" not in attributes)
        or _NOT_DISPLAYED.search(attributes.get("style") or "") is not None
    )


def _parsed(html: str, *, inline: bool) -> LexborNode | None:
    # A browser with scripting reads <noscript> as text, as any parser reads <noframes>.
    text = (
        re.sub("(</?)noscript(?=[ >])", r"\1noframes", sanitized(html))
        .replace("\r\n", "\n")
        .replace("\r", "\n")
    )
    if inline:
        return LexborHTMLParser(text, is_fragment=True).root
    body = LexborHTMLParser(f"<!DOCTYPE html>{text}").body
    return body and body.child


def _children(node: LexborNode) -> list[LexborNode]:
    children = []
    child = node.child
    while child is not None:
        children.append(child)
        child = child.next
    return children


class TextRun(NamedTuple):
    """Characters that are contiguous both in the text and in the document.

    at      index in the text
    place   index in the document; -1 for a break that only the layout makes
    length  number of code points
    """

    at: int
    place: int
    length: int


class _Reader:
    """Walks a document and folds white space: one space between words, one break between blocks."""

    def __init__(self, *, images: bool) -> None:
        self.parts: list[str] = []
        self.runs: list[TextRun] = []
        self._images = images
        self._at = 0  # in the document
        self._length = 0  # of the text
        self._gap: tuple[str, int] | None = None

    def read(self, node: LexborNode) -> None:
        """Read a node and all below it in document order; without recursion, as HTML may be nested deeply."""
        pending = [(node, "", False)]
        while pending:
            current, mode, leaving = pending.pop()
            tag = current.tag or ""
            if leaving:
                self._pause(" " if tag in _CELLS else "\n")
            elif tag == "-text":
                self._read_text(current.text_content or "", mode)
            elif tag == "br":
                self._pause("\n")
                self._at += 1
            elif not tag.startswith("-"):
                if mode == "hidden" or _is_hidden(current):
                    mode = "hidden"
                else:
                    mode = "as written" if tag in _AS_WRITTEN else mode
                    self._enter(current, tag)
                    if tag in _BREAKS or tag in _CELLS:
                        pending.append((current, mode, True))
                pending.extend((child, mode, False) for child in reversed(_children(current)))

    def _enter(self, node: LexborNode, tag: str) -> None:
        if self._images and tag == "img":
            source = node.attributes.get("alt") or node.attributes.get("src") or ""
            self._pause(" ")
            self._write(f"[image: {source[:200]}]")
            self._pause(" ")
        if tag in _BREAKS:
            self._pause("\n")

    def _read_text(self, text: str, mode: str) -> None:
        if mode == "as written":
            for line in _LINE.finditer(text):
                if line[0] == "\n":
                    self._pause("\n", self._at + line.start())
                else:
                    self._write(line[0], self._at + line.start())
        elif not mode:
            for word in _WORD.finditer(text):
                place = self._at + word.start()
                if word[0].isspace():
                    self._pause(" ", place)
                else:
                    self._write(word[0], place)
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
            self.runs.append(TextRun(self._length, place, len(words)))
        self._length += len(words)


def read(html: str, *, inline: bool, images: bool) -> tuple[str, tuple[TextRun, ...]]:
    """Return the visible text of some HTML, one line for each block, and its runs.

    Args:
        html: The HTML.
        inline: Whether the page inserts it into its own document rather than into an iframe.
        images: Whether to write a placeholder for each image.
    """
    reader = _Reader(images=images)
    node = _parsed(html, inline=inline)
    while node is not None:
        reader.read(node)
        node = node.next
    return "".join(reader.parts), tuple(reader.runs)
