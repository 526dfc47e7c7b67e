"""Near-duplicates: how alike two texts are, and whether an answer to one holds for the other.

Knows shingles, quotes and where two texts differ. Does not know where earlier answers are kept, nor how
they are found.
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

# Characters: three tell words of either language apart and leave a text with one changed name alike.
SHINGLE = 3
# Longer texts are compared with nothing: the difference of two costs time with their product.
MAX_CHARS = 4000
# So many characters around a quote must be as they were: with one, a question that goes on after the blank
# that had ended it would pass.
MARGIN = 3
_START, _END = (
    "\x02" * MARGIN,
    "\x03" * MARGIN,
)  # stand for the ends of a text, which must be as they were, too


@dataclass(frozen=True)
class Neighbour:
    """An earlier question of the same version that is much like a new one, and its answer.

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
    """Give the share of shingles that both texts have (Jaccard), 0..1."""
    return len(one & other) / len(one | other)


def carried(case: Case, question: Question, neighbour: Neighbour) -> Value | None:
    """Give a neighbour's value where it holds for a new task; None where that cannot be told.

    It holds where everything in it is quoted, every quote stands in the new text where it stood in the old
    one, with unchanged characters on either side, and as often; the rules pass; and what is new in the
    text cannot fill what the value leaves out: then nothing but blanks and marks may have changed.

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
    found = _quotes(case, value)
    if found is None or case.rules.check(value, question):
        return None
    old, new = f"{_START}{neighbour.question}{_END}", f"{_START}{question.text}{_END}"
    changes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    same = [(start, end) for what, _, _, start, end in changes if what == "equal"]
    for quote in found:
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
    found: list[str] = []
    for control in case.labelling.controls:
        part: Json = value.get(control.name)
        if part is None or part == []:
            continue
        if isinstance(control, Labels) and not control.per_region_controls:
            found += [entry["text"] for entry in part]
        elif isinstance(part, str) and properties[control.name].get("x-grounded") is True:
            found.append(part)
        else:
            return None
    return found


def _leaves_out(case: Case, value: Value) -> bool:
    """Tell whether a longer value would be possible: a field is absent, or one may hold several things."""
    return any(control.is_many or value.get(control.name) is None for control in case.labelling.controls)


def _places(quote: str, text: str) -> Iterator[int]:
    at = text.find(quote)
    while at >= 0:
        yield at
        at = text.find(quote, at + 1)
