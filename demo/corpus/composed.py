"""Clauses and news sentences made up of common words by a small grammar, for the train split only.

Written sentences can be learned by heart; `grammar_zh.txt` and `grammar_en.txt` make millions, so that where
a name ends must be read from the words beside it. The words (`common_*.txt`) are common ones of the
language and may occur in held-out sentences, which as sentences stay unseen.
"""

import re
from collections import defaultdict
from functools import cache

from demo.corpus.words import Draw, Language, Piece, word_files, word_list


@cache
def _rules(language: str) -> dict[str, tuple[list[str], list[int]]]:
    """Read a grammar: for each symbol its expansions and their weights."""
    rules: dict[str, tuple[list[str], list[int]]] = defaultdict(lambda: ([], []))
    for line in word_list("train", f"grammar_{language}"):
        head, _, expansion = line.partition(":")
        symbol, weight = head.split()
        rules[symbol][0].append(expansion.removeprefix(" "))
        rules[symbol][1].append(int(weight))
    return dict(rules)


def _expand(draw: Draw, language: Language, symbol: str) -> str:
    rules = _rules(language)
    if symbol not in rules:
        return draw.word(symbol, language)
    expansions, weights = rules[symbol]
    chosen = draw.rng.choices(expansions, weights)[0]
    chosen = re.sub(r"\(([^()]*)\)", lambda match: draw.of(match[1].split("|")), chosen)
    return re.sub(r"<(\w+)>", lambda match: _expand(draw, language, match[1]), chosen)


def composed_clause(draw: Draw, language: Language) -> str:
    """Make up a clause such as a complaint consists of.

    Args:
        draw: Randomness; of the train split.
        language: Of the clause.
    Returns:
        A clause without an end mark.
    """
    return _expand(draw, language, "clause")


def composed_news(draw: Draw, language: Language) -> list[Piece]:
    """Make up a news-like sentence with the slots PER, LOC and ORG.

    Args:
        draw: Randomness; of the train split.
        language: Of the sentence.
    Returns:
        The pieces, with an end mark.
    """
    text = _expand(draw, language, "news")
    parts = [part for part in re.split(r"(\{\w+\})", text[0].upper() + text[1:]) if part]
    return [Piece("", part[1:-1]) if part[0] == "{" else Piece(part) for part in parts]


def unknown_symbols(language: Language) -> set[str]:
    """Name what a grammar refers to and neither defines nor has a word list for.

    Args:
        language: Of the grammar.
    Returns:
        The symbols; empty for a sound grammar.
    """
    rules = _rules(language)
    used = {
        name for expansions, _ in rules.values() for one in expansions for name in re.findall(r"<(\w+)>", one)
    }
    return {name for name in used - set(rules) if f"common_{name}_{language}" not in word_files("train")}
