"""Long listings: taken apart wherever the answer is cut, and kept by task."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.labelstudio.listing import Listing

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.lists(st.fixed_dictionaries({"task": st.integers(1, 4), "result": VALUES}), max_size=6)


@given(ENTRIES, st.booleans(), st.integers(1, 40))
def test_a_listing_is_the_same_wherever_it_is_cut(
    entries: list[dict[str, object]], plain: bool, size: int
) -> None:
    text = json.dumps(entries, ensure_ascii=plain, indent=1 if plain else None)
    text = text.encode(errors="replace").decode()
    with Listing() as listing:
        listing.fill(["[", '{"task": 1}', "]"])  # an answer that failed half-way
        listing.fill(text[at : at + size] for at in range(0, len(text), size))
        expected = json.loads(text)
        for task in range(1, 6):
            assert listing.of(task) == [one for one in expected if one["task"] == task]


@pytest.mark.parametrize(
    "text",
    ["", "[", '[{"task": 1}', '[{"task": 1}, {"ta', '{"detail": "no"}', '[{"id": 1}]', "[7]", "<html>"],
)
def test_what_is_no_whole_listing_is_refused(text: str) -> None:
    with Listing() as listing, pytest.raises(ValueError, match=r"entry|end"):
        listing.fill([text])
