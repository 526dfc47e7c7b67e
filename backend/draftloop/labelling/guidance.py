"""What the structured-output engine says of decoding schemas and grammars, without a model or a server.

Knows llguidance, which is what vLLM's backend `guidance` is: what it refuses here, it
refuses there. Does not know configs or cases.

Source:
    vLLM 0.32 pins llguidance 1.7. A schema takes 0.1 to 5 ms; the import 0.1 s, so it happens when needed.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from draftloop.errors import SetupError

Schema = dict[str, Any]

# What is left out of a part that the engine refuses, one after the other, until it takes it.
_LEFT_OUT = (
    *("allOf", "pattern", "format", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"),
    *("minimum", "maximum"),
)
_SAYS_CHARS = 160


@lru_cache(maxsize=1)
def _byte_tokenizer() -> Any:
    from llguidance import LLTokenizer  # noqa: PLC0415  0.1 s and 8 MB, for those who compile configs

    return LLTokenizer("byte")


@lru_cache(maxsize=512)  # options that tasks bring are compiled again and again
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
    matcher.compute_bitmask()  # of the first token: some limits are met only here
    return str(matcher.get_error()).strip()


def schema_refusal(schema: Schema) -> str:
    """Return what the engine says against a schema; empty where it takes it."""
    return _refusal("schema", json.dumps(schema, ensure_ascii=False))


def grammar_refusal(grammar: str) -> str:
    """Return what the engine says against a grammar; empty where it takes it."""
    return _refusal("grammar", grammar)


class LeftOut(NamedTuple):
    """A keyword that the decoding schema lacks, because the engine refuses it."""

    path: str
    keyword: str
    value: Any
    refusal: str

    def __str__(self) -> str:
        return (
            f"`{self.keyword}` of '{self.path}' is checked after the model has answered, not before: "
            f"{self.refusal}."
        )


def enforceable(schema: Schema) -> tuple[Schema, tuple[LeftOut, ...]]:
    """Return a decoding schema without what the engine refuses, and what was left out.

    Raises:
        SetupError: It refuses what is left, too.
    """
    if not schema_refusal(schema):
        return schema, ()
    left_out: list[LeftOut] = []
    weaker = {
        **schema,
        "properties": {
            name: _each_leaf(inner, name, lambda leaf, path: _weakened(leaf, path, left_out))
            for name, inner in schema["properties"].items()
        },
    }
    refusal = schema_refusal(weaker)
    if refusal:
        raise SetupError(
            f"The structured-output engine refuses the schema of the answers: {_one_line(refusal)}.",
            hint="Make the labelling config or schema.json simpler.",
        )
    return weaker, tuple(left_out)


def _weakened(leaf: Schema, path: str, left_out: list[LeftOut]) -> Schema:
    weaker = dict(leaf)
    for keyword in _LEFT_OUT:
        refusal = schema_refusal(weaker)
        if refusal and keyword in weaker:
            left_out.append(LeftOut(path, keyword, weaker.pop(keyword), _one_line(refusal)))
    return weaker


def _each_leaf(schema: Schema, path: str, change: Callable[[Schema, str], Schema]) -> Schema:
    """Return a schema whose parts that are no objects, arrays or alternatives are changed."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_each_leaf(inner, path, change) for inner in schema["anyOf"]]}
    if isinstance(schema.get("properties"), Mapping):
        inner = {
            name: _each_leaf(below, f"{path}.{name}", change) for name, below in schema["properties"].items()
        }
        return {**schema, "properties": inner}
    if isinstance(schema.get("items"), Mapping):
        return {**schema, "items": _each_leaf(schema["items"], f"{path}.*", change)}
    return change(schema, path)


def _one_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines[-1] if lines else said)[:_SAYS_CHARS].rstrip(".")
