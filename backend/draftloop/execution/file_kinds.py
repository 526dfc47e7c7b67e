"""What a file of untrusted code may be shown as, from its name and its first bytes.

A name alone proves nothing, because untrusted code chose it: a file has a kind only where its bytes agree,
and everything else is a download. Does not know pages, headers, where files are kept or how a picture is
decoded (`pictures`).
"""

import codecs
import re
from collections.abc import Callable
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
# Bytes that are looked at; a picture or page that is larger is a download.
_SOME = 64 << 10
_WANTED: dict[Kind, int] = {"png": 16 << 20, "jpeg": 16 << 20, "svg": 4 << 20, "html": 16 << 20, "other": 0}

# HTML that is shown without a click holds these elements alone: none of them opens a connection, not even one
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
_SIGNATURES: dict[Kind, bytes] = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}


def named_kind(name: str) -> Kind:
    """Return the kind that a name claims."""
    base, dot, ending = name.rpartition("/")[2].rpartition(".")
    return _BY_ENDING.get(ending.lower(), "other") if base and dot else "other"


def wanted_bytes(name: str) -> int:
    """Return how many of a file's first bytes `kind_of` reads; 0 is none."""
    return _WANTED.get(named_kind(name), _SOME)


def kind_of(name: str, head: bytes, size_bytes: int, is_readable: Callable[[Kind, bytes], bool]) -> Kind:
    """Return what a file may be shown as.

    Args:
        name: Its name, or its path.
        head: Its first `wanted_bytes(name)` bytes, or all of it where it is shorter.
        size_bytes: Size of the whole file.
        is_readable: Checks whether a PNG or JPEG decodes; called where the file begins as one.
    Returns:
        What its name claims, where its bytes agree; "scripted" for HTML that brings script; else
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
        if kind == "svg":
            return kind if _is_svg(head) else "other"
        return kind if head.startswith(_SIGNATURES[kind]) and is_readable(kind, head) else "other"
    if kind == "pdf":
        return kind if head.startswith(b"%PDF-") else "other"
    return kind if kind == "other" or charset_of(head) else "other"


def charset_of(head: bytes) -> str | None:
    """Return the encoding of a text: UTF-8, else GB 18030, else None.

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
    return all(match[1].lower() in _PLAIN_TAGS for match in _TAG.finditer(content))
