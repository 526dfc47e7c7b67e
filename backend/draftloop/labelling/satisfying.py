"""Check at set-up that a case can have a valid answer, by a search for one.

Knows the schemas and what the engine can write. A failed search does not prove that there is no valid answer;
the author of schema.json must then state one (`examples`), so that no project is set up in which every draft
fails.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from jsonschema import Draft202012Validator

from draftloop.errors import InvalidValue, SetupError
from draftloop.labelling.controls import Json, Schema
from draftloop.labelling.matching import matches
from draftloop.labelling.overlays import NAME, Overlay, Part
from draftloop.labelling.schemas import Value, parsed, serialized
from draftloop.labelling.tightening import tighten_value

_WORDS = ("a", "Ab", "1", "a b", "foo", "abc@example.com", "2026-01-31", "10:30", "Text 1.", "-", "é")
_FORMATS = {
    "date": ("2026-01-31",),
    "date-time": ("2026-01-31T10:30:00Z",),
    "time": ("10:30:00Z",),
    "duration": ("P1D", "PT1H"),
    "email": ("a@example.com",),
    "idn-email": ("a@example.com",),
    "hostname": ("example.com",),
    "idn-hostname": ("example.com",),
    "ipv4": ("192.0.2.1",),
    "ipv6": ("2001:db8::1",),
    "uri": ("https://example.com/a",),
    "uri-reference": ("https://example.com/a", "/a"),
    "uri-template": ("https://example.com/{a}",),
    "json-pointer": ("/a",),
    "relative-json-pointer": ("0/a",),
    "regex": ("a+",),
    "uuid": ("3f2504e0-4f89-41d3-9a0c-0305e82c3301",),
}
_MOST_OF_A_FIELD = 16
_MOST_VALUES = 400
_WALKS = 200  # texts for one pattern, 20 us each
_LONGEST = 20_000  # characters or items; models are not asked for longer ones


def check_satisfiable(validating: Schema, decoding: Schema, overlay: Overlay, human: frozenset[str]) -> None:
    """Check that each field can have a value, and that an answer satisfies both schemas.

    Raises:
        SetupError: The search failed.
    """
    flat = overlay.flat((overlay.root,))
    somewhere = tuple(_in_place(overlay, flat))
    examples = [each for part in somewhere for each in _literals(part.schema) if isinstance(each, dict)]
    fields: dict[str, list[Json]] = {}
    for name, schema in validating["properties"].items():
        parts = tuple(overlay.about(flat, name))
        own = Draft202012Validator(schema, format_checker=overlay.formats)
        given = [example[name] for example in examples if name in example]
        hints = tuple(overlay.about(somewhere, name))
        fitting = (
            value
            for value in _distinct([*given, *_candidates(schema, overlay, hints)])
            if _is_written(value)
            and own.is_valid(value)
            and all(overlay.accepts(part, value) for part in parts)
        )
        fields[name] = list(islice(fitting, _MOST_OF_A_FIELD))
        if not any(value != [] for value in fields[name]):
            raise SetupError(
                f"{NAME}: no value was found that '{name}' may have.",
                hint='State one at the field, "examples": [...], or correct what is demanded of it.',
            )
    drafted = {name: values for name, values in fields.items() if name not in human}
    reason = ""
    for value in islice((*examples, *_values(drafted, validating["required"])), _MOST_VALUES):
        if not human & value.keys():
            why_refused = _why_refused(value, validating, decoding, overlay)
            if not why_refused:
                return
            reason = reason or why_refused
    raise SetupError(
        f"{NAME}: no answer was found that passes it: {reason[:200]}.",
        hint='State one at the root, "examples": [{...}], or correct what is demanded.',
    )


def _is_written(value: Json) -> bool:
    """Return whether an answer may contain a value; for example, some numbers are not exact in JavaScript."""
    try:
        parsed(json.dumps({"value": value}))
    except InvalidValue:
        return False
    return True


def _why_refused(value: Json, validating: Schema, decoding: Schema, overlay: Overlay) -> str:
    try:
        text = serialized(value, decoding)
        if not Draft202012Validator(decoding).is_valid(json.loads(text)):
            return f"no model may write {text[:80]}"
        answer = parsed(text)
    except (InvalidValue, AttributeError) as wrong:
        return str(wrong)
    own = Draft202012Validator(validating, format_checker=overlay.formats)
    return next((error.message for error in chain(own.iter_errors(answer), overlay.errors(answer))), "")


def _values(fields: Mapping[str, list[Json]], required: list[str]) -> Iterator[Value]:
    """Yield combinations of values: required fields only, all fields, one more or one less, then mixtures."""
    for at in range(_MOST_OF_A_FIELD):
        every = {name: values[at % len(values)] for name, values in fields.items()}
        least = {name: value for name, value in every.items() if name in required}
        yield least
        yield every
        if at < 3:
            for name, value in every.items():
                yield least | {name: value}
                yield {other: part for other, part in every.items() if other != name or other in required}
    for mixture in range(_MOST_VALUES):
        yield {
            name: values[(mixture * 31 + at * 17 + mixture * at) % len(values)]
            for at, (name, values) in enumerate(fields.items())
            if name in required or (mixture >> (at % 8)) & 1
        }


def _candidates(schema: Schema, overlay: Overlay, parts: tuple[Part, ...]) -> Iterator[Json]:
    """Yield values that a schema may accept: those that it lists, and some made from its bounds."""
    here = list(_in_place(overlay, parts))
    for part in here:
        yield from _literals(part.schema)
    variants = [schema]
    for part in here:
        try:
            variants.append(tighten_value(schema, overlay, part))
        except SetupError:
            continue  # an alternative that the control does not allow
    for variant in _distinct(variants):
        if variant.get("type") == "array":
            yield from _arrays(variant, overlay, here)
        elif variant.get("type") == "object":
            yield from _objects(variant, overlay, here)
        else:
            yield from _scalars(variant)


def _arrays(schema: Schema, overlay: Overlay, here: list[Part]) -> Iterator[Json]:
    yield []
    subschemas = [
        overlay.below(part, key, part.schema[key])
        for part in here
        for key in ("items", "contains")
        if isinstance(part.schema.get(key), Mapping)
    ]
    subschemas += [
        overlay.below(part, f"prefixItems.{at}", each)
        for part in here
        for at, each in enumerate(part.schema.get("prefixItems", ()))
    ]
    items = list(
        islice(_distinct(_candidates(schema["items"], overlay, tuple(subschemas))), _MOST_OF_A_FIELD)
    )
    own = Draft202012Validator(schema["items"], format_checker=overlay.formats)
    items = [item for item in items if own.is_valid(item)]
    for item in items:
        yield [item]
    for count in {min(_LONGEST, max(1, schema["minItems"])), 2, 3, min(schema["maxItems"], len(items))}:
        for at in range(min(len(items), 6)):
            yield [*items[at:], *items[:at]][:count]
            yield [items[at]] * count


def _objects(schema: Schema, overlay: Overlay, here: list[Part]) -> Iterator[Json]:
    flat = tuple(part for part in here if isinstance(part.schema, Mapping))
    keys: dict[str, list[Json]] = {}
    for name, subschema in schema["properties"].items():
        candidates = _distinct(_candidates(subschema, overlay, tuple(overlay.about(flat, name))))
        own = Draft202012Validator(subschema, format_checker=overlay.formats)
        keys[name] = [value for value in islice(candidates, _MOST_OF_A_FIELD) if own.is_valid(value)]
    if all(keys.values()):
        yield from islice(_values(keys, schema["required"]), 2 * _MOST_OF_A_FIELD)


def _scalars(schema: Schema) -> Iterator[Json]:
    if "anyOf" in schema:
        for subschema in schema["anyOf"]:
            yield from _scalars(subschema)
    elif "enum" in schema:
        yield from schema["enum"]
    elif schema.get("type") == "string":
        yield from _texts(schema)
    elif schema.get("type") in ("integer", "number"):
        yield from _numbers(schema)


def _texts(schema: Schema) -> Iterator[str]:
    least, most = schema.get("minLength", 1), schema["maxLength"]
    if least > _LONGEST:
        return
    yield from _FORMATS.get(schema.get("format", ""), ())
    for part in (schema, *schema.get("allOf", ())):
        if "pattern" in part:
            yield from matches(part["pattern"], _WALKS)
    for word in _WORDS:
        yield (word * (least // len(word) + 1))[: max(least, min(most, len(word)))]
    yield "ab" * (min(most, 4 * least + 20) // 2)


def _numbers(schema: Schema) -> Iterator[Json]:
    low, high = schema["minimum"], schema["maximum"]
    low, high = max(low, schema.get("exclusiveMinimum", low)), min(high, schema.get("exclusiveMaximum", high))
    step = schema.get("multipleOf", 1)
    for start in (0, low, high):
        quotient = start / step
        multiple = math.ceil(quotient) * step if math.isfinite(quotient) else start
        for value in (start, multiple, multiple + step, multiple - step, start + step / 2, (low + high) / 2):
            if low <= value <= high:
                yield int(value) if value == int(value) else value


def _in_place(overlay: Overlay, parts: tuple[Part, ...]) -> Iterator[Part]:
    """Yield the schemas that apply to the same value, alternatives and conditions included."""
    seen: set[int] = set()
    left = list(parts)
    while left:
        for part in overlay.flat((left.pop(0),)):
            if isinstance(part.schema, bool) or id(part.schema) in seen:
                continue
            seen.add(id(part.schema))
            yield part
            for key in ("anyOf", "oneOf"):
                for at, subschema in enumerate(part.schema.get(key, ())):
                    left.append(overlay.below(part, f"{key}.{at}", subschema))
            for key in ("if", "then", "else", "not"):
                if key in part.schema:
                    left.append(overlay.below(part, key, part.schema[key]))  # noqa: PERF401  of many lists


def _literals(schema: Any) -> Iterator[Json]:
    if isinstance(schema, Mapping):
        for key in ("examples", "enum"):
            if isinstance(schema.get(key), list):
                yield from schema[key]
        yield from (schema[key] for key in ("const", "default") if key in schema)


def _distinct(values: Iterable[Json]) -> Iterator[Json]:
    seen = set()
    for value in values:
        text = json.dumps(value, sort_keys=True)
        if text not in seen:
            seen.add(text)
            yield value
