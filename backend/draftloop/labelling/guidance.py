"""Whether the structured-output engine accepts decoding schemas and grammars, without a model or a server.

Knows llguidance, the engine of vLLM's backend `guidance`: both reject the same schemas. Does not know
configs or cases.

Source:
    vLLM 0.32 pins llguidance 1.7. A schema takes 0.1 to 5 ms; the import takes 0.1 s, so it is done on use.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from draftloop.errors import SetupError

Schema = dict[str, Any]

# Keywords that are dropped from a part that the engine rejects, one after the other, until it accepts it.
_DROPPED = (
    *("allOf", "pattern", "format", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"),
    *("minimum", "maximum"),
)
_MESSAGE_CHARS = 160


@lru_cache(maxsize=1)
def _byte_tokenizer() -> Any:
    from llguidance import LLTokenizer  # noqa: PLC0415  0.1 s and 8 MB, only when a config is compiled

    return LLTokenizer("byte")


@lru_cache(maxsize=512)  # a task that brings its own options compiles its schema again
def _refusal(kind: str, text: str) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415  as above

    if kind == "schema":
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        except ValueError as error:
            return str(error)
    else:
        grammar = LLMatcher.grammar_from_lark(text)
    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0)
    matcher.compute_bitmask()  # for the first token: some limits are checked only here
    return str(matcher.get_error()).strip()


def schema_refusal(schema: Schema) -> str:
    """Return the engine's error message for a schema; empty where it accepts it."""
    return _refusal("schema", json.dumps(schema, ensure_ascii=False))


def grammar_refusal(grammar: str) -> str:
    """Return the engine's error message for a grammar; empty where it accepts it."""
    return _refusal("grammar", grammar)


class UnenforcedKeyword(NamedTuple):
    """A keyword that the decoding schema lacks because the engine rejects it."""

    path: str
    keyword: str
    value: Any
    refusal: str

    def __str__(self) -> str:
        return (
            f"`{self.keyword}` of '{self.path}' is checked after the model has answered, not before: "
            f"{self.refusal}."
        )


def enforceable(schema: Schema) -> tuple[Schema, tuple[UnenforcedKeyword, ...]]:
    """Return a decoding schema without the keywords that the engine rejects, and these keywords.

    Raises:
        SetupError: It rejects the rest as well.
    """
    if not schema_refusal(schema):
        return schema, ()
    dropped: list[UnenforcedKeyword] = []
    weaker = {
        **schema,
        "properties": {
            name: _each_leaf(subschema, name, lambda leaf, path: _weakened(leaf, path, dropped))
            for name, subschema in schema["properties"].items()
        },
    }
    refusal = schema_refusal(weaker)
    if refusal:
        raise SetupError(
            f"The structured-output engine refuses the schema of the answers: {_one_line(refusal)}.",
            hint="Make the labelling config or schema.json simpler.",
        )
    return weaker, tuple(dropped)


def _weakened(leaf: Schema, path: str, dropped: list[UnenforcedKeyword]) -> Schema:
    weaker = dict(leaf)
    for keyword in _DROPPED:
        refusal = schema_refusal(weaker)
        if refusal and keyword in weaker:
            dropped.append(UnenforcedKeyword(path, keyword, weaker.pop(keyword), _one_line(refusal)))
    return weaker


def _each_leaf(schema: Schema, path: str, change: Callable[[Schema, str], Schema]) -> Schema:
    """Return a schema with a change made to each part that is no object, array or set of alternatives."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_each_leaf(subschema, path, change) for subschema in schema["anyOf"]]}
    if isinstance(schema.get("properties"), Mapping):
        properties = {
            name: _each_leaf(below, f"{path}.{name}", change) for name, below in schema["properties"].items()
        }
        return {**schema, "properties": properties}
    if isinstance(schema.get("items"), Mapping):
        return {**schema, "items": _each_leaf(schema["items"], f"{path}.*", change)}
    return change(schema, path)


def _one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return (lines[-1] if lines else message)[:_MESSAGE_CHARS].rstrip(".")
