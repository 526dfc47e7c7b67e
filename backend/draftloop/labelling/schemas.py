"""The two schemas of a labelling, and the canonical serialization of its values.

Knows JSON Schema, and which of its keywords the pinned structured-output backend enforces. Does not know XML
or regions.

Source:
    the keywords that vLLM 0.32 enforces with guidance: measured; it answers 400 to others, or ignores them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from draftloop.errors import InvalidValue
from draftloop.labelling.controls import Control, Json, Schema
from draftloop.labelling.guidance import UnenforcedKeyword, enforceable
from draftloop.labelling.overlays import OWN, read_overlay
from draftloop.labelling.tightening import tightened
from draftloop.support.strict_json import strict_json

Value = dict[str, Json]


@dataclass(frozen=True)
class Schemas:
    """The schemas of a labelling.

    validating   everything about a value whose missing keys are absent
    decoding     what the pinned structured-output backend enforces, about a value in which every key is
                 present and a missing one is `null`
    unenforced   keywords that the decoding schema lacks; they are checked after the model has answered
    human        the fields that only humans fill
    overlay      the case's schema.json
    """

    validating: Schema
    decoding: Schema
    unenforced: tuple[UnenforcedKeyword, ...] = ()
    human: frozenset[str] = frozenset()
    overlay: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, controls: tuple[Control, ...], overlay: Mapping[str, Any]) -> "Schemas":
        """Make the schemas of controls, tightened by a case's schema.json.

        Raises:
            SetupError: schema.json is wrong or does not fit the controls, or the engine rejects the schema.
        """
        validating = overlaid(compiled(controls), overlay)
        human = human_fields(validating)
        schema, unenforced = decoding(validating, human)
        return cls(validating, schema, unenforced, human, overlay)


# Enforced while decoding; and `description`, which models read. `format` has a list of its own.
_DECODABLE = (
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    *("enum", "const", "anyOf", "minLength", "maxLength", "pattern", "minimum", "maximum", "multipleOf"),
    *("exclusiveMinimum", "exclusiveMaximum", "description"),
)
# Formats of which guidance accepts every text that jsonschema accepts; of `email` or `uri` it accepts fewer.
_DECODABLE_FORMATS = ("date", "date-time", "duration", "ipv4", "ipv6", "time", "uuid")
# Bounds in the decoding schema: the engine counts at most 10**9 characters, and 10**5 items take it 0.6 s.
_MOST = {"maxLength": 1_000_000, "maxItems": 10_000}
# Keywords of schema.json that a tightened schema contains unchanged.
_PLAIN = frozenset(
    {*_DECODABLE, *OWN, "format"} - {"anyOf", "const", "enum", "multipleOf", "additionalProperties"}
)
_EXACT = 2**53  # larger integers are not exact in JavaScript


def serialized(value: Value, schema: Schema) -> str:
    """Serialize a value: compact, raw UTF-8, key order of the decoding schema, absent = null."""
    return json.dumps(_filled(value, schema), ensure_ascii=False, separators=(",", ":"))


def parsed(text: str) -> Value:
    """Parse what a model wrote; keys that are null become absent.

    Raises:
        InvalidValue: Not JSON, not an object, a repeated key, or something that no page can show: a lone
            surrogate, a number that JavaScript does not represent exactly, a nesting without end.
    """
    try:
        value = _present(strict_json(text, parse_int=_exact))
    except ValueError as error:
        raise InvalidValue(f"The answer is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidValue("The answer is JSON but not an object.")
    return value


def compiled(controls: tuple[Control, ...]) -> Schema:
    """Return the validating schema of controls, from the config alone."""
    return {
        "type": "object",
        "properties": {control.name: control.schema() for control in controls},
        "required": [control.name for control in controls if control.required or control.is_many],
        "additionalProperties": False,
    }


def overlaid(made: Schema, overlay: Mapping[str, Any]) -> Schema:
    """Tighten the schema made from a config by the case's schema.json.

    Returns:
        The tighter schema. Where it cannot express all of schema.json, it contains it under `x-overlay`.
    Raises:
        SetupError: schema.json is wrong, or describes or requires a value that the config does not allow.
    """
    if overlay == {}:
        return made
    checked = read_overlay(overlay)
    merged = tightened(made, checked)
    # A draft is complete without the fields that only humans fill; the page may require them.
    human = human_fields(merged)
    merged["required"] = [name for name in merged["required"] if name not in human]
    return merged if _is_plain(overlay) else {**merged, "x-overlay": overlay}


def _is_plain(overlay: Any) -> bool:
    """Return whether a tightened schema expresses all of schema.json."""
    if not isinstance(overlay, Mapping) or not overlay.keys() <= _PLAIN:
        return False
    subschemas = [
        *overlay.get("properties", {}).values(),
        *([overlay["items"]] if "items" in overlay else []),
    ]
    return all(_is_plain(part) for part in subschemas)


def _decodable(schema: Any) -> Any:
    """Keep what the structured-output backend enforces; require every key, null where it may be absent."""
    if not isinstance(schema, Mapping):
        return schema
    kept: Schema = {}
    for key, part in schema.items():
        if key == "properties":
            required = schema.get("required", ())
            kept[key] = {
                name: _decodable(subschema)
                if name in required
                else {"anyOf": [_decodable(subschema), {"type": "null"}]}
                for name, subschema in part.items()
            }
        elif key == "items":
            kept[key] = _decodable(part)
        elif key in ("anyOf", "allOf"):
            kept[key] = [_decodable(subschema) for subschema in part]
        elif key in _MOST:
            kept[key] = min(part, _MOST[key])
        elif key in _DECODABLE or (key == "format" and part in _DECODABLE_FORMATS):
            kept[key] = part
    if "properties" in kept:
        kept["required"] = list(kept["properties"])
    if "pattern" in kept:
        kept.pop("format", None)  # two patterns for one string: the case's own is tighter
    return kept


def shape(schema: Any) -> Any:
    """Keep what codecs rely on: types, keys and options, not lengths and ranges."""
    if not isinstance(schema, Mapping):
        return schema
    kept: Schema = {key: schema[key] for key in ("type", "required", "enum") if key in schema}
    if "properties" in schema:
        kept["properties"] = {name: shape(subschema) for name, subschema in schema["properties"].items()}
    if "items" in schema:
        kept["items"] = shape(schema["items"])
    if "anyOf" in schema:
        kept["anyOf"] = [shape(subschema) for subschema in schema["anyOf"]]
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
    """Drop keys that are null; the items of an array stay."""
    if isinstance(value, dict):
        return {key: _present(part) for key, part in value.items() if part is not None}
    return [_present(part) for part in value] if isinstance(value, list) else value


def _exact(digits: str) -> int:
    number = int(digits)
    if abs(number) > _EXACT:
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def human_fields(validating: Schema) -> frozenset[str]:
    """Return the fields that only humans fill."""
    return frozenset(name for name, part in validating["properties"].items() if part.get("x-human") is True)


def decoding(validating: Schema, human: frozenset[str]) -> tuple[Schema, tuple[UnenforcedKeyword, ...]]:
    """Return the decoding schema, and the keywords that the engine cannot enforce.

    Raises:
        SetupError: The engine rejects it.
    """
    fields = {name: part for name, part in validating["properties"].items() if name not in human}
    schema: Schema = _decodable({**validating, "properties": fields})
    return enforceable(schema)
