"""Decoding schemas of the demo cases and the figures of merit. Standard library only; knows no model."""

import json
from collections.abc import Sequence
from typing import Any

from demo.corpus import Generated


def _string(limit: int, *, nullable: bool = True) -> dict[str, Any]:
    return {"type": ["string", "null"] if nullable else "string", "maxLength": limit}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_ENTITY = _object(
    {
        "text": {"type": "string", "minLength": 1, "maxLength": 60},
        "nth": {"type": "integer", "minimum": 0, "maximum": 99},
        "label": {"enum": ["PER", "LOC", "ORG"]},
    }
)

# Every key required, every string and array bounded; null means absent.
DECODING_SCHEMAS: dict[str, dict[str, Any]] = {
    "complaint": _object(
        {
            "name": _string(40),
            "address": _string(120),
            "email": _string(80),
            "question": _string(400, nullable=False),
        }
    ),
    "flight_booking": _object(
        {
            "intent": {"enum": ["book", "change", "cancel", "query"]},
            "departure_city": _string(40, nullable=False),
            "arrival_city": _string(40, nullable=False),
            "date": _optional({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}),
            "time": _optional({"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"}),
            "class": {"enum": ["economy", "premium_economy", "business", "first", None]},
            "passenger_count": _optional({"type": "integer", "minimum": 1, "maximum": 99}),
        }
    ),
    "named_entities": _object({"entities": {"type": "array", "maxItems": 12, "items": _ENTITY}}),
    "sentiment": _object({"sentiment": {"enum": ["positive", "negative", "neutral"]}}),
}

# Where strings are quotes from the text, as backend/draftloop/labelling/grammar.py wants it.
QUOTED: dict[str, tuple[tuple[str, ...], ...]] = {
    "complaint": (("name",), ("address",), ("email",), ("question",)),
    "flight_booking": (("departure_city",), ("arrival_city",)),
    "named_entities": (("entities", "*", "text"),),
    "sentiment": (),
}


def canonical(value: Any) -> str:
    """Write a value as training targets and the decoder do: compact, raw UTF-8, keys in order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def score(case: str, expected: Sequence[Generated], answers: Sequence[str]) -> dict[str, float]:
    """Compare answers with the labels.

    Args:
        case: Which case they belong to.
        expected: The labelled texts.
        answers: What the model wrote for each of them.
    Returns:
        Shares from 0 to 1: `valid` (parses, with the expected keys), and exact match per field with
        `fields` (their mean) and `all_fields`, or `precision`, `recall` and `f1` of the spans.
    """
    values: list[dict[str, Any]] = []
    valid = 0
    for label, answer in zip(expected, answers, strict=True):
        try:
            value = json.loads(answer)
        except ValueError:
            value = None
        good = isinstance(value, dict) and list(value) == list(label.value)
        valid += good
        values.append(value if good else {})
    total = max(1, len(expected))
    figures = {"count": float(len(expected)), "valid": valid / total}
    if case == "named_entities":
        got_count = expected_count = hits = 0
        for label, value in zip(expected, values, strict=True):
            wanted = {canonical(entity) for entity in label.value["entities"]}
            got = {canonical(entity) for entity in value.get("entities", [])}
            got_count, expected_count = got_count + len(got), expected_count + len(wanted)
            hits += len(got & wanted)
        precision, recall = hits / max(1, got_count), hits / max(1, expected_count)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        return figures | {"precision": precision, "recall": recall, "f1": f1}
    pairs = list(zip(expected, values, strict=True))
    for field in expected[0].value if expected else ():
        figures[field] = (
            sum(field in value and value[field] == label.value[field] for label, value in pairs) / total
        )
    fields = [figures[field] for field in expected[0].value] if expected else [0.0]
    figures["fields"] = sum(fields) / len(fields)
    figures["all_fields"] = sum(value == label.value for label, value in pairs) / total
    return figures
