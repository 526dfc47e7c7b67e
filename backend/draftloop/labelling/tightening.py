"""A control's own schema, tightened by the part of a case's schema.json about the same value.

Knows the few shapes that controls' schemas have. The result is what models read and what constrains them. The
overlay itself checks every value against the rest of schema.json (`not`, `if`, `contains`, ...).
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from jsonschema import Draft202012Validator

from draftloop.errors import SetupError
from draftloop.labelling.controls import MAX_NUMBER, MAX_PICKED, MAX_TEXTS, Schema
from draftloop.labelling.overlays import NAME, OWN, Overlay, Part
from draftloop.labelling.spans import MAX_NTH, MAX_QUOTES, MAX_RELATIONS

# Our default bounds, which no config states: schema.json replaces them, but only tightens other bounds.
_OUR_BOUNDS = {
    "maxItems": {MAX_TEXTS, MAX_QUOTES, MAX_RELATIONS, MAX_PICKED},
    "maximum": {MAX_NUMBER, MAX_NTH, MAX_QUOTES - 1},
    "minimum": {-MAX_NUMBER},
}
_MOST = {"minLength": 1_000_000, "minItems": 10_000}  # compiling a billion items would use all memory
_LOWEST = ("minLength", "minItems", "minimum")  # of two bounds the higher one counts
_HIGHEST = ("maxItems", "maximum")
_EXACT = 2**53  # larger integers are not exact in JavaScript
_OF_FIELDS = ("x-human", "x-run")
_NULL: Schema = {"type": "null"}
_DESCRIBING = {"description", "title", "$comment", *OWN}
_NUMBERS = ("integer", "number")

Path = tuple[str, ...]  # keys of the answer; "*" stands for every item of an array


class Contradiction(SetupError):
    """No value satisfies both a control and schema.json."""


def tightened(made: Schema, overlay: Overlay) -> Schema:
    """Return the schema of a whole value, as controls make it, tightened by schema.json field by field.

    Raises:
        SetupError: schema.json describes or requires a control that does not exist, leaves one without any
            value, or has a keyword that begins with x- where it is not read.
    """
    reader = _Reader(overlay)
    schema = reader.object(made, overlay.flat((overlay.root,)), ())
    for part in overlay.annotated:
        if id(part.schema) not in reader.read:
            key = next(key for key in OWN if key in part.schema)
            raise SetupError(
                f"{NAME} at {_named(part)}: nobody reads {key} there.",
                hint="Write it at the root, at a field, or at the items of a field.",
            )
    return schema


def tighten_value(made: Schema, overlay: Overlay, part: Part) -> Schema:
    """Return the schema of one value, tightened by a part of schema.json.

    Raises:
        SetupError: No value satisfies both.
    """
    return _Reader(overlay).value(made, (part,), ("",))


class _Reader:
    """Tightens the parts of a control's schema one after the other."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self.read: set[int] = set()  # ids of schemas whose annotations have been copied

    def value(self, made: Schema, parts: tuple[Part, ...], path: Path) -> Schema:
        """Tighten the schema of any value."""
        flat = self._overlay.flat(parts)
        for part in flat:
            if part.schema is False:
                raise _nothing(path, f"{_named(part)} allows nothing there")
        if "anyOf" in made:
            return self._alternatives(made, flat, path)
        _check_types(made, flat, path)
        kind = made["type"]
        stated = any({"enum", "const"} & part.schema.keys() for part in flat)
        if "enum" in made or (stated and kind in ("string", *_NUMBERS)):
            return self._options(made, flat, path)
        if kind == "object":
            return self.object(made, flat, path)
        schema = dict(made)
        if kind in _NUMBERS and any(_types(part) & {*_NUMBERS} == {"integer"} for part in flat):
            schema["type"] = "integer"
        for part in flat:
            _bound(schema, part.schema)
        if kind == "array":
            schema["items"] = self._items(made, schema["maxItems"], flat, path)
        for part in flat:
            self._annotate(schema, part, path)
        _check_bounds(schema, path)
        return schema if kind == "array" else self._branches(schema, flat, path)

    def _alternatives(self, made: Schema, flat: tuple[Part, ...], path: Path) -> Schema:
        """Tighten each of several alternatives; the value of a PerItem for one image may be null."""
        kept: list[Schema] = []
        refused: Contradiction | None = None
        for subschema in made["anyOf"]:
            try:
                kept.append(subschema if subschema == _NULL else self.value(subschema, flat, path))
            except Contradiction as error:
                refused = error
        if refused is not None and all(subschema == _NULL for subschema in kept):
            raise refused
        if not all(self._overlay.accepts(part, None) for part in flat):
            kept = [subschema for subschema in kept if subschema != _NULL]
        return kept[0] if len(kept) == 1 else {**made, "anyOf": kept}

    def object(self, made: Schema, flat: tuple[Part, ...], path: Path) -> Schema:
        """Tighten the schema of an object, key by key."""
        known = made["properties"]
        for part in flat:
            if part.schema is False:
                raise _nothing(path, f"{_named(part)} allows nothing")
            for keyword in ("properties", "required"):
                for name in part.schema.get(keyword, ()):
                    if name not in known:
                        raise _unknown(name, keyword, part, known, path)
        schema = dict(made)
        for part in flat:
            self._annotate(schema, part, path)
        schema["properties"] = {
            name: self.value(subschema, tuple(self._overlay.about(flat, name)), (*path, name))
            for name, subschema in known.items()
        }
        demanded = {*made["required"], *(name for part in flat for name in part.schema.get("required", ()))}
        schema["required"] = [name for name in known if name in demanded]
        return schema

    def _items(self, made: Schema, most: int, flat: tuple[Part, ...], path: Path) -> Schema:
        """Tighten the schema of an array's items."""
        if most == 0:
            raise _nothing(path, "maxItems is 0")
        items = tuple(
            self._overlay.below(part, "items", part.schema["items"])
            for part in flat
            if isinstance(part.schema.get("items"), Mapping | bool) and "prefixItems" not in part.schema
        )
        return self.value(made["items"], items, (*path, "*"))

    def _options(self, made: Schema, flat: tuple[Part, ...], path: Path) -> Schema:
        """Keep the options that schema.json accepts."""
        options = made.get("enum")
        if options is None:
            stated = next(part.schema for part in flat if {"enum", "const"} & part.schema.keys())
            own = Draft202012Validator(_without_our_bounds(made))
            options = [option for option in stated.get("enum", [stated.get("const")]) if own.is_valid(option)]
        binding = [part for part in flat if not part.schema.keys() <= _DESCRIBING]  # often empty
        kept = [option for option in options if all(self._overlay.accepts(part, option) for part in binding)]
        if not kept:
            raise _nothing(
                path, f"none of its options is allowed ({', '.join(map(str, options[:5])) or 'none'})"
            )
        schema = {key: made[key] for key in ("type", "enum", "description") if key in made} | {"enum": kept}
        for part in flat:
            self._annotate(schema, part, path)
        return schema

    def _branches(self, schema: Schema, flat: tuple[Part, ...], path: Path) -> Schema:
        """Restrict a value to the alternatives of the first `anyOf` or `oneOf`."""
        first = next(
            ((part, key) for part in flat for key in ("anyOf", "oneOf") if part.schema.get(key)), None
        )
        if first is None:
            return schema
        part, key = first
        plain = {
            key: subschema for key, subschema in schema.items() if key != "description" and key not in OWN
        }
        branches = []
        for number, subschema in enumerate(part.schema[key]):
            try:
                branch = self.value(plain, (self._overlay.below(part, f"{key}.{number}", subschema),), path)
            except Contradiction:
                continue
            if branch not in branches:
                branches.append(branch)
        if not branches:
            raise _nothing(path, f"none of the alternatives at {_named(part)}, {key}, is possible")
        rest = {key: subschema for key, subschema in schema.items() if key not in plain}
        return {**branches[0], **rest} if len(branches) == 1 else {"anyOf": branches, **rest}

    def _annotate(self, schema: Schema, part: Part, path: Path) -> None:
        """Copy the description, and the keywords that begin with x-."""
        if isinstance(part.schema.get("description"), str):
            schema["description"] = part.schema["description"]
        for key in OWN:
            if key not in part.schema:
                continue
            if key in _OF_FIELDS and len(path) != 1:
                raise SetupError(
                    f"{NAME} at {_named(part)}: {key} is of fields alone.",
                    hint=f"Write it at `properties.{path[0] if path else 'NAME'}`.",
                )
            if key == "x-validations":
                schema[key] = [*schema.get(key, []), *part.schema[key]]
            else:
                schema[key] = part.schema[key]
        self.read.add(id(part.schema))


