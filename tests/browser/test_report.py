"""A dataset's report in a real browser: everything in it is seen, on a laptop and on paper."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from draftloop.dataset.sync import sync
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from draftloop.support.environments import MODELS, ROOT
from tests.fake_label_studio import fake_label_studio

CASES = Cases(ROOT / "label_config")
TASKS = 600
LAPTOP, NARROW, PAPER = 1280, 700, 718  # pixels; A4 within margins of 1 cm
VERSIONS = ("Qwen3-4B-Instruct-2507-3f2a91c04b", "Qwen3-4B-Instruct-2507-lora-2-77e01ab9c3")


def data(number: int) -> dict[str, str]:
    words = (
        "电梯坏了没人修!!" if number % 5 else "The lift is broken and nobody comes to mend it, since weeks."
    )
    return {"text": f"投诉人:张三{number},电话 138{number:08},{words * (1 + number % 7)}", "draft_status": ""}


def regions(value: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"from_name": name, "to_name": "text", "type": "textarea", "value": {"text": [part]}}
        for name, part in value.items()
    ]


def value(number: int) -> dict[str, str]:
    return {"name": f"张三{number}", "question": data(number)["text"].partition(f"138{number:08},")[2]}


def predictions(number: int) -> list[dict[str, Any]]:
    """Drafts for four of five; those of the second version are better, and surer where they are right."""
    if number % 5 == 4:
        return []
    second = number > TASKS // 2
    right = number % 7 < 3 + 3 * second
    fields = value(number) if right else value(number) | {"name": "投诉人"}
    score = (0.55 if right else 0.2) + number % 4 / 10
    version = VERSIONS[second]
    return [{"id": number, "result": regions(fields), "score": score, "model_version": version}]


def annotations(number: int) -> list[dict[str, Any]]:
    """Of three annotators; some skip, some write what is not in the text, some tasks have two."""
    fields = value(number) | ({"name": "李四"} if number % 23 == 0 else {})
    return [
        {
            "id": 10 * number + place,
            "result": regions(fields | ({"question": data(number)["text"]} if place and number % 2 else {})),
            "was_cancelled": number % 37 == 0,
            "completed_by": 1 + (number + place) % 3,
            "created_at": "2026-01-01T00:00:00.000001Z",
            "updated_at": f"2026-{1 + number // 300:02}-{1 + number // 12 % 25:02}T00:00:{place:02}.000001Z",
            "lead_time": 8.0 + number % 11 if predictions(number) else 31.0 + number % 17,
            "parent_prediction": number if predictions(number) else None,
        }
        for place in range(1 + (number % 9 == 0))
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sync a project that leaves something to say in every part of the report."""
    folder = tmp_path_factory.mktemp("report") / "dataset"
    changes = {"spot_check": 0.05, "tokenizer": str(MODELS / "tiny-qwen3"), "max_tokens": 400}
    with fake_label_studio(CASES.config("complaint"), TASKS, data) as fake:
        fake.annotations, fake.predictions = annotations, predictions
        with LabelStudio(fake.url, "a-token") as studio:
            sync(studio, CASES, folder, [1], wanted_case="complaint", changes=changes)
    return folder / "report.html"


@pytest.fixture
def sheet(browser: Browser) -> Iterator[Page]:
    with browser.new_context(offline=True, locale="en-US") as context:
        yield context.new_page()


# What sticks out of the page or is covered: elements whose right edge lies beyond the width, by tag and text.
STICKS_OUT = """() => [...document.body.querySelectorAll("*")]
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(one => one.tagName + " " + (one.textContent || "").slice(0, 60))"""


@pytest.mark.parametrize(
    ("name", "width", "media"),
    [
        ("laptop", LAPTOP, "screen"),
        ("narrow", NARROW, "screen"),
        ("paper", PAPER, "print"),
    ],
)
def test_nothing_sticks_out_of_the_page(sheet: Page, report: Path, name: str, width: int, media: Any) -> None:
    asked: list[str] = []
    sheet.on("request", lambda request: asked.append(request.url))
    sheet.set_viewport_size({"width": width, "height": 900})
    sheet.emulate_media(media=media)
    sheet.goto(report.as_uri())
    pictures = ROOT / "build" / "screenshots"
    pictures.mkdir(parents=True, exist_ok=True)
    sheet.screenshot(path=pictures / f"report-{name}.png", full_page=True)
    assert sheet.evaluate(STICKS_OUT) == []
    assert asked == [report.as_uri()]
    counts = json.loads((report.parent / "manifest.json").read_bytes())["counts"]
    text = sheet.locator("body").inner_text()
    for part in ("Look at first", "Gates", "Drafts and corrections", "Lengths", "Agreement", "Spot checks"):
        assert part in text
    assert f"{counts['annotations']} annotations of {counts['tasks']} tasks = {counts['samples']}" in text
    if media == "print":
        sheet.pdf(path=pictures / "report.pdf", format="A4", margin={"left": "1cm", "right": "1cm"})
