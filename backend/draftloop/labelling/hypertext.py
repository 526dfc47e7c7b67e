"""HTML as Label Studio's page shows it: its text as people read it, and where a quote of it stands.

The page does not show HTML as it is written. First sanitize-html rewrites it: it takes out scripts, frames
and comments, decodes and escapes entities, and knows fewer elements with raw text than a browser does. The
browser then parses the result with scripting on, so that `<noscript>` holds text. A position counts code
points over the text nodes of that document, hidden ones included; a `<br>` is one.

Knows both steps. Does not know tasks or controls.

Source:
    Label Studio 1.23.2: utils/html.js, tags/object/RichText; its sanitize-html with htmlparser2 8. The
    functions that copy them were compared with them on random documents.
"""

import re
from collections import Counter
from collections.abc import Mapping
from html import unescape
from html.entities import html5
from typing import NamedTuple

from selectolax.lexbor import LexborHTMLParser, LexborNode

_LINE = re.compile(r"\n|[^\n]+")
_WORD = re.compile(r"\s+|\S+(?: \S+)*")  # single spaces stay as they are
_BREAKS = frozenset(
    "address article aside blockquote caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr legend li listing main menu nav ol "
    "optgroup option p plaintext pre search section summary table tr ul xmp".split()
)
_CELLS = frozenset({"td", "th"})
# In the document, but a browser does not show them.
_HIDDEN = frozenset(
    "annotation annotation-xml audio canvas datalist desc iframe metadata meter noembed noframes progress rp "
    "script style template title video".split()
)
_NOT_DISPLAYED = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_AS_WRITTEN = frozenset("listing plaintext pre textarea xmp".split())  # with its white space

# ------------------------------------------------------------------ sanitize-html and its htmlparser2

_VOID = frozenset(
    "area base basefont br col command embed frame hr img input isindex keygen link meta param source track "
    "wbr".split()
)
_WRITTEN_VOID = frozenset("img br hr area base basefont input link meta".split())
_FORM_TAGS = frozenset("input option optgroup select button datalist textarea".split())
_IMPLIED_ENDS: dict[str, frozenset[str]] = {
    "tr": frozenset({"tr", "th", "td"}),
    "th": frozenset({"th"}),
    "td": frozenset({"thead", "th", "td"}),
    "body": frozenset({"head", "link", "script"}),
    "li": frozenset({"li"}),
    "option": frozenset({"option"}),
    "optgroup": frozenset({"optgroup", "option"}),
    **dict.fromkeys(("dd", "dt"), frozenset({"dd", "dt"})),
    **dict.fromkeys(("rt", "rp"), frozenset({"rt", "rp"})),
    **dict.fromkeys(("tbody", "tfoot"), frozenset({"thead", "tbody"})),
    **dict.fromkeys("select input output button datalist textarea".split(), _FORM_TAGS),
    **dict.fromkeys(
        "p h1 h2 h3 h4 h5 h6 address article aside blockquote details div dl fieldset figcaption figure "
        "footer form header hr main nav ol pre section table ul".split(),
        frozenset({"p"}),
    ),
}
_FOREIGN = frozenset({"math", "svg"})
_INTEGRATION = frozenset("mi mo mn ms mtext annotation-xml foreignobject desc title".split())
_RAW_TEXT = ("script", "style", "title")
_VIDEO_HOSTS = frozenset(
    "www.youtube.com youtube.com www.youtube-nocookie.com youtube-nocookie.com youtu.be".split()
)
_SCHEMES = frozenset({"http", "https", "ftp", "mailto", "tel"})

