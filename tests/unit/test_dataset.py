"""Annotations become samples that say what the human said, what the draft had said, and nothing else."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.dataset.corpus import split_of
from draftloop.dataset.formats import FORMATS
from draftloop.dataset.gates import (
    Rejected,
    annotations_of,
    fingerprint,
    group_of,
    judge,
)
from draftloop.dataset.personal import strings
from draftloop.dataset.sample import Sample, canonical
from draftloop.labelling.labelling import Task
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import render

CASES = Cases(Path(__file__).parents[2] / "label_config")
COMPLAINT = CASES.get("complaint")
ENTITIES = CASES.get("named_entities")
TEXT = "我叫张三😀,住北京路1号。快递还没到!"
DRAFT = {"name": "张三", "question": "快递还没到!"}
RIGHT = {"name": "张三", "address": "北京路1号", "question": "快递还没到!"}


def regions(value: dict[str, Any], case: Any = COMPLAINT) -> list[dict[str, Any]]:
    return list(case.labelling.to_regions(value, Task(1, {"text": TEXT})).regions)


def textarea(name: str, text: str) -> list[dict[str, Any]]:
    return [{"from_name": name, "to_name": "text", "type": "textarea", "value": {"text": [text]}}]


def listed(result: list[dict[str, Any]], **annotation: Any) -> dict[str, Any]:
    """A task as Label Studio lists it, with one prediction and one annotation."""
    return {
        "id": 1,
        "data": {"text": TEXT, "draft_status": ""},
        "predictions": [{"id": 5, "result": regions(DRAFT), "score": 0.7, "model_version": "m-1"}],
        "annotations": [
            {
                "id": 9,
                "result": result,
                "was_cancelled": False,
                "completed_by": 3,
                "parent_prediction": 5,
                "created_at": "2026-01-02T03:04:05.000006Z",
                "updated_at": "2026-01-02T03:04:05.000007Z",
                "lead_time": 4.5,
                **annotation,
            }
        ],
    }


def judged(task: dict[str, Any], case: Any = COMPLAINT) -> Sample | Rejected:
    (annotation,) = annotations_of(task, project=2)
    return judge(annotation, case)


def sample(task: dict[str, Any], case: Any = COMPLAINT) -> Sample:
    result = judged(task, case)
    assert isinstance(result, Sample), result
    return result


def test_a_correction_keeps_the_draft_and_lists_changed_fields() -> None:
    result = sample(listed(regions(RIGHT)))
    assert (result.verdict, result.changed) == ("corrected", ("address",))
    assert (result.draft, result.value) == (DRAFT, RIGHT)
    assert result.input == {"text": TEXT}
    assert result.metadata["human"] == 3
    assert result.metadata["draft_version"] == "m-1"
    assert result.metadata["draft_prediction"] == 5
    assert result.metadata["lead_time_s"] == 4.5


def test_a_draft_submitted_unchanged_is_accepted() -> None:
    result = sample(listed(regions(DRAFT)))
    assert (result.verdict, result.changed) == ("accepted", ())


def test_a_newline_that_the_editor_added_is_no_correction() -> None:
    result = regions(DRAFT)
    result[0]["value"]["text"] = ["张三\n"]
    assert sample(listed(result)).verdict == "accepted"


def test_an_annotation_without_a_draft_is_written() -> None:
    result = sample(listed(regions(RIGHT), parent_prediction=None))
    assert (result.verdict, result.draft, result.changed) == ("written", None, ())
    assert "draft" not in result.record()
    assert "draft_version" not in result.record()["metadata"]


def test_what_a_human_asked_the_model_for_is_metadata_and_nothing_else() -> None:
    plain = sample(listed(regions(RIGHT)))
    asked = sample(listed([*regions(RIGHT), *textarea("prompt", "add the address")]))
    assert asked.metadata == {**plain.metadata, "prompt": "add the address"}
    assert (asked.value, asked.target, asked.changed) == (plain.value, plain.target, plain.changed)
    skipped = judged(listed(textarea("prompt", "add it"), was_cancelled=True))
    assert isinstance(skipped, Rejected)
    assert skipped.metadata["prompt"] == "add it"


def test_the_origin_of_regions_is_never_asked() -> None:
    result = [{**region, "origin": "manual"} for region in regions(DRAFT)]
    assert sample(listed(result)).verdict == "accepted"


def test_the_target_is_canonical_with_null_for_absent_fields() -> None:
    result = sample(listed(regions(DRAFT)))
    assert result.target == '{"name":"张三","address":null,"email":null,"question":"快递还没到!"}'
    assert COMPLAINT.labelling.decode(result.target) == DRAFT


def test_training_rows_ask_exactly_what_a_tuned_model_is_asked() -> None:
    result = sample(listed(regions(RIGHT)))
    asked = [
        {"role": message.role, "content": message.content}
        for message in render(COMPLAINT, Task(1, {"text": TEXT}), "compact")
    ]
    by_name = {form.name: form.rows(result) for form in FORMATS}
    assert by_name["messages"][0]["messages"] == [*asked, {"role": "assistant", "content": result.target}]
    (alpaca,) = by_name["alpaca"]
    assert set(alpaca) == {"instruction", "input", "output", "system"}
    assert (alpaca["system"], alpaca["instruction"] + alpaca["input"]) == tuple(m["content"] for m in asked)
    assert alpaca["output"] == result.target


def test_no_key_of_a_record_is_null() -> None:
    record = sample(
        listed(regions(DRAFT), parent_prediction=None, lead_time=None, completed_by=None)
    ).record()
    target = record.pop("target")
    assert "null" in target  # the model is asked for it there
    assert record.pop("messages")[-1]["content"] == target
    assert "null" not in orjson.dumps(record).decode()


def test_records_read_back_as_they_were_written() -> None:
    for task in (listed(regions(RIGHT)), listed(regions(RIGHT), parent_prediction=None)):
        result = sample(task)
        assert Sample.from_record(orjson.loads(orjson.dumps(result.record()))) == result
    rejected = judged(listed([], was_cancelled=True))
    assert isinstance(rejected, Rejected)
    assert Rejected.from_record(orjson.loads(orjson.dumps(rejected.record()))) == rejected


@pytest.mark.parametrize(
    ("task", "gate", "word"),
    [
        (listed([], was_cancelled=True), "not_skipped", "skipped"),
        (listed([{"from_name": "gone", "type": "textarea", "value": {"text": ["x"]}}]), "readable", "'gone'"),
        (listed([], parent_prediction=None), "not_empty", "empty"),
        (listed(regions({"name": "李四", "question": "快递还没到!"})), "is_grounded", "does not stand"),
        (listed(regions({"name": "张三"})), "fits_schema", "question"),
        ({**listed(regions(DRAFT)), "data": {"other": "x"}}, "readable", "'text'"),
        ({**listed(regions(DRAFT)), "data": {"text": "\ud83d"}}, "readable", "surrogate"),
        (listed(textarea("name", "\ud83d")), "readable", "surrogate"),
    ],
)
def test_each_gate_rejects_with_a_reason(task: dict[str, Any], gate: str, word: str) -> None:
    result = judged(task)
    assert isinstance(result, Rejected)
    assert result.gate == gate
    assert word in result.reason


def test_a_human_may_say_that_there_is_nothing_where_a_draft_stood() -> None:
    quote = {"entities": [{"text": "张三", "nth": 0, "label": "PER"}]}
    task = listed([])
    task["predictions"][0]["result"] = regions(quote, ENTITIES)
    result = sample(task, ENTITIES)
    assert (result.value, result.verdict, result.changed) == ({"entities": []}, "corrected", ("entities",))


def test_a_draft_that_the_config_cannot_read_is_no_draft() -> None:
    task = listed(regions(RIGHT))
    task["predictions"][0]["result"] = [{"from_name": "gone", "value": {}}]
    assert sample(task).verdict == "written"


@pytest.mark.parametrize("name", CASES.names())
def test_a_draft_accepted_unchanged_gives_the_models_own_answer_back_to_the_byte(name: str) -> None:
    case = CASES.get(name)
    folder = Path(__file__).parents[2] / "label_config" / name
    data = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    data = data.get("data", data)
    answered = case.labelling.encode(json.loads((folder / "value.json").read_text(encoding="utf-8")))
    result = list(case.labelling.to_regions(case.labelling.decode(answered), Task(1, data)).regions)
    task = {**listed(result), "data": data}
    task["predictions"][0]["result"] = result
    accepted = sample(task, case)
    assert (accepted.verdict, accepted.target, accepted.draft_target) == ("accepted", answered, answered)
    for form in FORMATS:
        for row in form.rows(accepted):
            assert any(answered in text for text in strings(row))


def test_the_same_text_is_one_group_whatever_else_differs() -> None:
    first = sample(listed(regions(RIGHT)))
    other = {**listed(regions(DRAFT), id=99), "id": 77}
    assert sample(other).group == first.group


@given(st.integers(0, 10**9))
def test_the_split_depends_only_on_the_text(seed: int) -> None:
    texts = {"text": str(seed)}
    assert split_of(group_of(texts)) == split_of(group_of(json.loads(json.dumps(texts))))


def test_about_a_tenth_is_held_out() -> None:
    test = sum(split_of(group_of({"text": f"task {number}"})) == "test" for number in range(10_000))
    assert 900 < test < 1100


def test_a_source_document_makes_one_group_of_its_tasks() -> None:
    one, other = listed(regions(DRAFT)), listed(regions(DRAFT))
    one["data"] |= {"source": "a.pdf"}
    other["data"] = {**one["data"], "text": TEXT + "."}
    groups = [judge(annotations_of(task, 2)[0], COMPLAINT, group_by="source") for task in (one, other)]
    assert {result.group for result in groups if isinstance(result, Sample)} == {
        group_of({"source": "a.pdf"})
    }
    assert len({sample(task).group for task in (one, other)}) == 2  # without it, each text by itself


PRIVATE = "我叫张三,电话13812345678,邮箱zhang.san@qq.com。快递还没到!"


def private() -> dict[str, Any]:
    task = listed(regions(DRAFT))
    value = {"name": "张三", "email": "zhang.san@qq.com", "question": "快递还没到!"}
    task["data"]["text"] = PRIVATE
    task["annotations"][0]["result"] = list(
        COMPLAINT.labelling.to_regions(value, Task(1, {"text": PRIVATE})).regions
    )
    return task


def test_personal_data_is_noted_without_being_quoted_and_stops_nothing() -> None:
    (note,) = sample(private()).notes
    assert note["gate"] == "personal_data"
    assert note["reason"] == "2 x email, 1 x phone"
    assert sample(listed(regions(DRAFT))).notes == ()


def test_a_masked_sample_has_stand_ins_everywhere_and_still_passes_its_gates() -> None:
    result = judge(annotations_of(private(), 2)[0], COMPLAINT, mask=True)
    assert isinstance(result, Sample), result
    assert result.value["email"] in result.instruction
    assert result.value["email"].endswith("@example.com")
    everything = canonical(result.record())
    assert "13812345678" not in everything
    assert "zhang.san" not in everything
    assert result.group == sample(private()).group  # so it stays in its split


def test_reasons_are_masked_too() -> None:
    task = private()
    task["annotations"][0]["result"][1]["value"]["text"] = ["zhang.san2@qq.com"]
    result = judge(annotations_of(task, 2)[0], COMPLAINT, mask=True)
    assert isinstance(result, Rejected)
    assert (result.gate, "zhang" in result.reason) == ("is_grounded", False)


def test_a_changed_prompt_or_schema_makes_other_samples() -> None:
    prints = {fingerprint(CASES.get(name)) for name in CASES.names()}
    assert len(prints) == len(CASES.names())
