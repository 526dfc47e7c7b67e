"""Near-duplicates: how similar two texts are, and whether an answer to one is right for the other.

Knows shingles, quotes and where two texts differ. Does not know how earlier answers are kept and looked up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from draftloop.errors import TaskError
from draftloop.labelling.controls import Json
from draftloop.labelling.labelling import Question, Value
from draftloop.labelling.spans import Labels
from draftloop.prompting.prompt import Case
from draftloop.support.text import shingles

# Characters. Three distinguish words of Chinese and English, and one changed name leaves two texts similar.
SHINGLE = 3
# Longer texts are not compared: the time of a comparison grows with the product of both lengths.
MAX_CHARS = 4000
# So many characters on either side of a quote must be unchanged. With one, a question would pass to which
# words were added after the blank that had ended it.
MARGIN = 3
# Put around each text, so that its beginning and its end must be unchanged too.
_START, _END = "\x02" * MARGIN, "\x03" * MARGIN


@dataclass(frozen=True)
class Neighbour:
    """An earlier question of the same version that is similar to a new one, and its answer.

    `similarity` is the share of shingles that both have, 0..1; `score` is that of the answer's draft.
    """

    question: str
    answer: str
    score: float
    similarity: float


def shingle_set(text: str) -> frozenset[str]:
    """Return the different runs of SHINGLE characters in a text, which is taken as it is, not folded.

    Width and case count here: an answer quotes its text.
    """
    return frozenset(shingles(text, SHINGLE))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of shingles that both texts have (Jaccard), 0..1."""
    return len(one & other) / len(one | other)


def reusable_value(case: Case, question: Question, neighbour: Neighbour) -> Value | None:
    """Return a neighbour's value where it is right for a new task; None where that is not certain.

    It is right where all of these are so: every part of it is a quote; every quote stands as often in the new
    text as in the old one, once at least with unchanged characters on either side; the rules pass; and, where
    a longer value would be possible, nothing but blanks and punctuation was added to the text.

    Args:
        case: The case of both.
        question: The new task.
        neighbour: The earlier one.
    Raises:
        TaskError: The task lacks a key that the config shows.
    """
    if max(len(question.text), len(neighbour.question)) > MAX_CHARS:
        return None
    try:
        value = case.labelling.decode(neighbour.answer)
    except TaskError:
        return None
    quotes = _quotes(case, value)
    if quotes is None or case.rules.check(value, question):
        return None
    old, new = f"{_START}{neighbour.question}{_END}", f"{_START}{question.text}{_END}"
    changes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    same = [(start, end) for what, _, _, start, end in changes if what == "equal"]
    for quote in quotes:
        if old.count(quote) != new.count(quote) or not any(
            start <= at - MARGIN and at + len(quote) + MARGIN <= end
            for at in _places(quote, new)
            for start, end in same
        ):
            return None
    added = "".join(new[start:end] for what, _, _, start, end in changes if what != "equal")
    if _leaves_out(case, value) and any(character.isalnum() for character in added):
        return None
    return value


def _quotes(case: Case, value: Value) -> list[str] | None:
    """List the texts that a value copies from its task; None where a part of it is no quote."""
    properties = case.labelling.validating_schema["properties"]
    quotes: list[str] = []
    for control in case.labelling.controls:
        part: Json = value.get(control.name)
        if part is None or part == []:
            continue
        if isinstance(control, Labels) and not control.per_region_controls:
            quotes += [entry["text"] for entry in part]
        elif isinstance(part, str) and properties[control.name].get("x-grounded") is True:
            quotes.append(part)
        else:
            return None
    return quotes


def _leaves_out(case: Case, value: Value) -> bool:
    """Return whether a longer value would be possible: a field is absent, or may hold several things."""
    return any(control.is_many or value.get(control.name) is None for control in case.labelling.controls)


def _places(quote: str, text: str) -> Iterator[int]:
    at = text.find(quote)
    while at >= 0:
        yield at
        at = text.find(quote, at + 1)
