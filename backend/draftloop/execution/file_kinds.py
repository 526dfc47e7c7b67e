"""What a file of untrusted code may be shown as, from its name and its first bytes.

A name alone proves nothing: a kind is returned only where the first bytes agree, and every other file is a
download. Does not know pages, headers or where files are kept.
"""

import codecs
import re
import zlib
from collections.abc import Iterator
from typing import Literal
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

Kind = Literal["png", "jpeg", "svg", "pdf", "html", "scripted", "csv", "json", "text", "other"]

PICTURES: tuple[Kind, ...] = ("png", "jpeg", "svg")
MEDIA_TYPES: dict[Kind, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "svg": "image/svg+xml",
    "pdf": "application/pdf",
    "html": "text/html",
    "scripted": "text/html",
    "csv": "text/csv",
    "json": "application/json",
    "text": "text/plain",
    "other": "application/octet-stream",
}
_BY_ENDING: dict[str, Kind] = {
    **dict.fromkeys(["png"], "png"),
    **dict.fromkeys(["jpg", "jpeg"], "jpeg"),
    **dict.fromkeys(["svg"], "svg"),
    **dict.fromkeys(["pdf"], "pdf"),
    **dict.fromkeys(["html", "htm"], "html"),
    **dict.fromkeys(["csv"], "csv"),
    **dict.fromkeys(["json"], "json"),
    **dict.fromkeys("txt log md tsv jsonl xml yaml yml toml ini py js sh sql".split(), "text"),
}
# Bytes that are read; a larger picture or page is a download.
_SOME = 64 << 10
_WANTED: dict[Kind, int] = {"png": 16 << 20, "jpeg": 16 << 20, "svg": 4 << 20, "html": 16 << 20, "other": 0}
_PIXELS = 50_000_000

# HTML that is shown without a click holds only these elements: none of them opens a connection, not even one
# that the policy refuses later, as a frame does. What follows a "<" in comments and texts counts too.
_TAG = re.compile(rb"<([a-z][^\t\n\f\r />]*)", re.IGNORECASE)
_PLAIN_TAGS = frozenset(
    b"html head body title style meta div span p br hr wbr h1 h2 h3 h4 h5 h6 header footer main section "
    b"article nav aside figure figcaption table caption colgroup col thead tbody tfoot tr th td ul ol li dl "
    b"dt dd b i u s em strong small sub sup mark code pre kbd samp var blockquote q cite abbr del ins time "
    b"details summary a img svg g defs path rect circle line polyline polygon ellipse text tspan use symbol "
    b"marker pattern clippath mask lineargradient radialgradient stop".split()
)
_ACTIVE = re.compile(
    rb"[\s\"'/]on[a-z]+\s*=|javascript:|\bping\s*="
    rb"|href(?!\s*=\s*[\"']?#)"  # leads elsewhere
    rb"|http-equiv(?!\s*=\s*[\"']?(?:content-type|x-ua-compatible)\b)",
    re.IGNORECASE,
)
_XHTML = "{http://www.w3.org/1999/xhtml}"
_SVG = "{http://www.w3.org/2000/svg}svg"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG, by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def named_kind(name: str) -> Kind:
    """Return the kind that a name promises."""
    base, dot, ending = name.rpartition("/")[2].rpartition(".")
    return _BY_ENDING.get(ending.lower(), "other") if base and dot else "other"


def wanted_bytes(name: str) -> int:
    """Return how many of a file's first bytes `kind_of` looks at; 0 is none."""
    return _WANTED.get(named_kind(name), _SOME)


