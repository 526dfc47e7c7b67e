"""Attributes are read as Label Studio's page reads them, or the config is refused by one sentence."""

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.errors import SetupError, TaskError
from draftloop.labelling.attributes import (
    Attributes,
    as_text,
    fill_in,
    leading_integer,
    leading_number,
    look_up,
    to_number,
)
from draftloop.labelling.labelling import Labelling, Task, compile_labelling
from draftloop.labelling.rules import Rules

TEXT = '<Text name="text" value="$text"/>'
CHOICE = '<Choices name="c" toName="text"><Choice value="x"/></Choices>'


def labelling(tags: str, text: str = TEXT) -> Labelling:
    return compile_labelling(f"<View>{text}{tags}</View>")


def schema(tags: str, name: str = "c") -> Any:
    return labelling(tags).validating_schema["properties"][name]


def inputs(tags: str, data: dict[str, Any]) -> Mapping[str, str]:
    return compile_labelling(f"<View>{tags}</View>").inputs(Task(1, data))


# ---------------------------------------------------------------------------------- what the model reads


@pytest.mark.parametrize(
    ("value", "data", "text"),
    [
        ("Title: $title / Body: $body", {"title": "T", "body": "B"}, "Title: T / Body: B"),
        ("Title: $title / Body: $body", {"title": "T"}, "Title: T / Body: undefined"),
        ("Title: $title / Body: $body", {"title": "T", "body": None}, "Title: T / Body: null"),
        ("$a$b", {"a": "1", "b": 2.0}, "12"),
        ("$mail.from[0].name wrote", {"mail": {"from": [{"name": "Li"}]}}, "Li wrote"),
        ("$mail.from.0.name", {"mail": {"from": [{"name": "Li"}]}}, "Li"),
        ("$a.b", {"a.b": "as it stands", "a": {"b": "below"}}, "as it stands"),
        ("$a{b}", {"a{b}": "x"}, "x"),
        ("$list", {"list": ["a", None, 1.5, True]}, "a,,1.5,true"),
        ("$flag", {"flag": True}, "true"),
        ("costs 5 $, $text", {"text": "a"}, "costs 5 $, a"),
        ("$text€", {"text": "5"}, "5€"),
        ("$Customer Text", {"Customer": "Li"}, "Li Text"),
        ("$small $tiny $big", {"small": 1e-05, "tiny": 1e-7, "big": 1e21}, "0.00001 1e-7 1e+21"),
        ("$a.length: $a[1]", {"a": ["x", "y"]}, "2: y"),
        ("a$[]] $text", {"text": "b"}, "aundefined b"),
        ("$from-$to", {"from": 1, "to": 2}, "1-2"),
    ],
)
def test_the_model_reads_the_text_and_data_of_the_page(value: str, data: dict[str, Any], text: str) -> None:
    for tag in ("Text", "Markdown"):
        assert list(inputs(f'<{tag} name="text" value="{value}"/>{CHOICE}', data).values()) == [text]
    content = f'<Text name="text" value="$other">\n {value} </Text>{CHOICE}'
    assert list(inputs(content, data).values()) == [text]


@pytest.mark.parametrize(
    "value", ["$第一列", "$customer-text", "$a列", "$customer-text-2", "$客户.text", "$名"]
)
def test_a_variable_that_the_page_reads_as_text_is_refused(value: str) -> None:
    for config in (
        f'<Text name="text" value="{value}"/>{CHOICE}',
        f'{TEXT}<Header value="{value}"/>{CHOICE}',
        f'{TEXT}<Choices name="c" toName="text" value="{value}"/>',
    ):
        with pytest.raises(SetupError, match=value.replace("$", r"\$")) as refused:
            compile_labelling(f"<View>{config}</View>")
        assert "ASCII" in refused.value.hint


