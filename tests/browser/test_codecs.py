"""A prediction of every codec, opened in Label Studio's real page and submitted unchanged, reads back the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.core.labelling import Labelling, Task, compile_labelling
from scripts.templates import labelled
from tests.conftest import LabelStudioServer, logged_in
from tests.families import FAMILIES
from tests.supported import SUPPORTED
from tests.values import filled

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def opened(browser: Browser, label_studio: LabelStudioServer) -> Iterator[Page]:
    """Log in once: each of these tests opens one task."""
    with logged_in(browser, label_studio) as page:
        yield page


@pytest.fixture(scope="module")
def pictures() -> Path:
    """Give the folder of screenshots; they are to be looked at."""
    folder = ROOT / "build" / "screenshots" / "codecs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_back(
    server: LabelStudioServer, page: Page, config: str, labelling: Labelling, task: Task, picture: Path
) -> None:
    value = filled(labelling, task)
    placed = labelling.to_regions(value, task)
    assert placed.problems == []
    project = server.sdk.projects.create(title=picture.stem[:50], label_config=config)
    found = server.sdk.tasks.create(data=dict(task.data), project=project.id)
    # Bulk import judges paths of nested choices wrongly (SDK), so the prediction comes as a backend gives it.
    server.sdk.predictions.create(task=found.id, result=placed.regions, score=0.5, model_version="v1")
    page.goto(f"/projects/{project.id}/data?task={found.id}")
    submit = page.get_by_role("button", name="Submit")
    expect(submit).to_be_enabled(timeout=60_000)
    page.wait_for_timeout(300)  # documents in frames are marked after they are loaded
    page.screenshot(path=picture)
    with page.expect_response(
        lambda answer: "/annotations" in answer.url and answer.request.method == "POST"
    ) as answered:
        submit.click()
    assert answered.value.status == 201
    stored = server.sdk.annotations.list(found.id)[0]
    regions = [dict(region) for region in stored.result or []]
    assert labelling.from_regions(regions, task) == value
    assert {region.get("id") for region in regions} == {region.get("id") for region in placed.regions}
    assert len(regions) == len(placed.regions)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_codecs_reads_back_from_the_page(
    label_studio: LabelStudioServer, opened: Page, pictures: Path, family: str
) -> None:
    config, data = FAMILIES[family]
    labelling = compile_labelling(config)
    read_back(label_studio, opened, config, labelling, Task(1, data), pictures / f"{family}.png")


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_template_reads_back_from_the_page(
    label_studio: LabelStudioServer, opened: Page, pictures: Path, name: str
) -> None:
    template, labelling, task = labelled(name)
    picture = pictures / f"{name.replace('/', '--')}.png"
    read_back(label_studio, opened, template.config, labelling, task, picture)
