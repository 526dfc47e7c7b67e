"""A code task in Label Studio's real page: filled in with output and chart, edited, run, submitted, exported.

The fake vLLM answers here; sandbox and Open Interpreter are the real ones.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from draftloop.cli import servers
from draftloop.execution.preview import Seen, Table, to_html
from draftloop.labelling.labelling import Task
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from draftloop.runs.run import NO_RUN, RUN_CHARTS_KEY, RUN_KEY, InputFile, run_key
from draftloop.support.environments import find_environment
from tests.conftest import LabelStudioServer, installed
from tests.fake_sandbox import python
from tests.fake_vllm import Body, FakeVllm, fake_vllm
from tests.verbs import environment, run

ROOT = Path(__file__).parents[2]
CASES = Cases(ROOT / "label_config")
CASE = CASES.get("code_analysis")
TABLE = "城市,金额\n北京,120\n上海,30\n".encode()
SALES = InputFile("销售.csv", "销售.csv", len(TABLE), hashlib.sha256(TABLE).hexdigest())
SEEN = Seen(
    SALES.name,
    len(TABLE),
    "CSV in utf-8",
    (Table("", ("城市", "金额"), (("北京", "120"), ("上海", "30")), 2),),
)
CODE = """
import matplotlib.pyplot as plt
import pandas as pd

sales = pd.read_csv("input/销售.csv")
if len(sales):
    print("rows:", len(sales))