def test_a_task_without_any_key_of_an_object_is_refused() -> None:
    mixed = '<Text name="text" value="Title: $title / Body: $body"/>' + CHOICE
    with pytest.raises(TaskError, match="Task 1: key 'title' is missing"):
        inputs(mixed, {"other": "a"})
    with pytest.raises(TaskError, match="key 'body' is not text"):
        inputs(mixed, {"title": "a", "body": {"a": 1}})


@pytest.mark.parametrize("words", ["", "Read this.", "100 $", "$", "$-"])
def test_a_config_that_shows_nothing_of_a_task_is_refused(words: str) -> None:
    with pytest.raises(SetupError, match="nothing of a task"):
        compile_labelling(f'<View><Text name="text" value="{words}"/>{CHOICE}</View>')


def test_headers_panels_and_default_texts_reach_the_model() -> None:
    config = """<Header value="$question"/><Header>Asked by $who ($who)</Header>
    <Collapse><Panel value="About $topic"><View><Text name="text" value="$text"/></View></Panel></Collapse>
    <TextArea name="reply" toName="text" value="$answer" maxSubmissions="1"/><Header value="Static"/>"""
    data = {"question": "Why?", "who": "Li", "topic": "law", "text": "a", "answer": "b"}
    assert inputs(config, data) == {
        "question": "Why?",
        "who": "Asked by Li (Li)",
        "topic": "About law",
        "text": "a",
        "answer": "b",
    }
    assert inputs(config, {"text": "a", "answer": ""}) == {"text": "a"}  # the page leaves out what is missing


def test_a_key_shown_twice_is_one_input_and_other_text_gets_its_own_heading() -> None:
    config = f"""<Header value="$text"/>{TEXT}<Header value="Old: $x"/><Header value="New: $x"/>{CHOICE}"""
    assert inputs(config, {"text": "a", "x": "b"}) == {"text": "a", "x": "Old: b", "x_2": "New: b"}


def test_keys_that_the_backend_writes_are_no_inputs() -> None:
    config = f'<Header value="Status: $draft_status"/><Header value="$run_status"/>{TEXT}{CHOICE}'
    assert inputs(config, {"text": "a", "draft_status": "s", "run_status": "r"}) == {"text": "a"}
    assert compile_labelling(f"<View>{config}</View>").shows_status


def test_spans_are_counted_in_the_words_and_the_data() -> None:
    config = """<View><Text name="text" value="Title: $title / Body: $body"/>
    <Labels name="spans" toName="text"><Label value="A"/></Labels></View>"""
    task = Task(1, {"title": "Body", "body": "Body 😀 Body"})
    value = {"spans": [{"text": "Body", "nth": 2, "label": "A"}]}
    region = compile_labelling(config).to_regions(value, task).regions[0]
    assert (region["value"]["start"], region["value"]["end"]) == (20, 24)
    assert compile_labelling(config).from_regions([region], task) == value


def test_a_table_of_rows_reads_as_the_page_shows_it() -> None:
    config = f'<Table name="text" value="$rows"/>{CHOICE}'
    assert inputs(config, {"rows": [{"a": 1, "b": "x"}, {"a": [2]}]}) == {"rows": "a: 1 | b: x\na: [2]"}
    assert inputs(config, {"rows": ["a", 2]}) == {"rows": "0: a\n1: 2"}


# ---------------------------------------------------------------------------------- options


def test_options_may_contain_task_data() -> None:
    compiled = labelling(
        """<Choices name="c" toName="text" choice="multiple"><Choice value="$first"/>
        <Choice value="Dr. $second"/><Choice alias="third" value="$first!"/><Choice value="none"/>
        </Choices>"""
    )
    task = Task(1, {"text": "a", "first": "Ann", "second": "Bob"})
    options = ["Ann", "Dr. Bob", "third", "none"]
    assert compiled.for_task(task).decoding_schema["properties"]["c"]["items"]["enum"] == options
    assert compiled.inputs(task)["c"] == "- Ann\n- Dr. Bob\n- third: Ann!\n- none"
    assert compiled.for_task(task).inputs(task) == compiled.inputs(task)
    value = {"c": ["Ann", "third"]}
    placed = compiled.to_regions(value, task)
    assert placed.regions[0]["value"] == {"choices": ["Ann", "third"]}
    assert compiled.from_regions(placed.regions, task) == value
    assert compiled.unjudged == {"c"}
    with pytest.raises(TaskError, match="Task 2 gives control 'c' no options, or one without words"):
        compiled.for_task(Task(2, {"text": "a", "second": "Bob"}))