_TAG_NAME = re.compile(r"[a-zA-Z][^/>\t\n\f\r ]*")
_BLANK_END = re.compile(r"[\t\n\f\r ]*+\Z")
_BOGUS_END = re.compile(r"[\t\n\f\r ]*+[^>]")  # as in </3>
_END_NAME = re.compile(r"[\t\n\f\r ]*+([a-zA-Z][^>\t\n\f\r ]*)")
_ATTRIBUTE = re.compile(
    r"""[\t\n\f\r ]*+(?:(?P<end>(?:/[\t\n\f\r ]*+)?>)|/|
    (?P<name>[^\t\n\f\r />][^=\t\n\f\r />]*)
    (?:[\t\n\f\r ]*+=[\t\n\f\r ]*+
    (?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<open>["'])|(?P<bare>[^>\t\n\f\r ]*)))?)""",
    re.VERBOSE,
)
_ATTRIBUTE_NAME = re.compile(r"[^\0\t\n\f\r /<=>]+")
_TEXT_ENTITY = re.compile(r"&(?:#(?:[0-9]+|[xX][0-9a-fA-F]+);?|[a-zA-Z][a-zA-Z0-9]*;?)")
_ATTRIBUTE_ENTITY = re.compile(r"&(?:#(?:[0-9]+|[xX][0-9a-fA-F]+)|[a-zA-Z][a-zA-Z0-9]*);")
_LONG_STYLE = 4000
# Attributes that are left out where they are empty.
_NEVER_EMPTY = frozenset(
    """abbr accept accept-charset accesskey action allow as autocapitalize autocomplete blocking charset
    cite class color cols colspan content contenteditable coords crossorigin data datetime decoding dir
    dirname download draggable enctype enterkeyhint fetchpriority for form formaction formenctype
    formmethod formtarget headers height hidden high href hreflang http-equiv id imagesizes imagesrcset
    inputmode integrity is itemid itemprop itemref itemtype kind label lang list loading low max
    maxlength media method min minlength name nonce optimum pattern ping placeholder popover
    popovertarget popovertargetaction poster preload referrerpolicy rel rows rowspan sandbox scope shape
    size sizes slot span spellcheck src srcdoc srclang srcset start step style tabindex target title
    translate type usemap value width wrap""".split()
)


class _Frame(NamedTuple):
    """An element that is open in what is written: its tag, where it begins, its `src`."""

    tag: str
    at: int
    source: str