sales.plot.bar(x="城市", y="金额", title="各城市销售额")
plt.tight_layout()
plt.savefig("chart.png")
""".strip()
EDITED = CODE.replace('print("rows:", len(sales))', 'print("sum:", sales["金额"].sum())').replace(
    "bar(", "barh("
)


def answer(body: Body) -> str:
    """Answer with a wrong column first, with correct code once the prompt contains the output."""
    knows_output = "was run" in body["messages"][-1]["content"]
    return CASE.labelling.encode({"code": CODE if knows_output else CODE.replace('y="金额"', 'y="价格"')})


@dataclass(frozen=True)
class Drafting:
    """A backend that runs code, before the fake."""

    url: str
    fake: FakeVllm
    settings: dict[str, str]


@pytest.fixture
def drafting(label_studio: LabelStudioServer, tmp_path: Path) -> Iterator[Drafting]:
    with (
        tempfile.TemporaryDirectory(prefix="code-page-", dir="/var/tmp", ignore_cleanup_errors=True) as name,
        fake_vllm(context_tokens=30_000, answer=answer) as fake,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "inputs" / "shared").mkdir(parents=True)
        (folder / "inputs" / "shared" / SALES.path).write_bytes(TABLE)
        port = servers.free_port()
        settings = {
            "ARTIFACTS_URL": str(tmp_path / "artifacts"),
            "BACKEND_PASSWORD": "of-the-backend",
            "BACKEND_PUBLIC_URL": f"http://{servers.LOCALHOST}:{port}",
            "BACKEND_USER": "drafts",
            "CACHE_URL": "",
            "EXECUTION_JOBS": "1",
            "INPUT_ROOT": str(folder / "inputs"),
            "LABEL_STUDIO_API_KEY": label_studio.token,
            "LABEL_STUDIO_URL": label_studio.url,
            "LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite3'}",
            "MODEL_MAX_TOKENS": "3000",
            "MODEL_NAME": fake.name,
            "MODEL_URL": fake.url,
            "SANDBOX_FOLDER": str(folder / "sandbox"),
        }
        with installed():
            find_environment("sandbox")
            find_environment("open-interpreter")
            with servers.start_backend(settings, port=port, log=tmp_path / "backend.log") as server:
                yield Drafting(server.url, fake, settings)


def opens_without_another_login(page: Page) -> None:
    """Follow the link to the whole run; who is not logged in to Label Studio sees nothing of it."""
    with page.expect_popup() as opened:
        page.get_by_role("link", name="the whole run").click()
    run = opened.value
    expect(run.locator("h1")).to_contain_text("Ended well")
    chart = run.locator("figure img")
    expect(chart).to_be_visible()
    assert chart.evaluate("image => image.naturalWidth") > 100
    for address in (run.url, chart.evaluate("image => image.src")):
        stranger = httpx.get(address, trust_env=False)
        assert stranger.status_code == 401
        assert stranger.json() == {
            "error": "Wrong or missing user and password.",
            "hint": "Log in to Label Studio under this host name and reload, or give the viewer's login.",
        }
    run.close()


def test_code_is_seen_with_its_chart_edited_run_again_submitted_and_exported(
    page: Page, label_studio: LabelStudioServer, drafting: Drafting, tmp_path: Path
) -> None:
    data = {
        **NO_RUN,
        "instruction": "画出各城市的销售额",
        "inputs": [asdict(SALES)],
        "input_preview": to_html(SEEN),
        "input_schema": "销售.csv: 2 rows",
        "output_files": ["chart.png"],
        "draft_status": "",
    }
    shots = ROOT / "build" / "screenshots"
    with LabelStudio(label_studio.url, label_studio.token) as studio:
        project = studio.create_project("Code", CASES.config("code_analysis"))
        studio.connect_backend(
            project,
            drafting.url,
            extra_params={"case": "code_analysis"},
            user=drafting.settings["BACKEND_USER"],
            password=drafting.settings["BACKEND_PASSWORD"],
            webhook=False,
            interactive=True,
        )
        (ids,) = studio.import_tasks(project, [data])
        page.set_viewport_size({"width": 1440, "height": 2200})
        page.goto(f"/projects/{project.id}/data?task={ids[0]}")
        code = page.get_by_test_id("textarea-region").first
        expect(code).to_contain_text("plt.savefig", timeout=90_000)
        # Label Studio answered with the task as it was before; it is there at the next look.
        page.goto(f"/projects/{project.id}/data?task={ids[0]}")
        expect(code).to_contain_text("plt.savefig", timeout=60_000)
        expect(page.locator("pre", has_text="rows: 2")).to_be_visible()
        chart = page.locator("img[src*='/data/upload/']").first
        expect(chart).to_be_visible()
        assert chart.evaluate("image => image.naturalWidth") > 100
        table = page.locator(".files table")
        expect(table.locator("td", has_text="120")).to_have_css("text-align", re.compile("right$"))
        expect(table.locator("td", has_text="北京")).to_have_css("border-left-style", "solid")
        content = code.get_by_test_id("htx-textbox-content")
        for shown_as_code in (content, content.locator("p"), page.locator("pre", has_text="rows: 2")):
            expect(shown_as_code).to_have_css("font-family", re.compile("^ui-monospace"))
            expect(shown_as_code).to_have_css("white-space", "pre")
        expect(content).to_have_css("overflow-x", "auto")
        opens_without_another_login(page)
        page.screenshot(path=shots / "code.png", full_page=True)
        (shown,) = studio.tasks(project, full=True)
        assert shown["data"][RUN_KEY] == run_key([python(CODE)], [SALES])
        assert len(drafting.fake.asked) >= 2, "the wrong column went back"

        page.get_by_text("Auto-Annotation", exact=True).click()
        asked = len(drafting.fake.asked)
        code.get_by_test_id("htx-textbox-edit-button").click()
        box = page.get_by_test_id("htx-textbox-edit").locator("textarea")
        assert box.input_value() == CODE, "indentation is kept"
        expect(box).to_have_css("font-family", re.compile("^ui-monospace"))
        expect(box).to_have_css("overflow-x", "auto")
        box.fill(EDITED)
        # Enter is a new line there; Shift+Enter saves, and what is saved is run.
        with page.expect_response(lambda got: "interactive-annotating" in got.url, timeout=90_000):
            box.press("Shift+Enter")
        console = page.get_by_test_id("htx-textbox-content").filter(has_text="exit status 0")
        expect(console).to_contain_text("sum: 150")
        expect(code).to_contain_text("barh")
        assert len(drafting.fake.asked) == asked
        page.screenshot(path=shots / "code-run.png", full_page=True)
        (shown,) = studio.tasks(project, full=True)
        assert shown["data"][RUN_KEY] == run_key([python(EDITED)], [SALES])
        (fresh,) = shown["data"][RUN_CHARTS_KEY]
        # Label Studio reads a task's data when it opens the task.
        assert page.locator(f"img[src*='{fresh.rpartition('/')[2]}']").count() == 0

        page.get_by_text(re.compile("^pass")).first.click()
        with page.expect_response(
            lambda got: "/annotations" in got.url and got.request.method == "POST"
        ) as submitted:
            page.get_by_role("button", name="Submit").click()
        assert submitted.value.status == 201
        (task,) = studio.tasks(project, full=True)
    value = CASE.labelling.from_regions(task["annotations"][0]["result"], Task(task["id"], task["data"]))
    assert value == {"code": EDITED, "verdict": "pass"}

    env = environment(label_studio, tmp_path, **drafting.settings)
    status, _, errors = run(env, "sync", "--project", project.id, "--out", tmp_path / "dataset")
    assert status == 0, errors
    (sample,) = map(json.loads, (tmp_path / "dataset" / "samples.jsonl").read_bytes().splitlines())
    assert (sample["code"], sample["stdout"]) == (EDITED, "sum: 150\n")
    assert (sample["metadata"]["run"], sample["metadata"]["run_by"]) == (shown["data"][RUN_KEY], "human")
    assert [file["path"] for file in sample["output_files"]] == ["chart.png"]
    assert sample["gates"][-1] == "spot_checked"
    assert sample["notes"] == []
