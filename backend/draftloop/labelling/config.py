"""A labelling config as XML: parsed safely, hashed, and normalized as Label Studio's page reads it.

Does not know what tags mean.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from xml.etree.ElementTree import Element, ParseError, canonicalize, tostring
from xml.sax.saxutils import escape

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from draftloop.errors import SetupError
from draftloop.labelling.attributes import Attributes
from draftloop.support.strict_json import DEEPEST


@lru_cache(maxsize=64)  # a hash takes 1 ms, and each call of /predict contains its project's config
def hash_config(xml: str) -> str:
    """Hash a config so that white space and attribute order do not matter; 16 hex digits.

    Raises:
        SetupError: Not XML.
    """
    _parsed(xml)  # the canonicalizer below is not hardened: check with the hardened parser first
    return hashlib.sha256(canonicalize(xml, strip_text=True).encode()).hexdigest()[:16]


def parse_config(xml: str, tags: Iterable[str]) -> Element:
    """Parse a config and normalize the names of its tags.

    Raises:
        SetupError: Not XML, or nested too deeply.
    """
    root = _parsed(xml)
    _normalize(root, {tag.lower(): tag for tag in tags})
    return root


def _parsed(xml: str) -> Element:
    try:
        root: Element = fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, UnicodeError) as error:
        raise SetupError(
            f"The labelling config is not XML that can be read safely: {error}.",
            hint="Check it in the project's Labeling Interface settings.",
        ) from error
    level, depth = [root], 0
    while level:
        level, depth = [below for element in level for below in element], depth + 1
        if depth > DEEPEST:
            raise SetupError(
                f"The labelling config is nested deeper than {DEEPEST} tags.",
                hint="Check it in the project's Labeling Interface settings.",
            )
    return root


def _normalize(element: Element, tags: Mapping[str, str]) -> None:
    """Normalize a config in place as the page reads it: names of tags, and content as the tag's `value`.

    The upper-case attributes `VALUE` and `NAME` mark a tag that the SDK reads differently; see `Attributes`.
    """
    tag = tags.get(element.tag.lower(), element.tag)
    if tag != element.tag:
        element.tag = tag
        if name := Attributes.of(element).get("name"):
            element.set("NAME", name)
    if tag == "HyperText" or not len(element):
        words = escape(element.text or "") + "".join(tostring(child, "unicode") for child in element)
        if words.strip():
            element.set("VALUE", words.strip())
        for child in list(element):
            element.remove(child)
        element.text = None
    for child in element:
        _normalize(child, tags)
