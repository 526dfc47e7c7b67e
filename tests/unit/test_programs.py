"""Fields that are programs, and fields that only humans fill: asked for, read back, kept from models."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.dataset.gates import Annotation, judge
from draftloop.dataset.sample import Sample
from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.labelling import Labelling, Program, Task, compile_labelling
from draftloop.labelling.open_page import overlay_regions
from draftloop.prompting.prompt import Case, render, render_runs
from draftloop.runs.job import Attempt, OutputFile, Script, Step
from draftloop.runs.run import missing_outputs, outputs_of
from tests.values import values

CONFIG = """<View>
  <HyperText name="status" value="$draft_status" inline="true"/>
  <Text name="task" value="$instruction"/><HyperText name="files" value="$input_preview" inline="true"/>
  <TextArea name="code" toName="task" maxSubmissions="1" rows="20"/>
  <HyperText name="ran" value="$run_status" inline="true"/>
  <HyperText name="out" value="$run_output" inline="true"/>
  <Image name="charts" valueList="$run_charts"/><HyperText name="left" value="$run_files" inline="true"/>
  <TextArea name="console" toName="task"/>
  <Choices name="verdict" toName="task" required="true">
    <Choice value="pass"/><Choice value="needs_fix"/>
  </Choices>
  <TextArea name="comment" toName="task" maxSubmissions="1"/>
  <TextArea name="prompt" toName="task"/>
</View>"""
OVERLAY: dict[str, Any] = {
    "properties": {
        "code": {"x-run": "python", "maxLength": 9000},
        "verdict": {"x-human": True},
        "comment": {"x-human": True, "maxLength": 20},
    },
    "required": ["code", "verdict"],
}
LABELLING = compile_labelling(CONFIG, OVERLAY)
CASE = Case("code", LABELLING, "You write code.", "Write it.", "Write Python as JSON: code.")
DATA = {
    "instruction": "Count",
    "input_schema": "a.csv: x int",
    "input_preview": "<table>",
    "output_files": ["n.txt"],
}
TASK = Task(1, DATA)
VALUE = {"code": "print(1)", "verdict": "pass", "comment": "good"}


def test_a_model_is_asked_for_code_and_reads_the_files_as_plain_text() -> None:
    assert LABELLING.program == Program("code", "python")
    assert LABELLING.human == {"verdict", "comment"}
    assert list(LABELLING.decoding_schema["properties"]) == ["code"]
    assert LABELLING.decoding_schema["required"] == ["code"]
    assert LABELLING.inputs(TASK) == {
        "instruction": "Count",
        "input_schema": "a.csv: x int",
        "output_files": "n.txt",
    }
    prompt = json.dumps([message.content for message in render(CASE, TASK, "full", environment="2 GB")])
    assert "2 GB" in prompt
    assert not [word for word in ("verdict", "comment", "console", "<table>", "run_") if word in prompt]


def test_only_general_models_read_where_code_runs_and_it_is_the_same_for_all_tasks() -> None:
    one = render(CASE, TASK, "full", environment="2 GB")
    other = render(CASE, Task(2, {**DATA, "instruction": "Other"}), "full", environment="2 GB")
    assert one[:-1] == other[:-1]
    assert "2 GB" in one[0].content
    assert "2 GB" not in render(CASE, TASK, "compact", environment="2 GB")[0].content


@given(data=st.data())
def test_human_fields_are_read_back_and_are_in_no_target(data: st.DataObject) -> None:
    value = data.draw(values(LABELLING, TASK))
    placed = LABELLING.to_regions(value, TASK)
    assert LABELLING.from_regions(placed.regions, TASK) == value
    drafted = {key: part for key, part in value.items() if key == "code"}
    assert json.loads(LABELLING.encode(value)) == {"code": None, **drafted}
    assert LABELLING.decode(LABELLING.encode(value)) == drafted


def test_an_answer_with_a_human_field_is_refused() -> None:
    with pytest.raises(InvalidValue, match="'verdict', which only a human does"):
        LABELLING.decode('{"code": "1", "verdict": "pass"}')


def test_human_fields_are_checked_and_optional() -> None:
    assert CASE.rules.check({"code": "1"}, TASK) == ()
    assert CASE.rules.check(VALUE, TASK) == ()
    assert [reason.path for reason in CASE.rules.check({**VALUE, "comment": "c" * 21}, TASK)] == ["comment"]


def test_a_redraft_keeps_human_fields() -> None:
    regions = overlay_regions(LABELLING, VALUE, {"code": "print(2)"}, TASK, "m")
    assert [(region["from_name"], region["value"]) for region in regions] == [
        ("code", {"text": ["print(2)"]})
    ]


def test_console_and_prompt_are_no_part_of_a_value() -> None:
    regions = LABELLING.to_regions(VALUE, TASK).regions
    spoken = [{"from_name": name, "value": {"text": ["x"]}} for name in ("console", "prompt")]
    assert LABELLING.from_regions([*regions, *spoken], TASK) == VALUE


def test_a_draft_with_a_verdict_beside_it_is_accepted_unchanged() -> None:
    drafted = LABELLING.to_regions({"code": "print(1)"}, TASK).regions
    submitted = LABELLING.to_regions(VALUE, TASK).regions
    sample = judge(Annotation(1, 7, TASK, submitted, cancelled=False, draft=drafted), CASE)
    assert isinstance(sample, Sample)
    assert (sample.verdict, sample.target) == ("accepted", '{"code":"print(1)"}')
    assert sample.value["verdict"] == "pass"


@pytest.mark.parametrize(
    "overlay",
    [
        {"code": {"x-run": "cobol"}},
        {"verdict": {"x-run": "python"}},
        {"code": {"x-run": "python"}, "comment": {"x-run": "shell"}},
    ],
)
def test_a_program_is_one_text_in_a_language_that_is_run(overlay: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="x-run"):
        compile_labelling(CONFIG, {"properties": overlay})


def test_a_value_with_code_has_a_script() -> None:
    assert LABELLING.script(VALUE) == Script("print(1)", "python")
    assert LABELLING.script({}) is None
    assert plain().script(VALUE) is None


def plain() -> Labelling:
    return compile_labelling(CONFIG)


def test_runs_are_shown_with_the_answers_that_they_came_from() -> None:
    messages = render_runs(CASE, [({"code": "print(x)"}, "exit status 1\nNameError")])
    assert messages[-2].content == '{"code":"print(x)"}'
    assert "NameError" in messages[-1].content


def test_declared_files_are_missing_where_they_are_not_there_or_empty() -> None:
    step = Step(Script("1"), 0, "", "", 0.1)
    files = (OutputFile("a.csv", 3, "0" * 64), OutputFile("b.csv", 0, "0" * 64))
    attempt = Attempt("ok", "", (step,), 0.1, 0.1, 1, files)
    assert missing_outputs(attempt, outputs_of({"output_files": ["./a.csv", "b.csv", "c.csv"]})) == (
        "b.csv",
        "c.csv",
    )
    assert outputs_of({}) == ()
    with pytest.raises(TaskError, match="output_files"):
        outputs_of({"output_files": "a.csv"})
