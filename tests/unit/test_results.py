"""A result in Label Studio may be any JSON: it is a value or a reason, never another exception."""

import json
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from draftloop.dataset.formats import FORMATS
from draftloop.dataset.gates import Rejected, annotations_of, judge
from draftloop.dataset.records import index_record, parse_judged
from draftloop.dataset.sample import Sample
from draftloop.errors import InvalidValue, TaskError
from draftloop.labelling.labelling import Labelling, Task, compile_labelling
from draftloop.prompting.prompt import generic_case
from tests.families import FAMILIES
from tests.results import JSON, results

# Every control once more, alone, beside the families.
FORM = """<View><Text name="text" value="$text"/>
<TextArea name="one" toName="text" maxSubmissions="1"/><TextArea name="many" toName="text"/>
<TextArea name="prompt" toName="text"/>
<Choices name="pick" toName="text"><Choice value="a"/><Choice value="1"/></Choices>
<Choices name="picks" toName="text" choice="multiple"><Choice value="a"/><Choice value="b"/></Choices>
<Rating name="stars" toName="text"/><Number name="count" toName="text" step="1"/>
<Number name="share" toName="text" step="0.1"/><DateTime name="day" toName="text" only="date"/>
<Taxonomy name="tree" toName="text"><Choice value="A"><Choice value="B"/><Choice value="C"/></Choice>
  <Choice value="C"/><Choice value="D"/></Taxonomy></View>"""
CONFIGS = {name: (family.config, family.data) for name, family in FAMILIES.items()} | {
    "form": (FORM, {"text": "a text"})
}
LABELLINGS = {name: compile_labelling(config) for name, (config, _) in CONFIGS.items()}
TASKS = {name: Task(1, data) for name, (_, data) in CONFIGS.items()}
CASES = {name: generic_case(labelling) for name, labelling in LABELLINGS.items()}


def read(name: str, *regions: Any) -> dict[str, Any]:
    return LABELLINGS[name].from_regions(list(regions), TASKS[name])


def region(name: Any, value: Any, **more: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "text", "value": value, **more}


def listed(name: str, result: Any, draft: Any = None, **more: Any) -> dict[str, Any]:
    """A task as Label Studio lists it, with an annotation and the prediction that it began from."""
    return {
        "id": 1,
        "data": dict(TASKS[name].data),
        "predictions": [{"id": 5, "result": draft, "score": 0.5, "model_version": "m-0123456789"}],
        "annotations": [{"id": 9, "result": result, "completed_by": 3, "parent_prediction": 5, **more}],
    }


def judged(name: str, result: Any, draft: Any = None, **more: Any) -> Sample | Rejected:
    (annotation,) = annotations_of(listed(name, result, draft, **more), project=2)
    return judge(annotation, CASES[name])


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_result_is_a_sample_or_a_reason_and_can_be_written_down(name: str, data: st.DataObject) -> None:
    labelling, task = LABELLINGS[name], TASKS[name]
    result = judged(name, data.draw(results(labelling, task)), data.draw(results(labelling, task)))
    line = index_record(result).line
    if isinstance(result, Rejected):
        assert result.reason
        assert Rejected.from_record(orjson.loads(line)) == result
        return
    assert parse_judged(line) == result
    bound = labelling.for_task(task)
    for target in (result.target, result.draft_target):
        if target is None:
            continue
        value = json.loads(target)
        assert bound.encode(bound.decode(target)) == target
        _check_whole_numbers(value, bound)
    assert Draft202012Validator(bound.decoding_schema).is_valid(json.loads(result.target))
    for form in FORMATS:
        form.rows(result)


def _check_whole_numbers(value: Mapping[str, Any], labelling: Labelling) -> None:
    for control in labelling.controls:
        if control.schema().get("type") == "integer" and isinstance(value[control.name], float):
            assert not value[control.name].is_integer(), control.name


