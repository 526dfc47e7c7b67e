"""The attributes of a labelling config's tags, read as Label Studio's page reads them.

Knows how the page takes names, flags, numbers, and variables in a `value`. Does not know tags or tasks.

    names       lower-cased: `perregion` is `perRegion`; of two spellings the later one counts
    flags       true or false, nothing else: the page opens no config with another word
    numbers     what JavaScript makes of them, which depends on the attribute
    value       the words within the tag, where it holds nothing but words, else the attribute
    variables   `$` and ASCII letters, digits, `_ . [ ] { }`; other words stay as they are

Source:
    Label Studio 1.23.2, web/libs/editor/src: core/Tree.tsx, core/DataValidator, utils/data.js, and
    web/libs/core/src/lib/utils/lodash-replacements.ts
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any
from xml.etree.ElementTree import Element  # the type only; parsing is defusedxml's, in `labelling`

from draftloop.errors import SetupError

_VARIABLE = re.compile(r"\$[A-Za-z0-9_.\[\]{}]+")
# One variable whose name goes on where the page's pattern ends: `$customer-text`, `$a列`, `$第一列`.
_CUT_NAME = re.compile(r"\$(?:[A-Za-z0-9_.\[\]{}]++-(?=\w)|[A-Za-z0-9_.\[\]{}]*+(?=[^\W\x00-\x7f]))[^\s$]*")
_STEP = re.compile(r"""[^.\[\]]+|\[(?:(-?\d+(?:\.\d+)?)|(["'])(.*?)\2)\]|(?=(?:\.|\[\])(?:\.|\[\]|$))""")
_DEEP = re.compile(r"""\.|\[(?:[^\[\]]*|(["'])(?:(?!\1).)*?\1)\]""")
_DECIMAL = r"[+-]?(?:Infinity|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_NUMBER = re.compile(_DECIMAL, re.ASCII)
_BASED = re.compile(r"0(?:[xX][0-9a-fA-F]+|[oO][0-7]+|[bB][01]+)")
_INDEX = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_LONG = 250  # a number of so many hexadecimal digits is still none too large for a float
_DIGITS = 16  # no count has more; Python reads 4300 at most
# How the SDK spells attributes, whose case the page ignores; its validator checks bulk imports.
_SPELLINGS = {
    name.lower(): name
    for name in ("name", "toName", "value", "valueList", "alias", "choice", "min", "max", "maxRating", "step")
}


class _Undefined:
    """JavaScript's `undefined`."""

    def __str__(self) -> str:
        return "undefined"


_UNDEFINED = _Undefined()


class Attributes(Mapping[str, str]):
    """The attributes of one tag, by name in any case."""

    def __init__(self, tag: str = "", pairs: Mapping[str, str] | None = None) -> None:
        self.tag = tag
        self._by_name = {name.lower(): value for name, value in (pairs or {}).items()}
        self.is_sdk_readable = all(_SPELLINGS.get(name.lower(), name) == name for name in pairs or {})

    @classmethod
    def of(cls, element: Element) -> "Attributes":
        """Return the attributes of an element."""
        return cls(element.tag, element.attrib)

    def __getitem__(self, name: str) -> str:
        return self._by_name[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def value(self) -> str:
        """The text that the tag shows, or the variable with its text."""
        return self.get("value", "")

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a flag.

        Raises:
            SetupError: It is neither true nor false.
        """
        return self.one_of(name, ("true", "false"), "true" if default else "false") == "true"

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        """Return an attribute that has one of the allowed values.

        Raises:
            SetupError: It has another value.
        """
        value = self.get(name, default)
        if value not in allowed:
            raise self.refusal(name, f"Label Studio opens no such config; write {' or '.join(allowed)}.")
        return value

    def refusal(self, name: str, hint: str) -> SetupError:
        """Return the error to raise for an attribute's value."""
        where = f"{self.tag} '{self['name']}'" if self.get("name") else self.tag
        return SetupError(f'{where}: {name}="{self.get(name, "")}" cannot be used.', hint=hint)


def to_number(text: str) -> float:
    """Convert a text as JavaScript's `Number()` does: NaN where it is no number, 0 where it is empty."""
    text = text.strip()
    if _BASED.fullmatch(text):
        return float(int(text, 0)) if len(text) < _LONG else math.inf
    if not text:
        return 0.0
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def leading_number(text: str) -> float:
    """Convert the number that a text begins with, as `parseFloat()` does; NaN where there is none."""
    match = _NUMBER.match(text.strip())
    return float(match[0]) if match else math.nan


def leading_integer(text: str) -> int | None:
    """Convert the whole number that a text begins with, as `parseInt()` does; None where there is none."""
    text = text.strip()
    match = _BASED.match(text)
    if match and text[1] in "xX":
        return int(match[0], 16)
    match = _INTEGER.match(text)
    return int(match[0][:_DIGITS]) if match else None


def variables(words: str) -> list[str]:
    """List the keys of task data that a `value` shows, in order."""
    return list(dict.fromkeys(variable[1:] for variable in _VARIABLE.findall(words)))


def whole_variable(words: str) -> str:
    """Return the key of a `value` that is a single variable; else an empty text."""
    return words[1:] if _VARIABLE.fullmatch(words) else ""


def cut_name(words: str) -> bool:
    """Return whether a `value` looks like one variable of whose name the page reads only a part."""
    return _CUT_NAME.fullmatch(words) is not None and not whole_variable(words)


def look_up(data: Any, key: str) -> Any:
    """Return the task data under a key, also `a.b` and `a[0]`; None where there are none."""
    value = _get(data, key)
    return None if value is _UNDEFINED else value


def fill_in(words: str, data: Mapping[str, Any]) -> str:
    """Replace the variables of a `value` by task data.

    A missing key within other text is written "undefined", as in the page; by itself it is empty.
    """
    key = whole_variable(words)
    if key:
        value = look_up(data, key)
        return "" if value is None else as_text(value)
    return _VARIABLE.sub(lambda variable: as_text(_get(data, variable[0][1:])), words)


def as_text(value: Any) -> str:
    """Convert a value of task data to text as JavaScript's `String()` does."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join("" if part is None else as_text(part) for part in value)
    if isinstance(value, Mapping):
        return "[object Object]"
    return _number_text(value) if isinstance(value, float) else str(value)


def _number_text(value: float) -> str:
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    if 1e-7 < abs(value) < 1e-4:  # Python writes an exponent here, JavaScript does not
        return format(Decimal(repr(value)), "f")
    return re.sub(r"e([+-])0", r"e\1", json.dumps(value))


def _get(data: Any, key: str) -> Any:
    """Look up a key as lodash does: the literal key first, then step by step."""
    if isinstance(data, Mapping) and (key in data or not _DEEP.search(key)):
        return data.get(key, _UNDEFINED)
    steps = [step[1] or step[3] or step[0] for step in _STEP.finditer(key)]
    value: Any = data if steps else _UNDEFINED
    for step in ["", *steps] if key.startswith(".") else steps:
        if isinstance(value, Mapping):
            value = value.get(step, _UNDEFINED)
        elif isinstance(value, list | str) and step == "length":
            value = len(value)
        elif isinstance(value, list | str) and _INDEX.fullmatch(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            return _UNDEFINED
    return value
