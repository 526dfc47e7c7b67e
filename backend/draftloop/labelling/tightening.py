"""A control's own schema, tightened by what a case's schema.json says about the same value.

Knows the few shapes that controls' schemas have. What schema.json says beyond them (`not`, `if`, `contains`,
...) is left to the overlay itself, which checks every value: this here is what a model is told and bound to.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from jsonschema import Draft202012Validator

from draftloop.errors import SetupError
from draftloop.labelling.controls import MAX_NUMBER, MAX_PICKED, MAX_TEXTS, Schema
from draftloop.labelling.overlays import NAME, OWN, Overlay, Part
from draftloop.labelling.spans import MAX_NTH, MAX_QUOTES, MAX_RELATIONS

# Bounds that no config states, only we: those of schema.json take their place, while others only tighten.
_OUR_BOUNDS = {
    "maxItems": {MAX_TEXTS, MAX_QUOTES, MAX_RELATIONS, MAX_PICKED},
    "maximum": {MAX_NUMBER, MAX_NTH, MAX_QUOTES - 1},
    "minimum": {-MAX_NUMBER},
}
_MOST = {"minLength": 1_000_000, "minItems": 10_000}  # a billion items would take all memory to compile
_LOWEST = ("minLength", "minItems", "minimum")  # of two of them the higher one holds
_HIGHEST = ("maxItems", "maximum")
_EXACT = 2**53  # larger integers are others in the page, which is JavaScript
_OF_FIELDS = ("x-human", "x-run")
_NULL: Schema = {"type": "null"}
_DESCRIBING = {"description", "title", "$comment", *OWN}
_NUMBERS = ("integer", "number")

Path = tuple[str, ...]  # of keys of the answer; "*" stands for every item of an array


class Contradiction(SetupError):
    """No value is both what a control takes and what schema.json asks for."""


def tightened(made: Schema, overlay: Overlay) -> Schema:
    """Return the schema of a whole value, as controls make it, with what schema.json adds to each field.

    Raises:
        SetupError: It describes or demands a control that is not there, leaves one without any value, or
            has a keyword of ours at a place where nobody reads it.
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
    """Return the schema of one value with what a part of schema.json adds to it.

    Raises:
        SetupError: No value is both.
    """
    return _Reader(overlay).value(made, (part,), ("",))


class _Reader:
    """Tightens one part of a control's schema after the other."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self.read: set[int] = set()  # ids of schemas whose annotations were taken over

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
        """Tighten each of several alternatives; what a PerItem holds for one thing may be null."""
        kept: list[Schema] = []
        refused: Contradiction | None = None
        for inner in made["anyOf"]:
            try:
                kept.append(inner if inner == _NULL else self.value(inner, flat, path))
            except Contradiction as error:
                refused = error
        if refused is not None and all(inner == _NULL for inner in kept):
            raise refused
        if not all(self._overlay.accepts(part, None) for part in flat):
            kept = [inner for inner in kept if inner != _NULL]
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
            name: self.value(inner, tuple(self._overlay.about(flat, name)), (*path, name))
            for name, inner in known.items()
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
        """Keep the options that schema.json accepts, whatever it says of them."""
        options = made.get("enum")
        if options is None:
            stated = next(part.schema for part in flat if {"enum", "const"} & part.schema.keys())
            own = Draft202012Validator(_without_our_bounds(made))
            options = [option for option in stated.get("enum", [stated.get("const")]) if own.is_valid(option)]
        binding = [part for part in flat if not part.schema.keys() <= _DESCRIBING]  # often there is none
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
        """Bind a value to one of the alternatives of the first `anyOf` or `oneOf`."""
        found = next(
            ((part, key) for part in flat for key in ("anyOf", "oneOf") if part.schema.get(key)), None
        )
        if found is None:
            return schema
        part, key = found
        plain = {key: inner for key, inner in schema.items() if key != "description" and key not in OWN}
        branches = []
        for number, inner in enumerate(part.schema[key]):
            try:
                branch = self.value(plain, (self._overlay.below(part, f"{key}.{number}", inner),), path)
            except Contradiction:
                continue
            if branch not in branches:
                branches.append(branch)
        if not branches:
            raise _nothing(path, f"none of the alternatives at {_named(part)}, {key}, is possible")
        rest = {key: inner for key, inner in schema.items() if key not in plain}
        return {**branches[0], **rest} if len(branches) == 1 else {"anyOf": branches, **rest}

    def _annotate(self, schema: Schema, part: Part, path: Path) -> None:
        """Take over what is said besides: the description, and our own keywords."""
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


def _bound(schema: Schema, said: Mapping[str, Any]) -> None:
    """Tighten bounds, patterns and formats of a text, a number or an array."""
    kind = schema["type"]
    for key in (*_LOWEST, *_HIGHEST, "maxLength"):
        if key not in schema or not _is_number(said.get(key)):
            continue
        bound = int(said[key]) if said[key] == int(said[key]) else said[key]
        if key == "maxLength" or schema[key] in _OUR_BOUNDS.get(key, ()):
            schema[key] = bound
        else:
            schema[key] = max(schema[key], bound) if key in _LOWEST else min(schema[key], bound)
    if kind in _NUMBERS:
        _bound_number(schema, said)
    if kind == "string":
        if "pattern" in said:
            if "pattern" in schema:
                schema["allOf"] = [*schema.get("allOf", []), {"pattern": said["pattern"]}]
            else:
                schema["pattern"] = said["pattern"]
        if "format" in said:
            schema["format"] = said["format"]


def _bound_number(schema: Schema, said: Mapping[str, Any]) -> None:
    for key, exclusive, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        bound = said.get(exclusive)
        if _is_number(bound):  # in draft 4 it is true or false, and the overlay alone checks it
            if schema["type"] == "integer":
                inner = math.floor(bound) + 1 if sign > 0 else math.ceil(bound) - 1
                _bound(schema, {key: inner})
            else:
                schema[exclusive] = bound
        if schema["type"] == "integer" and key in schema:
            rounded = math.ceil(schema[key]) if sign > 0 else math.floor(schema[key])
            schema[key] = max(-_EXACT, min(_EXACT, rounded))
    if "multipleOf" in said:
        schema.setdefault("multipleOf", said["multipleOf"])


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