def test_options_on_spans_may_come_from_the_task() -> None:
    for options in ('value="$o"><Choice value="x"/>', '><Choice value="$first"/><Choice value="x"/>'):
        compiled = labelling(
            f"""<Labels name="s" toName="text"><Label value="A"/></Labels>
            <Choices name="c" toName="text" perRegion="true" {options}</Choices>"""
        )
        task = Task(1, {"text": "a b", "first": "Ann", "o": [{"value": "Ann"}]})
        value = {"s": [{"text": "b", "nth": 0, "label": "A", "c": "Ann"}]}
        regions = compiled.to_regions(value, task).regions
        assert regions[1]["value"]["choices"] == ["Ann"]
        assert compiled.from_regions(regions, task) == value
        assert "Ann" in str(compiled.inputs(task))


def test_data_is_filled_in_the_choices_of_a_task_and_in_no_other_options() -> None:
    entries = [{"value": "for $who"}, {"value": "$5 off", "alias": "off"}, {"value": "x", "children": 5}]
    task = Task(1, {"text": "a", "o": entries, "who": "Ann"})
    choices = labelling('<Choices name="c" toName="text" value="$o"/>').for_task(task)
    assert choices.controls[0].options.names == ("for Ann", "off", "x")
    for tag in ("Taxonomy", "Labels"):
        compiled = labelling(f'<{tag} name="c" toName="text" value="$o"/>').for_task(task)
        assert compiled.controls[0].options.names == ("for $who", "off", "x")
    with pytest.raises(TaskError, match="Task 1"):
        labelling('<Choices name="c" toName="text" value="$o"/>').for_task(
            Task(1, {"text": "a", "o": [{"value": "$none"}]})
        )


@pytest.mark.parametrize(
    "tag",
    [
        'Text valueType="url"',
        'Paragraphs valueType="text"',
        'Table valueType="csv"',
        'Text encoding="base64"',
    ],
)
def test_data_that_is_not_in_the_task_is_refused(tag: str) -> None:
    with pytest.raises(SetupError, match="does not show text from task data"):
        labelling(f'<{tag} name="more" value="$more"/>{CHOICE}')


def test_options_hold_the_words_between_their_tags() -> None:
    words = '<Choices name="c" toName="text"><Choice>a &amp; b</Choice><Choice value="x"> </Choice></Choices>'
    assert schema(words)["enum"] == ["a &amp; b", "x"]  # the page takes the words as XML


def test_a_label_with_task_data_needs_an_alias() -> None:
    with pytest.raises(SetupError, match=r'value="\$first" cannot be used'):
        labelling('<Labels name="s" toName="text"><Label value="$first"/></Labels>')
    compiled = labelling('<Labels name="s" toName="text"><Label value="$first" alias="A"/></Labels>')
    task = Task(1, {"text": "a", "first": "Ann"})
    assert compiled.inputs(task) == {"text": "a", "s": "- A: Ann"}
    assert compiled.for_task(task).controls[0].options.names == ("A",)


def test_steps_of_a_taxonomy_are_words_as_they_stand() -> None:
    compiled = labelling('<Taxonomy name="t" toName="text"><Choice value="$100"/></Taxonomy>')
    assert not compiled.dynamic
    assert compiled.controls[0].options.names == ("$100",)


# ---------------------------------------------------------------------------------- names in any case

