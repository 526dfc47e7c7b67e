"""Detection and masking of personal data in texts.

Detects e-mail addresses, telephone numbers, and numbers with check digits: Chinese identity cards, payment
cards, bank accounts (IBAN). Does not detect names and street addresses: no library without a language model
does, and those with one are wrong too often to be used unreviewed.

Telephone numbers use Google's tables (`phonenumbers`), check digits use `python-stdnum`: both are pure Python
and maintained. Larger libraries (Presidio) need spaCy and a language model, 500 MB, for the same patterns.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from phonenumbers import PhoneMetadata, PhoneNumberDesc, PhoneNumberMatcher
from stdnum import iban, luhn
from stdnum.cn import ric

_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_NUMBER = re.compile(r"(?<![\dA-Za-z])\d(?:[ -]?\d){13,17}(?:[ -]?[\dXx])(?![\dA-Za-z])")
_IBAN = re.compile(r"(?<![\dA-Za-z])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![\dA-Za-z])")
_GAPS = re.compile(r"[ -]")
_SHORTEST_PHONE = 6  # digits of a number with its country code: +43 and four more
_CARD = re.compile(r"[3-6]\d{12,18}")  # the prefixes of payment cards: any number may pass luhn by chance


class PersonalDatum(NamedTuple):
    """Personal data in a text: its kind and its span, half-open, in code points."""

    kind: str
    start: int
    end: int


def find(text: str, region: str) -> list[PersonalDatum]:
    """List the personal data in a text, in order, without overlaps.

    Args:
        text: Any text.
        region: Country of telephone numbers without a country code, as two letters: CN, US.
    """
    data: list[PersonalDatum] = []
    for kind in KINDS:
        for start, end in kind.places(text, region):
            if not any(start < other.end and other.start < end for other in data):
                data.append(PersonalDatum(kind.name, start, end))
    return sorted(data, key=lambda one: one.start)


def described(texts: Iterable[str], region: str) -> str:
    """Describe the personal data in texts by kind and count, without quoting it; empty if there is none."""
    # Joined for speed: no personal data spans the end of a line.
    kinds = Counter(datum.kind for datum in find("\n".join(texts), region))
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


class Mask:
    """Replaces the personal data of some texts by stand-ins, equal data by equal stand-ins.

    A stand-in has the shape of what it replaces, so that patterns and grounding still hold:
    `person1@example.com` for addresses; for numbers, zeros with a counter at the end.
    """

    def __init__(self, part: Any, region: str) -> None:
        """Detect what to mask.

        Args:
            part: JSON with all the texts.
            region: As in `find`.
        """
        self._stand_ins: dict[str, str] = {}
        for text in strings(part):
            for datum in find(text, region):
                hidden = text[datum.start : datum.end]
                if hidden not in self._stand_ins:
                    self._stand_ins[hidden] = _stand_in(datum.kind, hidden, len(self._stand_ins) + 1)
        longest_first = sorted(self._stand_ins, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, part: Any) -> Any:
        """Return the same JSON with stand-ins; keys stay as they are."""
        if isinstance(part, str):
            return self._pattern.sub(lambda match: self._stand_ins[match[0]], part)
        if isinstance(part, dict):
            return {key: self(inner) for key, inner in part.items()}
        return [self(inner) for inner in part] if isinstance(part, list) else part


def strings(part: Any) -> Iterator[str]:
    """Yield the strings of a JSON value, without keys."""
    pending = [part]  # without recursion: task data may be nested deeply
    while pending:
        current = pending.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, dict):
            pending.extend(reversed(current.values()))
        elif isinstance(current, list):
            pending.extend(reversed(current))


def emails(text: str, _: str) -> Iterator[tuple[int, int]]:
    """Find e-mail addresses."""
    return (match.span() for match in _EMAIL.finditer(text))


def ids(text: str, _: str) -> Iterator[tuple[int, int]]:
    """Find Chinese identity cards, payment cards and bank accounts whose check digits are right."""
    for match in _NUMBER.finditer(text):
        number = _GAPS.sub("", match[0])
        if ric.is_valid(number) or (_CARD.fullmatch(number) and luhn.is_valid(number)):
            yield match.span()
    for match in _IBAN.finditer(text):
        if iban.is_valid(match[0]):
            yield match.span()


def phones(text: str, region: str) -> Iterator[tuple[int, int]]:
    """Find valid telephone numbers."""
    abroad = "+" in text or "＋" in text  # both begin a number
    if not _enough_digits(region, abroad=abroad).search(text):  # the matcher takes most of a sample's time
        return
    for match in PhoneNumberMatcher(text, region):
        yield match.start, match.end


@cache
def _enough_digits(region: str, *, abroad: bool) -> re.Pattern[str]:
    """Return a pattern that every telephone number matches: the fewest digits, with the usual separators.

    Args:
        region: As in `find`.
        abroad: Whether the number may begin with a + and its country code.
    """
    fewest = _SHORTEST_PHONE if abroad else _SHORTEST_PHONE + 1  # without a +, a 0 is dialled first
    about = PhoneMetadata.metadata_for_region(region)
    kinds = (
        [] if about is None else [part for part in vars(about).values() if isinstance(part, PhoneNumberDesc)]
    )
    fewest = min([fewest, *(length for kind in kinds for length in kind.possible_length if length > 0)])
    return re.compile(rf"\d(?:[\Wxー]{{0,4}}\d){{{fewest - 1}}}", re.IGNORECASE)


def _stand_in(kind: str, hidden: str, number: int) -> str:
    if kind == "email":
        return f"person{number}@example.com"
    digits = [index for index, character in enumerate(hidden) if character.isdigit()]
    shape = ["0" if character.isdigit() else character for character in hidden]
    for index, digit in zip(reversed(digits), reversed(str(number)), strict=False):
        shape[index] = digit
    return "".join(shape)


class PersonalDataKind(NamedTuple):
    """A kind of personal data and how it is detected."""

    name: str
    places: Callable[[str, str], Iterator[tuple[int, int]]]


# Ids come first: a part of an identity card's number may look like a telephone number.
KINDS: tuple[PersonalDataKind, ...] = (
    PersonalDataKind("email", emails),
    PersonalDataKind("id", ids),
    PersonalDataKind("phone", phones),
)
