"""Token log-probabilities to a score in 0..1: how sure the model was of its value.

A field's score is the probability of its value given the text before it: the product over its
tokens. The total is the probability of the whole value, the product over the fields. Under constrained
decoding the probabilities are normalised over the allowed tokens, so what the schema forces does not
lower a score.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from draftloop.prompting.prompt import Token


@dataclass(frozen=True)
class Score:
    """Probability of the whole value and of each of its top-level fields, all in 0..1."""

    total: float
    fields: Mapping[str, float] = field(default_factory=dict)


def score(answer: str, tokens: Sequence[Token]) -> Score:
    """Score an answer that is one JSON object.

    Args:
        answer: The raw answer.
        tokens: Its tokens in order; their bytes joined are the answer's UTF-8.
    Returns:
        Zero where the tokens do not belong to the answer or the answer is not an object.
    """
    spans = _field_spans(answer)
    content = b"".join(token.content for token in tokens)
    raw = answer.encode()
    if spans is None or not tokens or not content.startswith(raw):
        return Score(0.0)
    sums = dict.fromkeys(spans, 0.0)
    at = 0
    for token in tokens:
        end = at + len(token.content)
        # A token that closes one field and opens the next is counted where it ends: what it decides
        # is the start of the next value.
        owner = next((name for name, (start, stop) in spans.items() if start < end <= stop), None)
        if owner is not None:
            sums[owner] += token.logprob
        at = end
    fields = {name: _probability(total) for name, total in sums.items()}
    return Score(_probability(sum(sums.values())), fields)


def _probability(logprob: float) -> float:
    return math.exp(min(0.0, max(logprob, -700.0)))


def _field_spans(answer: str) -> dict[str, tuple[int, int]] | None:
    """Find the byte span of each top-level value, its key included, in one pass over the object."""
    decoder = json.JSONDecoder()
    spans: dict[str, tuple[int, int]] = {}
    text = answer
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        return None
    at = _after_space(text, at + 1)
    try:
        while text[at] != "}":
            start = at
            key, at = decoder.raw_decode(text, at)
            at = _after_space(text, at)
            if text[at] != ":" or not isinstance(key, str):
                return None
            _, at = decoder.raw_decode(text, _after_space(text, at + 1))
            after = _after_space(text, at)
            # The separator or closing brace belongs to the value before it: it decides that it ends.
            spans[key] = (len(text[:start].encode()), len(text[: after + 1].encode()))
            at = _after_space(text, after + 1) if text[after] == "," else after
    except (ValueError, IndexError, RecursionError):
        return None
    return spans


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
