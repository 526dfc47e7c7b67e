"""Every record is what the shipped schema says, and reads back as the sample that it was."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from draftloop.dataset import sample as module
from draftloop.dataset.sample import SAMPLE_VERSION, Sample, canonical, conversation, tools
from tests.samples import samples, written_out

SCHEMA = json.loads((Path(module.__file__).parent / "sample.schema.json").read_text(encoding="utf-8"))
RECORDS = Draft202012Validator(SCHEMA)


@given(samples())
def test_every_record_obeys_the_shipped_schema_and_reads_back(sample: Sample) -> None:
    line = canonical(sample.record())
    record = json.loads(line)
    RECORDS.validate(record)
    read = Sample.from_record(record)
    assert read == sample
    assert canonical(read.record()) == line


@given(samples())
def test_a_line_is_one_line_and_canonical(sample: Sample) -> None:
    line = canonical(sample.record())
    assert "\n" not in line
    assert canonical(json.loads(line)) == line
    assert line.encode().decode() == line


def test_the_schema_is_one_and_knows_every_field_of_this_version() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"]["const"] == SAMPLE_VERSION
    assert str(SAMPLE_VERSION) in SCHEMA["$id"]
    fields = set(Sample.__dataclass_fields__)
    derived = {"schema_version", "messages", "tools", "code", "stdout", "stderr", "held"}
    assert set(SCHEMA["properties"]) == fields | derived


def test_the_schema_refuses_invalid_records() -> None:
    record = written_out(code=True)[0].record()
    RECORDS.validate(record)
    for wrong in (
        {**record, "surprise": 1},
        {**record, "split": "dev"},
        {**record, "messages": [{"role": "user", "content": None}] * 3},
        {name: part for name, part in record.items() if name != "target"},
    ):
        assert list(RECORDS.iter_errors(wrong))


def test_a_record_of_another_version_is_refused() -> None:
    record = written_out(code=False)[0].record()
    with pytest.raises(ValueError, match=f"version 1 instead of {SAMPLE_VERSION}"):
        Sample.from_record({**record, "schema_version": 1})


@given(samples(code=True))
def test_a_code_tasks_conversation_pairs_every_call_with_its_output(sample: Sample) -> None:
    messages = conversation(sample)
    assert [message["role"] for message in messages[:2]] == ["system", "user"]
    assert messages[-1] == {"role": "assistant", "content": sample.target}
    between = messages[2:-1]
    steps = [step for attempt in sample.attempts for step in attempt["steps"]]
    assert len(between) == 2 * len(steps)
    for step, call, output in zip(steps, between[::2], between[1::2], strict=True):
        assert call["tool_calls"][0]["function"]["arguments"] == {"code": step["code"]}
        assert (output["role"], output["name"]) == ("tool", step["language"])
        assert f"exit status {step['exit_status']}" in output["content"]
        assert len(output["content"]) < 9000  # cut the same way every time, and it says so
    assert all(isinstance(message["content"], str) for message in messages)
    assert {tool["function"]["name"] for tool in tools(sample)} == {step["language"] for step in steps}
