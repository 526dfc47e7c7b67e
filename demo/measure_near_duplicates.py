"""Measure how often NEAR_DUPLICATES=reuse would give a wrong answer, on generated near-duplicates.

Texts with known right values are drawn, kept as earlier answers, and changed in one place each; a change
that alters a value alters the right value too. For each changed text the store is asked for a neighbour. A
false reuse is a reused value that differs from the right one. It measures the store
and the decision to reuse, without a model or a server.

    demo/measure_near_duplicates
    demo/measure_near_duplicates --count 2000 --seed 5
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from demo.corpus import generate
from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import Meter, out
from draftloop.drafting.duplicates import reusable_value
from draftloop.drafting.neighbours import SqliteNeighbours
from draftloop.labelling.labelling import Task
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT

cli = app()
Value = dict[str, Any]


@dataclass(frozen=True)
class Changed:
    """A text that was changed in one place, and its right value."""

    text: str
    value: Value


Change = Callable[[str, Value, Value, random.Random], Changed | None]


def _swapped(text: str, value: Value, key: str, new: str | None) -> Changed | None:
    """Replace the text of a field's value by another one."""
    old = value.get(key)
    if not old or not new or old == new or text.count(old) != 1:
        return None
    return Changed(text.replace(old, new), {**value, key: new})


def _other(key: str) -> Change:
    return lambda text, value, other, _: _swapped(text, value, key, other.get(key))


def _digit(text: str, value: Value, _: Value, draw: random.Random) -> Changed | None:
    address = value.get("address") or ""
    places = [at for at, character in enumerate(address) if character.isdigit()]
    if not places:
        return None
    at = draw.choice(places)
    digit = draw.choice([digit for digit in "123456789" if digit != address[at]])
    return _swapped(text, value, "address", address[:at] + digit + address[at + 1 :])


def _longer(key: str) -> Change:
    def change(text: str, value: Value, other: Value, _: random.Random) -> Changed | None:
        return _swapped(text, value, key, f"{value.get(key)} {other[key]}") if value.get(key) else None

    return change


def _email_added(text: str, value: Value, other: Value, _: random.Random) -> Changed | None:
    if value.get("email") or not other.get("email"):
        return None
    return Changed(f"{other['email']}, {text}", {**value, "email": other["email"]})


def _entity(text: str, value: Value, other: Value, draw: random.Random) -> Changed | None:
    if not value["entities"] or not other["entities"]:
        return None
    at = draw.randrange(len(value["entities"]))
    old = value["entities"][at]
    new = next((entry for entry in other["entities"] if entry["label"] == old["label"]), None)
    if new is None or text.count(old["text"]) != 1 or new["text"] in text or old["text"] in new["text"]:
        return None
    changed = [*value["entities"]]
    changed[at] = {**old, "text": new["text"]}
    return Changed(text.replace(old["text"], new["text"]), {**value, "entities": changed})


def _entity_added(text: str, value: Value, other: Value, _: random.Random) -> Changed | None:
    if not other["entities"] or other["entities"][0]["text"] in text:
        return None
    new = {**other["entities"][0], "nth": 0}
    return Changed(f"{new['text']}: {text}", {**value, "entities": [new, *value["entities"]]})


def _number_before(text: str, value: Value, _: Value, draw: random.Random) -> Changed | None:
    return Changed(f"#{draw.randrange(10_000, 99_999)} {text}", value)


def _blank_before(text: str, value: Value, _: Value, draw: random.Random) -> Changed | None:
    return Changed(draw.choice((" ", "\n", "-- ", "**")) + text, value)


CHANGES: dict[str, dict[str, Change]] = {
    "complaint": {
        "another name": _other("name"),
        "another address": _other("address"),
        "one digit of the address": _digit,
        "another question": _other("question"),
        "a longer question": _longer("question"),
        "an e-mail address added": _email_added,
        "a ticket number before it": _number_before,
        "blanks and marks before it": _blank_before,
    },
    "named_entities": {
        "another entity": _entity,
        "an entity added": _entity_added,
        "a ticket number before it": _number_before,
        "blanks and marks before it": _blank_before,
    },
    "flight_booking": {
        "another departure city": _other("departure_city"),
        "another date": _other("date"),
        "blanks and marks before it": _blank_before,
    },
}


def measure(case_name: str, count: int, seed: int, folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Count pairs, neighbours and the decisions of two ways to decide, for each kind of change.

    Args:
        case_name: A case that texts are drawn for.
        count: Texts to draw.
        seed: Start of the random sequence.
        folder: Where the store is made.
    Returns:
        Kind of change, counts.
    """
    case = Cases(ROOT / "label_config").get(case_name)
    rows = [
        (row.text, {key: part for key, part in row.value.items() if part is not None})
        for row in generate(case_name, "held_out", count, seed)
    ]
    store = SqliteNeighbours(f"sqlite:///{folder}/{case_name}.sqlite3", max_rows=count, reuse=True)
    for text, value in rows:
        store.put("v", text, case.labelling.encode(value), 1.0)
    known = {text for text, _ in rows}
    for kind, change in CHANGES[case_name].items():
        counts, draw = Counter[str](), random.Random(f"{seed}/{kind}")  # noqa: S311  no secret
        for text, value in rows:
            changed = change(text, value, draw.choice(rows)[1], draw)
            if changed is None or changed.text in known:
                continue
            counts["pairs"] += 1
            neighbour = store.find("v", changed.text)
            if neighbour is None:
                continue
            counts["found"] += 1
            task, right = Task(1, {"text": changed.text}), case.labelling.encode(changed.value)
            if not case.rules.check(case.labelling.decode(neighbour.answer), task):
                counts["by rules"] += 1
                counts["by rules, false"] += neighbour.answer != right
            if reusable_value(case, case.labelling.read(task), neighbour) is not None:
                counts["reused"] += 1
                counts["reused, false"] += neighbour.answer != right
        yield kind, counts


@cli.command(cls=Verb, help=__doc__)
def main(
    count: Annotated[int, typer.Option(min=10, help="Texts to draw for each case.")] = 1000,
    seed: Annotated[int, typer.Option(help="Start of the random sequence.")] = 1,
) -> None:
    """Run the verb."""
    columns = ("pairs", "found", "by rules", "by rules, false", "reused", "reused, false")
    rows = [f"| case | change | {' | '.join(columns)} |", f"| --- | --- |{' --- |' * len(columns)}"]
    total = Counter[str]()
    with (
        tempfile.TemporaryDirectory() as folder,
        Meter("measuring", sum(map(len, CHANGES.values()))) as meter,
    ):
        for case in CHANGES:
            for kind, counts in measure(case, count, seed, Path(folder)):
                rows.append(f"| {case} | {kind} | {' | '.join(str(counts[name]) for name in columns)} |")
                total += counts
                meter.advance()
    rows.append(f"| all | | {' | '.join(str(total[name]) for name in columns)} |")
    for row in rows:
        out.print(row)
    for way in ("by rules", "reused"):
        share = total[f"{way}, false"] / total[way] if total[way] else 0.0
        out.print(f"{way}: {total[way]} of {total['pairs']}, {share:.2%} of them false")


if __name__ == "__main__":
    cli()
