"""A run page in a real browser, with everything in it that hostile code could write."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from draftloop.cli import servers
from draftloop.execution.artifacts import Artifacts
from draftloop.runs.run import Run
from draftloop.support.environments import ROOT, find_environment
from tests.code_runs import attempt, png, refused, run, write
from tests.conftest import installed

MARK = "window.top.hacked = window.hacked = 1; document.title = 'hacked'"
HOSTILE = f'</pre></main></style></title><script>{MARK}</script><img src=x onerror="{MARK}">\'"<!--'
# What Plotly's files do: script in the page draws; then it tries to leave its box.
PLOT = """<!DOCTYPE html><body><div id="attempts"></div><script>
const attempts = [];
const attempted = (what, how) => {
  try { how(); attempts.push(what + ' worked'); } catch (e) { attempts.push(what + ' ' + e.name); }
};
document.body.insertAdjacentHTML('beforeend',
  '<svg id="drawn" width="9" height="9"><rect width="9" height="9"/></svg>');
attempted('parent', () => { parent.document.title = 'hacked'; });
attempted('storage', () => localStorage.setItem('a', '1'));
attempted('cookie', () => { document.cookie = 'a=1'; });
attempted('popup', () => { if (!open('/metrics')) throw new TypeError(); });
new Image().src = '/metrics?image';
fetch('/metrics').then(() => attempts.push('fetch worked'), e => attempts.push('fetch ' + e.name))
  .finally(() => { document.getElementById('attempts').textContent = attempts.join(', '); });
</script></body>"""
CONTENTS = {
    "图.png": png(60, 40),
    "broken.png": b"\x89PNG that is none",
    "a.svg": (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='50' height='20'><script>{MARK}</script>"
        f'<rect width="50" height="20" onload="{MARK}"/></svg>'
    ).encode(),
    "plot.html": PLOT.encode(),
    "table.html": "<p style='color:#123456' id=still>表格</p>".encode(),
    "' onerror='window.hacked=1' x='.png": png(5, 5),
    "<script>window.hacked=1</script>\n.csv": b"1,2",
}
USER, PASSWORD = "annotator", "view-only"


@dataclass(frozen=True)
class Served:
    url: str
    run: Run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A backend whose model is not there: pages need none."""
    store = Artifacts(f"{tmp_path}/kept")
    files = write(tmp_path / "left", CONTENTS)
    store.keep(tmp_path / "left", files)
    first = attempt(HOSTILE, HOSTILE, HOSTILE, 1, reason=HOSTILE)
    last = attempt("import pandas as pd\nprint('合计')\n", "合计 12\n" * 40, HOSTILE, files=files,
                   refused=(refused(HOSTILE, HOSTILE),), notes=(HOSTILE,))  # fmt: skip
    made = run(first, last, instruction=f"按月汇总销售额,画图。\n{HOSTILE}", version=HOSTILE)
    store.put_run(made)
    settings = {
        "ARTIFACTS_URL": store.url,
        "BACKEND_PASSWORD": "admin-only",
        "BACKEND_USER": "admin",
        "BACKEND_VIEWER_PASSWORD": PASSWORD,
        "BACKEND_VIEWER_USER": USER,
        "CACHE_URL": "",
        "LEDGER_URL": f"sqlite:///{tmp_path}/ledger.sqlite3",
        "MODEL_URL": "http://127.0.0.1:9/v1",
    }
    with installed(), servers.start_backend(settings, log=tmp_path / "backend.log") as server:
        yield Served(server.url, made)


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    context = browser.new_context(
        base_url=served.url,
        http_credentials={"username": USER, "password": PASSWORD},
        viewport={"width": 1200, "height": 900},
    )
    opened = context.new_page()
    opened.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    yield opened
    context.close()


