"""An annotator asks in words for another draft, in Label Studio's real page.

The fake vLLM answers here: it follows the instruction, which the embedded model has not learned.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from draftloop.cli import servers
from draftloop.dataset.sync import sync
from draftloop.labelling.labelling import Task, Value, compile_labelling
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from tests.conftest import LabelStudioServer, installed, rewrite
from tests.fake_vllm import Body, FakeVllm, fake_vllm

ROOT = Path(__file__).parents[2]
CASES = Cases(ROOT / "label_config")
CASE = CASES.get("complaint")
TEXT = "投诉人:林志远,邮箱:linzy@example.com。电梯坏了没人修!!电话打了三次"
FIRST: Value = {"name": "志远", "email": "linzy@example.com", "question": "电梯坏了没人修!!电话打了三次"}
SECOND: Value = {"name": "林志远", "question": "电梯坏了没人修!!"}
WORDS = "the name has three characters; leave out the phone calls"


def obedient(body: Body) -> str:
    """Answer a task with the first value, and with the second where the words stand in the prompt."""
    return CASE.labelling.encode(SECOND if WORDS in body["messages"][-1]["content"] else FIRST)


@dataclass(frozen=True)
class Redrafting:
    """A backend before the fake."""

    url: str
    fake: FakeVllm


@pytest.fixture
def redrafting(label_studio: LabelStudioServer, tmp_path: Path) -> Iterator[Redrafting]:
    with fake_vllm(context_tokens=4096, answer=obedient) as fake:
        settings = {
            "CACHE_URL": f"sqlite:///{tmp_path / 'cache.sqlite3'}",
            "LABEL_STUDIO_API_KEY": label_studio.token,
            "LABEL_STUDIO_URL": label_studio.url,
            "LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite3'}",
            "MODEL_NAME": fake.name,
            "MODEL_URL": fake.url,
        }
        with installed(), servers.start_backend(settings, log=tmp_path / "backend.log") as server:
            yield Redrafting(server.url, fake)


def test_a_prompt_changes_the_fields_and_is_not_in_the_dataset(
    page: Page, label_studio: LabelStudioServer, redrafting: Redrafting, tmp_path: Path
) -> None:
    with LabelStudio(label_studio.url, label_studio.token) as studio:
        project = studio.create_project("Redraft", CASES.config("complaint"))
        studio.connect_backend(project, redrafting.url, extra_params={"case": "complaint"}, interactive=True)
        (ids,) = studio.import_tasks(project, [{"text": TEXT, "draft_status": ""}])
        page.set_viewport_size({"width": 1440, "height": 1400})
        page.goto(f"/projects/{project.id}/data?task={ids[0]}")
        fields = page.get_by_test_id("textarea-region")
        expect(fields).to_have_text(list(FIRST.values()), timeout=60_000)

        page.get_by_text("Auto-Annotation", exact=True).click()
        # Working by hand asks for nothing: what a human wrote is not drafted over.
        asked = len(redrafting.fake.asked)
        rewrite(fields.first, "林先生")

        box = page.get_by_placeholder("What should be different?")
        box.fill(WORDS)
        with page.expect_response(lambda answer: "interactive-annotating" in answer.url):
            box.press("Shift+Enter")
        # The e-mail address was there, and went.
        expect(fields).to_have_text([*map(str, SECOND.values()), WORDS])
        page.screenshot(path=ROOT / "build" / "screenshots" / "redraft.png")
        assert len(redrafting.fake.asked) == asked + 1
        question, draft, words = redrafting.fake.asked[-1]["messages"][-3:]
        assert question["content"] == TEXT
        assert json.loads(draft["content"]) == {**FIRST, "name": "林先生", "address": None}
        assert WORDS in words["content"]

        with page.expect_response(
            lambda answer: "/annotations" in answer.url and answer.request.method == "POST"
        ) as submitted:
            page.get_by_role("button", name="Submit").click()
        assert submitted.value.status == 201
        (task,) = studio.tasks(project, full=True)
        assert len(task["predictions"]) == 1
        sync(studio, CASES, tmp_path / "dataset", [project.id])
    (line,) = (tmp_path / "dataset" / "samples.jsonl").read_bytes().splitlines()
    sample: dict[str, Any] = json.loads(line)
    assert (sample["value"], sample["draft"]) == (SECOND, FIRST)
    assert sample["metadata"]["prompt"] == WORDS
    taught = {key: part for key, part in sample.items() if key != "metadata"}
    assert WORDS not in json.dumps(taught, ensure_ascii=False)


SPANS = """
<View>
  <Text name="text" value="$text"/>
  <Labels name="spans" toName="text" smart="false"><Label value="PER"/><Label value="LOC"/></Labels>
  <Choices name="kind" toName="text" smart="false"><Choice value="a"/><Choice value="b"/></Choices>
  <Number name="count" toName="text" smart="false"/>
  <DateTime name="day" toName="text" only="date" smart="false"/>
  <Rating name="stars" toName="text" smart="false"/>
  <Taxonomy name="tree" toName="text" smart="false"><Choice value="x"/></Taxonomy>
  <TextArea name="prompt" toName="text" rows="2" placeholder="What should be different?"/>
</View>
"""


def test_a_redraft_empties_controls_and_adds_spans(
    page: Page, label_studio: LabelStudioServer, redrafting: Redrafting
) -> None:
    labelling = compile_labelling(SPANS)
    person, place, other = (
        {"text": text, "nth": 0, "label": label}
        for text, label in (("李四", "PER"), ("北京", "LOC"), ("王五", "PER"))
    )
    first = {
        "spans": [person, place],
        "kind": "a",
        "count": 3,
        "day": "2026-01-02",
        "stars": 2,
        "tree": ["x"],
    }
    redrafting.fake.answer = lambda body: labelling.encode(
        {"spans": [place, other]} if WORDS in body["messages"][-1]["content"] else first
    )
    with LabelStudio(label_studio.url, label_studio.token) as studio:
        project = studio.create_project("Redraft spans", SPANS)
        studio.connect_backend(project, redrafting.url, extra_params={}, interactive=True)
        (ids,) = studio.import_tasks(project, [{"text": "李四在北京见王五。"}])
        page.goto(f"/projects/{project.id}/data?task={ids[0]}")
        expect(page.locator(".htx-highlight")).to_have_count(2, timeout=60_000)
        page.get_by_text("Auto-Annotation", exact=True).click()
        box = page.get_by_placeholder("What should be different?")
        box.fill(WORDS)
        with page.expect_response(lambda answer: "interactive-annotating" in answer.url):
            box.press("Shift+Enter")
        expect(page.locator(".htx-highlight")).to_have_count(3)
        with page.expect_response(
            lambda answer: "/annotations" in answer.url and answer.request.method == "POST"
        ):
            page.get_by_role("button", name="Submit").click()
        (task,) = studio.tasks(project, full=True)
    value = labelling.from_regions(task["annotations"][0]["result"], Task(task["id"], task["data"]))
    assert value == {"spans": [person, place, other], "tree": []}
