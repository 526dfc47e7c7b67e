import hashlib
import json
import random
import re
from pathlib import Path

import pytest

from demo.corpus import CASES, Lexicon, LexiconError, generate, load_lexicon
from demo.corpus.lexical import unknown_lexical_symbols
from demo.corpus.lexicon import KINDS
from demo.corpus.words import Draw, Language, word_files
from demo.make_lexicon import held_out_words, is_held_out
from demo.training.evaluation import DECODING_SCHEMAS


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("people_zh", "施耐庵"),  # its surname is held out
        ("people_zh", "王健雄"),  # its given name is
        ("places_zh", "威海市"),
        ("places_zh", "漓江"),
        ("organisations_zh", "浙江大学医学院"),
        ("nouns_zh", "星火"),
        ("surnames_en", "HUANG"),
        ("cities_en", "San Diego"),
        ("companies_en", "Siemens Nederland"),
        ("districts_zh", "崂山区"),
    ],
)
def test_names_with_a_held_out_word_in_them_are_left_out(kind: str, entry: str) -> None:
    assert is_held_out(kind, entry, held_out_words())


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("people_zh", "王小波"),
        ("cities_zh", "苏州"),
        ("organisations_zh", "北京大学"),
        ("surnames_en", "Hubert"),
    ],
)
def test_names_without_a_held_out_word_are_kept(kind: str, entry: str) -> None:
    assert not is_held_out(kind, entry, held_out_words())


# SHA-256 of 300 texts of seed 0: figures on them compare with those of earlier models.
HELD_OUT = {
    "complaint": "34c245d8b37de7c43c2aa62a7a41d9e41ce065d384f5881d333693ba7c5711c3",
    "flight_booking": "52869e76a7d0bbd5ad770aad25c8832d5793ddc0125ed82b211c4ce3ac615958",
    "named_entities": "475454bb9bc6c2e781c876ff5a64942583a6c9caa51332d0f32f3194d580d52b",
    "sentiment": "418546519a7714741e3ff277979068d0d93f986ca916a950da8ead271f00c995",
}


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    """Return a lexicon of invented words."""
    rng = random.Random(0)
    draw = Draw("train", rng)
    words = {
        kind: [
            draw.letters(4, 9).title() if kind.endswith("_en") else draw.characters(2, 3) for _ in range(120)
        ]
        for kind in KINDS
    }
    words["surnames_zh"] = [draw.characters(1, 1) for _ in range(60)]
    return Lexicon(words)


@pytest.mark.parametrize("case", CASES)
def test_held_out_texts_are_the_same_with_and_without_a_lexicon(case: str, lexicon: Lexicon) -> None:
    plain = list(generate(case, "held_out", 300, 0))
    assert plain == list(generate(case, "held_out", 300, 0, lexicon=lexicon))
    assert hashlib.sha256(repr(plain).encode()).hexdigest() == HELD_OUT[case]


@pytest.mark.parametrize("case", CASES)
def test_texts_with_a_lexicon_obey_the_schema_and_quote_the_text(case: str, lexicon: Lexicon) -> None:
    texts = list(generate(case, "train", 300, 0, lexicon=lexicon))
    assert texts != list(generate(case, "train", 300, 0))
    assert texts == list(generate(case, "train", 300, 0, lexicon=lexicon))
    for one in texts:
        assert list(one.value) == list(DECODING_SCHEMAS[case]["properties"])
        assert not re.search(r"[{}<>]\w+[{}<>]", one.text) or case == "complaint"
        for entity in one.value.get("entities", ()):
            starts = [match.start() for match in re.finditer(f"(?={re.escape(entity['text'])})", one.text)]
            assert len(starts) > entity["nth"]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_symbol_of_the_lexical_grammar_has_words(language: Language, lexicon: Lexicon) -> None:
    assert not unknown_lexical_symbols(language, lexicon)


SET_APART = ("templates", "clauses", "sentiment", "surnames", "given", "names_", "cities", "places", "orgs_")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in word_files("held_out")
        if any(kind in name for kind in SET_APART) and "label" not in name and not name.startswith("code")
    ],
)
def test_the_validation_split_shares_no_name_or_sentence_with_the_spared_training_split(name: str) -> None:
    spared = set(Draw("train", random.Random(), spare=True).entries(name))
    assert spared
    assert not spared & set(Draw("validation", random.Random()).entries(name))


@pytest.mark.parametrize("case", CASES)
def test_validation_texts_are_in_neither_of_the_other_splits(case: str, lexicon: Lexicon) -> None:
    texts = {one.text for one in generate(case, "validation", 200, 0, lexicon=lexicon)}
    assert not texts & {one.text for one in generate(case, "train", 2000, 0, lexicon=lexicon, spare=True)}
    assert not texts & {one.text for one in generate(case, "held_out", 2000, 0)}


def test_names_of_the_lexicon_that_validation_draws_are_never_trained(lexicon: Lexicon) -> None:
    for kind in ("people_zh", "organisations_zh", "cities_en", "surnames_en"):
        trained, kept = lexicon.for_training.entries[kind], lexicon.for_validation.entries[kind]
        assert trained
        assert kept
        assert not set(trained) & set(kept)


@pytest.mark.parametrize("content", ["", "[]", '{"nouns_zh": []}', '{"nouns_zh": ["词"]}'])
def test_a_file_that_is_no_lexicon_is_refused_in_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "lexicon.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LexiconError, match="demo/make_lexicon"):
        load_lexicon(path)


def test_a_written_lexicon_is_read_back(lexicon: Lexicon, tmp_path: Path) -> None:
    path = tmp_path / "lexicon.json"
    path.write_text(json.dumps(lexicon.entries), encoding="utf-8")
    assert load_lexicon(path).entries == lexicon.entries