@settings(max_examples=60)
@given(
    annotation=JSON, prediction=JSON, more=st.dictionaries(st.text(max_size=3), JSON, max_size=2), data=JSON
)
def test_any_listing_yields_annotations_or_nothing(
    annotation: Any, prediction: Any, more: Any, data: Any
) -> None:
    entry = dict.fromkeys(
        ("completed_by", "lead_time", "created_at", "updated_at", "was_cancelled", "parent_prediction"),
        annotation,
    )
    draft = {"id": 5, **dict.fromkeys(("result", "score", "model_version"), prediction)}
    tasks: list[dict[str, Any]] = [
        {"id": 1, "data": data, "annotations": annotation, "predictions": prediction},
        {"id": 1, "annotations": [annotation, more], "predictions": [prediction, more]},
        {"id": 1, "data": data, "annotations": [{"id": 9, **more, **entry}], "predictions": [draft]},
        {"id": 1, "data": {"text": data}, "annotations": [{"id": 9, **entry, "parent_prediction": 5}]},
    ]
    for task in tasks:
        for listed in annotations_of(task, project=2):
            orjson.loads(index_record(judge(listed, CASES["form"])).line)
            orjson.loads(index_record(judge(listed, CASES["form"], mask=True, group_by="text")).line)


# ---------------------------------------------------------------------------------- legal, though unusual


@pytest.mark.parametrize(
    ("control", "value", "wanted"),
    [
        ("one", {"textarea": ["hello"]}, "hello"),
        ("one", {"text": "hello"}, "hello"),
        ("one", {"text": 2026}, "2026"),
        ("many", {"textarea": ["a", "b"]}, ["a", "b"]),
        ("pick", {"choices": "a"}, "a"),
        ("pick", {"choices": [1]}, "1"),
        ("picks", {"choices": ["b", "a", "a"]}, ["a", "b"]),
        ("stars", {"rating": 3.0}, 3),
        ("stars", {"rating": "3"}, 3),
        ("stars", {"rating": [3]}, 3),
        ("count", {"number": 12.0}, 12),
        ("count", {"number": " -12 "}, -12),
        ("share", {"number": "0.5"}, 0.5),
        ("day", {"datetime": ["2026-01-02"]}, "2026-01-02"),
        ("tree", {"taxonomy": [["A", "B"], ["D"]]}, ["A > B", "D"]),
        ("tree", {"taxonomy": ["A", "B"]}, ["A > B"]),
        ("tree", {"taxonomy": ["D", "C"]}, ["C", "D"]),
        ("tree", {"taxonomy": "D"}, ["D"]),
    ],
)
def test_equivalent_shapes_are_read(control: str, value: Any, wanted: Any) -> None:
    part = read("form", region(control, value))[control]
    assert (part, type(part)) == (wanted, type(wanted))


@pytest.mark.parametrize("nothing", [{}, None, [], ""])
@pytest.mark.parametrize(
    ("control", "key"),
    [
        ("one", "text"),
        ("many", "text"),
        ("pick", "choices"),
        ("stars", "rating"),
        ("count", "number"),
        ("day", "datetime"),
        ("tree", "taxonomy"),
    ],
)
def test_an_emptied_control_has_no_value(control: str, key: str, nothing: Any) -> None:
    value = {} if nothing == {} else {key: nothing}
    assert read("form", region(control, value)).get(control) in (None, [])


@pytest.mark.parametrize("result", [None, "", [], "[]", "null"])
def test_an_empty_result_has_no_value(result: Any) -> None:
    assert LABELLINGS["form"].from_regions(result, TASKS["form"]) == {"many": [], "picks": [], "tree": []}


def test_a_result_that_is_json_in_a_text_is_read_as_the_page_reads_it() -> None:
    result = json.dumps([region("one", {"text": ["hello"]})])
    assert LABELLINGS["form"].from_regions(result, TASKS["form"])["one"] == "hello"


def test_items_of_a_ranker_may_be_numbers_and_its_order_a_list() -> None:
    assert read("ranking", region("order", {"ranker": ["b", 3, "a", "d"]}))["order"] == ["b", "3", "a", "d"]
    columns = {"_": ["a"], "good": [3], "bad": None}
    assert read("buckets", region("columns", {"ranker": columns}))["columns"] == {"good": ["3"], "bad": []}


