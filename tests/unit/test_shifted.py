import re

import pytest

from demo.corpus import shifted
from demo.corpus.words import alphabet, word_files, word_list
from draftloop.dataset.sample import present
from draftloop.labelling.labelling import Task
from draftloop.prompting.cases import Cases

COUNT = 300
SIDES = (False, True)


def bare(name: str, entry: str) -> str:
    """Reduce an entry to its words; of a format or template, keep the marks that make it another one."""
    if name == "order_formats":
        return entry
    if "templates" in name:
        return re.sub(r"[\[\]<>\s，,。：:；;]", "", entry)
    return re.sub(r"\W+", "", entry).lower()


@pytest.mark.parametrize("name", word_files("shifted_held_out"))
def test_no_list_of_one_side_shares_an_entry_with_another_one(name: str) -> None:
    ours = {bare(name, entry) for entry in word_list("shifted_held_out", name)}
    theirs = {bare(name, entry) for entry in word_list("shifted_train", name)}
    known = {
        bare(name, entry)
        for folder in ("train", "held_out")
        if name in word_files(folder)
        for entry in word_list(folder, name)
    }
    assert ours
    assert theirs
    assert not ours & theirs
    assert not (ours | theirs) & known


def test_both_sides_have_the_same_lists_of_characters_that_the_model_can_write() -> None:
    assert word_files("shifted_train") == word_files("shifted_held_out")
    known = set(alphabet())
    for folder in shifted.FOLDERS.values():
        for name in word_files(folder):
            for entry in word_list(folder, name):
                assert {sign for sign in entry if "\u4e00" <= sign <= "\u9fff"} <= known, entry


@pytest.mark.parametrize("held_out", SIDES)
def test_the_same_seed_gives_the_same_tasks_and_another_seed_others(held_out: bool) -> None:
    first = shifted.make(40, 3, held_out=held_out)
    assert first == shifted.make(40, 3, held_out=held_out)
    assert first != shifted.make(40, 4, held_out=held_out)
    assert first[:10] == shifted.make(10, 3, held_out=held_out)


def test_the_sides_share_no_text() -> None:
    texts = [{data["text"] for data, _ in shifted.make(COUNT, 0, held_out=side)} for side in SIDES]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("held_out", SIDES)
def test_every_field_stands_in_its_text_and_is_absent_at_times(held_out: bool) -> None:
    absent = dict.fromkeys(shifted.FIELDS, 0)
    made = shifted.make(COUNT, 1, held_out=held_out)
    for data, value in made:
        assert tuple(value) == shifted.FIELDS
        assert data["text"] == data["text"].strip()
        for name, part in value.items():
            assert part is None or (part and part in data["text"])
            absent[name] += part is None
    assert absent.pop("question") == 0
    assert all(absent.values())


@pytest.mark.parametrize("held_out", SIDES)
def test_the_answers_are_what_the_case_takes_under_the_config(held_out: bool) -> None:
    case = Cases(shifted.CASES).get(shifted.CASE)
    assert tuple(control.name for control in case.labelling.controls) == shifted.FIELDS
    assert case.labelling.shows_status
    for number, (data, truth) in enumerate(shifted.make(COUNT, 2, held_out=held_out)):
        task, value = Task(number, data), present(truth)
        assert not case.rules.check(value, task)
        assert case.labelling.from_regions(case.labelling.to_regions(value, task).regions, task) == value