SPELLED = """<View><Text name="text" value="$text"/>
<Labels name="s" toName="text" choice="multiple"><Label value="A" alias="a"/><Label value="B"/></Labels>
<Choices name="c" toName="text" choice="multiple" required="true"><Choice value="x" alias="X"/>
  <Choice value="y"/></Choices>
<Choices name="nested" toName="text" allowNested="true"><Choice value="p"><Choice value="q"/></Choice>
</Choices>
<TextArea name="note" toName="text" perRegion="true" whenLabelValue="A" maxSubmissions="1"/>
<TextArea name="why" toName="text" visibleWhen="choice-selected" whenTagName="c" whenChoiceValue="x"
  maxSubmissions="1"/>
<Rating name="stars" toName="text" maxRating="7"/><Number name="n" toName="text" min="1" max="9" step="2"/>
<DateTime name="day" toName="text" only="date"/>
<Taxonomy name="tree" toName="text" leafsOnly="true" maxUsages="1"><Choice value="r">
<Choice value="s"/></Choice></Taxonomy></View>"""


@given(st.data())
@settings(max_examples=40)
def test_names_of_tags_and_attributes_may_have_any_case(data: st.DataObject) -> None:
    def respelled(match: re.Match[str]) -> str:
        word = match[0]
        return data.draw(st.sampled_from([word, word.lower(), word.upper(), word.swapcase()]))

    names = "|".join(
        "toName choice alias allowNested perRegion whenLabelValue maxSubmissions visibleWhen whenTagName "
        "value whenChoiceValue maxRating step only leafsOnly maxUsages required name min max".split()
    )
    spelled = re.sub(rf"\b(?:{names})(?==\")", respelled, SPELLED)
    one, other = compile_labelling(SPELLED), compile_labelling(spelled)
    assert other.validating_schema == one.validating_schema
    assert [control.conditions for control in other.controls] == [
        control.conditions for control in one.controls
    ]
    assert other.keys == one.keys == ("text",)


def test_tags_may_have_any_case_and_the_judge_of_bulk_imports_is_not_asked() -> None:
    compiled = compile_labelling(
        '<view><text name="text" value="$text"/><CHOICES name="c" toname="text"><choice value="x"/></CHOICES>'
        "</view>"
    )
    assert compiled.controls[0].region({})["type"] == "choices"
    assert compiled.unjudged == {"c"}
    assert compile_labelling(SPELLED).unjudged == {"nested"}


def test_of_two_spellings_the_later_one_counts() -> None:
    assert schema('<Rating name="c" toName="text" maxRating="3" maxrating="4"/>')["maximum"] == 4


