"""What an annotator sees and does, in Label Studio's real pages: see, correct, submit, a sample appears."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from draftloop.dataset.sync import sync
from draftloop.labelling.labelling import Labelling, Task, Value, compile_labelling
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from tests.conftest import BackendServer, LabelStudioServer, rewrite

ROOT = Path(__file__).parents[2]
CASES = Cases(ROOT / "label_config")

EVERY_CONTROL = """
<View>
  <View className="draft-status"><HyperText name="status" value="$draft_status" inline="true"/></View>
  <Text name="text" value="$text"/>
  <Choices name="one" toName="text" required="true"><Choice value="a"/><Choice value="b"/></Choices>
  <Choices name="several" toName="text" choice="multiple">
    <Choice value="x"/><Choice value="y"/><Choice value="z"/>
  </Choices>
  <TextArea name="line" toName="text" maxSubmissions="1" editable="true"/>
  <TextArea name="lines" toName="text" editable="true"/>
  <Labels name="spans" toName="text"><Label value="PER"/><Label value="LOC"/></Labels>
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
TEXT = "😀张三住在北京。\n李四在\r\n上海,北京很远。𠮷田"
EVERYTHING: Value = {
    "one": "b",
    "several": ["x", "z"],
    "line": "第一行",
    "lines": ["one", "two\nlines"],
    "spans": [
        {"text": "张三", "nth": 0, "label": "PER"},
        {"text": "上海", "nth": 0, "label": "LOC"},
        {"text": "北京", "nth": 1, "label": "LOC"},
        {"text": "𠮷田", "nth": 0, "label": "PER"},
    ],
    "stars": 4,
    "count": 7,
    "share": 0.25,
    "day": "2026-03-05",
    "clock": "15:30",
    "moment": "2026-03-05T15:30",
    "tree": ["Animal > Dog", "Plant"],
}


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


@pytest.fixture
def pictures() -> Path:
    """Return the folder of screenshots, which people look at."""
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_task(page: Page, project: Project, task_id: int) -> None:
    page.goto(f"/projects/{project.id}/data?task={task_id}")
    expect(page.get_by_role("button", name="Submit")).to_be_enabled(timeout=60_000)


def submit(page: Page) -> None:
    with page.expect_response(
        lambda answer: "/annotations" in answer.url and answer.request.method == "POST"
    ) as answered:
        page.get_by_role("button", name="Submit").click()
    assert answered.value.status == 201


def write(control: Locator, words: str) -> None:
    """Put words into a TextArea: in place of its draft, or as the first ones."""
    drafted = control.get_by_test_id("textarea-region")
    if drafted.count():
        rewrite(drafted.first, words)
        return
    box = control.locator("textarea, input").first
    box.fill(words)
    box.press("Enter")
    expect(drafted).to_have_text(words)


def annotation(studio: LabelStudio, project: Project, task_id: int) -> dict[str, Any]:
    task = next(task for task in studio.tasks(project, full=True) if task["id"] == task_id)
    annotation: dict[str, Any] = task["annotations"][0]
    return annotation


def drafted(
    studio: LabelStudio, title: str, config: str, text: str, value: Value
) -> tuple[Project, Task, Labelling]:
    """Make a project with one task that has a prediction."""
    labelling = compile_labelling(config)
    project = studio.create_project(title, config)
    data = {"text": text, "draft_status": "<b>There is no draft</b><br>• because"}
    ids = next(iter(studio.import_tasks(project, [data])))
    task = Task(ids[0], data)
    placed = labelling.to_regions(value, task)
    assert placed.problems == []
    prediction = {"task": task.id, "result": placed.regions, "score": 0.5, "model_version": "v1"}
    assert studio.import_predictions(project, [prediction]) == []
    return project, task, labelling


