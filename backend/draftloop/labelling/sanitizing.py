"""HTML rewritten as Label Studio's page rewrites it before a browser parses it.

The page calls sanitize-html, which removes scripts, frames and comments, decodes and escapes entities, and
treats fewer elements as raw text than a browser does. Does not know what a browser makes of the result.

Source:
    Label Studio 1.23.2: utils/html.js; its sanitize-html with htmlparser2 8. This module was compared with
    them on random documents.
"""

import re
from collections import Counter
from collections.abc import Mapping
from html import unescape
from html.entities import html5
from typing import NamedTuple

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
# Attributes that sanitize-html drops when they are empty.
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
    """An open element of the output: its tag, the index of its first part, its `src`."""

    tag: str
    at: int
    source: str


class _Sanitizer:
    """Rewrites HTML as sanitize-html does with Label Studio's options."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self._frames: list[_Frame] = []
        self._open: list[str] = []  # the open elements as htmlparser2 counts them
        self._count: Counter[str] = Counter()  # how often each tag is in `_open`
        self._foreign: list[bool] = []

    def run(self, html: str) -> str:
        """Rewrite a document."""
        at, start = 0, 0
        while True:
            bracket = html.find("<", at)
            if bracket < 0:
                break
            follower = html[bracket + 1 : bracket + 2]
            if name := _TAG_NAME.match(html, bracket + 1):
                self._text(html[start:bracket])
                at = start = self._start_tag(html, name[0], name.end())
            elif follower in {"!", "?"}:
                self._text(html[start:bracket])
                at = start = self._markup(html, bracket + 2, is_declaration=follower == "!")
            elif follower == "/" and (name := _END_NAME.match(html, bracket + 2)):
                self._text(html[start:bracket])
                at = start = self._end_tag(html, name)
            elif follower == "/" and (rest := _BOGUS_END.match(html, bracket + 2)):
                self._text(html[start:bracket])
                if html.find(">", bracket) < 0:
                    self._text(html[rest.end() - 1 :], decode=False)
                at = start = _after_tag(html, bracket)
            else:
                at = bracket + 1  # "<" and "</>" are text
        self._text(html[start:])
        for tag in reversed(self._open):
            self._close(tag)
        return "".join(self.written)

    def _markup(self, html: str, at: int, *, is_declaration: bool) -> int:
        ends = {"--": "-->", "[CDATA[": "]]>"} if is_declaration else {}
        for begin, end in ends.items():
            if html.startswith(begin, at):
                close = html.find(end, at if begin == "--" else at + len(begin))
                return len(html) if close < 0 else close + len(end)
        if html.find(">", at) < 0:
            self._text(html[at:], decode=False)
        return _after_tag(html, at)

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
        while match := _ATTRIBUTE.match(html, at):
            at = match.end()
            if match["open"] or (match["name"] is None and not match[0].strip("\t\n\f\r ")):
                break
            if match["end"]:
                return self._finish_start_tag(html, tag, attributes, match)
            if match["name"]:
                value = match["double"] or match["single"] or match["bare"] or ""
                attributes.setdefault(match["name"].lower(), _ATTRIBUTE_ENTITY.sub(_decoded_whole, value))
            elif _BLANK_END.match(html, at):
                self._text(html[-1], decode=False)  # the document ends within "<br /"
        return len(html)

    def _finish_start_tag(
        self, html: str, tag: str, attributes: Mapping[str, str], end: re.Match[str]
    ) -> int:
        has_slash = end["end"][0] == "/"
        is_closed = has_slash and bool(self._foreign) and self._foreign[-1]
        self._write_tag(tag, attributes)
        if is_closed and self._open and self._open[-1] == tag:
            self._close(self._pop())
        if tag in _RAW_TEXT and not has_slash:
            return self._raw_text(html, tag, end.end())
        return end.end()

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
        return _after_tag(html, at)

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


def _after_tag(html: str, at: int) -> int:
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
    match = re.match(r"https://(?:[^/@]*@)?([^/:?#@]+)(?::443)?(?:[/?#]|$)", source.strip(), re.IGNORECASE)
    return match is not None and match[1].lower() in _VIDEO_HOSTS


def sanitized(html: str) -> str:
    """Rewrite HTML as Label Studio does before a browser parses it."""
    return _Sanitizer().run(html)
