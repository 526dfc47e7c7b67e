"""JSON that people and models wrote, and nothing that a page, a prompt or another server cannot hold.

Knows JSON. Python's reader takes more: NaN, a key twice, half a character, numbers that become infinite.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from draftloop.support.text import has_lone_surrogate

Json = Any

# The deepest of Label Studio's own templates has 8 levels; a value has few more than its schema.
DEEPEST = 100


def strict_json(text: str, *, parse_int: Callable[[str], int] = int) -> Json:
    """Parse JSON.

    Args:
        text: What was written.
        parse_int: Reads integers; raises ValueError for those that are refused.
    Raises:
        ValueError: It is not JSON, or holds NaN, a number that is infinite as a float, a key twice, a lone
            surrogate or an endless nesting.
    """
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=parse_int,
        )
        _check_depth(content)
        # An escape may hold half a character, which no page shows and no file takes.
        if has_lone_surrogate(json.dumps(content, ensure_ascii=False)):
            raise ValueError("it holds half a character (a lone surrogate)")
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from error
    return content


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    unique: dict[str, Json] = {}
    for key, part in pairs:
        if key in unique:
            raise ValueError(f"the key {key[:60]!r} occurs twice in one object")
        unique[key] = part
    return unique


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _check_depth(content: Json) -> None:
    level, depth = [content], 0
    while level:
        level = [
            below
            for each in level
            if isinstance(each, dict | list)
            for below in (each.values() if isinstance(each, dict) else each)
        ]
        depth += 1
        if depth > DEEPEST + 1:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
