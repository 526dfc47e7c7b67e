"""A case's schema.json, checked: a JSON Schema with a keyword that would not be enforced is rejected.

Knows JSON Schema of the drafts 4, 6, 7, 2019-09 and 2020-12. Does not know controls or models. References are
resolved within the file, or among the metaschemas that come with jsonschema; nothing is ever fetched.
"""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from jsonschema import (
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
    FormatChecker,
)
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
from referencing import Registry, Resource, Specification
from referencing.exceptions import NoSuchResource, Unresolvable
from referencing.jsonschema import specification_with

from draftloop.errors import SetupError
from draftloop.runs.job import LANGUAGES
from draftloop.support.strict_json import strict_json

NAME = "schema.json"
_MESSAGE_CHARS = 200

_DIALECTS: dict[str, type[Validator]] = {
    "http://json-schema.org/draft-04/schema": Draft4Validator,
    "http://json-schema.org/draft-06/schema": Draft6Validator,
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": Draft202012Validator,
}
_LATEST = "https://json-schema.org/draft/2020-12/schema"
_MODIFIERS: dict[type[Validator], tuple[str, ...]] = {
    Draft4Validator: ("exclusiveMinimum", "exclusiveMaximum")  # true or false, beside the bound
}
_SIBLINGS_IGNORED = (Draft4Validator, Draft6Validator, Draft7Validator)  # beside a `$ref`

# Keywords that contain schemas; those whose schemas apply to the same value come first.
_SAME_VALUE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")
_HOLDING_SCHEMAS = (
    *_SAME_VALUE,
    *("items", "prefixItems", "additionalItems", "contains", "unevaluatedItems"),
    *("properties", "patternProperties", "additionalProperties", "propertyNames", "unevaluatedProperties"),
    *("$defs", "definitions"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "items", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

# Our own keywords. `tightening` and `rules` read them.
OWN = ("x-validations", "x-grounded", "x-human", "x-run")
_OWN_SCHEMA = Draft202012Validator(
    {
        "properties": {
            "x-validations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "rule": {"type": "string", "minLength": 1},
                        "message": {"type": "string", "minLength": 1},
                    },
                    "required": ["rule"],
                    "additionalProperties": False,
                },
            },
            "x-grounded": {"type": "boolean"},
            "x-human": {"type": "boolean"},
            "x-run": {"enum": list(LANGUAGES)},
        }
    }
)
_ALL_KEYWORDS = frozenset(keyword for dialect in _DIALECTS.values() for keyword in dialect.VALIDATORS)
_NEAR = 0.85  # reports "maxLenght", but not "example" or "nullable"

Json = Any


class Part(NamedTuple):
    """A schema within the file.

    schema     a mapping, or True or False
    resolver   resolves its references; an object of `referencing`
    where      its path in the file
    """

    schema: Any
    resolver: Any
    where: str


