import re

import jsonschema
import pytest

from demo.corpus import CASES, INSTRUCTIONS, generate
from demo.corpus.composed import unknown_symbols
from demo.corpus.words import Language, Split, word_files, word_list
from demo.training.evaluation import DECODING_SCHEMAS, canonical, score

COUNT = 400
SPLITS: tuple[Split, ...] = ("train", "held_out")
RUN_LENGTHS: dict[Language, int] = {"zh": 5, "en": 14}


def bare(entry: str) -> str:
    """Reduce an entry to its words, so that a changed comma or bracket does not hide an overlap."""
    return re.sub(r"\W+", "", entry).lower()


def sentence_lists(language: Language) -> list[str]:
    """List the files of written templates and clauses of a language."""
    pattern = rf"(entity|flight|complaint)_(templates|clauses)_{language}"
    return [name for name in word_files("held_out") if re.fullmatch(pattern, name)]


def runs(line: str, language: Language) -> set[str]:
    """Cut a template or clause into overlapping runs of characters; slots end it, signs do not count."""
    size = RUN_LENGTHS[language]
    line = re.sub(r"^[a-z]+: (?=.*[{<])", "", line)
    without_groups = re.sub(r"\[[^\[\]]*\]", "", line)
    stretches = []
    for part in re.split(r"\{\w+\}", f"{line}{{group}}{without_groups}"):
        words = re.sub(r"[^\w\s]+", "", part.lower()).split()
        stretches.append(("" if language == "zh" else " ").join(words))
    return {text[start : start + size] for text in stretches for start in range(len(text) - size + 1)}


@pytest.mark.parametrize("name", word_files("held_out"))
def test_train_and_held_out_lists_share_no_entry(name: str) -> None:
    train, held_out = word_list("train", name), word_list("held_out", name)
    assert held_out, "an empty list draws nothing"
    assert not set(train) & set(held_out)


@pytest.mark.parametrize(
    "name", [name for name in word_files("held_out") if "clauses" in name or "sentiment" in name]
)
def test_held_out_clauses_differ_from_training_ones_in_words_not_in_punctuation(name: str) -> None:
    assert not {bare(entry) for entry in word_list("train", name)} & {
        bare(e) for e in word_list("held_out", name)
    }


@pytest.mark.parametrize("name", [name for name in word_files("held_out") if "templates" in name])
def test_held_out_templates_differ_from_training_ones_in_words_or_order(name: str) -> None:
    def shape(line: str) -> str:
        return re.sub(r"[\[\]<>\s，,。：:；;]", "", line)

    assert not {shape(line) for line in word_list("train", name)} & {
        shape(e) for e in word_list("held_out", name)
    }


@pytest.mark.parametrize("language", RUN_LENGTHS)
def test_no_training_sentence_shares_a_run_of_characters_with_a_held_out_one(language: Language) -> None:
    held_out = {
        run
        for name in sentence_lists(language)
        for line in word_list("held_out", name)
        for run in runs(line, language)
    }
    assert held_out
    overlaps = {
        (name, line): shared
        for name in sentence_lists(language)
        for line in word_list("train", name)
        if (shared := runs(line, language) & held_out)
    }
    assert not overlaps


def test_runs_are_cut_at_slots_and_ignore_signs() -> None:
    assert runs("book: 我想，<订>一张{from}飞", "zh") == {"我想订一张"}
    assert runs("我[要]想订一张{from}飞", "zh") == {"我要想订一", "要想订一张", "我想订一张"}
    assert runs("I need, {PER}; two cheap seats!", "en") == {"two cheap seat", "wo cheap seats"}


def test_names_cities_and_mail_words_of_one_list_are_in_no_list_of_the_other_split() -> None:
    for kinds in (
        ("surnames_zh",),
        ("given_zh",),
        ("cities_zh", "world_cities_zh"),
        ("cities_en",),
        ("mail_words",),
    ):
        train = {entry for kind in kinds for entry in word_list("train", kind)}
        assert not train & {entry for kind in kinds for entry in word_list("held_out", kind)}


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_symbol_of_a_grammar_is_defined_or_a_word_list(language: Language) -> None:
    assert not unknown_symbols(language)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_texts_and_another_seed_others(case: str, split: Split) -> None:
    first = list(generate(case, split, 50, seed=3))
    assert first == list(generate(case, split, 50, seed=3))
    assert first != list(generate(case, split, 50, seed=4))
    assert first[:10] == list(generate(case, split, 10, seed=3))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES)
def test_values_obey_the_decoding_schema_in_its_key_order(case: str, split: Split) -> None:
    schema = DECODING_SCHEMAS[case]
    validator = jsonschema.Draft202012Validator(schema)
    for one in generate(case, split, COUNT, seed=0):
        validator.validate(one.value)
        assert list(one.value) == list(schema["properties"])
        assert one.text == one.text.strip()
        assert '""' not in canonical(one.value).replace('\\"', ""), "absent is null, never an empty string"


@pytest.mark.parametrize("split", SPLITS)
def test_complaint_fields_stand_in_the_text(split: Split) -> None:
    absent = 0
    for one in generate("complaint", split, COUNT, seed=1):
        assert one.value["question"]
        for value in one.value.values():
            assert value is None or value in one.text
            absent += value is None
    assert absent


@pytest.mark.parametrize("split", SPLITS)
def test_what_follows_a_closing_question_belongs_to_it(split: Split) -> None:
    for one in generate("complaint", split, COUNT, seed=2):
        start = one.text.rindex(one.value["question"])
        rest = one.text[start + len(one.value["question"]) :]
        fields = [value for key, value in one.value.items() if key != "question" and value]
        assert len(rest) < 12 or any(value in rest for value in fields)


@pytest.mark.parametrize("split", SPLITS)
def test_flight_cities_stand_in_the_text_and_differ(split: Split) -> None:
    for one in generate("flight_booking", split, COUNT, seed=1):
        assert one.value["departure_city"] in one.text
        assert one.value["arrival_city"] in one.text
        assert one.value["departure_city"] != one.value["arrival_city"]
        if one.value["date"]:
            assert one.value["date"][:4] in one.text


@pytest.mark.parametrize("split", SPLITS)
def test_entities_stand_at_their_nth_place_in_reading_order(split: Split) -> None:
    repeated = 0
    for one in generate("named_entities", split, COUNT, seed=1):
        position = 0
        for entity in one.value["entities"]:
            starts = [match.start() for match in re.finditer(f"(?={re.escape(entity['text'])})", one.text)]
            assert starts[entity["nth"]] >= position
            position = starts[entity["nth"]]
            repeated += entity["nth"] > 0
    assert repeated


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES)
def test_about_a_fifth_of_the_texts_is_english(case: str, split: Split) -> None:
    english = sum(one.language == "en" for one in generate(case, split, COUNT, seed=5))
    assert 0.12 < english / COUNT < 0.28


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(KeyError):
        next(generate("weather", "train", 1, seed=0))


def test_every_case_has_an_instruction_and_a_schema() -> None:
    assert set(INSTRUCTIONS) == set(DECODING_SCHEMAS) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_labels_themselves_score_full_marks_and_broken_answers_none(case: str) -> None:
    texts = list(generate(case, "held_out", 20, seed=0))
    best = score(case, texts, [canonical(one.value) for one in texts])
    worst = score(case, texts, ['{"half":'] * 20)
    names = set(best) - {"count"}
    assert all(best[name] == 1.0 for name in names)
    assert all(worst[name] == 0.0 for name in names)
