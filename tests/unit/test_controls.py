"""The law of the codecs: what a value becomes as regions reads back as the same value."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from label_studio_sdk.label_interface.interface import LabelInterface

from draftloop.errors import InvalidValue, SetupError
from draftloop.labelling.labelling import Labelling, Task, compile_labelling

CONFIG = """
<View>
  <Text name="text" value="$text"/>
  <Choices name="one" toName="text" required="true">
    <Choice value="a"/><Choice value="b" alias="B b"/>
  </Choices>
  <Choices name="several" toName="text" choice="multiple">
    <Choice value="x"/><Choice value="y"/><Choice value="z"/>
  </Choices>
  <TextArea name="line" toName="text" maxSubmissions="1"/>
  <TextArea name="lines" toName="text"/>
  <Labels name="spans" toName="text"><Label value="PER"/><Label value="LOC"/></Labels>
  <Labels name="multi" toName="text" choice="multiple"><Label value="P"/><Label value="Q"/></Labels>
  <Rating name="stars" toName="text" maxRating="7"/>
  <Number name="count" toName="text" min="1" max="99" step="1"/>
  <Number name="share" toName="text" min="0" max="1" step="0.01"/>
  <DateTime name="day" toName="text" only="date"/>
  <DateTime name="clock" toName="text" only="time"/>
  <DateTime name="moment" toName="text"/>
  <Taxonomy name="tree" toName="text">
    <Choice value="Animal"><Choice value="Cat"/><Choice value="Dog"/></Choice><Choice value="Plant"/>
  </Taxonomy>
