"""The law of every family of codecs: what a value becomes as regions reads back as the same value."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from label_studio_sdk.label_interface.interface import LabelInterface

from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.labelling import Labelling, Task, compile_labelling
from draftloop.labelling.passages import HtmlPassage
from draftloop.labelling.rules import Rules
from tests.families import DIALOGUE, FAMILIES, HTML, ITEMS, OPTIONS, TEXT
from tests.values import filled, values

LABELLINGS = {name: compile_labelling(family.config) for name, family in FAMILIES.items()}
TASKS = {name: Task(1, family.data) for name, family in FAMILIES.items()}
INTERFACES = {name: LabelInterface(family.config) for name, family in FAMILIES.items()}


def case(name: str) -> tuple[Labelling, Task]:
    return LABELLINGS[name], TASKS[name]


def problems(name: str, value: dict[str, Any]) -> list[str]:
    return LABELLINGS[name].to_regions(value, TASKS[name]).problems


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=50)
@given(data=st.data())
def test_a_value_reads_back_from_its_regions_and_its_serialization(name: str, data: st.DataObject) -> None:
    labelling, task = case(name)
    value = data.draw(values(labelling, task))
    bound = labelling.for_task(task)
    placed = labelling.to_regions(value, task)
    assert [problem for problem in placed.problems if "must be filled" not in problem] == []
    assert labelling.from_regions(placed.regions, task) == value
    assert bound.decode(bound.encode(value)) == value
    assert Draft202012Validator(bound.validating_schema).is_valid(value)
    assert Draft202012Validator(bound.decoding_schema).is_valid(json.loads(bound.encode(value)))
    plain = [region for region in placed.regions if region.get("from_name") not in labelling.unjudged]
    prediction = {"result": plain, "score": 0.5, "model_version": "v"}
    assert INTERFACES[name].validate_prediction(prediction, return_errors=True) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_form_is_filled_without_a_problem(name: str) -> None:
    labelling, task = case(name)
    value = filled(labelling, task)
    assert problems(name, value) == []
    assert Rules(labelling.for_task(task)).check(value, task) == ()


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=50)
@given(
    junk=st.recursive(
        st.none() | st.integers(-3, 200) | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)
    )
)
def test_no_answer_of_a_model_raises(name: str, junk: Any) -> None:
    labelling, task = case(name)
    for control in labelling.for_task(task).controls:
        labelling.to_regions({control.name: junk}, task)


# ---------------------------------------------------------------------------------- positions


def test_positions_in_html_are_those_of_the_document_that_a_browser_makes() -> None:
    passage = HtmlPassage.of(HTML)
    assert (
        passage.text == "😀 Müller & Söhne\nDas Haus von\n𠮷田 und Haus, 北京。\nHaus A B\neins\nHaus 😀 zwei"
    )
    start = passage.text.index("𠮷田")
    position = passage.place(start, start + 2)
    assert position is not None
    # "😀 Müller & Söhne" 16, "\n" 1, "Das   Haus von" 14, the <br> 1
    assert position["globalOffsets"] == {"start": 32, "end": 34}


def test_a_quote_may_span_blocks_of_html_but_not_begin_with_the_break() -> None:
    passage = HtmlPassage.of("<p>a</p><p>b</p>")
    assert passage.text == "a\nb"
    position = passage.place(0, 3)
    assert position is not None
    assert position["globalOffsets"] == {"start": 0, "end": 2}
    assert passage.place(1, 3) is None


def test_dialogue_positions_count_utf16_units_within_an_utterance() -> None:
    labelling, task = case("dialogue")
    value = {"slots": [{"text": "北京", "nth": 2, "label": "Place"}]}
    region = labelling.to_regions(value, task).regions[0]
    before = DIALOGUE[1]["text"].rindex("北京")
    assert region["value"] == {
        "start": "1",
        "end": "1",
        "startOffset": before + 1,
        "endOffset": before + 3,
        "text": "北京",
        "paragraphlabels": ["Place"],
    }


def test_half_a_character_of_a_dialogue_is_no_position() -> None:
    labelling, task = case("dialogue")
    value = {"start": "0", "end": "0", "startOffset": 1, "endOffset": 3, "paragraphlabels": ["Person"]}
    with pytest.raises(InvalidValue, match="'slots': A span is outside"):
        labelling.from_regions([{"from_name": "slots", "value": value}], task)


# ---------------------------------------------------------------------------------- per region


def test_a_per_region_value_has_the_id_and_position_of_its_span() -> None:
    quote = {"text": "张三", "nth": 0, "label": "Person", "gender": "female", "traits": [], "aliases": []}
    placed = LABELLINGS["per_region"].to_regions({"spans": [quote]}, TASKS["per_region"])
    span, gender = placed.regions
    assert gender["id"] == span["id"]
    assert gender["value"] == {"start": 1, "end": 3, "text": "张三", "choices": ["female"]}


def test_a_control_for_another_label_is_reported_and_dropped() -> None:
    quote = {"text": "北京", "nth": 0, "label": "Place", "gender": "female", "traits": [], "aliases": []}
    placed = LABELLINGS["per_region"].to_regions({"spans": [quote]}, TASKS["per_region"])
    assert [region["from_name"] for region in placed.regions] == ["spans"]
    assert placed.problems == ["Control 'gender' is not shown for Place '北京', so it holds nothing."]


def test_a_per_region_value_without_a_span_is_refused() -> None:
    region = {"id": "x", "from_name": "note", "value": {"text": ["a"]}}
    with pytest.raises(InvalidValue, match="'note' belongs to no span"):
        LABELLINGS["per_region"].from_regions([region], TASKS["per_region"])


def test_absent_things_within_a_quote_are_null_in_the_serialization() -> None:
    quote = {"text": "张三", "nth": 0, "label": "Person"}
    assert LABELLINGS["per_region"].encode({"spans": [quote]}) == (
        '{"spans":[{"text":"张三","nth":0,"label":"Person","gender":null,"traits":[],"note":null,"aliases":[],'
        '"sure":null}]}'
    )


# ---------------------------------------------------------------------------------- relations


def test_relations_come_last_and_count_the_quotes_of_all_controls() -> None:
    labelling, task = case("relations")
    assert [control.name for control in labelling.controls] == ["people", "places", "relations"]
    value = {
        "people": [{"text": "张三", "nth": 0, "label": "Person"}],
        "places": [{"text": "北京", "nth": 0, "label": "Place"}],
        "relations": [{"from": 0, "to": 1, "direction": "right", "labels": ["lives in"]}],
    }
    regions = labelling.to_regions(value, task).regions
    assert regions[-1] == {
        "type": "relation",
        "from_id": "people-0",
        "to_id": "places-0",
        "direction": "right",
        "labels": ["lives in"],
    }
    regions[-1] |= {"direction": "left", "from_id": "places-0", "to_id": "people-0"}
    assert labelling.from_regions(regions, task) == value


@pytest.mark.parametrize("ends", [(0, 0), (0, 1), (5, 0)])
def test_a_relation_needs_two_quotes_of_the_text(ends: tuple[int, int]) -> None:
    people = [{"text": "张三", "nth": 0, "label": "Person"}, {"text": "nobody", "nth": 0, "label": "Person"}]
    arrow = {"from": ends[0], "to": ends[1], "direction": "right", "labels": []}
    messages = problems("relations", {"people": people, "relations": [arrow]})
    assert f"from quote {ends[0]} to quote {ends[1]}" in messages[-1]


# ---------------------------------------------------------------------------------- ranking, options


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ranking", {"order": ["a", "a", "b", "3"]}, "'a' is ranked twice"),
        ("ranking", {"order": ["a", "b", "3"]}, "'d' is not ranked"),
        ("buckets", {"columns": {"good": ["a"], "bad": ["a"]}}, "'a' is ranked twice"),
        ("default_bucket", {"columns": {"good": ["a"], "rest": []}}, "'b' is not ranked"),
        ("ranking", {"order": ["zz"]}, "cannot show"),
    ],
)
def test_an_order_that_the_page_cannot_show_is_reported(name: str, value: dict[str, Any], words: str) -> None:
    assert words in problems(name, value)[0]


def test_ids_that_stay_in_the_list_are_not_in_the_value() -> None:
    labelling, task = case("buckets")
    region = {"from_name": "columns", "value": {"ranker": {"_": ["a", "d", "3"], "good": ["b"], "bad": []}}}
    assert labelling.from_regions([region], task) == {"columns": {"good": ["b"], "bad": []}}


def test_a_tasks_options_are_in_the_prompt_and_in_the_schema() -> None:
    labelling, task = case("options")
    assert labelling.dynamic
    assert labelling.keys == ("text", "options", "flat", "labels")
    assert labelling.inputs(task)["options"] == (
        "- animal: Animal\n- animal > cat\n- animal > dog: barks\n- plant\n- stone\n- stone > granite"
    )
    bound = labelling.for_task(task)
    assert bound.for_task(task) is bound
    kinds = bound.decoding_schema["properties"]["kinds"]["items"]["enum"]
    assert kinds == ["animal > cat", "animal > dog", "plant", "stone > granite"]
    assert bound.inputs(task) == labelling.inputs(task)


def test_controls_that_the_import_validator_rejects_are_listed() -> None:
    assert {name: labelling.unjudged for name, labelling in LABELLINGS.items() if labelling.unjudged} == {
        "options": {"kinds", "nested"},
        "shown_by_all": {"who"},
        "numbers": {"stars"},
    }
    stars = compile_labelling('<View><Text name="text" value="$text"/><Rating name="stars"/></View>')
    assert stars.unjudged == {"stars"}
    assert stars.controls[0].to_name == "text"


def test_a_labelling_without_options_from_tasks_is_the_same_for_each_task() -> None:
    labelling, task = case("per_region")
    assert labelling.for_task(task) is labelling


def test_a_parent_is_stored_where_all_its_leaves_are_picked() -> None:
    labelling, task = case("options")
    region = labelling.to_regions({"kinds": ["animal > cat", "animal > dog", "plant"]}, task).regions[0]
    assert region["value"]["choices"] == [["animal"], ["animal", "cat"], ["animal", "dog"], ["plant"]]


@pytest.mark.parametrize("options", [None, [], "abc", [{"html": "no value"}]])
def test_a_task_without_its_options_is_refused(options: Any) -> None:
    data = {**TASKS["options"].data, "options": options}
    with pytest.raises(TaskError, match="Task 7"):
        LABELLINGS["options"].for_task(Task(7, data))


# ---------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"kind": "wish", "severity": "low", "why": []},
            "'severity' is shown only where 'B' is picked in 'kind'",
        ),
        (
            {"kind": "B", "severity": "low", "why": ["p"]},
            "'why' is shown only where 'B' is not picked in 'kind'",
        ),
        ({"steps": ["a"], "why": []}, "'steps' is shown only where"),
        ({"kind": "B", "why": []}, "'severity' must be filled in: 'B' is picked in 'kind'"),
    ],
)
def test_hidden_controls_are_empty_and_required_ones_filled(value: dict[str, Any], words: str) -> None:
    labelling, task = case("conditions")
    reasons = Rules(labelling).check({"steps": [], **value}, task)
    assert words in str(reasons[0])


def test_the_value_of_a_hidden_control_gets_no_region() -> None:
    placed = LABELLINGS["conditions"].to_regions({"kind": "wish", "severity": "low"}, TASKS["conditions"])
    assert [region["from_name"] for region in placed.regions] == ["kind"]


# ---------------------------------------------------------------------------------- objects


def test_a_model_reads_what_the_page_shows() -> None:
    labelling, task = case("shown")
    assert labelling.inputs(task) == {
        "static": 'Read "T" first',
        "md": "# Heading\n*text*",
        "table": 'a: x\nb: 2\nc: {"d": [1]}',
        "talk": "A: hi 😀\nok",
    }
    ranking, ranked = case("ranking")
    assert ranking.inputs(ranked)["items"] == (
        "[a] First\nOne 😀\n[b] Second\nTwo [image: a chair]\n[3] Third\nThree\n[d] Fourth\nFour"
    )
    assert (
        case("per_item")[0]
        .inputs(TASKS["per_item"])["pages"]
        .startswith("[image: /static/samples/chairs/chair1.png]\n")
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("dialogue", {"talk": "no list"}),
        ("dialogue", {"talk": [{"author": "a"}]}),
        ("dialogue", {"talk": [{"author": "a", "text": "half \ud83d"}]}),
        ("html", {"html": ["a", {}], "html2": ""}),
        ("buckets", {"items": None}),
        ("buckets", {"items": [{"title": "no id"}]}),
        ("shown", {**FAMILIES["shown"].data, "table": "no table"}),
    ],
)
def test_a_task_that_cannot_be_shown_is_refused(name: str, data: dict[str, Any]) -> None:
    task = Task(7, data)
    with pytest.raises(TaskError, match="Task 7"):
        LABELLINGS[name].for_task(task).inputs(task)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('<List name="l" value="$l"/><Ranker name="r" toName="text"/>', "no <List>"),
        ('<Pairwise name="p" toName="text"/>', "Pairwise"),
        ('<ParagraphLabels name="p" toName="text"><Label value="a"/></ParagraphLabels>', "labels a Text"),
        ("<Relations><Relation value='a'/></Relations>", "no spans to relate"),
        ('<Choices name="c" toName="text" perItem="true"><Choice value="a"/></Choices>', "shows one thing"),
        (
            """<Labels name="s" toName="text"><Label value="a"/></Labels>
            <TextArea name="nth" toName="text" perRegion="true"/>""",
            "key of that name",
        ),
        ('<Taxonomy name="t" toName="text" apiUrl="/t"/>', "outside"),
        ('<Paragraphs name="p" value="$p" valueType="url"/>', "valueType"),
    ],
)
def test_an_unsupported_config_is_refused_with_one_sentence(config: str, words: str) -> None:
    with pytest.raises(SetupError, match=words) as refused:
        compile_labelling(f'<View><Text name="text" value="$text"/>{config}</View>')
    assert refused.value.hint


def test_a_config_that_shows_only_images_is_refused() -> None:
    with pytest.raises(SetupError, match="nothing but images"):
        compile_labelling(
            """<View><Image name="i" value="$i"/>
            <Choices name="c" toName="i"><Choice value="a"/></Choices></View>"""
        )


def test_the_data_of_the_families_is_as_hard_as_it_says() -> None:
    assert all("😀" in str(part) for part in (HTML, DIALOGUE, ITEMS, TEXT))
    assert OPTIONS