def test_every_control_is_prefilled_and_reads_back_when_submitted_unchanged(
    page: Page, studio: LabelStudio, pictures: Path
) -> None:
    project, task, labelling = drafted(studio, "Every control", EVERY_CONTROL, TEXT, EVERYTHING)
    page.set_viewport_size({"width": 1440, "height": 1400})
    open_task(page, project, task.id)
    expect(page.locator(".draft-status")).to_contain_text("There is no draft• because")
    expect(page.get_by_test_id("textarea-region").first).to_have_text("第一行")
    page.screenshot(path=pictures / "every-control.png")
    submit(page)
    stored = annotation(studio, project, task.id)
    assert labelling.from_regions(stored["result"], task) == EVERYTHING
    assert stored["parent_prediction"]


def test_spans_highlight_exactly_the_right_characters_beside_an_emoji(
    page: Page, studio: LabelStudio, pictures: Path
) -> None:
    config = CASES.config("named_entities")
    text = "😀张三住在北京,👨‍👩‍👧在𠮷田工作。The 北京 office."
    value = {
        "entities": [
            {"text": "张三", "nth": 0, "label": "PER"},
            {"text": "𠮷田", "nth": 0, "label": "LOC"},
            {"text": "北京", "nth": 1, "label": "LOC"},
        ]
    }
    project, task, labelling = drafted(studio, "Emoji", config, text, value)
    open_task(page, project, task.id)
    highlights = page.locator(".htx-highlight")
    expect(highlights).to_have_count(3)
    assert [highlights.nth(index).inner_text() for index in range(3)] == ["张三", "𠮷田", "北京"]
    page.screenshot(path=pictures / "emoji.png")
    submit(page)
    stored = annotation(studio, project, task.id)
    assert labelling.from_regions(stored["result"], task) == value
    spans = {(region["value"]["start"], region["value"]["end"]) for region in stored["result"]}
    assert spans == {
        (text.index("张三"), text.index("张三") + 2),
        (text.index("𠮷田"), text.index("𠮷田") + 2),
        (text.rindex("北京"), text.rindex("北京") + 2),
    }


def test_a_complaint_drafted_by_the_backend_is_corrected_and_becomes_a_sample(
    page: Page, studio: LabelStudio, backend: BackendServer, pictures: Path, tmp_path: Path
) -> None:
    project = studio.create_project("Complaints in the browser", CASES.config("complaint"))
    studio.connect_backend(project, backend.url, **backend.logins, extra_params={"case": "complaint"})
    text = "投诉人:林志远,地址:湖北省武汉市江汉区建设大道21号 430015,邮箱:linzy@example.com。电梯坏了没人修!!"
    ids = next(iter(studio.import_tasks(project, [{"text": text, "draft_status": ""}])))

    open_task(page, project, ids[0])  # Label Studio asks the backend now
    regions = page.get_by_test_id("textarea-region")
    expect(regions.first).to_be_visible(timeout=60_000)
    page.screenshot(path=pictures / "complaint.png")
    prediction = next(iter(studio.tasks(project, full=True)))["predictions"][0]
    shown = [text.strip() for text in regions.all_inner_texts()]
    assert shown == [region["value"]["text"][0] for region in prediction["result"]]

    # As an annotator would: every field is set right, drafted well or not.
    right = {
        "name": "林志远",
        "address": "湖北省武汉市江汉区建设大道21号 430015",
        "email": "linzy@example.com",
    }
    right["question"] = "电梯坏了没人修!"
    controls = page.get_by_test_id("textarea-control")
    expect(controls).to_have_count(len(right) + 1)  # and the box in which another draft is asked for
    for index, words in enumerate(right.values()):
        write(controls.nth(index), words)
    page.screenshot(path=pictures / "complaint-corrected.png")
    submit(page)

    report = sync(studio, CASES, tmp_path / "dataset", [project.id])
    assert report.counts["samples"] == 1
    lines = [json.loads(line) for line in (tmp_path / "dataset" / "samples.jsonl").read_bytes().splitlines()]
    sample = lines[0]
    assert sample["value"] == right
    assert sample["verdict"] == "corrected"
    drafted = {key: words for key, words in sample["draft"].items() if key in right}
    assert set(sample["changed"]) == {key for key in right if drafted.get(key) != right[key]}
    assert sample["changed"], "the shortened question is never what the model writes"
    assert sample["metadata"]["draft_version"] == prediction["model_version"]
    assert sample["metadata"]["human"]