def test_regions_without_ids_keep_their_per_region_values() -> None:
    labelling, task = LABELLINGS["per_region"], TASKS["per_region"]
    quote = {
        "text": "张三",
        "nth": 0,
        "label": "Person",
        "gender": "female",
        "traits": ["old"],
        "aliases": ["a"],
    }
    other = {"text": "北京", "nth": 0, "label": "Place", "traits": [], "aliases": []}
    value = {"spans": [quote, other]}
    regions = labelling.to_regions(value, task).regions
    assert labelling.from_regions([{**part, "id": None} for part in regions], task) == value
    without_ids = [part if part["from_name"] == "spans" else {**part, "id": None} for part in regions]
    assert labelling.from_regions(without_ids, task) == value


def test_positions_may_be_texts_or_floats_as_the_page_takes_them() -> None:
    for start, end in (("1", "3"), (1.0, 3.0)):
        value = {"start": start, "end": end, "labels": "Person"}
        assert read("per_region", region("spans", value))["spans"][0]["text"] == "张三"


# ---------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("control", "value", "words"),
    [
        ("count", {"text": [None]}, "Control 'count': a region holds 'text', not 'number'"),
        ("one", {"text": [None]}, "Control 'one': None is not a text"),
        ("one", {"text": [{"a": 1}]}, "Control 'one': {'a': 1} is not a text"),
        ("one", {"text": [True]}, "True is not a text"),
        ("one", {"text": ["a"], "textarea": ["b"]}, "two values"),
        ("one", {"choices": ["a"]}, "holds 'choices', not 'text"),
        ("pick", {"text": "a"}, "holds 'text', not 'choices'"),
        ("pick", {"choices": [None]}, "None is not a text"),
        ("pick", {"choices": {"a": True}}, "is not a text"),
        ("pick", {"choices": ["a", "1"]}, "holds one value, not"),
        ("pick", {"choices": "z"}, "has no choice 'z'"),
        ("stars", {"rating": True}, "True is not a number"),
        ("stars", {"rating": [3, 4]}, "holds one value"),
        ("count", {"number": "many"}, "'many' is not a number"),
        ("count", {"number": 10**400}, "cannot hold"),
        ("count", {"number": float("inf")}, "cannot hold"),
        ("count", {"number": float("nan")}, "cannot hold"),
        ("day", {"datetime": {"y": 1}}, "is not a text"),
        ("tree", {"taxonomy": [["A", ["B"]]]}, "is not a text"),
        ("tree", {"taxonomy": ["A", "Z"]}, "has no path"),
        ("tree", {"taxonomy": ["A", "C"]}, "may be one path or 2"),
        ("one", "hello", "The value of a region of control 'one' is 'hello', not an object"),
        ("one", None, "The value of a region of control 'one' is None"),
    ],
)
def test_a_region_that_does_not_fit_is_rejected_with_its_control_and_what_stands_there(
    control: str, value: Any, words: str
) -> None:
    result = judged("form", [region(control, value)])
    assert isinstance(result, Rejected)
    assert result.gate == "readable"
    assert words in result.reason


