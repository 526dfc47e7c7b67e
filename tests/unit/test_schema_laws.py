"""Laws of schema.json: whatever is written there, what we accept jsonschema accepts, and nothing crashes.

The schemas are drawn; the official suites are read where `JSON_SCHEMA_SUITE` names the folder of them
(`tests/` of JSON-Schema-Test-Suite, which the source archive of jsonschema carries as `json/tests`).
"""

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry

from draftloop.errors import InvalidValue, SetupError
from draftloop.labelling.guidance import schema_refusal
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.labelling.rules import Rules

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Python's, of some regular expressions

TASK = Task(1, {"t": "abc"})
CONFIG = """<View><Text name="t" value="$t"/><TextArea name="a" toName="t" maxSubmissions="1"/>
<Number name="n" toName="t"/><TextArea name="many" toName="t"/>
<Choices name="kind" toName="t"><Choice value="x"/><Choice value="y"/></Choices></View>"""
DIALECTS: dict[str, type[Validator]] = {
    "https://json-schema.org/draft/2020-12/schema": Draft202012Validator,
    "http://json-schema.org/draft-07/schema#": Draft7Validator,
}
NAMES = st.sampled_from(["a", "n", "many", "kind"])
TEXTS = st.sampled_from(
    ["", "x", "y", "ab", "é", "2026-01-31", "a@example.com", "https://example.com", "zz" * 9]
)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 2.5, 7, 10**12])
VALUES = st.one_of(TEXTS, NUMBERS, st.lists(TEXTS, max_size=3), st.none(), st.booleans())
ANSWERS = st.dictionaries(NAMES, VALUES).map(lambda answer: {"many": [], **answer})
SIZES = st.integers(0, 4)
FORMATS = sorted(Draft202012Validator.FORMAT_CHECKER.checkers)


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a schema whose parts are drawn from `inner`."""
    drawn: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(["string", "number", "integer", "array", "object", ["string", "null"]]),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "minLength": SIZES,
        "maxLength": SIZES,
        "pattern": st.sampled_from(["^a", "x$", "[0-9]+", "^(?=.*b)a", r"\bx", "^$", "(a)\\1"]),
        "format": st.sampled_from(FORMATS),
        "minimum": NUMBERS,
        "exclusiveMaximum": NUMBERS,
        "multipleOf": st.sampled_from([1, 2, 0.5]),
        "minItems": SIZES,
        "maxItems": SIZES,
        "uniqueItems": st.booleans(),
        "items": inner,
        "contains": inner,
        "not": inner,
        "if": inner,
        "then": inner,
        "anyOf": st.lists(inner, min_size=1, max_size=3),
        "oneOf": st.lists(inner, min_size=1, max_size=2),
        "allOf": st.lists(inner, min_size=1, max_size=2),
        "$ref": st.sampled_from(["#", "#/$defs/one", "#/$defs/two", "#/properties/a"]),
        "required": st.lists(NAMES, unique=True, max_size=2),
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": inner,
        "minProperties": SIZES,
    }
    pairs = [st.tuples(st.just(keyword), strategy) for keyword, strategy in drawn.items()]
    return st.lists(st.one_of(pairs), max_size=4).map(dict)


SCHEMAS = st.recursive(st.booleans() | keywords(st.booleans()), keywords, max_leaves=5)
OVERLAYS = st.fixed_dictionaries(
    {
        "$schema": st.sampled_from([*DIALECTS]),
        "$defs": st.fixed_dictionaries({"one": SCHEMAS, "two": SCHEMAS}),
    },
    optional={
        "properties": st.dictionaries(NAMES, SCHEMAS, max_size=3),
        "allOf": st.lists(SCHEMAS, min_size=1),
    },
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def holds(overlay: dict[str, Any], answers: list[dict[str, Any]], config: str = CONFIG) -> bool:
    """Check the law for answers; return whether the overlay was accepted."""
    try:
        labelling = compile_labelling(config, overlay)
        rules = Rules(labelling)
    except SetupError:
        return False
    assert not schema_refusal(labelling.decoding_schema)
    dialect = DIALECTS[overlay.get("$schema", next(iter(DIALECTS)))]
    whole = dialect(overlay, registry=Registry(), format_checker=dialect.FORMAT_CHECKER)
    for answer in answers:
        try:
            value = labelling.decode(json.dumps(answer))
        except InvalidValue:
            continue
        if not rules.check(value, TASK):
            assert whole.is_valid(value), (overlay, value)
    return True


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(OVERLAYS, st.lists(ANSWERS, min_size=3, max_size=8))
def test_an_answer_that_is_accepted_satisfies_the_schema(
    overlay: dict[str, Any], answers: list[dict[str, Any]]
) -> None:
    holds(overlay, answers)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(OVERLAYS, st.data())
def test_a_value_of_the_wrong_kind_anywhere_is_a_sentence(
    overlay: dict[str, Any], data: st.DataObject
) -> None:
    place: Any = overlay
    while place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(JUNK)
            break
        place = place[key]
    holds(overlay, [{}])


def suite() -> Iterator[tuple[str, dict[str, Any]]]:
    """List the groups of tests of the official suites, each with its dialect."""
    folder = Path(os.environ["JSON_SCHEMA_SUITE"])
    for draft, uri in zip(("draft2020-12", "draft7"), DIALECTS, strict=True):
        for path in sorted((folder / draft).rglob("*.json")):
            for group in json.loads(path.read_text(encoding="utf-8")):
                yield uri, group


@pytest.mark.skipif("JSON_SCHEMA_SUITE" not in os.environ, reason="JSON_SCHEMA_SUITE names no folder")
@pytest.mark.timeout(1200)
def test_the_official_suites_hold_as_schemas_of_a_field_and_of_the_answer() -> None:
    accepted = refused = 0
    for uri, group in suite():
        schema, data = group["schema"], [test["data"] for test in group["tests"]]
        overlays: list[dict[str, Any]] = [{"$schema": uri, "properties": {"a": schema}}]
        if isinstance(schema, dict):
            renamed = json.loads(json.dumps(schema).replace('"foo"', '"a"').replace('"bar"', '"many"'))
            overlays += [{"$schema": uri, "properties": {name: schema}} for name in ("n", "many", "kind")]
            overlays += [{"$schema": uri, **schema}, {"$schema": uri, **renamed}]
        answers = [{name: value, "many": []} for name, value in product(("a", "n", "kind"), data)]
        answers += [{"many": value} for value in data] + [value for value in data if isinstance(value, dict)]
        for overlay in overlays:
            if overlay["$schema"] in DIALECTS and holds(overlay, answers):
                accepted += 1
            else:
                refused += 1
    assert accepted > 800
    assert refused > 800