# ---------------------------------------------------------------------------------- numbers and flags


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ('Rating maxRating="10.0"', {"maximum": 10}),
        ('Rating maxRating=" 3 "', {"maximum": 3}),
        ('Rating maxRating="1e1"', {"maximum": 10}),
        ('Rating maxRating="0x0a"', {"maximum": 10}),
        ('Number step="any"', {"type": "number"}),
        ('Number step=""', {"type": "number"}),
        ('Number step="1" min="0.5"', {"type": "number", "minimum": 0.5}),
        ('Number step="1.0" max="1e3"', {"type": "integer", "maximum": 1000}),
        ('Number step="2px"', {"type": "integer"}),
        ('Number min="" max=" 5.5 "', {"minimum": 0, "maximum": 5.5}),
        ('Number min="-Infinity" max="1e12"', {"minimum": -1_000_000_000, "maximum": 10**12}),
        ('Number min="1e12"', {"minimum": 10**12, "maximum": 10**12 + 1_000_000_000}),
        ('Number max="-1e12"', {"minimum": -(10**12) - 1_000_000_000, "maximum": -(10**12)}),
        ('TextArea maxSubmissions="99999999999999999999"', {"maxItems": 1000}),
        ('TextArea maxSubmissions=""', {"type": "array", "maxItems": 20}),
        ('TextArea maxSubmissions="2.9"', {"type": "array", "maxItems": 2}),
        ('TextArea maxSubmissions="3 texts"', {"type": "array", "maxItems": 3}),
        ('TextArea maxSubmissions="1.0"', {"type": "string"}),
        ('TextArea maxSubmissions="01"', {"type": "string"}),
        ('DateTime only="date,time"', {"maxLength": 16}),
        ('DateTime only="time, date"', {"maxLength": 16}),
        ('DateTime only="date,month"', {"maxLength": 10}),
    ],
)
def test_numbers_are_read_as_the_page_reads_them(tag: str, expected: dict[str, Any]) -> None:
    name, _, attributes = tag.partition(" ")
    made = schema(f'<{name} name="c" toName="text" {attributes}/>')
    assert {key: made[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        *((f'Rating maxRating="{words}"', "maxRating") for words in ("", "0", "-1", "7.5", "abc", "5 stars")),
        *((f'Rating maxRating="{words}"', "maxRating") for words in ("Infinity", "1e9", "true", "NaN")),
        *((f'Number min="{words}"', "min") for words in ("1,5", "abc", "Infinity", "1e999", "1e16", "true")),
        ('Number max="1,5"', "max"),
        ('Number min="3" max="2"', "max"),
        *(
            (f'TextArea maxSubmissions="{words}"', "maxSubmissions")
            for words in ("unlimited", "0", "-1", "true")
        ),
        ('Taxonomy maxUsages="0"', "maxUsages"),
        ('DateTime only="year"', "only"),
        ('DateTime only="month"', "only"),
        ('DateTime format="%d.%m.%Y"', "format"),
        ('Choices required="yes"', "required"),
        ('Choices required="True"', "required"),
        ('Choices perRegion="1"', "perRegion"),
        ('Choices choice="Multiple"', "choice"),
        ('Choices allowNested="yes"', "allowNested"),
        ('Choices perRegion="true" perItem="true"', "perItem"),
        ('Choices visibleWhen="choice-selected" whenTagName="other"', "whenTagName"),
        ('Labels choice="many"', "choice"),
        ('Labels toName="text,more"', "toName"),
        ('Taxonomy labeling="true"', "labeling"),
        ('Choices value="Options: $a"', "value"),
        ('Choices toName="text,other"', "no object tag"),
        ('Choices toName="text, more"', "no object tag"),
        ('Ranker toName="text,more"', "toName"),
        ('Choices toName="other"', "no object tag"),
        ('Pairwise toName="text, more"', "no object tag"),
        ('Pairwise toName="text,text"', "toName"),
    ],
)
def test_attributes_that_the_page_rejects_are_refused(tag: str, words: str) -> None:
    name, _, attributes = tag.partition(" ")
    if "toName" not in attributes:
        attributes += ' toName="text"'
    options = {"Choices": "Choice", "Taxonomy": "Choice", "Labels": "Label"}.get(name)
    inner = f'<{options} value="x"/>' if options else ""
    with pytest.raises(SetupError, match=words) as refused:
        labelling(
            f'<{name} name="c" {attributes}>{inner}</{name}>', TEXT + '<Text name="more" value="$text"/>'
        )
    assert refused.value.hint


def test_a_control_of_several_objects_is_stored_with_the_first() -> None:
    compiled = labelling(
        '<Choices name="c" toName="more,text"><Choice value="x"/></Choices>',
        f'{TEXT}<Text name="more" value="$b"/>',
    )
    task = Task(1, {"text": "a", "b": "b"})
    (region,) = compiled.to_regions({"c": "x"}, task).regions
    assert region["to_name"] == "more"
    assert compiled.from_regions([region], task) == compiled.from_regions(
        [{**region, "to_name": "text"}], task
    )