class Overlay:
    """A checked schema.json. Made by `read_overlay`; safe to share."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Check the schema.

        Raises:
            SetupError: It is no JSON Schema, or a part of it would not be enforced.
        """
        self.schema = schema
        self._dialect = _dialect_of(schema)
        # The metaschema has not checked keywords of other dialects, so their values are not read as schemas.
        known = {*self._dialect.VALIDATORS, "definitions"}
        known |= {"then", "else"} if "if" in known else set()
        known |= {"$defs"} if "unevaluatedItems" in known else set()  # both came with 2019-09
        self._holding_schemas = tuple(keyword for keyword in _HOLDING_SCHEMAS if keyword in known)
        self._specification: Specification[Any] = specification_with(_uri_of(self._dialect))
        self._sound: set[int] = set()  # ids of schemas that the metaschema accepts
        self._check_metaschema(schema, "")
        root: Resource[Any] = self._specification.create_resource(schema)
        # Only this file and the metaschemas: with a registry, jsonschema never uses the network.
        registry: Registry[Any] = REGISTRY.with_resource(root.id() or "", root)
        self.formats = FormatChecker(())
        self.formats.checkers = {
            **Draft202012Validator.FORMAT_CHECKER.checkers,
            **self._dialect.FORMAT_CHECKER.checkers,
        }
        self._validator = self._dialect(schema, registry=registry, format_checker=self.formats)
        self.root = Part(schema, registry.resolver_with_root(root), "")
        self.annotated = self._check_parts()

    def errors(self, value: Json) -> Iterator[ValidationError]:
        """Yield the errors of a value, formats included."""
        yield from self._validator.iter_errors(value)

    def accepts(self, part: Part, value: Json) -> bool:
        """Return whether a part of the schema accepts a value."""
        evolved: Any = self._validator
        return bool(evolved.evolve(schema=part.schema, _resolver=part.resolver).is_valid(value))

    def flat(self, parts: Iterator[Part] | tuple[Part, ...]) -> tuple[Part, ...]:
        """Return all schemas that a value must satisfy: references are followed, `allOf` is split.

        Schemas that accept every value are dropped. A schema follows those that it refers to.
        """
        flat: list[Part] = []
        seen: set[int] = set()
        for part in parts:
            self._flatten(part, flat, seen)
        return tuple(flat)

    def below(self, part: Part, key: str, schema: Any) -> Part:
        """Return a schema that a keyword of a part contains."""
        return Part(schema, self._scope(schema, part.resolver), _joined(part.where, key))

    def about(self, flat: tuple[Part, ...], name: str) -> Iterator[Part]:
        """Yield the schemas that flat parts about an object contain for one of its keys."""
        for part in flat:
            schema, is_covered = part.schema, False
            if name in schema.get("properties", {}):
                is_covered = True
                yield self.below(part, f"properties.{name}", schema["properties"][name])
            for pattern, subschema in schema.get("patternProperties", {}).items():
                if re.search(pattern, name):
                    is_covered = True
                    yield self.below(part, f"patternProperties.{pattern}", subschema)
            if not is_covered and "additionalProperties" in schema:
                yield self.below(part, "additionalProperties", schema["additionalProperties"])

    def without_required(self, names: frozenset[str]) -> "Overlay":
        """Return the overlay without these keys among its required ones."""
        if not names & set(self.schema.get("required", ())):
            return self
        return read_overlay(
            {**self.schema, "required": [n for n in self.schema["required"] if n not in names]}
        )

    def _flatten(self, part: Part, flat: list[Part], seen: set[int]) -> None:
        if part.schema is True or id(part.schema) in seen:
            return
        seen.add(id(part.schema))
        if part.schema is False:
            flat.append(part)
            return
        if "$ref" in part.schema:
            self._flatten(self._followed(part, "$ref"), flat, seen)
            if issubclass(self._dialect, _SIBLINGS_IGNORED):
                return
        for number, schema in enumerate(part.schema.get("allOf", ())):
            self._flatten(self.below(part, f"allOf.{number}", schema), flat, seen)
        flat.append(part)

    def _scope(self, schema: Any, resolver: Any) -> Any:
        if isinstance(schema, bool):  # draft 4 allows them in places where `referencing` does not expect them
            return resolver
        return resolver.in_subresource(self._specification.create_resource(schema))

    def _followed(self, part: Part, keyword: str) -> Part:
        reference = part.schema[keyword]
        where = _joined(part.where, keyword)
        try:
            resolved = part.resolver.lookup(reference)
        except (Unresolvable, NoSuchResource, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SetupError(
                f"{NAME} at {where}: {str(reference)[:80]!r} does not stand in the file.",
                hint="Copy what it means to `$defs` and refer to it there; nothing is fetched.",
            ) from error
        return Part(resolved.contents, resolved.resolver, where)

    def _check_parts(self) -> tuple[Part, ...]:
        """Check every schema of the file; return those with keywords that begin with x-."""
        annotated = []
        same_value: dict[int, list[int]] = {}  # ids of schemas, each with those about the same value
        parts = [self.root]
        while parts:
            part = parts.pop()
            if isinstance(part.schema, bool) or id(part.schema) in same_value:
                continue
            if not isinstance(part.schema, Mapping):
                raise _wrong(part.where, "is no schema", "A schema is an object, true or false.")
            self._check_keywords(part)
            if any(key in part.schema for key in OWN):
                annotated.append(part)
            subschemas = list(self._subschemas(part))
            same_value[id(part.schema)] = [id(each.schema) for each, is_same in subschemas if is_same]
            parts.extend(each for each, _ in subschemas)
        if _has_cycle(same_value):
            raise SetupError(
                f"{NAME}: a `$ref` leads back to itself without a step into the value.",
                hint="Say at one of the places what the value is.",
            )
        return tuple(annotated)

    def _subschemas(self, part: Part) -> Iterator[tuple[Part, bool]]:
        """Yield the schemas within a schema and those that it refers to; True where the value is the same."""
        schema = part.schema
        for keyword in _REFERENCES:
            if keyword in schema and keyword in self._dialect.VALIDATORS:
                if not isinstance(schema[keyword], str):
                    raise _wrong(_joined(part.where, keyword), "is no text", 'Write "#/$defs/NAME".')
                followed = self._followed(part, keyword)
                self._check_metaschema(followed.schema, followed.where)
                yield followed, True
        if "$ref" in schema and issubclass(self._dialect, _SIBLINGS_IGNORED):
            return
        for keyword in self._holding_schemas:
            for key, subschema in _schemas_under(keyword, schema[keyword]) if keyword in schema else ():
                yield self.below(part, key, subschema), keyword in _SAME_VALUE

    def _check_keywords(self, part: Part) -> None:
        schema, known = part.schema, self._dialect.VALIDATORS
        for error in _OWN_SCHEMA.iter_errors(schema):
            raise _wrong(
                _joined(part.where, *error.absolute_path),
                f"is wrong: {_shortened(error.message)}",
                "docs/reference/configs.md describes the keywords that begin with x-.",
            )
        for key in schema:
            if key in known or key in OWN or key in _MODIFIERS.get(self._dialect, ()):
                continue
            if key in _ALL_KEYWORDS:
                drafts = " or ".join(uri for uri, dialect in _DIALECTS.items() if key in dialect.VALIDATORS)
                raise _wrong(
                    _joined(part.where, key),
                    f"is no keyword of {_uri_of(self._dialect)}, so nobody would check it",
                    f'State another "$schema" ({drafts}), or use what this one has instead.',
                )
            near = get_close_matches(key, (*known, *OWN), 1, _NEAR)
            if near:
                raise _wrong(
                    _joined(part.where, key), "is no keyword, so nobody would check it", f"Is it `{near[0]}`?"
                )
        self._check_dialect(part)
        form = schema.get("format")
        if "format" in schema and form not in self.formats.checkers:
            raise _wrong(
                _joined(part.where, "format"),
                f"is {str(form)[:60]!r}, which nobody would check",
                f"Use a `pattern`, or one of {', '.join(sorted(self.formats.checkers))}.",
            )
        patterns = [("pattern", schema.get("pattern", ""))]
        if isinstance(schema.get("patternProperties"), Mapping):
            patterns += [("patternProperties", pattern) for pattern in schema["patternProperties"]]
        for keyword, pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError, TypeError) as error:
                raise _wrong(
                    _joined(part.where, keyword),
                    f"holds {str(pattern)[:60]!r}, which is no regular expression of Python ({error})",
                    "Write it as Python's `re` reads it.",
                ) from error

    def _check_dialect(self, part: Part) -> None:
        stated = part.schema.get("$schema")
        if part.where and stated is not None and _plain(stated) != _plain(_uri_of(self._dialect)):
            raise _wrong(
                _joined(part.where, "$schema"),
                "states another dialect than the file",
                "Keep one `$schema`, at the root.",
            )

    def _check_metaschema(self, schema: Any, where: str) -> None:
        if id(schema) in self._sound:
            return
        self._sound.add(id(schema))
        metaschema = self._dialect(
            self._dialect.META_SCHEMA, registry=REGISTRY, format_checker=self._dialect.FORMAT_CHECKER
        )
        try:
            error = best_match(metaschema.iter_errors(schema))
        except (
            OverflowError,
            RecursionError,
        ) as broken:  # raised by `re`, which compiles a format of the metaschema
            raise _wrong(
                where, f"holds what cannot be compiled: {broken}", "Make its patterns simpler."
            ) from broken
        if error is not None:
            raise _wrong(
                _joined(where, *error.absolute_path),
                f"is not JSON Schema: {_shortened(error.message)}",
                f"It is read as {_uri_of(self._dialect)}; correct it, or state another `$schema`.",
            )


