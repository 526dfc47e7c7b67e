"""Cases and prompts: the shipped ones are right, the shared part comes first; scores."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk.label_interface.interface import LabelInterface

from draftloop.errors import SetupError
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.labelling.rules import Reason
from draftloop.model.scoring import score
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import (
    NO_OVERRIDES,
    Overrides,
    Refinement,
    Token,
    generic_case,
    parse_extra_params,
    parse_prompt,
    render,
    render_retry,
)

FOLDER = Path(__file__).parents[2] / "label_config"
CASES = Cases(FOLDER)


@pytest.mark.parametrize("name", CASES.names())
def test_a_shipped_case_is_right_by_its_own_task_and_value(name: str) -> None:
    case = CASES.get(name)
    task = Task(1, json.loads((FOLDER / name / "task.json").read_text(encoding="utf-8")))
    value = json.loads((FOLDER / name / "value.json").read_text(encoding="utf-8"))
    assert case.rules.check(value, task) == ()
    placed = case.labelling.to_regions(value, task)
    assert case.labelling.from_regions(placed.regions, task) == value
    prediction = {"result": placed.regions, "score": 1.0, "model_version": "v"}
    assert LabelInterface(CASES.config(name)).validate_prediction(prediction, return_errors=True) == []
    assert case.labelling.shows_status
    assert case.examples


@pytest.mark.parametrize("name", CASES.names())
def test_prompts_of_two_tasks_differ_only_in_the_last_message(name: str) -> None:
    case = CASES.get(name)
    for profile in ("full", "compact"):
        one = render(case, Task(1, dict.fromkeys(case.labelling.keys, "甲")), profile)
        two = render(case, Task(2, dict.fromkeys(case.labelling.keys, "乙")), profile)
        assert one[:-1] == two[:-1]
        assert ("甲" in one[-1].content, "乙" in two[-1].content) == (True, True)
        assert one[-1].content.replace("甲", "乙") == two[-1].content


def test_the_full_profile_tells_role_task_schema_rules_and_examples() -> None:
    case = CASES.get("flight_booking")
    messages = render(case, Task(1, {"text": "x"}), "full")
    system = messages[0].content
    schema = json.dumps(case.labelling.decoding_schema, ensure_ascii=False, separators=(",", ":"))
    assert all(part in system for part in (case.role, case.task_text, schema, "must differ"))
    assert [message.role for message in messages[1:]] == ["user", "assistant", "user", "assistant", "user"]
    assert messages[2].content == case.labelling.encode(case.examples[0].value)


def test_a_chinese_case_is_asked_in_chinese() -> None:
    assert "只输出" in render(CASES.get("complaint"), Task(1, {"text": "x"}), "full")[0].content


def test_the_compact_profile_is_the_one_line_and_the_text() -> None:
    messages = render(CASES.get("sentiment"), Task(1, {"text": "x"}), "compact")
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Classify the sentiment as JSON: sentiment (positive, negative, neutral)."),
        ("user", "x"),
    ]


def test_an_answer_is_sent_back_with_the_words_of_its_reasons() -> None:
    case = CASES.get("flight_booking")
    asked = render(case, Task(1, {"text": "x"}), "full")
    again = render_retry(case, asked, "{}", [Reason("schema", "time", "too short")])
    assert again[: len(asked)] == asked
    assert again[-2].content == "{}"
    assert "- time: too short" in again[-1].content


@pytest.mark.parametrize("profile", ["full", "compact"])
def test_an_annotators_words_come_after_everything_that_tasks_share(profile: Any) -> None:
    case, task = CASES.get("complaint"), Task(1, {"text": "x"})
    asked = render(case, task, profile)
    again = render(case, task, profile, Refinement("shorter", {"question": "x"}))
    assert again[: len(asked)] == asked
    assert [message.role for message in again[len(asked) :]] == ["assistant", "user"]
    assert again[-2].content == case.labelling.encode({"question": "x"})
    assert "shorter" in again[-1].content
    blank = render(case, task, profile, Refinement("shorter"))
    assert blank[:-1] == asked[:-1]
    assert blank[-1].content.startswith("x\n\n")
    assert "shorter" in blank[-1].content


@pytest.mark.parametrize("extra", [None, "", " ", {}, "{}"])
def test_no_extra_params_change_nothing(extra: Any) -> None:
    assert parse_extra_params(extra) == (None, NO_OVERRIDES)


def test_extra_params_are_read_from_an_object_and_from_a_string() -> None:
    said = {
        "case": "complaint",
        "instruction": " Do it. ",
        "temperature": 0,
        "model": "big",
        "profile": "compact",
    }
    read = ("complaint", Overrides("Do it.", 0.0, "big", "compact"))
    assert parse_extra_params(said) == parse_extra_params(json.dumps(said)) == read
    assert parse_extra_params(read[1].set_fields()) == (None, read[1])


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no|not a JSON object"),
        ({"instructions": "x"}, "'instructions', which nobody reads.*case, instruction, temperature, model"),
        ({"temperature": "hot"}, "from 0 to 2"),
        ({"temperature": 2.5}, "from 0 to 2"),
        ({"temperature": True}, "from 0 to 2"),
        ('{"temperature": NaN}', "from 0 to 2"),
        ({"model": ""}, "extra_params.model is no text"),
        ({"case": 7}, "extra_params.case is no text"),
        ({"profile": "short"}, "extra_params.profile is neither full nor compact"),
        ('{"instruction": "\\ud83d"}', "extra_params.instruction is no text"),
    ],
)
def test_extra_params_that_nobody_can_use_are_refused(extra: Any, words: str) -> None:
    with pytest.raises(SetupError, match=words) as refused:
        parse_extra_params(extra)
    assert refused.value.hint


def test_an_instruction_stands_for_the_cases_own_in_both_profiles() -> None:
    xml = CASES.config("sentiment")
    case = CASES.find(xml, "sentiment", Overrides("Judge the tone."))
    assert case is CASES.find(xml, "sentiment", Overrides("Judge the tone."))
    assert render(case, Task(1, {"text": "x"}), "compact")[0].content == "Judge the tone."
    full = render(case, Task(1, {"text": "x"}), "full")[0].content
    assert "Judge the tone." in full
    assert CASES.get("sentiment").task_text not in full
    assert CASES.get("sentiment").role in full
    assert CASES.find(xml, "sentiment") is CASES.get("sentiment")


def test_several_texts_have_headings() -> None:
    config = """<View><Text name="q" value="$question"/><Text name="a" value="$answer"/>
    <Rating name="r" toName="a"/></View>"""
    case = generic_case(compile_labelling(config))
    asked = render(case, Task(1, {"question": "Q", "answer": "A"}), "compact")[-1].content
    assert asked == "## question\nQ\n\n## answer\nA"


def test_a_project_finds_its_case_by_name_then_by_config_then_by_xml_alone() -> None:
    xml = CASES.config("sentiment")
    assert CASES.find(xml).name == "sentiment"
    assert CASES.find(xml.replace("neutral", "mixed"), "sentiment").name == "sentiment"
    assert CASES.find(xml.replace("neutral", "mixed")).name == "generic"
    assert CASES.find(xml, "sentiment") is CASES.find(xml)


def test_examples_that_an_edited_config_outgrew_are_left_out() -> None:
    edited = CASES.find(CASES.config("sentiment").replace("neutral", "mixed"), "sentiment")
    assert [example.value for example in edited.examples] == [{"sentiment": "positive"}]


@pytest.mark.parametrize(
    ("markdown", "words"),
    [("# Role\na\n# Task\nb", "compact"), ("# Role\na\n# Task\nb\n# Compact\nc\n# Extra\nd", "extra")],
)
def test_a_prompt_file_with_other_sections_is_refused(markdown: str, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        parse_prompt(markdown, "x/prompt.md")


def tokens(*parts: tuple[str, float]) -> list[Token]:
    return [Token(text.encode(), math.log(probability)) for text, probability in parts]


def test_the_score_is_the_probability_of_the_value_and_of_each_field() -> None:
    answer = '{"a":"北","b":null}'
    scored = score(answer, tokens(('{"a":"', 1.0), ("北", 0.5), ('","b":', 0.8), ("null", 0.25), ("}", 1.0)))
    assert scored.total == pytest.approx(0.5 * 0.8 * 0.25)
    assert scored.fields["a"] == pytest.approx(0.5)
    assert scored.fields["b"] == pytest.approx(0.8 * 0.25)


def test_half_characters_in_tokens_do_not_disturb_the_score() -> None:
    north = "北".encode()
    split = [Token(b'{"a":"', 0.0), Token(north[:1], math.log(0.5)), Token(north[1:], 0.0), Token(b'"}', 0.0)]
    assert score('{"a":"北"}', split).fields == {"a": pytest.approx(0.5)}


@pytest.mark.parametrize("answer", ["", "x", "[1]", '{"a":', '{"a" 1}', '{"a":' + "[" * 5000])
def test_what_is_no_object_scores_zero(answer: str) -> None:
    assert score(answer, [Token(answer.encode(), 0.0)]).total == 0.0


def test_tokens_of_another_answer_score_zero() -> None:
    assert score('{"a":1}', [Token(b"{}", 0.0)]).total == 0.0
