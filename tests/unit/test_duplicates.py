"""Whether an earlier answer holds for a similar text: only where all of it can be seen to."""

from typing import Any

import pytest

from draftloop.drafting.duplicates import MAX_CHARS, Neighbour, reusable_value, shingle_set, similarity
from draftloop.labelling.labelling import Task
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT

CASES = Cases(ROOT / "label_config")
OLD = "单号100,我叫何平,住中山北路88号,邮箱hp@a.cn。电梯坏了三天!"
FULL = {"name": "何平", "address": "中山北路88号", "email": "hp@a.cn", "question": "电梯坏了三天!"}
PARTIAL = {"name": "何平", "question": "电梯坏了三天!"}


def held(new: str, value: dict[str, Any], case: str = "complaint", old: str = OLD) -> bool:
    compiled = CASES.get(case)
    neighbour = Neighbour(old, compiled.labelling.encode(value), 0.9, 0.9)
    carried_value = reusable_value(compiled, compiled.labelling.read(Task(1, {"text": new})), neighbour)
    assert carried_value in (None, value)
    return carried_value is not None


def test_a_change_outside_of_what_was_quoted_leaves_a_whole_answer_right() -> None:
    assert held(OLD.replace("100", "207"), FULL)
    assert held(f" {OLD}", FULL)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("何平", "何苹"),  # another name
        ("何平", "何平安"),  # a longer one: the old quote still stands there
        ("88号", "89号"),
        ("住中山", "住老中山"),
        ("三天!", "三天!门也坏了"),  # a question that goes on
        ("何平,", "何平,安,"),  # who knows
        ("电梯坏了三天!", ""),
        ("单号100", "何平的单号100"),  # twice: which one was meant?
    ],
)
def test_a_change_at_a_quote_is_asked_again(before: str, after: str) -> None:
    assert not held(OLD.replace(before, after), FULL)


def test_what_is_new_could_fill_a_field_that_the_answer_leaves_out() -> None:
    assert not held(OLD.replace("100", "207"), PARTIAL)
    assert held(f" -- {OLD}", PARTIAL)


def test_spans_hold_only_where_nothing_but_marks_has_changed() -> None:
    old = "昨天,陈立在苏州。"
    labels = (("陈立", "PER"), ("苏州", "LOC"))
    value = {"entities": [{"text": text, "nth": 0, "label": label} for text, label in labels]}
    assert held("** 昨天,陈立在苏州。", value, "named_entities", old)
    assert not held("昨天,陈立在苏州。上海", value, "named_entities", old)
    assert not held("昨天,陈力在苏州。", value, "named_entities", old)


def test_what_is_no_quote_cannot_be_seen_to_hold() -> None:
    assert not held("服务很周到,下次还来。 ", {"sentiment": "positive"}, "sentiment", "服务很周到,下次还来。")


def test_an_answer_that_breaks_the_rules_or_is_none_does_not_hold() -> None:
    assert not held(f" {OLD}", {**FULL, "email": "何平"})
    compiled, task = CASES.get("complaint"), Task(1, {"text": OLD})
    assert (
        reusable_value(compiled, compiled.labelling.read(task), Neighbour(OLD, "no json", 0.9, 0.9)) is None
    )
    long = OLD + "x" * MAX_CHARS
    assert (
        reusable_value(
            compiled, compiled.labelling.read(Task(1, {"text": long})), Neighbour(OLD, "{}", 0.9, 0.9)
        )
        is None
    )


def test_likeness_is_the_share_of_shingles() -> None:
    assert similarity(shingle_set("abcde"), shingle_set("abcdf")) == 2 / 4
    assert similarity(shingle_set("ab"), shingle_set("ab")) == 1
    assert similarity(shingle_set(""), shingle_set("ab")) == 0
