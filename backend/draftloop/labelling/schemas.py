"""The two schemas of a labelling, and the canonical serialization of its values.

Knows JSON Schema, and which of its keywords the pinned structured-output backend enforces. Does not know XML
or regions.

Source:
    which keywords vLLM 0.32 enforces with guidance: measured; the others answer 400 or are ignored.
"""

import json
from collections.abc import Mapping
from typing import Any

from draftloop.errors import InvalidValue
from draftloop.labelling.controls import Control, Json, Schema
from draftloop.labelling.guidance import LeftOut, enforceable
from draftloop.labelling.overlays import OWN, read_overlay
from draftloop.labelling.tightening import tightened
from draftloop.support.strict_json import strict_json

Value = dict[str, Json]

# Enforced while decoding, and `description`, which models read. `format` only for what guidance knows.
_DECODABLE = (
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    *("enum", "const", "anyOf", "minLength", "maxLength", "pattern", "minimum", "maximum", "multipleOf"),
    *("exclusiveMinimum", "exclusiveMaximum", "description"),
)
# Those of which guidance lets all be written that jsonschema accepts; of `email` or `uri` it knows fewer.
_DECODABLE_FORMATS = ("date", "date-time", "duration", "ipv4", "ipv6", "time", "uuid")
# As far as the engine is told: it counts no characters beyond 10**9, and 10**5 items take it 0.6 s.
_MOST = {"maxLength": 1_000_000, "maxItems": 10_000}
# Keywords of schema.json that a tightened schema holds as they are.
_PLAIN = frozenset(
    {*_DECODABLE, *OWN, "format"} - {"anyOf", "const", "enum", "multipleOf", "additionalProperties"}
)
_EXACT = 2**53  # larger integers are others in the page, which is JavaScript


def serialized(value: Value, schema: Schema) -> str:
    """Serialize a value: compact, raw UTF-8, key order of the decoding schema, absent = null."""
    return json.dumps(_filled(value, schema), ensure_ascii=False, separators=(",", ":"))


def parsed(text: str) -> Value:
    """Read what a model wrote; keys that are null are absent.

    Raises:
        InvalidValue: Not JSON, not an object, the same key twice, or what no page can show: half a
            character, a number that JavaScript does not know, an endless nesting.
    """
    try:
        found = _present(strict_json(text, parse_int=_exact))
    except ValueError as error:
        raise InvalidValue(f"The answer is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InvalidValue("The answer is JSON but not an object.")
    return found


def compiled(controls: tuple[Control, ...]) -> Schema:
    """Make the validating schema of controls, as the config alone says it."""
    return {
        "type": "object",
        "properties": {control.name: control.schema() for control in controls},
        "required": [control.name for control in controls if control.required or control.is_many],
        "additionalProperties": False,
    }


def overlaid(made: Schema, overlay: Mapping[str, Any]) -> Schema:
    """Lay a case's schema.json over the schema that was made from its config.

    Returns:
        The tighter schema. What it cannot hold of schema.json stands in it as written, under `x-overlay`.
    Raises:
        SetupError: schema.json is wrong, or describes or demands what the config cannot hold.
    """
    if overlay == {}:
        return made
    checked = read_overlay(overlay)
    merged = tightened(made, checked)
    # What only humans fill is demanded by the page, if at all: a draft is right without it.
    human = human_fields(merged)
    merged["required"] = [name for name in merged["required"] if name not in human]
    return merged if _is_plain(overlay) else {**merged, "x-overlay": overlay}


def _is_plain(overlay: Any) -> bool:
    """Return whether a tightened schema holds everything that schema.json says."""
    if not isinstance(overlay, Mapping) or not overlay.keys() <= _PLAIN:
        return False
    inner = [*overlay.get("properties", {}).values(), *([overlay["items"]] if "items" in overlay else [])]
    return all(_is_plain(part) for part in inner)


def _decodable(schema: Any) -> Any:
    """Keep what the structured-output backend enforces; ask for every key, null where it may be absent."""
    if not isinstance(schema, Mapping):
        return schema
    kept: Schema = {}
    for key, part in schema.items():
        if key == "properties":
            demanded = schema.get("required", ())
            kept[key] = {
                name: _decodable(inner)
                if name in demanded
                else {"anyOf": [_decodable(inner), {"type": "null"}]}
                for name, inner in part.items()
            }
        elif key == "items":
            kept[key] = _decodable(part)
        elif key in ("anyOf", "allOf"):
            kept[key] = [_decodable(inner) for inner in part]
        elif key in _MOST:
            kept[key] = min(part, _MOST[key])
        elif key in _DECODABLE or (key == "format" and part in _DECODABLE_FORMATS):
            kept[key] = part
    if "properties" in kept:
        kept["required"] = list(kept["properties"])
    if "pattern" in kept:
        kept.pop("format", None)  # two patterns for one string: the case's own says more
    return kept


def shape(schema: Any) -> Any:
    """Keep of a schema what a codec counts on: types, keys and options, not lengths and ranges."""
    if not isinstance(schema, Mapping):
        return schema
    kept: Schema = {key: schema[key] for key in ("type", "required", "enum") if key in schema}
    if "properties" in schema:
        kept["properties"] = {name: shape(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        kept["items"] = shape(schema["items"])
    if "anyOf" in schema:
        kept["anyOf"] = [shape(inner) for inner in schema["anyOf"]]
    return kept


def _filled(value: Json, schema: Schema) -> Json:
    """Order the keys of objects as the schema lists them; a key that is absent is null, an array empty."""
    if "anyOf" in schema:
        schema = next((part for part in schema["anyOf"] if part.get("type") != "null"), {})
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        ordered = {key: _filled(value.get(key), part) for key, part in properties.items()}
        return ordered | {key: part for key, part in value.items() if key not in ordered}
    if isinstance(value, list):
        return [_filled(part, schema.get("items", {})) for part in value]
    return [] if value is None and schema.get("type") == "array" else value


def _present(value: Json) -> Json:
    """Leave out keys that are null; the places of an array stay."""
    if isinstance(value, dict):
        return {key: _present(part) for key, part in value.items() if part is not None}
    return [_present(part) for part in value] if isinstance(value, list) else value


def _exact(digits: str) -> int:
    number = int(digits)
    if abs(number) > _EXACT:
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def human_fields(validating: Schema) -> frozenset[str]:
    """Name the fields that only humans fill."""
    return frozenset(name for name, part in validating["properties"].items() if part.get("x-human") is True)


def decoding(validating: Schema, human: frozenset[str]) -> tuple[Schema, tuple[LeftOut, ...]]:
    """Return the decoding schema, what a model is asked for, and what of it the engine cannot enforce.

    Raises:
        SetupError: The engine refuses it.
    """
    fields = {name: part for name, part in validating["properties"].items() if name not in human}
    schema: Schema = _decodable({**validating, "properties": fields})
    return enforceable(schema)
