"""Every format has the form that its trainer documents, and says what the sample says."""

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given

from draftloop.dataset.companions import COMPANIONS, Written
from draftloop.dataset.formats import DEFAULT_FORMATS, FORMATS, judged_answers
from draftloop.dataset.row_files import KINDS, RowFileKind, line_of
from draftloop.dataset.sample import Sample, conversation
from draftloop.support.files import AtomicFileWriter
from tests.samples import samples, written_out

BY_NAME = {form.name: form for form in FORMATS}
COUNTS = {
    **dict.fromkeys("annotations samples train test held rejected accepted corrected written".split(), 3),
    "stopped_by": {"not_skipped": 1},
    "noted_by": {"personal_data": 2},
}


def nulls(part: Any) -> Iterator[None]:
    if part is None:
        yield None
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from nulls(inner)


@given(samples())
def test_rows_are_json_without_null_and_with_the_same_keys(sample: Sample) -> None:
    for form in FORMATS:
        rows = form.rows(sample)
        assert json.loads(json.dumps(rows)) == rows
        assert not list(nulls(rows))
        assert len({tuple(row) for row in rows}) <= 1


@given(samples(code=False))
def test_a_samples_rows_hold_its_target_to_the_byte(sample: Sample) -> None:
    judged = [answer.text for answer in judged_answers(sample)]
    for form in FORMATS:
        texts = [text for row in form.rows(sample) for text in strings(row)]
        if form.name.endswith("-dpo"):
            expected = judged if len(judged) == 2 else []
        else:
            expected = judged if form.name.endswith("-kto") else [sample.target]
        assert all(text in texts for text in expected), form.name
        assert bool(texts) == bool(expected), form.name