def test_an_empty_alias_is_refused() -> None:
    with pytest.raises(SetupError, match="alias"):
        labelling('<Choices name="c" toName="text"><Choice value="x" alias=""/></Choices>')


# ---------------------------------------------------------------------------------- conditions


def picks(condition: str, value: dict[str, Any]) -> list[str]:
    compiled = labelling(
        f"""<Choices name="a" toName="text"><Choice value="x" alias="X"/><Choice value="y"/></Choices>
        <Taxonomy name="t" toName="text"><Choice value="x"/></Taxonomy>
        <View {condition}><TextArea name="c" toName="text" maxSubmissions="1"/></View>"""
    )
    return [
        str(reason)
        for reason in Rules(compiled).check({"t": [], "c": "text", **value}, Task(1, {"text": "a"}))
    ]


@pytest.mark.parametrize(
    ("condition", "value", "is_shown"),
    [
        ('visiblewhen="choice-selected" whentagname="a" whenchoicevalue="x"', {"a": "X"}, True),
        ('visibleWhen="choice-selected" whenTagName="a" whenChoiceValue="q,X"', {"a": "X"}, True),
        ('visibleWhen="choice-selected" whenTagName="a" whenChoiceValue="q, X"', {"a": "X"}, False),
        # Without a tag any choice will do, and only that of a <Choices>.
        ('visibleWhen="choice-selected" whenChoiceValue="q"', {"a": "y"}, True),
        ('visibleWhen="choice-selected"', {"t": ["x"]}, False),
        ('visibleWhen="choice-unselected"', {"t": ["x"]}, True),
        ('whenChoiceValue="y"', {"a": "y"}, True),
        ('whenChoiceValue="q,y"', {"a": "y"}, False),
        ('visibleWhen="never heard of" whenChoiceValue="q"', {}, True),
    ],
)
def test_conditions_are_decided_as_in_the_page(condition: str, value: dict[str, Any], is_shown: bool) -> None:
    assert (picks(condition, value) == []) == is_shown


def test_conditions_of_tags_that_ignore_them_are_not_read() -> None:
    compiled = labelling(
        f'{CHOICE}<Rating name="stars" toName="text" required="true" '
        'visibleWhen="choice-selected" whenTagName="c"/>'
    )
    assert compiled.controls[1].conditions == ()
    assert compiled.controls[1].required


# ---------------------------------------------------------------------------------- JavaScript's own


@pytest.mark.parametrize(
    ("text", "number", "leading", "integer"),
    [
        ("", 0, math.nan, None),
        (" 12 ", 12, 12, 12),
        ("1.5e2x", math.nan, 150, 1),
        (".5", 0.5, 0.5, None),
        ("5.", 5, 5, 5),
        ("0x1F", 31, 0, 31),
        ("0b11", 3, 0, 0),
        ("-Infinity", -math.inf, -math.inf, None),
        ("1_000", math.nan, 1, 1),
        ("٣", math.nan, math.nan, None),
        ("nan", math.nan, math.nan, None),
        ("9" * 400, math.inf, math.inf, 10**16 - 1),
        ("0x" + "f" * 400, math.inf, 0, 16**400 - 1),
        ("9" * 5000, math.inf, math.inf, 10**16 - 1),
    ],
)
def test_numbers_in_texts(text: str, number: float, leading: float, integer: int | None) -> None:
    assert to_number(text) == pytest.approx(number, nan_ok=True)
    assert leading_number(text) == pytest.approx(leading, nan_ok=True)
    assert leading_integer(text) == integer


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab01."), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.text(st.sampled_from("$ab01.[]{}\"'-_ 列"), max_size=12),
    st.dictionaries(st.text(st.sampled_from("ab01.[]列-"), max_size=3), json_values, max_size=4),
)
def test_no_words_and_no_data_are_too_odd_to_be_filled_in(words: str, data: dict[str, Any]) -> None:
    text = fill_in(words, data)
    assert isinstance(text, str)
    if "$" not in words:
        assert text == words
    look_up(data, words)
    as_text(data)


