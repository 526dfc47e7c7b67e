"""JSON Schema, CEL and grounding: each failure is named, nothing is repaired."""

from pathlib import Path
from typing import Any

import pytest

from draftloop.errors import SetupError
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.labelling.rules import Rules
from draftloop.prompting.cases import Cases

CASES = Cases(Path(__file__).parents[2] / "label_config")
FLIGHT = {"intent": "book", "departure_city": "昆明", "arrival_city": "哈尔滨"}
TASK = Task(1, {"text": "从昆明到哈尔滨"})


def reasons(value: dict[str, Any]) -> list[str]:
    return [str(reason) for reason in CASES.get("flight_booking").rules.check(value, TASK)]


def test_a_right_value_has_no_reasons() -> None:
    full = {**FLIGHT, "date": "2026-11-20", "time": "08:00", "class": "economy", "passenger_count": 3}
    assert reasons(FLIGHT) == []
    assert reasons(full) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intent": None}, "'intent' is a required property"),
        ({"departure_city": None}, "'departure_city' is a required property"),
        ({"time": "8:00"}, "time: '8:00' does not match"),
        ({"time": "24:00"}, "time: '24:00' does not match"),
        ({"date": "2026-02-30"}, "date: '2026-02-30' is not a 'date'"),
        ({"passenger_count": 0}, "passenger_count: 0 is less than the minimum of 1"),
        ({"passenger_count": 1.5}, "passenger_count: 1.5 is not of type 'integer'"),
        ({"class": "cattle"}, "class: 'cattle' is not one of"),
        ({"arrival_city": "昆明"}, "departure_city and arrival_city must differ"),
        ({"arrival_city": "北京"}, "arrival_city: '北京' does not stand in the text."),
        ({"seat": "12A"}, "Additional properties are not allowed ('seat' was unexpected)"),
    ],
)
def test_each_rule_of_the_flight_case_has_a_message(change: dict[str, Any], words: str) -> None:
    value = {key: part for key, part in {**FLIGHT, **change}.items() if part is not None}
    assert [reason for reason in reasons(value) if words in reason], reasons(value)


CONFIG = """<View><Text name="t" value="$t"/><Number name="a" toName="t"/><Number name="b" toName="t"/>
<Labels name="e" toName="t"><Label value="X"/></Labels></View>"""


def test_a_rule_on_an_absent_key_fails_in_words_unless_it_guards() -> None:
    rules = [
        {"rule": "self.a < self.b", "message": "a below b"},
        {"rule": "!has(self.b) || self.b > 1.0", "message": "b over 1"},
    ]
    checker = Rules(compile_labelling(CONFIG, {"x-validations": rules}))
    reasons = checker.check({"a": 1, "e": []}, Task(1, {"t": "x"}))
    assert len(reasons) == 1
    assert reasons[0].message.startswith("a below b (")


def test_a_rule_inside_an_array_names_the_item() -> None:
    overlay = {
        "properties": {
            "e": {"items": {"x-validations": [{"rule": "size(self.text) > 1", "message": "too short"}]}}
        }
    }
    checker = Rules(compile_labelling(CONFIG, overlay))
    quotes = [{"text": "xy", "nth": 0, "label": "X"}, {"text": "y", "nth": 0, "label": "X"}]
    assert [str(reason) for reason in checker.check({"e": quotes}, Task(1, {"t": "xy"}))] == [
        "e.1: too short"
    ]


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"x-validations": [{"rule": "self.a <"}]}, "is not CEL"),
        ({"x-validations": [{"rule": "other.a > 1"}]}, "uses 'other'"),
        ({"x-validations": [{"message": "no rule"}]}, "'rule' is a required property"),
        ({"properties": {"a": {"minimum": "low"}}}, "is not JSON Schema"),
    ],
)
def test_rules_that_cannot_work_are_refused_at_set_up(overlay: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        Rules(compile_labelling(CONFIG, overlay))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("10.0 / double(size(self.e) - size(self.e)) > 0.0", ""),
        ("10 / (size(self.e) - size(self.e)) > 0", "division by zero"),
        ("10 % size(self.e) > 0", "modulo by zero"),
        ("size(self.e) - 9223372036854775807 - 2 > 0", "overflow"),
        ("int(self.a * 1e300) > 0", "overflow"),
        ("self.e[3].nth > 0", "out of bounds"),
        ("timestamp('x') > timestamp('y')", "timestamp"),
    ],
)
def test_a_rule_that_cannot_be_computed_is_a_reason(rule: str, words: str) -> None:
    checker = Rules(compile_labelling(CONFIG, {"x-validations": [{"rule": rule, "message": "the rule"}]}))
    reasons = checker.check({"a": 1.5, "e": []}, Task(1, {"t": "x"}))
    assert [reason.kind for reason in reasons] == (["rule"] if words else [])
    assert all(reason.message.startswith("the rule (") and words in reason.message for reason in reasons)
