"""Complaints of another kind than the embedded model knows: what its adapters are tried on.

Three texts in five are English. They are letters to somebody who is named, chats, forms and notes of
telephone calls, with dates and numbers that nobody asks for; and they have one field more, the number of
the order. `words/shifted_train` and `words/shifted_held_out` share no entry with each other, nor with any
list that the model was trained or measured with.

Their case is `orders`, in the folder of cases `CASES`: the one of `complaint` and a field more.
"""

import random
from pathlib import Path
from typing import Any

from demo.corpus.complaints import fill
from demo.corpus.words import LETTERS, Draw, Generated, Language, join, person_name

CASES = Path(__file__).with_name("cases")
CASE = "orders"
FIELDS = ("name", "address", "email", "question", "order_number")
FOLDERS = {False: "shifted_train", True: "shifted_held_out"}

_ENGLISH_SHARE = 0.6
_KEPT = 0.8  # of the optional parts of a template


def make(count: int, seed: int, *, held_out: bool) -> list[tuple[dict[str, str], dict[str, str | None]]]:
    """Make tasks with their answers, the same ones for the same arguments.

    Args:
        count: How many.
        seed: Start of the random sequence.
        held_out: Whether from the lists that measure an adapter, or from those that it may be trained with.
    Returns:
        The data of each task, and what its annotator would submit; an absent field is None.
    """
    draw = Draw(FOLDERS[held_out], random.Random(f"shifted/{held_out}/{seed}"))
    made = (draw_shifted(draw) for _ in range(count))
    return [({"text": one.text}, one.value) for one in made]


def draw_shifted(draw: Draw) -> Generated:
    """Draw one complaint.

    Args:
        draw: Randomness, and the word lists of one side.
    Returns:
        The text and its five fields; an absent one is None.
    """
    language: Language = "en" if draw.chance(_ENGLISH_SHARE) else "zh"
    _, template = draw.template(f"complaint_templates_{language}", keep=_KEPT)
    pieces, values = fill(draw, language, template)
    values["order_number"] = _order_number(draw)
    shown = {
        **values,
        "agent": _agent(draw, language),
        "date": draw.pick(f"dates_{language}"),
        "phone": f"{draw.between(100, 999)} {draw.between(100000, 999999)}",
    }
    there = {piece.slot for piece in pieces}
    value: dict[str, Any] = {field: values[field] if field in there else None for field in FIELDS}
    return Generated(join(pieces, shown).strip(), value, language)


def _agent(draw: Draw, language: Language) -> str:
    name, title = person_name(draw, language), draw.pick(f"titles_{language}")
    return f"{title} {name}" if language == "en" else name + title


def _order_number(draw: Draw) -> str:
    signs = {"9": "0123456789", "A": LETTERS.upper()}
    return "".join(draw.rng.choice(signs.get(sign, sign)) for sign in draw.pick("order_formats"))