@pytest.mark.parametrize(
    ("name", "regions", "words"),
    [
        ("form", {"a": 1}, "not a list of regions"),
        ("form", {}, "not a list of regions"),
        ("form", False, "not a list of regions"),
        ("form", 0, "not a list of regions"),
        ("form", " ", "not a list of regions"),
        ("form", '"x"', "not a list of regions"),
        ("form", "{}", "not a list of regions"),
        ("form", "hello", "not a list of regions"),
        ("form", [5], "holds 5 where a region belongs"),
        ("form", [region(None, {})], "from_name None"),
        ("form", [region(["one"], {})], "from_name ['one']"),
        ("form", [region("\ud83d", {})], "which the config lacks"),
        ("per_region", [region("spans", {"start": 1, "end": 3, "labels": ["Person"]}, id=["a"])], "id"),
        ("per_region", [region("spans", {"start": True, "end": 3, "labels": ["Person"]})], "outside"),
        ("per_region", [region("spans", {"start": 1, "end": 3, "labels": [None]})], "is not a text"),
        ("per_region", [region("spans", {"start": 1, "end": 3, "text": "张三"})], "labels [] are not"),
        ("per_region", [region("gender", {"start": 1, "end": 3, "choices": ["male"]})], "belongs to no span"),
        ("per_item", [region("kind", {"choices": ["cover"]}, item_index=-1)], "item_index -1"),
        ("per_item", [region("kind", {"choices": ["cover"]}, item_index=[0])], "item_index [0]"),
        ("per_item", [region("kind", {"choices": ["cover"]}, item_index="x")], "item_index 'x'"),
        ("per_item", [region("kind", {"choices": ["cover"]}, item_index=7)], "about 2 things, not 8"),
        ("buckets", [region("columns", {"ranker": {"wrong": ["a"]}})], "ranks good, bad, not"),
        ("buckets", [region("columns", {"ranker": {"good": "a"}})], "is not a list of items"),
        ("buckets", [region("columns", {"ranker": {"good": ["zz"]}})], "has no item 'zz'"),
        ("buckets", [region("columns", {"ranker": ["a"]})], "ranks good, bad"),
        ("relations", [{"type": "relation", "from_id": ["a"], "to_id": "b"}], "end of a relation"),
        ("ranking", [region("better", {"selected": ["left", "right"]})], "holds one value"),
        ("ranking", [region("better", {"selected": "up"})], "knows left and right"),
        (
            "html",
            [region("ner", {"globalOffsets": [1, 2], "hypertextlabels": ["House"]})],
            "no globalOffsets",
        ),
        (
            "dialogue",
            [
                region(
                    "slots",
                    {
                        "start": "0",
                        "end": "-1",
                        "startOffset": 0,
                        "endOffset": 2,
                        "paragraphlabels": ["Person"],
                    },
                )
            ],
            "outside its utterances",
        ),
    ],
)
def test_a_result_that_is_none_is_rejected_in_a_sentence(name: str, regions: Any, words: str) -> None:
    result = judged(name, regions)
    assert isinstance(result, Rejected)
    assert words in result.reason
    with pytest.raises(InvalidValue):
        LABELLINGS[name].from_regions(regions, TASKS[name])


def test_ambiguous_spans_are_rejected() -> None:
    first, second = ({"start": 1, "end": 3, "labels": [name]} for name in ("Person", "Place"))
    other = region("gender", {"start": 1, "end": 3, "choices": ["male"]})
    spans = [region("spans", first, id="a"), region("spans", second, id="b")]
    with pytest.raises(InvalidValue, match="may belong to any of 2 spans"):
        read("per_region", *spans, other)
    elsewhere = region("spans", {"start": 5, "end": 7, "labels": ["Place"]}, id="a")
    with pytest.raises(InvalidValue, match="have the id 'a'"):
        read("per_region", spans[0], elsewhere)


def test_an_unreadable_draft_does_not_lose_the_sample() -> None:
    right = [region("one", {"text": ["hello"]})]
    for draft in (
        [region("count", {"text": [None]})],
        {"a": 1},
        "no",
        5,
        [None],
        [region("one", {"text": [None]})],
    ):
        result = judged("form", right, draft)
        assert isinstance(result, Sample), result
        assert (result.verdict, result.draft) == ("written", None)


def test_a_number_that_the_page_writes_otherwise_is_no_correction() -> None:
    result = judged("form", [region("share", {"number": 3})], [region("share", {"number": 3.0})])
    assert isinstance(result, Sample)
    assert (result.verdict, result.changed) == ("accepted", ())


@pytest.mark.parametrize("depth", [200, 5000])
def test_deep_nesting_rejects_only_its_annotation(depth: int) -> None:
    deep: Any = "x"
    for _ in range(depth):
        deep = [deep]
    result = judged("form", [region("one", {"text": deep})], draft=[region("one", {"text": deep})])
    assert isinstance(result, Rejected)
    assert "nested deeper than 100" in result.reason
    task = {**listed("form", []), "data": {"text": deep}}
    (annotation,) = annotations_of(task, project=2)
    for mask in (False, True):
        stopped = judge(annotation, CASES["form"], mask=mask, group_by="text")
        assert isinstance(stopped, Rejected)
        assert "nested deeper than 100" in stopped.reason


def test_a_lone_surrogate_is_written_down_nowhere() -> None:
    prompt = region("prompt", {"text": ["half \ud83d"]})
    result = judged("form", [prompt, region("one", {"text": ["a"]})], updated_at="\ud83d")
    assert result.metadata["prompt"] == "half ?"
    assert index_record(result).line
    with pytest.raises(TaskError, match="half a character"):
        LABELLINGS["options"].for_task(Task(1, {**TASKS["options"].data, "options": [{"value": "\ud83d"}]}))
