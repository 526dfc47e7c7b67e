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
from demo.corpus.words import Draw, Generated, Split

__all__ = ["CASES", "INSTRUCTIONS", "Case", "Generated", "Split", "generate"]

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


def generate(case: str, split: Split, count: int, seed: int) -> Iterator[Generated]:
    """Yield `count` labelled texts, the same ones for the same arguments.

    Args:
        case: One of `CASES`.
        split: Which word lists to draw from; `held_out` uses none of the training ones.
        count: How many to yield.
        seed: Start of the random sequence.
    Returns:
        Texts with their values, in a fixed order.
    Raises:
        KeyError: The case is unknown.
    """
    draw_one = _GENERATORS[case]
    draw = Draw(split, random.Random(f"{case}/{split}/{seed}"))
    for _ in range(count):
        yield draw_one(draw)
