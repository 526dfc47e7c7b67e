"""Configs, schemas, the canonical serialization, and what is refused."""

import pytest

from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.labelling import Task, compile_labelling, hash_config
from draftloop.labelling.open_page import overlay_regions

CONFIG = """<View><HyperText name="why" value="$draft_status"/><Text name="text" value="$text"/>
<TextArea name="name" toName="text" maxSubmissions="1"/>
<TextArea name="city" toName="text" maxSubmissions="1"/></View>"""


def test_keys_keep_the_order_of_the_config_whatever_the_value_has() -> None:
    labelling = compile_labelling(CONFIG)
    assert labelling.encode({"city": "北京", "name": 'a"b\n'}) == '{"name":"a\\"b\\n","city":"北京"}'


def test_the_status_is_shown_but_is_no_input() -> None:
    labelling = compile_labelling(CONFIG)
    assert labelling.shows_status
    assert labelling.inputs(Task(1, {"text": "a", "draft_status": "b"})) == {"text": "a"}


def test_an_overlay_tightens_both_schemas_and_its_optional_keys_may_be_null() -> None:
    overlay = {"required": ["city"], "properties": {"name": {"maxLength": 5, "x-grounded": True}}}
    labelling = compile_labelling(CONFIG, overlay)
    name = {"type": "string", "minLength": 1, "maxLength": 5}
    assert labelling.decoding_schema["properties"]["name"] == {"anyOf": [name, {"type": "null"}]}
    assert labelling.decoding_schema["required"] == ["name", "city"]
    assert labelling.validating_schema["properties"]["name"] == {**name, "x-grounded": True}
    assert labelling.validating_schema["required"] == ["city"]


def test_an_overlay_for_a_control_that_is_not_there_is_refused() -> None:
    with pytest.raises(SetupError, match="'nme', which is no control"):
        compile_labelling(CONFIG, {"properties": {"nme": {}}})


def test_the_decoding_schema_holds_no_keyword_that_the_engine_refuses_or_ignores() -> None:
    overlay = {"properties": {"name": {"not": {"const": "x"}, "format": "email", "uniqueItems": True}}}
    decoding = str(compile_labelling(CONFIG, overlay).decoding_schema)
    assert not [word for word in ("not", "format", "uniqueItems") if f"'{word}'" in decoding]


@pytest.mark.parametrize(
    "answer",
    [
        *("", "{", "[]", "null", '{"name": NaN}', '{"name":"a","name":"b"}', '```{"name":"a"}```'),
        *(
            "[" * 100_000,
            '{"name":' + "[" * 200 + "]" * 200 + "}",
            '{"name":' + "[" * 2000 + "]" * 2000 + "}",
        ),
        # What JSON allows and no page, file or other server takes.
        *(
            '{"name": 1e400}',
            '{"name": -1e400}',
            '{"name": 9007199254740993}',
            '{"name": ' + "9" * 5000 + "}",
        ),
        *(r'{"name": "\ud83d"}', r'{"name": ["a\udc00b"]}', r'{"\ud83d": 1}'),
    ],
)
def test_an_answer_that_is_not_one_json_object_is_undecodable(answer: str) -> None:
    with pytest.raises(InvalidValue):
        compile_labelling(CONFIG).decode(answer)


def test_whole_characters_may_be_written_as_escapes() -> None:
    decoded = compile_labelling(CONFIG).decode(r'{"name": "\ud83d\ude00", "city": null}')
    assert decoded == {"name": "😀"}


@pytest.mark.parametrize("data", [{}, {"text": None}, {"text": {"a": 1}}, {"text": "half \ud83d"}])
def test_a_task_with_an_unreadable_text_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(TaskError, match="Task 5"):
        compile_labelling(CONFIG).inputs(Task(5, data))


def test_a_nested_key_is_read() -> None:
    config = CONFIG.replace("$text", "$mail.body")
    assert compile_labelling(config).inputs(Task(1, {"mail": {"body": "a"}})) == {"mail.body": "a"}


