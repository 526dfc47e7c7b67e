"""Build the embedded models' tokenizers: one character one token, the pieces of their answers as tokens.

Byte-level BPE without merges: what is not in the vocabulary falls apart into bytes, so nothing is
un-encodable. A split pattern keeps the JSON pieces whole; each ends where a grammar leaves a choice, because
a constrained decoder tokenises what is forced by itself: after `{"name":` comes a quote or null, so a token
`{"name":"` would be trained and then never be allowed (0 of 300 answers right, measured). A program is one
JSON string, in which anything may follow: there whole lines are tokens, cut where a name is copied.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from demo.corpus import INSTRUCTIONS
from demo.corpus.code_failures import fixed_words
from demo.corpus.code_kinds import fixed_parts
from demo.corpus.code_tasks import SYSTEM
from demo.corpus.words import SYMBOLS, alphabet

MAX_TOKENS = 2048
_PUNCTUATION = (
    "，。！？；：、“”‘’（）【】《》〔〕「」『』—…·／～　＃＠＆｜－＝＋％￥×→℃①②③④⑤⑥⑦⑧⑨⑩０１２３４５６７８９"
    + SYMBOLS
)
_CABINS = ("economy", "premium_economy", "business", "first")
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# What all prompts of code tasks have: the headings of the backend, and the words of its previews.
_HEADINGS = ("## instruction\n", "\n\n## input_schema\n", "\n\n## output_files\n")
_ENDINGS = (".csv", ".xlsx", ".json", ".jsonl", ".log", ".md", ".png", ".pdf", ".zip", ".txt")
_PREVIEW = (
    *(
        f": CSV in {encoding}, separated by {separator}, "
        for encoding in ("utf-8", "gb18030")
        for separator in ("commas", "semicolons", "tabs")
    ),
    *(": Excel workbook, ", ": JSON in utf-8, a list of objects, ", ": JSON lines in utf-8, "),
    *(": LOG text in utf-8, ", "\nSheet Sheet1: ", " bytes, ", " KB, ", " rows (estimated), "),
    *(f" rows, {count} columns\n- " for count in range(1, 9)),
    *(f" ({kind}): " for kind in ("text", "integer", "number", "date")),
    *(" lines\n| ", "\n- ", "\n| "),
)
_ESCAPES = ('\\"', "\\\\", "\\n", "\\t", "\\r")


def json_pieces() -> list[str]:
    """List the pieces of JSON structure, and the words that are values, that are single tokens.

    Returns:
        The pieces; no two can start at the same place of a text unless one continues the other.
    """
    keys = ["address", "email", "question"]
    keys += ["departure_city", "arrival_city", "date", "time", "class", "passenger_count", "nth", "label"]
    pieces = ['{"name":', '{"intent":', '{"entities":[', '{"text":', '{"sentiment":']
    pieces += [f',"{key}":' for key in keys]
    words = ["book", "change", "cancel", "query", *_CABINS, "PER", "LOC", "ORG"]
    return [*pieces, *words, "positive", "negative", "neutral", "null"]


def code_pieces() -> list[str]:
    """List the stretches of programs that are single tokens, as they stand in the JSON of an answer.

    Returns:
        The pieces: whole lines, and parts of lines between names that are copied.
    """
    return [json.dumps(part, ensure_ascii=False)[1:-1] for part in fixed_parts()]


def case_tokens() -> list[str]:
    """List what is a token of its own for the model of the text cases, besides characters."""
    return [
        *json_pieces(),
        *(part for line in INSTRUCTIONS.values() for part in re.split(r"(?=: )", line, maxsplit=1)),
    ]


def code_tokens() -> list[str]:
    """List what is a token of its own for the model of code tasks, besides characters."""
    tokens = [*code_pieces(), '{"code":"', SYSTEM, *_HEADINGS, *_ENDINGS, *_PREVIEW, *fixed_words()]
    return list(dict.fromkeys(tokens))


def _byte_letters() -> dict[int, str]:
    """Map bytes to the printable letters that byte-level BPE writes them with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    spare = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + index) for index, byte in enumerate(spare)}
    return letters


def build_tokenizer(chat_template: str, tokens: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Build a tokenizer.

    Args:
        chat_template: Qwen3's template, unchanged.
        tokens: What is a token of its own besides characters; by default those of the text cases.
    Returns:
        The tokenizer; its length is a multiple of 64.
    """
    letters = _byte_letters()

    def encoded(text: str) -> str:
        return "".join(letters[byte] for byte in text.encode())

    pieces = case_tokens() if tokens is None else tokens
    roles = ["system\n", "user\n", "assistant\n"]
    whole = sorted([*pieces, *_ESCAPES], key=len, reverse=True)
    characters = dict.fromkeys(alphabet() + _PUNCTUATION)
    vocabulary: dict[str, int] = {}
    for text in [*(letters[byte] for byte in range(256)), *map(encoded, [*characters, *whole, *roles])]:
        vocabulary.setdefault(text, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    # A role is one only at the start of a stretch, that is right after <|im_start|>.
    pattern = "|".join([*(rf"\A{role}" for role in roles), *map(re.escape, whole), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _MARKUP])
    while size := tokenizer.get_vocab_size() % 64:
        spare = AddedToken(f"<|reserved_{63 - size}|>", special=True, normalized=False)
        tokenizer.add_special_tokens([spare])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
    )
    fast.chat_template = chat_template
    return fast


def shipped_chat_template() -> str:
    """Read Qwen3's chat template as TRL ships it.

    Returns:
        The template, byte for byte.
    Raises:
        FileNotFoundError: The installed TRL has no such template.
    """
    import trl

    path = Path(trl.__file__).with_name("chat_templates") / "qwen3.jinja"
    return path.read_text(encoding="utf-8")