class _Sanitizer:
    """Writes HTML as sanitize-html does with the options of Label Studio."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self._frames: list[_Frame] = []
        self._open: list[str] = []  # as htmlparser2 counts
        self._count: Counter[str] = Counter()  # of these
        self._foreign: list[bool] = []

    def run(self, html: str) -> str:
        """Rewrite a document."""
        at, start = 0, 0
        while True:
            found = html.find("<", at)
            if found < 0:
                break
            follower = html[found + 1 : found + 2]
            if name := _TAG_NAME.match(html, found + 1):
                self._text(html[start:found])
                at = start = self._start_tag(html, name[0], name.end())
            elif follower in {"!", "?"}:
                self._text(html[start:found])
                at = start = self._markup(html, found + 2, is_declaration=follower == "!")
            elif follower == "/" and (name := _END_NAME.match(html, found + 2)):
                self._text(html[start:found])
                at = start = self._end_tag(html, name)
            elif follower == "/" and (rest := _BOGUS_END.match(html, found + 2)):
                self._text(html[start:found])
                if html.find(">", found) < 0:
                    self._text(html[rest.end() - 1 :], decode=False)
                at = start = _behind(html, found)
            else:
                at = found + 1  # "<" and "</>" are words
        self._text(html[start:])
        for tag in reversed(self._open):
            self._close(tag)
        return "".join(self.written)

    def _markup(self, html: str, at: int, *, is_declaration: bool) -> int:
        ends = {"--": "-->", "[CDATA[": "]]>"} if is_declaration else {}
        for begin, end in ends.items():
            if html.startswith(begin, at):
                found = html.find(end, at if begin == "--" else at + len(begin))
                return len(html) if found < 0 else found + len(end)
        found = html.find(">", at)
        if found < 0:
            self._text(html[at:], decode=False)
        return _behind(html, at)

    def _start_tag(self, html: str, name: str, at: int) -> int:
        if at == len(html):
            if any(raw.startswith(name.lower()) for raw in _RAW_TEXT):
                self._text(name)
            return at
        tag = name.lower()
        while self._open and self._open[-1] in _IMPLIED_ENDS.get(tag, ()):
            self._close(self._pop())
        self._enter(tag)
        attributes: dict[str, str] = {}
        while found := _ATTRIBUTE.match(html, at):
            at = found.end()
            if found["open"] or (found["name"] is None and not found[0].strip("\t\n\f\r ")):
                break
            if found["end"]:
                is_closed = found["end"][0] == "/" and bool(self._foreign) and self._foreign[-1]
                self._write_tag(tag, attributes)
                if is_closed and self._open and self._open[-1] == tag:
                    self._close(self._pop())
                if tag in _RAW_TEXT and found["end"][0] != "/":
                    return self._raw_text(html, tag, at)
                return at
            if found["name"]:
                value = found["double"] or found["single"] or found["bare"] or ""
                attributes.setdefault(found["name"].lower(), _ATTRIBUTE_ENTITY.sub(_decoded_whole, value))
            elif _BLANK_END.match(html, at):
                self._text(html[-1], decode=False)  # the document ends within "<br /"
        return len(html)

    def _raw_text(self, html: str, tag: str, at: int) -> int:
        end = re.compile(rf"</{tag}(?=[>\t\n\f\r ])", re.IGNORECASE).search(html, at)
        words = html[at : end.start() if end else len(html)]
        self._text(words, decode=tag == "title")
        if end is None:
            return len(html)
        self._leave(tag)
        return self._end_of_tag(html, end.end())

    def _end_tag(self, html: str, name: re.Match[str]) -> int:
        if name.end() == len(html):
            return len(html)
        self._leave(name[1].lower())
        return self._end_of_tag(html, name.end())

    def _end_of_tag(self, html: str, at: int) -> int:
        if html.find(">", at) < 0:
            self._text(html[-1], decode=False)  # the document ends within "</b "
        return _behind(html, at)

    def _enter(self, tag: str) -> None:
        if tag not in _VOID:
            self._open.append(tag)
            self._count[tag] += 1
            if tag in _FOREIGN or tag in _INTEGRATION:
                self._foreign.append(tag in _FOREIGN)

    def _leave(self, tag: str) -> None:
        if (tag in _FOREIGN or tag in _INTEGRATION) and self._foreign:
            self._foreign.pop()
        if tag in _VOID:
            if tag == "br":
                self._write_tag("br", {})
        elif self._count[tag]:
            while True:
                last = self._pop()
                self._close(last)
                if last == tag:
                    break
        elif tag == "p":
            self._write_tag("p", {})
            self._close("p")

    def _pop(self) -> str:
        tag = self._open.pop()
        self._count[tag] -= 1
        return tag

    def _write_tag(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._frames.append(_Frame(tag, len(self.written), attributes.get("src", "")))
        self.written.append(f"<{tag}")
        for name, value in attributes.items():
            kept = _kept_attribute(name, value)
            if kept is not None:
                self.written.append(
                    f' {name}="{_escaped(kept, quote=True)}"' if kept or name == "alt" else f" {name}"
                )
        self.written.append(" />" if tag in _WRITTEN_VOID else ">")
        if tag in _VOID:
            self._close(tag)

    def _text(self, words: str, *, decode: bool = True) -> None:
        tag = self._frames[-1].tag if self._frames else ""
        words = _TEXT_ENTITY.sub(_decoded, words) if decode else words
        if words:
            self.written.append(words if tag in ("script", "style") else _escaped(words))

    def _close(self, tag: str) -> None:
        if not self._frames or self._frames[-1].tag != tag:
            return
        frame = self._frames.pop()
        if tag == "script" or (tag == "iframe" and not _is_video(frame.source)):
            del self.written[frame.at :]
        elif tag not in _WRITTEN_VOID:
            self.written.append(f"</{tag}>")


def _behind(html: str, at: int) -> int:
    end = html.find(">", at)
    return len(html) if end < 0 else end + 1


def _decoded(entity: re.Match[str]) -> str:
    words = entity[0]
    if words[1] != "#":
        return unescape(words)
    digits = words[2:].rstrip(";")
    code = int(digits[1:], 16) if digits[0] in "xX" else int(digits) if len(digits) < 10 else -1
    if 0x80 <= code <= 0x9F:
        return unescape(words)
    return chr(code) if 0 < code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else "\ufffd"


def _decoded_whole(entity: re.Match[str]) -> str:
    return _decoded(entity) if entity[0][1] == "#" else html5.get(entity[0][1:], entity[0])


def _escaped(words: str, *, quote: bool = False) -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return words.replace('"', "&quot;") if quote else words


def _kept_attribute(name: str, value: str) -> str | None:
    if name.startswith("on") or not _ATTRIBUTE_NAME.fullmatch(name) or (not value and name in _NEVER_EMPTY):
        return None
    if name in ("href", "src", "cite"):
        scheme = re.match(
            r"([a-zA-Z][a-zA-Z0-9.\-+]*):", re.sub(r"<!--.*?-->|[\x00-\x20]+", "", value[:1000])
        )
        return None if scheme and scheme[1].lower() not in _SCHEMES else value
    return _kept_style(value) if name == "style" else value


def _kept_style(style: str) -> str | None:
    if len(style) > _LONG_STYLE:
        return style
    parts = [part.strip() for part in re.sub(r"/\*.*?\*/", "", style).split(";") if part.strip()]
    if not parts or not all(":" in part for part in parts):
        return None
    pairs = [part.split(":", 1) for part in parts]
    return ";".join(f"{name.strip()}:{value.strip()}" for name, value in pairs)


def _is_video(source: str) -> bool:
    found = re.match(r"https://(?:[^/@]*@)?([^/:?#@]+)(?::443)?(?:[/?#]|$)", source.strip(), re.IGNORECASE)
    return found is not None and found[1].lower() in _VIDEO_HOSTS


def sanitized(html: str) -> str:
    """Rewrite HTML as Label Studio does before a browser parses it."""
    return _Sanitizer().run(html)


# ------------------------------------------------------------------ what a browser makes of it


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


class Run(NamedTuple):
    """Characters that follow each other in the text and in the document; `place` is -1 for layout alone."""

    at: int
    place: int
    length: int


class _Reader:
    """Walks a document and folds white space: one space between words, one break between blocks."""

    def __init__(self, *, images: bool) -> None:
        self.parts: list[str] = []
        self.runs: list[Run] = []
        self._images = images
        self._at = 0  # in the document
        self._length = 0  # of the text
        self._gap: tuple[str, int] | None = None

    def read(self, node: LexborNode) -> None:
        """Read a node and all below it, in order; without recursion, for HTML may be nested deeply."""
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
                    if self._images and tag == "img":
                        source = current.attributes.get("alt") or current.attributes.get("src") or ""
                        self._pause(" ")
                        self._write(f"[image: {source[:200]}]")
                        self._pause(" ")
                    if tag in _BREAKS:
                        self._pause("\n")
                    if tag in _BREAKS or tag in _CELLS:
                        pending.append((current, mode, True))
                children = []
                child = current.child
                while child is not None:
                    children.append((child, mode, False))
                    child = child.next
                pending.extend(reversed(children))

    def _read_text(self, text: str, mode: str) -> None:
        if mode == "as written":
            for found in _LINE.finditer(text):
                if found[0] == "\n":
                    self._pause("\n", self._at + found.start())
                else:
                    self._write(found[0], self._at + found.start())
        elif not mode:
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
            self.runs.append(Run(self._length, place, len(words)))
        self._length += len(words)


def read(html: str, *, inline: bool, images: bool) -> tuple[str, tuple[Run, ...]]:
    """Return the text that people read of some HTML, one line for each block, and where it stands.

    Args:
        html: The HTML.
        inline: Whether it becomes a part of the page rather than a document of its own.
        images: Whether images are named in the text.
    """
    reader = _Reader(images=images)
    node = _parsed(html, inline=inline)
    while node is not None:
        reader.read(node)
        node = node.next
    return "".join(reader.parts), tuple(reader.runs)