def _check_bounds(schema: Schema, path: Path) -> None:
    for low, high in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum")):
        if low in schema and high in schema and schema[low] > schema[high]:
            raise _nothing(path, f"{low} is {schema[low]}, {high} is {schema[high]}")
        if schema.get(low, 0) > _MOST.get(low, math.inf):
            raise _nothing(path, f"{low} is {schema[low]}, more than any model writes")


def _bound(schema: Schema, overlay: Mapping[str, Any]) -> None:
    """Tighten bounds, patterns and formats of a text, a number or an array."""
    kind = schema["type"]
    for key in (*_LOWEST, *_HIGHEST, "maxLength"):
        if key not in schema or not _is_number(overlay.get(key)):
            continue
        bound = int(overlay[key]) if overlay[key] == int(overlay[key]) else overlay[key]
        if key == "maxLength" or schema[key] in _OUR_BOUNDS.get(key, ()):
            schema[key] = bound
        else:
            schema[key] = max(schema[key], bound) if key in _LOWEST else min(schema[key], bound)
    if kind in _NUMBERS:
        _bound_number(schema, overlay)
    if kind == "string":
        if "pattern" in overlay:
            if "pattern" in schema:
                schema["allOf"] = [*schema.get("allOf", []), {"pattern": overlay["pattern"]}]
            else:
                schema["pattern"] = overlay["pattern"]
        if "format" in overlay:
            schema["format"] = overlay["format"]