def parse_overlay(text: str) -> Mapping[str, Any]:
    """Parse the text of a schema.json.

    Raises:
        SetupError: It is no JSON object.
    """
    try:
        schema = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{NAME} is not JSON: {str(error)[:_MESSAGE_CHARS]}.", hint="Correct it.") from error
    if not isinstance(schema, Mapping):
        raise SetupError(
            f"{NAME} holds {_shortened(json.dumps(schema))}, which is no JSON object.",
            hint='Write {"properties": {...}}.',
        )
    return schema


def read_overlay(schema: Mapping[str, Any]) -> Overlay:
    """Check a schema.json.

    Raises:
        SetupError: It is no JSON Schema, or a part of it would not be enforced.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SetupError(f"{NAME} is not JSON: {str(error)[:_MESSAGE_CHARS]}.", hint="Correct it.") from error
    return _read_overlay(text)


@lru_cache(maxsize=64)  # 5 ms each; each task with options of its own reads it again
def _read_overlay(text: str) -> Overlay:
    return Overlay(parse_overlay(text))


def _dialect_of(schema: Mapping[str, Any]) -> type[Validator]:
    stated = schema.get("$schema", _LATEST)
    dialect = _DIALECTS.get(_plain(stated)) if isinstance(stated, str) else None
    if dialect is None:
        raise _wrong(
            "$schema", f"is {str(stated)[:80]!r}, which is not supported", f"Use {', '.join(_DIALECTS)}."
        )
    return dialect


def _uri_of(dialect: type[Validator]) -> str:
    return next(uri for uri, known in _DIALECTS.items() if known is dialect)


def _plain(uri: object) -> str:
    return str(uri).removesuffix("#")


def _schemas_under(keyword: str, held: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schemas that a keyword contains, with their keys: one, a list or a map of them."""
    if isinstance(held, list) and keyword in _LISTS:
        subschemas = [(f"{keyword}.{number}", each) for number, each in enumerate(held)]
    elif isinstance(held, Mapping) and keyword in _MAPS:
        subschemas = [(f"{keyword}.{name}", each) for name, each in held.items()]
    else:
        subschemas = [(keyword, held)]
    # `dependencies` may contain lists of names; a keyword unknown to the dialect may contain anything.
    yield from ((key, each) for key, each in subschemas if isinstance(each, Mapping | bool))


def _has_cycle(edges: Mapping[int, list[int]]) -> bool:
    """Return whether a directed graph has a cycle."""
    left = {node: [end for end in ends if end in edges] for node, ends in edges.items()}
    while True:
        leaves = [node for node, ends in left.items() if not any(end in left for end in ends)]
        if not leaves:
            return bool(left)
        for node in leaves:
            del left[node]


def _wrong(where: str, what: str, hint: str) -> SetupError:
    return SetupError(f"{NAME} at {where or 'its root'} {what}.", hint=hint)


def _joined(where: str, *keys: object) -> str:
    return ".".join(filter(None, [where, *map(str, keys)]))


def _shortened(message: str) -> str:
    return message if len(message) <= _MESSAGE_CHARS else message[:_MESSAGE_CHARS] + "..."
