"""A prediction of every codec, opened in the real page and submitted unchanged, reads back the same."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from draftloop.labelling.controls import Placed, Region
from draftloop.labelling.labelling import Labelling, Task, Value, compile_labelling
from draftloop.labelling.passages import HtmlPassage
from tests.conftest import LabelStudioServer, gallery, logged_in
from tests.documents import DOCUMENTS
from tests.families import FAMILIES
from tests.supported import SUPPORTED
from tests.values import filled

ROOT = Path(__file__).parents[2]


@dataclass
class Desk:
    """A page at which tasks are opened, one after the other."""

    server: LabelStudioServer
    page: Page
    pictures: Path

    def open(self, title: str, config: str, task: Task, placed: Placed | None = None) -> int:
        """Open a new task, with a prediction where there is one; give its id."""
        project = self.server.sdk.projects.create(title=title[:50], label_config=config)
        created = self.server.sdk.tasks.create(data=dict(task.data), project=project.id)
        if placed is not None:
            # Bulk import refuses paths of nested choices; this call and the page take them.
            self.server.sdk.predictions.create(
                task=created.id, result=placed.regions, score=0.5, model_version="v1"
            )
        self.page.goto(f"/projects/{project.id}/data?task={created.id}")
        expect(self.page.get_by_role("button", name="Submit")).to_be_enabled(timeout=60_000)
        for loading in self.page.locator("[class*=richtext__loading]").all():
            expect(loading).to_be_hidden(timeout=60_000)  # a document in a frame
        assert created.id is not None
        return int(created.id)

    def submit(self, task_id: int) -> list[Region]:
        """Submit, and give the regions that Label Studio stored."""
        with self.page.expect_response(
            lambda answer: "/annotations" in answer.url and answer.request.method == "POST"
        ) as answered:
            self.page.get_by_role("button", name="Submit").click()
        assert answered.value.status == 201
        return [dict(region) for region in self.server.sdk.annotations.list(task_id)[0].result or []]

    def highlighted(self) -> list[str]:
        """List the marked texts, of documents in frames too."""
        marked = [frame.locator(".htx-highlight").all_inner_texts() for frame in self.page.frames]
        return [text for texts in marked for text in texts]

    def expect_highlighted(self, quotes: list[str]) -> None:
        """Wait until exactly these texts are marked: marks come some time after the text."""
        deadline = time.monotonic() + 20
        while sorted(self.highlighted()) != sorted(quotes) and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
        assert sorted(self.highlighted()) == sorted(quotes)

    def highlights_more_than(self, count: int) -> bool:
        """Wait up to five seconds for one more marked text."""
        deadline = time.monotonic() + 5
        while len(self.highlighted()) <= count and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
        return len(self.highlighted()) > count

    def read_back(self, title: str, config: str, labelling: Labelling, task: Task) -> Value:
        """Open a form that is filled in, submit it unchanged, and see that nothing has changed."""
        value = filled(labelling, task)
        placed = labelling.to_regions(value, task)
        assert placed.problems == []
        task_id = self.open(title, config, task, placed)
        self.expect_highlighted([quote["text"] for part in value.values() for quote in _quotes(part)])
        if title in ("per_region", "spelled"):
            self.page.locator(".htx-highlight").first.click()
        self.page.screenshot(path=self.pictures / f"{title.replace('/', '--')}.png")
        regions = self.submit(task_id)
        assert labelling.from_regions(regions, task) == value
        assert {region.get("id") for region in regions} == {region.get("id") for region in placed.regions}
        assert len(regions) == len(placed.regions)
        return value


def _quotes(part: Any) -> list[dict[str, Any]]:
    return (
        [entry for entry in part if isinstance(entry, dict) and "nth" in entry]
        if isinstance(part, list)
        else []
    )


@pytest.fixture(scope="module")
def desk(browser: Browser, label_studio: LabelStudioServer) -> Iterator[Desk]:
    """Log in once: each of these tests opens one task."""
    folder = ROOT / "build" / "screenshots" / "codecs"  # they are to be looked at
    folder.mkdir(parents=True, exist_ok=True)
    with logged_in(browser, label_studio) as page:
        yield Desk(label_studio, page, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_codecs_reads_back_from_the_page(desk: Desk, family: str) -> None:
    config, data = FAMILIES[family]
    desk.read_back(family, config, compile_labelling(config), Task(1, data))


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_template_reads_back_from_the_page(desk: Desk, name: str) -> None:
    template, labelling, task = gallery(name)
    desk.read_back(name, template.config, labelling, task)


# Selects a text as a mouse does: the last occurrence, in the last text node that has it.
SELECT = """(text) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let node = null;
  while (walker.nextNode()) if (walker.currentNode.data.includes(text)) node = walker.currentNode;
  const at = node.data.lastIndexOf(text), range = document.createRange();
  range.setStart(node, at); range.setEnd(node, at + text.length);
  getSelection().removeAllRanges(); getSelection().addRange(range);
  node.parentElement.dispatchEvent(new MouseEvent("mouseup", {bubbles: true, view: window}));
}"""


@pytest.mark.parametrize(
    ("family", "control", "quotes"),
    [
        ("html", "ner", [("𠮷田", 0), ("zwei", 0)]),
        ("dialogue", "slots", [("北京", 2), ("𠮷田", 0)]),
    ],
)
def test_spans_marked_beside_emoji_read_back(
    desk: Desk, family: str, control: str, quotes: list[tuple[str, int]]
) -> None:
    config, data = FAMILIES[family]
    task = Task(1, data)
    task_id = desk.open(f"{family} by hand", config, task)
    for count, (text, _) in enumerate(quotes, start=1):
        for _ in range(4):  # a page that is still being drawn drops what is selected, or has no frame yet
            shown = [frame for frame in desk.page.frames if frame.url.startswith("about:srcdoc")]
            desk.page.keyboard.press("1")
            (shown or desk.page.frames)[0].evaluate(SELECT, text)
            if desk.highlights_more_than(count - 1):
                break
        desk.expect_highlighted([marked for marked, _ in quotes[:count]])
        desk.page.keyboard.press("Escape")
    value = compile_labelling(config).from_regions(desk.submit(task_id), task)
    assert [(quote["text"], quote["nth"]) for quote in value[control]] == quotes


def test_a_rating_without_an_object_belongs_to_the_dialogue(desk: Desk) -> None:
    template, labelling, task = gallery("generative-ai/chatbot-assessment")
    task_id = desk.open("no toName", template.config, task)
    desk.page.locator(".ant-rate-star").nth(3).click()
    desk.page.wait_for_timeout(200)
    regions = desk.submit(task_id)
    drafted = labelling.to_regions({"likert_scale": 4}, task).regions
    assert [region["to_name"] for region in regions] == [region["to_name"] for region in drafted]
    assert labelling.from_regions(regions, task) == {"likert_scale": 4}


# The text of a document as positions count it.
COUNTED = """(root) => {
  const walker = root.ownerDocument.createTreeWalker(root, NodeFilter.SHOW_ALL);
  let text = "";
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.nodeType === Node.TEXT_NODE) text += node.data;
    if (node.nodeName === "BR") text += "\\n";
  }
  return text;
}"""
READ = f"""() => [...document.querySelectorAll("[class*=htx-richtext]")].map(
  (element) => ({COUNTED})(element.tagName === "IFRAME" ? element.contentDocument.body : element)
)"""


def test_positions_in_html_are_those_of_the_page(desk: Desk) -> None:
    """Both ways in which a HyperText shows it, for all documents at once."""
    tags = "".join(
        f'<HyperText name="{name}{number}" value="$html{number}" inline="{inline}"/>'
        for number in range(len(DOCUMENTS))
        for name, inline in (("frame", "false"), ("inline", "true"))
    )
    config = f'<View>{tags}<Choices name="c" toName="frame0"><Choice value="x"/></Choices></View>'
    data = {f"html{number}": html for number, html in enumerate(DOCUMENTS)}
    desk.open("documents", config, Task(1, data))
    desk.page.wait_for_timeout(3000)
    shown = desk.page.evaluate(READ)
    assert len(shown) == 2 * len(DOCUMENTS)
    for number, html in enumerate(DOCUMENTS):
        for inline in (False, True):
            check_positions(html, shown[2 * number + inline], inline=inline)


def check_positions(html: str, document: str, *, inline: bool) -> None:
    """Compare what stands at each position with the document that a browser has made."""
    passage = HtmlPassage.of(html, inline=inline)
    for run in passage.placed_runs:
        text = passage.text[run.at : run.at + run.length]
        there = document[run.place : run.place + run.length]
        assert len(there) == len(text), (html, inline, document)
        for one, other in zip(text, there, strict=True):  # white space is folded
            assert one == other or (one.isspace() and other.isspace()), (html, inline, document)


# Reads a document in a frame and in an element of the page, as a HyperText shows it.
PARSE = """async (html) => {
  const count = COUNTED;
  const frame = document.createElement("iframe"), element = document.createElement("div");
  frame.sandbox = "allow-same-origin allow-scripts allow-presentation";
  frame.srcdoc = html;
  const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
  document.body.append(frame);
  await loaded;
  element.innerHTML = html;
  const texts = [count(frame.contentDocument.body), count(element)];
  frame.remove();
  return texts;
}""".replace("COUNTED", COUNTED)


def test_html_is_parsed_as_a_browser_parses_it(browser: Browser) -> None:
    """Also what no HyperText of the test above shows: documents made at random."""
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        page.set_content("<!DOCTYPE html><body></body>")
        for line in (ROOT / "tests" / "sanitized.jsonl").read_bytes().splitlines():
            document = json.loads(line)
            shown = page.evaluate(PARSE, document["written"])
            for inline in (False, True):
                check_positions(document["html"], shown[inline], inline=inline)