def test_nothing_in_a_run_page_runs_but_a_plot_in_its_frame_after_a_click(page: Page, served: Served) -> None:
    answered: list[str] = []
    page.on("response", lambda response: answered.append(response.url))
    answer = page.goto(f"/runs/{served.run.key}")
    assert answer is not None
    assert answer.status == 200
    frames = page.locator("iframe")
    expect(frames).to_have_count(2)
    frames.nth(0).scroll_into_view_if_needed()
    plot = page.frame_locator("iframe[title='plot.html']")
    expect(plot.locator("body")).to_contain_text("not shown without a click")
    figure = page.locator("figure", has=page.locator("iframe[title='plot.html']"))
    figure.get_by_role("link", name="Run this file's script").click()
    expect(plot.locator("#attempts")).to_contain_text("fetch")
    expect(figure).to_contain_text("Its script runs.")
    attempts = (plot.locator("#attempts").text_content() or "").split(", ")
    assert attempts == [
        "parent SecurityError",
        "storage SecurityError",
        "cookie SecurityError",
        "popup TypeError",
        "fetch TypeError",
    ]
    expect(plot.locator("#drawn")).to_be_visible()
    frames.nth(1).scroll_into_view_if_needed()
    still = page.frame_locator("iframe[title='table.html']").locator("#still")
    expect(still).to_have_text("表格")
    expect(still).to_have_css("color", "rgb(18, 52, 86)")

    assert page.evaluate("window.hacked === undefined")
    assert page.title().startswith("Run ")
    assert page.evaluate("document.querySelectorAll('script').length") == 0
    widths = page.evaluate(
        "Object.fromEntries([...document.images].map(image => [image.title, image.naturalWidth]))"
    )
    assert widths == {"图.png": 60, "broken.png": 0, "a.svg": 50, "' onerror='window.hacked=1' x='.png": 5}
    expect(page.locator("section").first).to_contain_text("<script>window.top.hacked")
    expect(page.locator("main > *")).to_have_count(4)  # header, instruction, last attempt, earlier ones
    own = (f"{served.url}/runs/", f"{served.url}/a/")
    assert [url for url in answered if not url.startswith(own)] == [], "something reached the network"
    pictures = ROOT / "build" / "screenshots"
    pictures.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=pictures / "run-page.png", full_page=True)


def test_a_file_that_is_opened_by_itself_runs_nothing_but_a_plot(page: Page, served: Served) -> None:
    files = {file.path: file for file in served.run.last.files}
    for name in ("a.svg", "table.html", "plot.html"):
        answer = page.goto(f"/a/{files[name].sha256}?name={name}")
        assert answer is not None
        assert answer.status == 200
        assert page.evaluate("window.hacked === undefined")
        assert page.evaluate("document.querySelectorAll('script').length") == 0
        assert page.title() == name
    frame = page.frame_locator("iframe")
    page.get_by_role("link", name="Run this file's script").click()
    expect(frame.locator("#attempts")).to_contain_text("storage SecurityError")
    assert page.frames[-1].evaluate("self.origin") == "null"
    assert page.title() == "plot.html"


def test_a_chart_of_plotly_is_drawn_after_a_click(page: Page, tmp_path: Path) -> None:
    with installed():
        places = find_environment("sandbox").glob("lib/python3*/site-packages/plotly/package_data")
    script = (next(places) / "plotly.min.js").read_text(encoding="utf-8")
    chart = "<div id=chart></div><script>Plotly.newPlot('chart', [{y: [1, 3, 2]}])</script>"
    content = f"<html><head><meta charset='utf-8'><script>{script}</script></head><body>{chart}".encode()
    files = write(tmp_path / "plotly", {"plotly.html": content})
    Artifacts(f"{tmp_path}/kept").keep(tmp_path / "plotly", files)
    page.goto(f"/a/{files[0].sha256}?name=plotly.html")
    page.get_by_role("link", name="Run this file's script").click()
    expect(page.frame_locator("iframe").locator("path.js-line")).to_be_visible(timeout=30_000)


def test_the_viewers_login_is_asked_for_and_opens_nothing_else(browser: Browser, served: Served) -> None:
    for login, path, status in (
        (None, f"/runs/{served.run.key}", 401),
        ((USER, "wrong"), f"/runs/{served.run.key}", 401),
        ((USER, PASSWORD), "/metrics", 401),
        ((USER, PASSWORD), f"/runs/{served.run.key}", 200),
        (("admin", "admin-only"), f"/runs/{served.run.key}", 200),
    ):
        given = (
            {"Authorization": f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"} if login else {}
        )
        context = browser.new_context(extra_http_headers=given)
        assert context.request.get(f"{served.url}{path}").status == status
        context.close()
