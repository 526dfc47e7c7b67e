"""The two schemas of a labelling, and the canonical serialization of its values.

Knows JSON Schema, and which of its keywords the pinned structured-output backend enforces. Does not know XML
or regions.

Source:
    which keywords vLLM 0.32 enforces with guidance: measured; the others answer 400 or are ignored.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from backend.core.controls import Control, Json, Schema
from backend.errors import InvalidValue, SetupError

Value = dict[str, Json]

# The deepest of Label Studio's own templates has 8 levels; a value has few more than its schema.
DEEPEST = 100
# Enforced while decoding, and `description`, which models read. `format` only for what guidance knows.
_DECODABLE = (
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    *("enum", "const", "anyOf", "minLength", "maxLength", "pattern", "minimum", "maximum", "multipleOf"),
    "description",
)
_DECODABLE_FORMATS = ("date", "uuid")
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
        value = json.loads(
            text,
            object_pairs_hook=_no_doubles,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_exact,
        )
        found = _present(value)
        # An escape may hold half a character, which no page shows and no file takes.
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidValue("The answer holds half a character (a lone surrogate).") from error
    except (ValueError, RecursionError) as error:
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

    Raises:
        SetupError: It describes a control that is not there.
    """
    unknown = sorted(set(overlay.get("properties", {})) - set(made["properties"]))
    if unknown:
        raise SetupError(
            f"schema.json describes '{unknown[0]}', which is no control of the config "
            f"({', '.join(made['properties'])}).",
            hint="Use the names of the controls.",
        )
    merged: Schema = _merge(made, {key: part for key, part in overlay.items() if not key.startswith("$")})
    # What only humans fill is demanded by the page, if at all: a draft is right without it.
    required = {*made["required"], *overlay.get("required", [])} - human_fields(overlay)
    merged["required"] = [name for name in made["properties"] if name in required]
    return merged


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        return {
            **below,
            **{key: _merge(below[key], part) if key in below else part for key, part in above.items()},
        }
    return above


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
        elif key == "anyOf":
            kept[key] = [_decodable(inner) for inner in part]
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


def _present(value: Json, depth: int = 0) -> Json:
    """Leave out keys that are null; the places of an array stay."""
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        return {key: _present(part, depth + 1) for key, part in value.items() if part is not None}
    return [_present(part, depth + 1) for part in value] if isinstance(value, list) else value


def _no_doubles(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _exact(digits: str) -> int:
    number = int(digits)
    if abs(number) > _EXACT:
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def human_fields(overlay: Mapping[str, Any]) -> frozenset[str]:
    """Name the fields that only humans fill."""
    fields = overlay.get("properties", {}).items()
    return frozenset(
        name for name, part in fields if isinstance(part, Mapping) and part.get("x-human") is True
    )


def decoding(validating: Schema, human: frozenset[str]) -> Schema:
    """Give the decoding schema: what a model is asked for."""
    fields = {name: part for name, part in validating["properties"].items() if name not in human}
    found: Schema = _decodable({**validating, "properties": fields})
    return found
