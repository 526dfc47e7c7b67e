"""Word lists, templates and the random draws that every case shares. Knows no case."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from demo.corpus.lexicon import Lexicon, is_set_apart

Split = Literal["train", "validation", "held_out"]
Language = Literal["zh", "en"]

ENGLISH_SHARE = 0.2
_LEXICON_SHARE = 0.6  # of names and words, where a lexicon is given
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SYMBOLS = "／·～＃＆｜－＝＋×*#&~+=<>[]{}^_$%@!?;:'「」【】《》“”—：；、|/-()（）.,，。！？…→"
RARE_SYMBOLS = (
    "〔〕『』～＠％￥×℃①②③④⑤"  # signs that no template of the train split has, to be seen all the same
)
BRACKETS = (
    "〔〕",
    "『』",
    "「」",
    "【】",
    "《》",
    "()",
    "（）",
    "[]",
    "{}",
    "<>",
    "“”",
    "||",
    "**",
    "##",
    "//",
)
_WORDS = Path(__file__).with_name("words")


@dataclass(frozen=True)
class Generated:
    """One labelled text."""

    text: str
    value: dict[str, Any]
    language: Language


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered template: literal text, or the slot it stands for."""

    text: str
    slot: str | None = None
    fixed: bool = False


@cache
def word_list(folder: str, name: str) -> tuple[str, ...]:
    r"""Read one list; `\n`, `\t` and `\s` in a line stand for newline, tab and space.

    Args:
        folder: `train`, `held_out` or `shared`.
        name: File name without its ending.
    Returns:
        The entries in file order.
    Raises:
        FileNotFoundError: There is no such list.
    """
    lines = (_WORDS / folder / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    return tuple(line.replace("\\n", "\n").replace("\\t", "\t").replace("\\s", " ") for line in lines if line)


@cache
def word_files(folder: str) -> tuple[str, ...]:
    """Name the lists of one folder.

    Args:
        folder: `train`, `held_out` or `shared`.
    Returns:
        File names without their ending, sorted.
    """
    return tuple(sorted(path.stem for path in (_WORDS / folder).glob("*.txt")))


@cache
def alphabet() -> str:
    """Collect the Chinese characters that the tokenizer knows and that random words are drawn from.

    Single characters of the held-out lists are among them: a character that was never a target cannot be
    copied. The words that they form are not.

    Returns:
        GB2312 level 1, the rare characters of names and places, and every character of the word lists.
    """
    common = []
    for high in range(0xB0, 0xD8):
        for low in range(0xA1, 0xFF):
            try:
                common.append(bytes((high, low)).decode("gb2312"))
            except UnicodeDecodeError:
                continue  # row 0xD7 is not full
    listed = {
        character
        for folder in ("train", "held_out", "shared")
        for name in word_files(folder)
        for entry in word_list(folder, name)
        for character in entry
        if "\u4e00" <= character <= "\u9fff"
    }
    return "".join(common) + "".join(sorted(listed - set(common)))


# Of these lists the validation split has a tenth to itself; words that are no names or sentences are shared.
_SET_APART = re.compile(
    r".*_(templates|clauses)_.*|(sentiment|surnames|given|names|cities|world_cities|places|orgs|streets)_.*"
)


@cache
def _part(name: str, *, validation: bool) -> tuple[str, ...]:
    """Return the entries of a training list that one of the two splits draws from it."""
    entries = word_list("train", name)
    if not _SET_APART.fullmatch(name):
        return entries
    if "_templates_" in name:
        return tuple(entry for index, entry in enumerate(entries) if (index % 10 == 9) == validation)
    apart = {entry for entry in entries if is_set_apart(entry)} or {entries[-1]}
    return tuple(entry for entry in entries if (entry in apart) == validation)


class Draw:
    """Random choices over the lists of one split.

    Args:
        split: Which lists `pick` reads: a split, or another folder of lists.
        rng: Source of all randomness.
        lexicon: More names and words, drawn beside those of the lists.
        spare: Of the train split: leave out what the validation split draws from.
    """

    def __init__(
        self, split: str, rng: random.Random, lexicon: Lexicon | None = None, *, spare: bool = False
    ) -> None:
        self.split = split
        self.rng = rng
        self.wild = split == "train"
        self.lexicon = lexicon
        self._spare = spare

    def language(self) -> Language:
        """Choose the language of the next text."""
        return "en" if self.chance(ENGLISH_SHARE) else "zh"

    def chance(self, probability: float) -> bool:
        """Draw whether an event of this probability happens."""
        return self.rng.random() < probability

    def wildly(self, probability: float) -> bool:
        """Like `chance`, but never in the held-out split, whose texts are to look natural."""
        return self.wild and self.rng.random() < probability

    def of(self, choices: Sequence[str]) -> str:
        """Choose one of the given strings."""
        return self.rng.choice(choices)

    def pick(self, name: str) -> str:
        """Choose an entry of this split's list."""
        return self.rng.choice(self.entries(name))

    def entries(self, name: str) -> tuple[str, ...]:
        """Return the entries of this split's list."""
        if self.split == "validation" or self._spare:
            return _part(name, validation=self.split == "validation")
        return word_list(self.split, name)

    def lexical(self, share: float = _LEXICON_SHARE) -> Lexicon | None:
        """Return the lexicon for this share of the calls, and None for the others or where there is none."""
        return self.lexicon if self.lexicon and self.chance(share) else None

    def word(self, symbol: str, language: Language) -> str:
        """Choose a common word of a sort: nouns, verbs, roles, ..."""
        lexicon = self.lexicon
        if lexicon and lexicon.has(symbol, language) and (symbol, language) != ("verbs", "en"):
            listed = f"common_{symbol}_{language}" in word_files("train")
            if not listed or self.chance(_LEXICON_SHARE):
                return lexicon.pick(self.rng, f"{symbol}_{language}")
        return self.pick(f"common_{symbol}_{language}")

    def pick_shared(self, name: str) -> str:
        """Choose an entry of a list that both splits share."""
        return self.rng.choice(word_list("shared", name))

    def between(self, low: int, high: int) -> int:
        """Draw an integer, both ends included."""
        return self.rng.randint(low, high)

    def characters(self, low: int, high: int) -> str:
        """Draw random Chinese characters; one in two hundred is outside the alphabet (byte fallback)."""
        known = alphabet()
        drawn = "".join(
            self.rng.choice(known) if not self.chance(0.005) else chr(self.between(0x4E00, 0x9FA5))
            for _ in range(self.between(low, high))
        )
        # Doubled characters, or a model that copies by what stood before never learns to stop.
        return drawn[:-1] + drawn[-2:-1] if len(drawn) > 1 and self.chance(0.04) else drawn

    def letters(self, low: int, high: int) -> str:
        """Draw a random lower-case word."""
        return "".join(self.rng.choice(LETTERS) for _ in range(self.between(low, high)))

    def symbols(self) -> str:
        """Draw one to three random signs."""
        signs = RARE_SYMBOLS if self.chance(0.15) else SYMBOLS
        return "".join(self.rng.choice(signs) for _ in range(self.rng.choice((1, 1, 1, 2, 3))))

    def label(self, language: Language) -> str:
        """Invent a field label that is in no list."""
        word = self.letters(2, 8) if language == "en" or self.chance(0.2) else self.characters(1, 4)
        if self.chance(0.5):
            words = [self.pick(f"common_nouns_{language}") for _ in range(self.rng.choice((1, 1, 2)))]
            word = (" " if language == "en" else self.of(("", "的"))).join(words)
            if language == "zh" and self.chance(0.15):
                word += self.of(("如下", "是这样", "见下", "就是", "为"))
        if language == "en" or self.chance(0.1):
            word = word.title()
        return word + self.of((":", "：", "=", " ", "", ">>", ": ", "为", "是"))

    def template(self, name: str, keep: float) -> tuple[str, list[Piece]]:
        """Choose a template and drop some of its optional groups.

        A template is literal text with `{slot}`, optional groups in square brackets, and `<words>` that
        carry the meaning and are never mutated. A leading `key: ` is returned apart.

        Args:
            name: List of templates.
            keep: Probability of keeping an optional group.
        Returns:
            The key (or "") and the pieces, mutated in the train split.
        """
        line = self.pick(name)
        key, colon, rest = line.partition(": ")
        if not (colon and key.isalpha() and key.isascii() and key.islower()):
            key, rest = "", line
        return key, self.pieces(rest, keep)

    def pieces(self, line: str, keep: float) -> list[Piece]:
        """Read a template without a key.

        Args:
            line: The template.
            keep: Probability of keeping an optional group.
        Returns:
            The pieces, mutated in the train split.
        """
        kept = re.sub(r"\[([^\[\]]*)\]", lambda match: match[1] if self.chance(keep) else "", line)
        pieces = []
        mutate = self.wildly(0.35)
        rate = self.rng.choice((0.05, 0.1, 0.3))
        for part in re.split(r"(\{\w+\}|<[^<>{}]+>)", kept):
            if not part:
                continue
            if part.startswith("{"):
                pieces.append(Piece("", part[1:-1]))
            elif part.startswith("<") and len(part) > 2:
                pieces.append(Piece(part[1:-1], fixed=True))
            else:
                pieces.append(Piece(self.mutated(part, rate) if mutate else part))
        return pieces

    def mutated(self, text: str, rate: float) -> str:
        """Replace some characters by random ones of their kind.

        Args:
            text: What to change.
            rate: Share of characters to replace.
        Returns:
            Text of about the same length.
        """

        def other(character: str) -> str:
            if "\u4e00" <= character <= "\u9fff":
                return self.characters(1, 1)
            if character.isascii() and character.isalpha():
                return self.rng.choice(LETTERS)
            return self.of((",", "，", ";", "：", ":", " ", "|", self.symbols()))

        return "".join(other(character) if self.chance(rate) else character for character in text)


def join(pieces: Sequence[Piece], values: Mapping[str, str]) -> str:
    """Write the pieces of a template out.

    Args:
        pieces: In reading order.
        values: Text for every slot.
    Returns:
        The text.
    """
    return "".join(values[piece.slot] if piece.slot else piece.text for piece in pieces)


def person_name(draw: Draw, language: Language) -> str:
    """Draw a person's name, in training often one of random characters."""
    if lexicon := draw.lexical():
        return lexicon.person(draw.rng, language)
    if language == "en":
        if draw.wildly(0.3):
            return f"{draw.letters(2, 8).title()} {draw.letters(2, 9).title()}"
        middle = f" {draw.rng.choice(LETTERS).upper()}." if draw.chance(0.08) else ""
        return f"{draw.pick('names_en')}{middle} {draw.pick('surnames_en')}"
    if draw.wildly(0.5):
        kind = draw.rng.random()
        if kind < 0.15:
            return f"{draw.pick('mail_words').title()}{draw.of((' ', ''))}{draw.pick('names_en')}"
        if kind < 0.22:
            return f"{draw.characters(1, 3)}·{draw.characters(1, 3)}"
        if kind < 0.65:
            return draw.pick("surnames_zh") + draw.characters(1, 2)
        return draw.characters(2, draw.rng.choice((3, 3, 4)))
    return draw.pick("surnames_zh") + draw.pick("given_zh")


def city_name(draw: Draw, language: Language) -> str:
    """Draw a city, in training sometimes an invented one."""
    if lexicon := draw.lexical():
        return lexicon.city(draw.rng, language)
    if language == "en":
        return draw.letters(3, 9).title() if draw.wildly(0.25) else draw.pick("cities_en")
    if draw.wildly(0.35):
        return draw.characters(2, draw.rng.choice((2, 2, 3, 4)))
    return draw.pick("cities_zh" if draw.chance(0.7) else "world_cities_zh")
