"""Lone surrogates, folding and shingles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.support.text import fold, has_lone_surrogate, replace_lone_surrogates, shingles

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too


@given(text=ANY_TEXT)
def test_a_lone_surrogate_is_what_no_file_takes(text: str) -> None:
    assert has_lone_surrogate(text) == any("\ud800" <= character <= "\udfff" for character in text)


@given(text=ANY_TEXT)
def test_a_text_without_lone_surrogates_has_the_same_characters_elsewhere(text: str) -> None:
    replaced = replace_lone_surrogates(text)
    assert not has_lone_surrogate(replaced)
    pairs = zip(text, replaced, strict=True)
    assert all(new == ("?" if "\ud800" <= old <= "\udfff" else old) for old, new in pairs)


@pytest.mark.parametrize(
    ("text", "folded"), [("ＡＢＣ　１２", "abc 12"), ("  a\t\nB ", "a b"), ("Straße", "strasse"), ("", "")]
)
def test_width_case_and_white_space_are_folded(text: str, folded: str) -> None:
    assert fold(text) == fold(folded) == folded


@pytest.mark.parametrize(
    ("text", "size", "runs"),
    [
        ("abcab", 2, ["ab", "bc", "ca", "ab"]),
        ("北京市", 2, ["北京", "京市"]),
        ("abc", 3, ["abc"]),
        ("ab", 3, ["ab"]),
        ("", 3, [""]),
    ],
)
def test_shingles_are_the_runs_of_a_text_in_their_order(text: str, size: int, runs: list[str]) -> None:
    assert shingles(text, size) == runs