def _bound_number(schema: Schema, overlay: Mapping[str, Any]) -> None:
    for key, exclusive, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        bound = overlay.get(exclusive)
        if _is_number(bound):  # in draft 4 it is a flag, which only the overlay checks
            if schema["type"] == "integer":
                inclusive = math.floor(bound) + 1 if sign > 0 else math.ceil(bound) - 1
                _bound(schema, {key: inclusive})
            else:
                schema[exclusive] = bound
        if schema["type"] == "integer" and key in schema:
            rounded = math.ceil(schema[key]) if sign > 0 else math.floor(schema[key])
            schema[key] = max(-_EXACT, min(_EXACT, rounded))
    if "multipleOf" in overlay:
        schema.setdefault("multipleOf", overlay["multipleOf"])


def _check_types(made: Schema, flat: tuple[Part, ...], path: Path) -> None:
    kinds = {"integer", "number"} if made["type"] == "number" else {made["type"]}
    for part in flat:
        types = _types(part)
        if types and "number" in types:
            types |= {"integer"}
        if types and not types & kinds:
            raise _nothing(
                path,
                f"it is of type {made['type']}, and {_named(part)} asks for {'/'.join(sorted(types))}",
            )


def _types(part: Part) -> set[str]:
    types = part.schema.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def _without_our_bounds(made: Schema) -> Schema:
    return {
        key: part
        for key, part in made.items()
        if key != "maxLength" and not (key in _OUR_BOUNDS and part in _OUR_BOUNDS[key])
    }


def _is_number(bound: Any) -> TypeGuard[int | float]:
    return isinstance(bound, int | float) and not isinstance(bound, bool)


def _unknown(name: str, keyword: str, part: Part, known: Mapping[str, Any], path: Path) -> SetupError:
    verb = "describes" if keyword == "properties" else "requires"
    what = f"no key of '{'.'.join(path)}'" if path else "no control of the config"
    where = f" at {part.where}" if part.where else ""
    return SetupError(
        f"{NAME}{where} {verb} '{name}', which is {what} ({', '.join(known)}).",
        hint="Use the names of the controls.",
    )


def _named(part: Part) -> str:
    return part.where or "its root"


def _nothing(path: Path, why: str) -> Contradiction:
    what = f"no value of '{'.'.join(path)}'" if path else "no answer"
    return Contradiction(f"{NAME} leaves {what}: {why}.", hint="Correct it, or the labelling config.")
