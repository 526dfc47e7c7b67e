"""Personal data in texts: where it stands, and the same text without it.

Knows e-mail addresses, telephone numbers, and numbers that check digits give away: Chinese identity
cards, payment cards, bank accounts (IBAN). Names and street addresses it does not know: no library that
runs without a model does, and the ones with a model are wrong too often to be trusted unseen.

Telephone numbers are Google's tables (`phonenumbers`), check digits are `python-stdnum`: both pure Python
and kept. The large libraries (Presidio) bring spaCy and a language model, 500 MB, for these same patterns.
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
_CARD = re.compile(r"[3-6]\d{12,18}")  # how payment cards begin: half of all long numbers pass luhn by chance


class PersonalDatum(NamedTuple):
    """Personal data in a text: its kind and where it stands, half-open, in code points."""

    kind: str
    start: int
    end: int


def find(text: str, region: str) -> list[PersonalDatum]:
    """List the personal data in a text, in order, without overlaps.

    Args:
        text: Any text.
        region: Country of telephone numbers without a country code, as two letters: CN, US.
    """
    found: list[PersonalDatum] = []
    for kind in KINDS:
        for start, end in kind.places(text, region):
            if not any(start < other.end and other.start < end for other in found):
                found.append(PersonalDatum(kind.name, start, end))
    return sorted(found, key=lambda one: one.start)


def described(texts: Iterable[str], region: str) -> str:
    """Count the personal data in texts in words, without quoting it; empty where there is none."""
    # One look at all of them: nothing that is found goes on over the end of a line.
    kinds = Counter(found.kind for found in find("\n".join(texts), region))
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


class Mask:
    """Puts stand-ins for the personal data of some texts, the same one everywhere for the same data.

    A stand-in has the shape of what it hides, so that lengths, patterns and grounding go on to hold:
    `person1@example.com`, and zeros with a number at the end for digits.
    """

    def __init__(self, part: Any, region: str) -> None:
        """Learn what to hide.

        Args:
            part: JSON with all the texts.
            region: As in `find`.
        """
        self._stand_ins: dict[str, str] = {}
        for text in strings(part):
            for found in find(text, region):
                hidden = text[found.start : found.end]
                if hidden not in self._stand_ins:
                    self._stand_ins[hidden] = _stand_in(found.kind, hidden, len(self._stand_ins) + 1)
        longest_first = sorted(self._stand_ins, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, part: Any) -> Any:
        """Give the same JSON with stand-ins; keys stay as they are."""
        if isinstance(part, str):
            return self._pattern.sub(lambda found: self._stand_ins[found[0]], part)
        if isinstance(part, dict):
            return {key: self(inner) for key, inner in part.items()}
        return [self(inner) for inner in part] if isinstance(part, list) else part


def strings(part: Any) -> Iterator[str]:
    """List the strings of a JSON value, keys left out."""
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
    return (found.span() for found in _EMAIL.finditer(text))


def ids(text: str, _: str) -> Iterator[tuple[int, int]]:
    """Find Chinese identity cards, payment cards and bank accounts whose check digits are right."""
    for found in _NUMBER.finditer(text):
        number = _GAPS.sub("", found[0])
        if ric.is_valid(number) or (_CARD.fullmatch(number) and luhn.is_valid(number)):
            yield found.span()
    for found in _IBAN.finditer(text):
        if iban.is_valid(found[0]):
            yield found.span()


def phones(text: str, region: str) -> Iterator[tuple[int, int]]:
    """Find telephone numbers that can exist."""
    abroad = "+" in text or "＋" in text  # both begin a number
    if not _enough_digits(region, abroad=abroad).search(text):  # looking takes most of a sample's time
        return
    for found in PhoneNumberMatcher(text, region):
        yield found.start, found.end


@cache
def _enough_digits(region: str, *, abroad: bool) -> re.Pattern[str]:
    """Give what every telephone number holds: enough digits, with no more between two than may be.

    Args:
        region: As in `find`.
        abroad: Whether the number may begin with a + and its country code.
    """
    least = _SHORTEST_PHONE if abroad else _SHORTEST_PHONE + 1  # + or the shortest way to dial it, a 0
    about = PhoneMetadata.metadata_for_region(region)
    kinds = (
        [] if about is None else [part for part in vars(about).values() if isinstance(part, PhoneNumberDesc)]
    )
    least = min([least, *(length for kind in kinds for length in kind.possible_length if length > 0)])
    return re.compile(rf"\d(?:[\Wxー]{{0,4}}\d){{{least - 1}}}", re.IGNORECASE)


def _stand_in(kind: str, hidden: str, number: int) -> str:
    if kind == "email":
        return f"person{number}@example.com"
    digits = [index for index, character in enumerate(hidden) if character.isdigit()]
    shape = ["0" if character.isdigit() else character for character in hidden]
    for index, digit in zip(reversed(digits), reversed(str(number)), strict=False):
        shape[index] = digit
    return "".join(shape)


class PersonalDataKind(NamedTuple):
    """A kind of personal data and how it is found."""

    name: str
    places: Callable[[str, str], Iterator[tuple[int, int]]]


# In this order: an identity card is no telephone number, though a part of it may look like one.
KINDS: tuple[PersonalDataKind, ...] = (
    PersonalDataKind("email", emails),
    PersonalDataKind("id", ids),
    PersonalDataKind("phone", phones),
)