def strings(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [text for one in inner for text in strings(one)]


def test_accepted_drafts_are_right_and_corrected_ones_wrong() -> None:
    accepted, corrected, written = written_out(code=False)[:3]
    assert [answer.is_right for answer in judged_answers(accepted)] == [True]
    assert [(answer.text, answer.is_right) for answer in judged_answers(corrected)] == [
        (corrected.draft_target, False),
        (corrected.target, True),
    ]
    assert judged_answers(written) == []
    (pair,) = BY_NAME["trl-dpo"].rows(corrected)
    assert pair["chosen"][0]["content"] == corrected.target
    assert pair["rejected"][0]["content"] == corrected.draft_target
    assert [row["label"] for row in BY_NAME["trl-kto"].rows(corrected)] == [False, True]
    for name in ("trl-dpo", "openai-dpo", "llama-factory-dpo", "ms-swift-dpo", "axolotl-dpo"):
        assert BY_NAME[name].rows(accepted) == BY_NAME[name].rows(written) == []


@given(samples(code=True))
def test_openai_sends_arguments_as_text_and_every_output_names_its_call(sample: Sample) -> None:
    (row,) = BY_NAME["openai"].rows(sample)
    for before, message in zip(row["messages"], row["messages"][1:], strict=False):
        if message["role"] == "tool":
            (call,) = before["tool_calls"]
            assert message["tool_call_id"] == call["id"]
            assert set(json.loads(call["function"]["arguments"])) == {"code"}
    ids = [call["id"] for message in row["messages"] for call in message.get("tool_calls", ())]
    assert len(set(ids)) == len(ids)


@given(samples())
def test_sharegpt_has_humans_at_odd_places_and_models_at_even_ones(sample: Sample) -> None:
    (row,) = BY_NAME["llama-factory"].rows(sample)
    turns = row["conversations"]
    assert {turn["from"] for turn in turns[::2]} <= {"human", "observation"}
    assert {turn["from"] for turn in turns[1::2]} <= {"gpt", "function_call"}
    assert len(turns) % 2 == 0
    for turn in turns:
        if turn["from"] == "function_call":
            assert set(json.loads(turn["value"])) == {"name", "arguments"}
    assert not row["tools"] or isinstance(json.loads(row["tools"]), list)


@given(samples())
def test_ms_swifts_calls_and_tools_are_texts(sample: Sample) -> None:
    (row,) = BY_NAME["ms-swift"].rows(sample)
    assert len(row["messages"]) == len(conversation(sample))
    for message in row["messages"]:
        assert set(message) == {"role", "content"}
        if message["role"] == "tool_call":
            assert set(json.loads(message["content"])) == {"name", "arguments"}
    assert ("tools" in row) == bool(sample.attempts)


def test_every_format_has_rows_of_code_tasks_alpaca_with_the_final_program() -> None:
    accepted, corrected, written = written_out(code=True)[:3]
    for sample in (accepted, corrected, written):
        (row,) = BY_NAME["alpaca"].rows(sample)
        expected = {"instruction": sample.instruction, "input": "", "output": "print('总数 2')", "system": ""}
        assert row == expected
        for form in FORMATS:
            judged = {"-dpo": sample is corrected, "-kto": sample is not written}.get(form.name[-4:], True)
            assert bool(form.rows(sample)) == judged, form.name
    (pair,) = BY_NAME["axolotl-dpo"].rows(corrected)
    assert [message["role"] for message in pair["messages"]] == ["system", "user"]
    assert (pair["chosen"]["content"], pair["rejected"]["content"]) == (
        corrected.target,
        corrected.draft_target,
    )
    unrun = replace(accepted, attempts=(), gates=("readable", "verdict_passes"))
    assert BY_NAME["alpaca"].rows(unrun) == [], "one file never holds programs and JSON"


@pytest.mark.parametrize("code", [False, True])
def test_every_kind_of_file_holds_the_same_rows(code: bool) -> None:
    for form in FORMATS:
        rows = [row for sample in written_out(code=code) for row in form.rows(sample)]
        by_kind = {kind.name: content(kind, rows) for kind in KINDS}
        assert by_kind == {kind.name: content(kind, rows) for kind in KINDS}
        assert [json.loads(line) for line in by_kind["jsonl"].splitlines()] == rows
        unpacked = pa.CompressedInputStream(pa.py_buffer(by_kind["zstd"]), "zstd").read()
        assert unpacked == by_kind["jsonl"]
        table = pa.parquet.read_table(io.BytesIO(by_kind["parquet"])).to_pylist()
        assert without_null(table) == rows


def content(kind: RowFileKind, rows: list[dict[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        with AtomicFileWriter(path) as stream:
            file = kind.writer(stream)
            for row in rows:
                file.write(line_of(row))
            file.close()
        return path.read_bytes()


def test_a_table_of_many_rows_has_the_columns_of_all_of_them() -> None:
    rows: list[dict[str, Any]] = [{"a": [{"b": str(number)}]} for number in range(2500)]
    rows[2400] = {"a": [{"b": "x", "c": [1]}], "d": True}
    table = pa.parquet.read_table(io.BytesIO(content(KINDS[-1], rows)))
    assert without_null(table.to_pylist()) == rows


def without_null(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: without_null(inner) for key, inner in part.items() if inner is not None}
    return [without_null(inner) for inner in part] if isinstance(part, list) else part


def companions(ending: str, **counted: int) -> dict[str, str]:
    forms = [Written(form.name, ending, {"train": 9, "test": counted.get("test", 3)}) for form in FORMATS]
    return {name: text for make in COMPANIONS for name, text in make(forms, COUNTS).items()}


def test_companions_name_files_that_are_written_and_only_those_with_rows() -> None:
    written = {f"{form.name}{split}.jsonl" for form in FORMATS for split in ("", ".test")}
    files = companions("jsonl")
    info = json.loads(files["dataset_info.json"])
    assert {entry["file_name"] for entry in info.values()} <= written
    assert {"llama-factory", "llama-factory-test", "alpaca", "llama-factory-kto"} <= set(info)
    for name in ("axolotl", "axolotl-dpo", "axolotl-kto"):
        config = yaml.safe_load(files[f"{name}.yaml"])
        assert config["datasets"][0]["path"] == f"{name}.jsonl"
        assert config["test_datasets"][0]["path"] == f"{name}.test.jsonl"
    front = yaml.safe_load(files["README.md"].split("---")[1])
    assert [entry["config_name"] for entry in front["configs"]] == [form.name for form in FORMATS]
    assert {file["path"] for entry in front["configs"] for file in entry["data_files"]} == written
    without = companions("jsonl", test=0)
    assert not [name for name in json.loads(without["dataset_info.json"]) if name.endswith("-test")]
    assert "test_datasets" not in without["axolotl.yaml"]
    assert ".test.jsonl\n" not in without["README.md"].split("---")[1]
    assert set(companions("jsonl.zst")) == {"README.md"}
    assert "has no rows" not in files["README.md"]


def test_the_card_explains_files_without_rows() -> None:
    names = ("alpaca", "trl-dpo", "ms-swift-kto", "messages")
    forms = [Written(name, "jsonl", {"train": int(name == "messages"), "test": 0}) for name in names]
    said = [line for line in COMPANIONS[-1](forms, COUNTS)["README.md"].splitlines() if "no rows" in line]
    assert said == [
        "`alpaca` has no rows: each needs code that was run.",
        "`trl-dpo` has no rows: each needs a draft that was corrected.",
        "`ms-swift-kto` has no rows: each needs a draft that was accepted or corrected.",
    ]


def test_the_default_formats_exist_and_names_are_file_names() -> None:
    assert set(DEFAULT_FORMATS) <= set(BY_NAME)
    assert len(BY_NAME) == len(FORMATS)
    assert all(name.replace("-", "").isalnum() for name in BY_NAME)
