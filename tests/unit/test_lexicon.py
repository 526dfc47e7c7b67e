import pytest

from scripts.make_lexicon import held_out_words, is_held_out


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