def kind_of(name: str, head: bytes, size_bytes: int) -> Kind:
    """Return what a file may be shown as.

    Args:
        name: Its name, or its path.
        head: Its first `wanted_bytes(name)` bytes, or all of it where it is shorter.
        size_bytes: Size of the whole file.
    Returns:
        What its name promises, where its bytes keep it; "scripted" for HTML that brings script; else
        "other", which is only a download. A picture or HTML that is cut off is "other". HTML that is not
        UTF-8, or may do more than show text, tables and drawings, is "scripted".
    """
    kind = named_kind(name)
    whole = len(head) >= size_bytes
    if kind in ("png", "jpeg", "svg", "html"):
        if not whole or not head:
            return "other"
        if kind == "html":
            return "other" if b"\0" in head else "html" if _is_plain(head) else "scripted"
        keeps = {"png": _is_png, "jpeg": _is_jpeg, "svg": _is_svg}[kind](head)
        return kind if keeps else "other"
    if kind == "pdf":
        return kind if head.startswith(b"%PDF-") else "other"
    return kind if kind == "other" or charset_of(head) else "other"


def charset_of(head: bytes) -> str | None:
    """Return the encoding of a text among the usual ones: UTF-8, else GB 18030, else None.

    Args:
        head: The first bytes of the text, which may end within a character.
    """
    if b"\0" in head:
        return None
    for charset in ("utf-8", "gb18030"):
        try:
            codecs.getincrementaldecoder(charset)().decode(head, final=False)
        except UnicodeDecodeError:
            continue
        return charset
    return None


def _is_png(content: bytes) -> bool:
    """Check whether a PNG decodes: checksums, header, and as many pixels as it says."""
    chunks = list(_chunks(content)) if content.startswith(b"\x89PNG\r\n\x1a\n") else []
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or chunks[-1] != (b"IEND", b""):
        return False
    header = chunks[0][1]
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    depth, colour, interlaced = header[8], header[9], header[12]
    if depth not in _DEPTHS.get(colour, ()) or header[10:12] != b"\0\0" or interlaced > 1:
        return False
    if not 0 < width * height <= _PIXELS or (colour == 3 and not any(kind == b"PLTE" for kind, _ in chunks)):
        return False
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for x, y, across, down in passes:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + -(-columns * bits // 8))
    return _inflated(b"".join(part for kind, part in chunks if kind == b"IDAT"), wanted) >= wanted


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a PNG's chunks up to its end, or to the first damaged one."""
    at = 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        named, end = content[at + 4 : at + 8 + length], at + 12 + length
        if end > len(content) or zlib.crc32(named) != int.from_bytes(content[end - 4 : end]):
            return
        yield named[:4], named[4:]
        if named == b"IEND":
            return
        at = end


def _inflated(packed: bytes, at_most: int) -> int:
    """Count the bytes that come out, without holding them."""
    inflater = zlib.decompressobj()
    count = 0
    try:
        for at in range(0, len(packed), _SOME):
            part = packed[at : at + _SOME]
            while part and count < at_most:
                count += len(inflater.decompress(part, 1 << 20))
                part = inflater.unconsumed_tail
    except zlib.error:
        return -1
    return count


def _is_jpeg(content: bytes) -> bool:
    """Check whether a JPEG has its frame, its pixels' beginning and its end; pixels are not decoded."""
    at = 2
    framed = False
    while content.startswith(b"\xff\xd8\xff") and at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[at + n : at + n + 2]) for n in (5, 7))
            framed = 0 < width * height <= _PIXELS
        if marker == 0xDA:
            return framed and b"\xff\xd9" in content[at:]
        at += 2 + length
    return False


def _is_svg(content: bytes) -> bool:
    """Check that this is an SVG without elements of HTML: a frame in it would open a connection."""
    try:
        root = fromstring(content, forbid_entities=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return False
    tags = (str(element.tag) for element in root.iter())
    return root.tag == _SVG and not any(tag.startswith(_XHTML) for tag in tags)


def _is_plain(content: bytes) -> bool:
    if charset_of(content) != "utf-8" or _ACTIVE.search(content):
        return False
    return all(tag[1].lower() in _PLAIN_TAGS for tag in _TAG.finditer(content))
