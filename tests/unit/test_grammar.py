"""Quotes can be written only as pieces of the text; what the rest may be stays the schema's word."""

import json
from pathlib import Path

import pytest

from draftloop.labelling.grammar import MOST_CHARS, quoting_grammar
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import generic_case
from tests.fake_vllm import written
from tests.families import FAMILIES

CASES = Cases(Path(__file__).parents[2] / "label_config")


def lines(case: str, text: str) -> dict[str, str]:
    grammar = CASES.get(case).grammar(Task(1, {"text": text, "draft_status": ""}))
    assert grammar is not None
    return dict(line.split(": ", 1) for line in grammar.splitlines())


def test_a_grounded_field_is_a_piece_or_null_and_the_others_are_the_schemas() -> None:
    rules = lines("flight_booking", "从昆明到哈尔滨")
    assert rules["start"].startswith('"{\\"intent\\":" %json {')
    assert '",\\"departure_city\\":" "\\"" QUOTE_1_40 "\\"" ",\\"arrival_city\\":"' in rules["start"]
    assert rules["QUOTE_1_40"] == "(PIECE_0) & /(?s:.){1,40}/"
    assert "昆" in rules["PIECE_0"]


def test_spans_are_pieces_inside_their_array() -> None:
    rules = lines("named_entities", "李雷在上海")
    assert rules["start"].startswith('"{\\"entities\\":" "[" ("{\\"text\\":" "\\"" QUOTE_1_60 "\\"" ')
    assert "{0,11})? " in rules["start"]


def test_an_escape_is_never_cut_in_two() -> None:
    piece = lines("named_entities", 'a"\n\\😀')["PIECE_0"].removeprefix("%regex ")
    assert json.loads(piece)["substring_chunks"] == ["a", '\\"', "\\n", "\\\\", "😀"]


@pytest.mark.parametrize("text", ["", "x" * (MOST_CHARS + 1)])
def test_without_a_text_or_with_a_very_long_one_the_schema_alone_binds(text: str) -> None:
    schema = CASES.get("complaint").labelling.decoding_schema
    assert quoting_grammar(schema, [("name",)], [text]) is None


def test_a_case_without_quotes_has_no_grammar() -> None:
    assert CASES.get("sentiment").grammar(Task(1, {"text": "好", "draft_status": ""})) is None


def test_a_list_of_types_is_taken_apart() -> None:
    schema = {"type": "object", "properties": {"a": {"type": ["string", "null"], "maxLength": 5}}}
    assert 'start: "{\\"a\\":" ("\\"" QUOTE_1_5 "\\"" | "null") "}"' in str(
        quoting_grammar(schema, [("a",)], ["12"])
    )


def test_a_pattern_says_more_than_a_quote() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 5, "pattern": "^[0-9]+$"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert quoting_grammar(schema, [("a",)], ["12"]) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_of_a_grammar_satisfy_the_schema(name: str) -> None:
    task = Task(1, FAMILIES[name].data)
    case = generic_case(compile_labelling(FAMILIES[name].config)).for_task(task)
    grammar = case.grammar(task)
    if grammar is None:
        assert not case.rules.quoted
        return
    text = next(iter(case.labelling.inputs(task).values()))
    assert not [
        reason
        for reason in case.rules.check(case.labelling.decode(written(grammar, text)), task)
        if reason.kind == "schema"
    ]
