"""Generate labelled texts for the four demo cases; pure standard library, no I/O beyond its word lists.

`words/train` and `words/held_out` share no entry; `words/shared` holds what is closed by nature (provinces,
separators, rare characters). The train split is far more varied than the held-out one, on purpose: random
characters as names, random labels and separators, mutated clauses. `words/shifted_*` belong to `shifted`,
complaints of another kind.
"""

import random
from collections.abc import Callable, Iterator
from typing import Literal

from demo.corpus import complaints, entities, flights, sentiment
from demo.corpus.lexicon import Lexicon, LexiconError, load_lexicon
from demo.corpus.words import Draw, Generated, Split

__all__ = [
    "CASES",
    "INSTRUCTIONS",
    "Case",
    "Generated",
    "Lexicon",
    "LexiconError",
    "Split",
    "generate",
    "load_lexicon",
]

Case = Literal["complaint", "flight_booking", "named_entities", "sentiment"]

_GENERATORS: dict[str, Callable[[Draw], Generated]] = {
    "complaint": complaints.draw_complaint,
    "flight_booking": flights.draw_flight,
    "named_entities": entities.draw_entities,
    "sentiment": sentiment.draw_sentiment,
}

CASES: tuple[str, ...] = tuple(_GENERATORS)

INSTRUCTIONS: dict[str, str] = {
    "complaint": "Extract the complaint as JSON: name, address, email, question.",
    "flight_booking": (
        "Extract the flight booking as JSON: intent, departure_city, arrival_city, date, time, class, "
        "passenger_count."
    ),
    "named_entities": "Extract the named entities as JSON: entities with text, nth, label (PER, LOC, ORG).",
    "sentiment": "Classify the sentiment as JSON: sentiment (positive, negative, neutral).",
}


def generate(
    case: str,
    split: Split,
    count: int,
    seed: int,
    *,
    lexicon: Lexicon | None = None,
    spare: bool = False,
) -> Iterator[Generated]:
    """Yield `count` labelled texts, the same ones for the same arguments.

    Args:
        case: One of `CASES`.
        split: Which word lists to draw from; `held_out` uses none of the training ones, `validation` a tenth
            of the training templates and names.
        count: How many to yield.
        seed: Start of the random sequence.
        lexicon: More names and words for `train` and `validation`; without one, texts have the lists' alone.
        spare: Of `train`: leave out what `validation` is drawn from, as a model must that it measures.
    Returns:
        Texts with their values, in a fixed order.
    Raises:
        KeyError: The case is unknown.
    """
    draw_one = _GENERATORS[case]
    if split == "held_out":
        lexicon = None
    elif lexicon and (spare or split == "validation"):
        lexicon = lexicon.for_validation if split == "validation" else lexicon.for_training
    draw = Draw(split, random.Random(f"{case}/{split}/{seed}"), lexicon, spare=spare and split == "train")
    for _ in range(count):
        yield draw_one(draw)