VALUES = st.sampled_from(
    [
        *("", " ", "$a b"),
        *"""true false 0 1 -1 1.5 any unlimited $a $列 a,b text $a-b date single multiple choice-selected
    region-selected c0 x 5.0 1e400 NaN $text none""".split(),
    ]
)
NAMES = st.sampled_from(
    "toName value choice required perRegion perItem maxRating min max step maxSubmissions only format alias "
    "hint visibleWhen whenTagName whenChoiceValue whenLabelValue allowNested leafsOnly maxUsages valueType "
    "inline encoding nameKey labeling apiUrl default valueList granularity html".split()
).flatmap(lambda name: st.sampled_from([name, name.lower(), name.upper()]))
TAGS = {
    "Choices": "Choice",
    "Labels": "Label",
    "Taxonomy": "Choice",
    "Ranker": "Bucket",
    "HyperTextLabels": "Label",
} | (
    dict.fromkeys(
        "TextArea Rating Number DateTime Pairwise Relations Header Text HyperText Table List".split(), ""
    )
)


@st.composite
def configs(draw: st.DrawFn) -> str:
    def attributes() -> str:
        pairs = draw(st.dictionaries(NAMES, VALUES, max_size=4))
        return " ".join(f'{name}="{value}"' for name, value in pairs.items())

    tags = []
    for number in range(draw(st.integers(1, 3))):
        tag = draw(st.sampled_from(sorted(TAGS)))
        inner = f'<{TAGS[tag]} value="x" name="b" {attributes()}/>' if TAGS[tag] else ""
        own = f'name="c{number}" toName="text" '
        words = f"<{tag} {own}{attributes()}>{inner}</{tag}>"
        tags.append(words)
    return f'<View><Text name="text" value="$text"/>{"".join(tags)}</View>'


@given(configs(), st.dictionaries(st.sampled_from(["text", "a", "x"]), json_values, max_size=3))
@settings(max_examples=600)
def test_every_config_is_read_or_refused_with_one_sentence(config: str, data: dict[str, Any]) -> None:
    try:
        compiled = compile_labelling(config)
    except SetupError:
        return
    task = Task(1, data)
    try:
        bound = compiled.for_task(task)
        bound.inputs(task)
        for control in bound.controls:
            bound.to_regions({control.name: ["x"]}, task)
            bound.to_regions({control.name: "x"}, task)
    except TaskError:
        return


def test_attributes_are_read_in_any_case() -> None:
    attributes = Attributes("Choices", {"toname": "a", "PerRegion": "true", "choice": "single"})
    assert attributes["toName"] == attributes.get("TONAME") == "a"
    assert attributes.flag("perRegion")
    assert not attributes.is_sdk_readable
    assert set(attributes) == {"toname", "perregion", "choice"}


def test_a_text_box_with_its_own_condition_is_shown_all_the_same_and_only_then_demanded() -> None:
    when = 'visibleWhen="choice-selected" whenTagName="c" whenChoiceValue="x"'
    config = f"""<View><Text name="t" value="$t"/>
    <Choices name="c" toName="t"><Choice value="x"/><Choice value="y"/></Choices>
    <TextArea name="why" toName="t" maxSubmissions="1" required="true" {when}/>
    <View {when}><TextArea name="inner" toName="t" maxSubmissions="1"/></View></View>"""
    labelling, task = compile_labelling(config), Task(1, {"t": "a"})

    def problems(**value: str) -> list[str]:
        return labelling.to_regions(value, task).problems

    assert problems(c="y", why="because") == []
    assert problems(c="y") == []
    assert problems(c="x", why="because", inner="too") == []
    assert problems(c="x") == ["Control 'why' must be filled in: 'x' is picked in 'c'."]
    assert "'inner' is shown only where" in problems(c="y", inner="too")[0]