def test_html_is_read_as_the_text_that_a_browser_shows() -> None:
    config = CONFIG.replace('<Text name="text"', '<HyperText name="text"')
    html = "<style>p{}</style><p>One &amp; <b>two</b></p><p>three<br>four</p><script>x()</script>"
    assert compile_labelling(config).inputs(Task(1, {"text": html})) == {"text": "One & two\nthree\nfour"}


def test_the_hash_of_a_config_ignores_white_space_and_attribute_order() -> None:
    spaced = '<View>\n  <Text value="$t" name="t"/>\n</View>'
    assert hash_config(spaced) == hash_config('<View><Text name="t" value="$t"></Text></View>')
    assert hash_config(spaced) != hash_config('<View><Text name="u" value="$t"/></View>')


def test_a_config_without_end_is_refused_before_it_is_read() -> None:
    for depth in (101, 50_000):
        with pytest.raises(SetupError, match="nested deeper than 100 tags"):
            compile_labelling("<View>" * depth + CONFIG + "</View>" * depth)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><View><Text name="t" value="&b;"/></View>'


@pytest.mark.parametrize("xml", ["", "no xml", "<View>", BOMB, "<View>\x00</View>"])
def test_unsafe_xml_is_refused(xml: str) -> None:
    with pytest.raises(SetupError, match="not XML"):
        compile_labelling(xml)


PROMPTED = """<View><Text name="text" value="$text"/>
<Labels name="spans" toName="text"><Label value="A"/></Labels>
<Choices name="kind" toName="text" perRegion="true"><Choice value="x"/></Choices>
<Relations><Relation value="r"/></Relations>
<TextArea name="note" toName="text" maxSubmissions="1"/>
<Number name="count" toName="text"/>
<TextArea name="prompt" toName="text"/><TextArea name="prompt_2" toName="text"/></View>"""


def asked(name: str, *texts: str) -> dict[str, object]:
    return {"from_name": name, "to_name": "text", "type": "textarea", "value": {"text": [*texts]}}


def test_a_prompt_box_is_no_field_and_its_words_are_no_value() -> None:
    labelling = compile_labelling(PROMPTED)
    assert labelling.prompts == ("prompt", "prompt_2")
    assert list(labelling.validating_schema["properties"]) == ["spans", "note", "count", "relations"]
    regions = [asked("note", "n"), asked("prompt", " one ", "", "two"), asked("prompt_2", "three")]
    assert labelling.words(regions) == "one\ntwo\nthree"
    assert labelling.words([asked("note", "n")]) == ""
    value = labelling.from_regions(regions, Task(1, {"text": "a"}))
    assert value["note"] == "n"
    assert "prompt" not in str(value)


def test_a_config_of_prompt_boxes_alone_has_nothing_to_fill() -> None:
    with pytest.raises(SetupError, match="no control to fill"):
        compile_labelling('<View><Text name="t" value="$t"/><TextArea name="prompt" toName="t"/></View>')


def test_an_open_page_changes_to_a_new_value() -> None:
    labelling = compile_labelling(PROMPTED)
    task = Task(1, {"text": "one two three"})
    one, two, three = ({"text": word, "nth": 0, "label": "A"} for word in ("one", "two", "three"))
    arrow = {"from": 0, "to": 1, "direction": "right", "labels": ["r"]}
    before = {"spans": [{**one, "kind": "x"}, two], "note": "n", "count": 3, "relations": [arrow]}
    after = {"spans": [{**one, "kind": "x"}, three], "note": "new", "relations": [arrow]}
    changed = overlay_regions(labelling, before, after, task, "m")
    assert [(region.get("from_name"), region["value"]) for region in changed if "value" in region] == [
        ("spans", {"start": 8, "end": 13, "text": "three", "labels": ["A"]}),
        ("note", {"text": ["new"]}),
        ("count", {}),
    ]
    assert changed[0]["id"] == "spans-1-m"
    # The arrow begins at a span that stays, whose id in the page we do not know.
    assert not [region for region in changed if region.get("type") == "relation"]
    both = overlay_regions(labelling, {}, after, task, "m")
    ids = [region["id"] for region in both if region.get("from_name") == "spans"]
    (drawn,) = [region for region in both if region.get("type") == "relation"]
    assert [drawn["from_id"], drawn["to_id"]] == ids
