"""Texts that match a regular expression, to test whether a schema can be satisfied.

Uses Python's own parse of a pattern. Lookarounds are ignored, so a text need not match; callers check it.
"""

from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]  # `sre_parse` before 3.11
from typing import Any

_PLAIN = "a1A -_.bZ9é"  # candidates where any character may match
_OF_CATEGORY = {
    _constants.CATEGORY_DIGIT: "10",
    _constants.CATEGORY_NOT_DIGIT: "aA-",
    _constants.CATEGORY_SPACE: " ",
    _constants.CATEGORY_NOT_SPACE: "a1A-",
    _constants.CATEGORY_WORD: "a1A_",
    _constants.CATEGORY_NOT_WORD: " -",
}
_MORE = 12  # most repetitions beyond the minimum
_LONGEST = 5000


def matches(pattern: str, most: int) -> Iterator[str]:
    """Yield texts that may match a pattern, deterministically, the shortest first."""
    try:
        tree = _parser.parse(pattern)
    except (ValueError, OverflowError, RecursionError):
        return
    for walk in range(most):
        text = "".join(_Writer(walk).parts(tree))
        if len(text) <= _LONGEST:
            yield text


class _Writer:
    """Writes one text; the number of the walk determines every choice."""

    def __init__(self, walk: int) -> None:
        self._walk = self._state = walk
        self._groups: dict[int, str] = {}
        self._left = _LONGEST

    def _choice(self, count: int) -> int:
        if self._walk == 0:
            return 0
        self._state = (
            self._state * 1_103_515_245 + 12_345
        ) & 0x7FFFFFFF  # the C standard's example of `rand`
        return (self._state >> 16) % count

    def parts(self, tree: Any) -> Iterator[str]:
        """Yield the parts of a text, one for each node of a parsed pattern."""
        for kind, node in tree:
            if self._left < 0:
                return
            part = self._part(str(kind), node)
            self._left -= len(part)
            yield part

    def _part(self, kind: str, node: Any) -> str:
        if kind == "LITERAL":
            return chr(node)
        if kind in ("ANY", "NOT_LITERAL"):
            plain = [each for each in _PLAIN if kind == "ANY" or ord(each) != node]
            return plain[self._choice(len(plain))]
        if kind == "IN":
            return self._one_of(node)
        if kind == "BRANCH":
            return self._text(node[1][self._choice(len(node[1]))])
        if kind.endswith("_REPEAT"):
            least, most, repeated = node
            count = least + self._choice(min(int(most) - least, _MORE) + 1)
            return "".join(self._text(repeated) for _ in range(count) if self._left >= 0)
        if kind == "SUBPATTERN":
            number, group = node[0], node[-1]
            text = self._text(group)
            self._groups[number] = text
            return text
        if kind == "ATOMIC_GROUP":
            return self._text(node)
        return self._groups.get(node, "") if kind == "GROUPREF" else ""  # the remaining kinds are lookarounds

    def _text(self, tree: Any) -> str:
        return "".join(self.parts(tree))

    def _one_of(self, members: Any) -> str:
        if str(members[0][0]) == "NEGATE":
            plain = [each for each in _PLAIN if not any(_holds(member, each) for member in members[1:])]
            return plain[self._choice(len(plain))] if plain else "\u4e00"
        kind, node = members[self._choice(len(members))]
        if str(kind) == "RANGE":
            return chr(node[0] + self._choice(node[1] - node[0] + 1))
        if str(kind) == "CATEGORY":
            plain = list(_OF_CATEGORY[node])
            return plain[self._choice(len(plain))]
        return chr(node)


def _holds(member: Any, character: str) -> bool:
    kind, node = str(member[0]), member[1]
    if kind == "RANGE":
        return bool(node[0] <= ord(character) <= node[1])
    if kind == "CATEGORY":
        return character in _OF_CATEGORY[node] or (character == "Z" and "A" in _OF_CATEGORY[node])
    return ord(character) == int(node)