</View>
"""
LABELLING = compile_labelling(CONFIG)
INTERFACE = LabelInterface(CONFIG)

# Few different characters, so that quotes repeat and overlap; two of them outside the basic plane.
texts = st.text(alphabet="ab京😀𠮷 \n", min_size=1, max_size=30)
# Label Studio refuses nothing here, but a lone surrogate cannot be sent as JSON.
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(
    lambda text: text.rstrip("\n") or "."
)


def quotes(text: str, labels: Callable[[], st.SearchStrategy[Any]], key: str) -> st.SearchStrategy[Any]:
    def quote(start: int, length: int, label: Any) -> tuple[int, int, dict[str, Any]]:
        end = min(len(text), start + length)
        piece = text[start:end]
        nth = sum(text.startswith(piece, at) for at in range(start))
        return start, end, {"text": piece, "nth": nth, key: label}

    def in_reading_order(spans: list[tuple[int, int, dict[str, Any]]]) -> list[dict[str, Any]]:
        different = {(start, end, str(quote[key])): (start, end, quote) for start, end, quote in spans}
        ordered = sorted(different.values(), key=lambda span: (span[0], span[1], span[2][key]))
        return [quote for _, _, quote in ordered]

    spans = st.builds(quote, st.integers(0, len(text) - 1), st.integers(1, 6), labels())
    return st.lists(spans, max_size=5).map(in_reading_order)


def subset(options: list[str]) -> st.SearchStrategy[list[str]]:
    return st.tuples(*[st.booleans() for _ in options]).map(
        lambda picked: [option for option, taken in zip(options, picked, strict=True) if taken]
    )


@st.composite
def tasks_with_values(draw: st.DrawFn) -> tuple[Task, dict[str, Any]]:
    text = draw(texts)
    parts = {
        "one": st.sampled_from(["a", "B b"]),
        "line": anything,
        "stars": st.integers(1, 7),
        "count": st.integers(1, 99),
        "share": st.floats(0, 1),
        "day": st.dates().map(str).filter(lambda day: day >= "1000"),
        "clock": st.times().map(lambda clock: f"{clock:%H:%M}"),
        "moment": st.datetimes().map(lambda moment: f"{moment.year:04}-{moment:%m-%dT%H:%M}"),
    }
    value = {name: draw(part) for name, part in parts.items() if name == "one" or draw(st.booleans())}
    value["several"] = draw(subset(["x", "y", "z"]))
    value["lines"] = draw(st.lists(anything, max_size=3))
    value["spans"] = draw(quotes(text, lambda: st.sampled_from(["LOC", "PER"]), "label"))
    value["multi"] = draw(quotes(text, lambda: subset(["P", "Q"]).filter(bool), "labels"))
    value["tree"] = draw(subset(["Animal", "Animal > Cat", "Animal > Dog", "Plant"]))
    return Task(1, {"text": text}), value


@given(tasks_with_values())
def test_a_value_reads_back_from_its_regions(task_and_value: tuple[Task, dict[str, Any]]) -> None:
    task, value = task_and_value
    placed = LABELLING.to_regions(value, task)
    assert placed.problems == []
    assert LABELLING.from_regions(placed.regions, task) == value


@given(tasks_with_values())
def test_the_sdk_accepts_every_prediction(task_and_value: tuple[Task, dict[str, Any]]) -> None:
    task, value = task_and_value
    prediction = {"result": LABELLING.to_regions(value, task).regions, "score": 0.5, "model_version": "v"}
    assert INTERFACE.validate_prediction(prediction, return_errors=True) == []


@given(tasks_with_values())
def test_a_serialized_value_reads_back_and_satisfies_both_schemas(
    task_and_value: tuple[Task, dict[str, Any]],
) -> None:
    _, value = task_and_value
    assert LABELLING.decode(LABELLING.encode(value)) == value
    assert Draft202012Validator(LABELLING.validating_schema).is_valid(value)
    nulled = {control.name: value.get(control.name) for control in LABELLING.controls}
    assert Draft202012Validator(LABELLING.decoding_schema).is_valid(nulled)


def test_offsets_count_code_points_after_an_emoji() -> None:
    task = Task(1, {"text": "😀张三住在北京"})
    placed = LABELLING.to_regions({"spans": [{"text": "北京", "nth": 0, "label": "LOC"}]}, task)
    assert placed.regions[0]["value"] == {"start": 5, "end": 7, "text": "北京", "labels": ["LOC"]}


def test_overlapping_repetitions_are_counted() -> None:
    task = Task(1, {"text": "aaa"})
    placed = LABELLING.to_regions({"spans": [{"text": "aa", "nth": 1, "label": "LOC"}]}, task)
    assert (placed.regions[0]["value"]["start"], placed.regions[0]["value"]["end"]) == (1, 3)


def test_a_quote_that_is_not_in_the_text_is_reported_and_others_are_placed() -> None:
    task = Task(1, {"text": "ab"})
    value = {"spans": [{"text": "zz", "nth": 0, "label": "LOC"}, {"text": "b", "nth": 0, "label": "PER"}]}
    placed = LABELLING.to_regions(value, task)
    assert [region["value"]["text"] for region in placed.regions] == ["b"]
    assert placed.problems == ["Control 'spans': quote 'zz' #0 is not in the text (found 0, counted from 0)."]


@pytest.mark.parametrize(
    ("value", "control"),
    [
        ({"one": "c"}, "one"),
        ({"stars": "many"}, "stars"),
        ({"spans": [{"text": "a"}]}, "spans"),
        ({"tree": "Animal"}, "tree"),
    ],
)
def test_a_value_that_a_control_cannot_show_is_reported_and_dropped(
    value: dict[str, Any], control: str
) -> None:
    placed = LABELLING.to_regions(value, Task(1, {"text": "a"}))
    assert placed.regions == []
    assert f"Control '{control}'" in placed.problems[0]


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ({"from_name": "gone", "value": {}}, "which the config lacks"),
        ({"type": "relation"}, "relations"),
        ({"from_name": "one", "value": {"choices": ["c"]}}, "no choice 'c'"),
        ({"from_name": "one", "value": {"choices": ["a", "B b"]}}, "holds one value, not 2"),
        (
            {"from_name": "spans", "value": {"start": 0, "end": 9, "labels": ["PER"]}},
            "outside its 2 characters",
        ),
        ({"from_name": "spans", "value": {"start": 0, "end": 1, "labels": ["ORG"]}}, "not in the config"),
        ({"from_name": "tree", "value": {"taxonomy": [["Animal", "Cow"]]}}, "no path 'Animal > Cow'"),
    ],
)
def test_regions_that_do_not_fit_the_config_are_refused(region: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        LABELLING.from_regions([region], Task(1, {"text": "ab"}))


def test_a_trailing_newline_from_the_editor_is_dropped_and_empty_texts_are_nothing() -> None:
    task = Task(1, {"text": "a"})
    regions = [
        {"from_name": "line", "value": {"text": ["x\n"]}},
        {"from_name": "lines", "value": {"text": ["", "y"]}},
    ]
    value = LABELLING.from_regions(regions, task)
    assert (value["line"], value["lines"]) == ("x", ["y"])


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ('<Brush name="b" toName="text"/>', "Tag <Brush>"),
        ('<Choices name="c" toName="text"/>', "no options"),
        ('<Choices name="c" toName="text"><Choice/></Choices>', "without a value"),
        ('<Choices name="c" toName="nowhere"><Choice value="a"/></Choices>', 'toName="nowhere"'),
        (
            '<Choices name="c" toName="text"><Choice value="a"><Choice value="b"/></Choice></Choices>',
            "nested",
        ),
        ('<Choices name="c" toName="text" perRegion="true"><Choice value="a"/></Choices>', "perRegion"),
        ('<DateTime name="d" toName="text" only="year"/>', "year"),
        ('<Taxonomy name="t" toName="text"><Choice value="a > b"/></Taxonomy>', "separator"),
        ('<Text name="u" value="$u" valueType="url"/>', "valueType"),
        ("", "no control"),
    ],
)
def test_the_refusal_of_a_config_names_the_reason(inside: str, words: str) -> None:
    with pytest.raises(SetupError, match=words) as refused:
        compile_labelling(f'<View><Text name="text" value="$text"/>{inside}</View>')
    assert refused.value.hint


def test_arrays_are_never_null_and_single_things_may_be() -> None:
    labelling: Labelling = LABELLING
    assert labelling.encode({"one": "a"}) == (
        '{"one":"a","several":[],"line":null,"lines":[],"spans":[],"multi":[],"stars":null,"count":null,'
        '"share":null,"day":null,"clock":null,"moment":null,"tree":[]}'
    )
