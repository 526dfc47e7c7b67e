"""A decoding schema whose quotes must occur in the task's text, as a grammar of llguidance.

Knows JSON Schema as `schemas` makes it for decoding, and llguidance's dialect of Lark. Does not know servers.
The grammar lets a model write only quotes that occur in the text; a model that prefers another text gives the
quote lower token probabilities, which lowers the score.

Source:
    llguidance 1.7, docs/syntax.md: `%json`, `%regex {"substring_chunks": ...}`, `&` of terminals.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]
Path = tuple[str, ...]  # "*" stands for every item of an array

# Longer texts are constrained by the schema only: 30,000 characters took 0.2 s to compile (measured).
MOST_CHARS = 20_000


def quoting_grammar(schema: Schema, quoted: Sequence[Path], texts: Sequence[str]) -> str | None:
    """Return the grammar of a schema's canonical serialization, in which quotes are substrings of texts.

    Args:
        schema: A decoding schema: every key required, no whitespace between tokens.
        quoted: Paths of the strings that are quotes; a path to an array means its items.
        texts: The texts that they are quoted from.
    Returns:
        The grammar, with `start` first; None where there are no quotes or the texts are too long.
    """
    texts = [text for text in texts if text]
    if not quoted or not texts or sum(map(len, texts)) > MOST_CHARS:
        return None
    writer = _Writer()
    start = writer.node(schema, list(quoted))
    if not writer.lengths:
        return None
    pieces = [
        f"PIECE_{index}: %regex {_json({'substring_chunks': _escaped(text)})}"
        for index, text in enumerate(texts)
    ]
    names = " | ".join(f"PIECE_{index}" for index in range(len(texts)))
    # An escape counts as two or more characters, so the longest quote of many lines is shorter than allowed.
    quotes = [
        f"QUOTE_{least}_{most}: ({names}) & /(?s:.){{{least},{most}}}/"
        for least, most in sorted(writer.lengths)
    ]
    return "\n".join([f"start: {start}", *quotes, *pieces])


class _Writer:
    """Writes one expression of the grammar for each part of a schema."""

    def __init__(self) -> None:
        self.lengths: set[tuple[int, int]] = set()

    def node(self, schema: Any, quoted: list[Path]) -> str:
        """Return the expression for a schema; `quoted` are paths relative to it."""
        if not quoted:
            return f"%json {_json({**schema, 'x-guidance': {'whitespace_flexible': False}})}"
        if "anyOf" in schema:
            return "(" + " | ".join(self.node(part, quoted) for part in schema["anyOf"]) + ")"
        kind = schema.get("type")
        if isinstance(kind, list):
            return "(" + " | ".join(self.node({**schema, "type": one}, quoted) for one in kind) + ")"
        if kind == "null":
            return '"null"'
        if kind == "object":
            return self._object(schema, quoted)
        if kind == "array":
            return self._array(schema, quoted)
        if kind == "string" and () in quoted and not {"enum", "const", "pattern", "format"} & schema.keys():
            least, most = max(1, schema.get("minLength", 1)), schema["maxLength"]
            self.lengths.add((least, most))
            return f'"\\"" QUOTE_{least}_{most} "\\""'
        return self.node(schema, [])

    def _object(self, schema: Schema, quoted: list[Path]) -> str:
        parts = []
        for index, (key, property_schema) in enumerate(schema["properties"].items()):
            below = [path[1:] for path in quoted if path and path[0] == key]
            below += [path for path in quoted if not path]
            before = ("{" if index == 0 else ",") + _json(key) + ":"
            parts.append(f"{_json(before)} {self.node(property_schema, below)}")
        return " ".join([*parts, '"}"'])

    def _array(self, schema: Schema, quoted: list[Path]) -> str:
        below = [path[1:] if path else path for path in quoted if not path or path[0] == "*"]
        item = self.node(schema["items"], below)
        least, most = schema.get("minItems", 0), schema["maxItems"]
        more = f' ("," {item}){{{max(0, least - 1)},{most - 1}}}' if most > 1 else ""  # it rejects {0,0}
        some = item + more
        return f'"[" {some} "]"' if least else f'"[" ({some})? "]"'


def _escaped(text: str) -> list[str]:
    """Return the characters of a text as a JSON string writes them; an escape is one item."""
    return [one if one >= " " and one not in '"\\' else _json(one)[1:-1] for one in text]


def _json(part: Mapping[str, Any] | list[str] | str) -> str:
    return json.dumps(part, ensure_ascii=False, separators=(",", ":"))
