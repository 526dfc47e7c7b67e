"""The blind review in Label Studio's pages: a second human judges, a sync obeys, the first one reads why."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from draftloop.labelling.labelling import STATUS_KEY, Task, Value
from draftloop.labelstudio import SENT_BACK_TAB, LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.runs.run import NO_RUN, InputFile
from draftloop.support.environments import ROOT, find_environment
from tests.conftest import LabelStudioServer, installed, logged_in
from tests.verbs import environment, run

CASES = Cases(ROOT / "label_config")
PICTURES = ROOT / "build" / "screenshots"
TABLE = "城市,金额\n北京,120\n上海,30\n".encode()
SALES = InputFile("销售.csv", "销售.csv", len(TABLE), hashlib.sha256(TABLE).hexdigest())
CODE = """
import pandas as pd

sales = pd.read_csv("input/销售.csv")
total = sales.groupby("城市")["金额"].sum()
total.to_csv("total.csv")
print("sum:", total.sum())
""".strip()
VERSION, SCORE = "zebra-7b-lora-3-0123456789", 0.8713
OWN_WORDS = "Zoe: much better than the draft"
WRONG = "it asks for the day, not for the hour"
# What would say who or what drafted it, what the draft was, or what the annotator thought of it.
SECRETS = ("zebra", "0.87", "admin", "王五", "means.csv", "Zoe")


def complaint(number: int) -> str:
    return f"我叫张三{number},{number * 7919}号包裹还没到,请问第{number}次了什么时候能到?"


@dataclass(frozen=True)
class Desk:
    """Five corrected complaints and a corrected program, synced; and how the verbs are run on them."""

    studio: LabelStudio
    complaints: Project
    env: dict[str, str]
    out: Path

    def run_verb(self, verb: str, *arguments: object) -> str:
        code, out, err = run(self.env, verb, "--out", self.out, *arguments)
        assert code == 0, err
        return out

    def submit(self, project: Project, case: str, data: dict[str, Any], draft: Value, value: Value) -> None:
        labelling = CASES.get(case).labelling
        ((task,),) = self.studio.import_tasks(project, [{STATUS_KEY: "", **data}])
        result = labelling.to_regions(draft, Task(task, data)).regions
        prediction = {"task": task, "result": result, "score": SCORE, "model_version": VERSION}
        assert self.studio.import_predictions(project, [prediction]) == []
        (shown,) = self.studio.tasks_by_id(project, [task], full=True)
        self.studio.submit_annotation(
            task,
            labelling.to_regions(value, Task(task, data)).regions,
            parent_prediction=shown["predictions"][0]["id"],
        )

    def lines(self, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / file).read_bytes().splitlines()]


@pytest.fixture
def desk(label_studio: LabelStudioServer, tmp_path: Path) -> Iterator[Desk]:
    with installed():
        find_environment("sandbox")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="review-", dir="/var/tmp", ignore_cleanup_errors=True) as name,
        LabelStudio(label_studio.url, label_studio.token) as studio,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "inputs" / "shared").mkdir(parents=True)
        (folder / "inputs" / "shared" / SALES.path).write_bytes(TABLE)
        env = environment(
            label_studio,
            tmp_path,
            ARTIFACTS_URL=str(tmp_path / "artifacts"),
            INPUT_ROOT=str(folder / "inputs"),
            SANDBOX_FOLDER=str(folder / "sandbox"),
        )
        complaints, programs = (
            studio.create_project(f"{case} {time.time_ns()}", CASES.config(case))
            for case in ("complaint", "code_analysis")
        )
        made = Desk(studio, complaints, env, tmp_path / "dataset")
        for text in map(complaint, range(5)):
            right = {"name": text[2:5], "question": text[-9:]}
            made.submit(complaints, "complaint", {"text": text}, right | {"name": "王五"}, right)
        data = {
            **NO_RUN,
            "instruction": "各城市销售额合计,存为 total.csv",
            "inputs": [asdict(SALES)],
            "input_preview": "",
            "input_schema": "销售.csv: 城市, 金额",
            "output_files": ["total.csv"],
        }
        draft = {"code": CODE.replace("total.csv", "means.csv")}
        judged = {"code": CODE, "verdict": "pass", "comment": OWN_WORDS}
        made.submit(programs, "code_analysis", data, draft, judged)
        made.run_verb("sync", "--project", complaints.id, "--project", programs.id)
        yield made


@pytest.fixture
def reviewer(label_studio: LabelStudioServer) -> LabelStudioServer:
    """Sign up a second human."""
    account = {"email": f"second{time.time_ns()}@example.com", "password": "draftloop-tests-second"}
    with httpx.Client(
        base_url=label_studio.url, follow_redirects=True, trust_env=False, timeout=30
    ) as client:
        client.get("/user/signup/").raise_for_status()
        form = account | {"csrfmiddlewaretoken": client.cookies["csrftoken"]}
        client.post("/user/signup/", data=form).raise_for_status()
    return replace(label_studio, username=account["email"], password=account["password"])


def judge(page: Page, verdict: str, comment: str = "") -> None:
    """Pick a verdict as a reviewer does, and submit it."""
    page.get_by_text(re.compile(f"^{verdict}")).first.click()  # its key stands behind it
    if comment:
        page.get_by_placeholder("What is wrong?").fill(comment)
        page.keyboard.press("Shift+Enter")
        expect(page.get_by_test_id("textarea-region")).to_have_text(comment)


def submit(page: Page) -> None:
    with page.expect_response(
        lambda answer: "/annotations" in answer.url and answer.request.method == "POST"
    ) as answered:
        page.get_by_role("button", name="Submit").click()
    assert answered.value.status == 201


def test_a_reviewer_judges_without_seeing_who_drafted_and_what_fails_goes_back_with_the_reason(
    browser: Browser, page: Page, label_studio: LabelStudioServer, desk: Desk, reviewer: LabelStudioServer
) -> None:
    printed = desk.run_verb("spot_check", "--share", 1)
    assert "6 samples wait for a second human; 6 of them came just now" in printed
    review = desk.studio.project(json.loads((desk.out / "manifest.json").read_bytes())["options"]["reviews"])
    tasks = list(desk.studio.tasks(review))
    by_answer = sorted(tasks, key=lambda task: "groupby" in task["data"]["answer"])
    *texts, program = by_answer
    with logged_in(browser, reviewer) as second, reviewer.session() as api:
        second.set_viewport_size({"width": 1440, "height": 1000})
        for task, name, seen in (
            (program, "code", ("各城市销售额合计", "销售.csv", "groupby", "sum: 150", "total.csv")),
            (texts[0], "text", ("还没到", "什么时候能到?", "张三")),
        ):
            second.goto(f"/projects/{review.id}/data?task={task['id']}")
            expect(second.get_by_role("button", name="Submit")).to_be_enabled(timeout=60_000)
            shown = second.locator(".lsf-main-view").inner_text()
            assert all(words in shown for words in seen), shown
            shown_task = api.get(f"/api/tasks/{task['id']}").raise_for_status().json()
            assert shown_task["predictions"] == shown_task["annotations"] == []
            assert shown_task["data"].keys() == {"question", "answer", "annotation", "drawn", "seal"}
            for secret in SECRETS:
                assert secret not in shown
                assert secret not in shown_task["data"]["question"] + shown_task["data"]["answer"]
            judge(second, *(("pass",) if name == "code" else ("needs_fix", WRONG)))
            second.screenshot(path=PICTURES / f"review-{name}.png")
            submit(second)
        for task, verdict in zip(texts[1:], ("partially_correct", "pass", "pass", "pass"), strict=True):
            region = {"from_name": "verdict", "to_name": "answer", "type": "choices"}
            said = [region | {"value": {"choices": [verdict]}}]
            api.post(f"/api/tasks/{task['id']}/annotations/", json={"result": said}).raise_for_status()

    # 2 of 5 complaints are wrong: all of them are held by default.
    desk.run_verb("sync")
    (passed,) = desk.lines("samples.jsonl")
    assert (passed["case"], passed["review"]["verdict"]) == ("code_analysis", "pass")
    held = {record["annotation"]: record["held"] for record in desk.lines("held.jsonl")}
    assert len(held) == len(texts)
    assert {one["gate"] for one in held.values()} == {"spot_checked"}
    assert sum("2 of 5 checks found it wrong" in one["reason"] for one in held.values()) == 3
    desk.run_verb("sync", "--max-error", 1)
    assert len(desk.lines("samples.jsonl")) == 4
    held = {record["annotation"]: record for record in desk.lines("held.jsonl")}
    fix = held[texts[0]["data"]["annotation"]]
    assert fix["held"]["reason"].endswith(f"says needs_fix: {WRONG}")

    assert "2 tasks are sent back (2 written just now)" in desk.run_verb("requeue", "--gate", "spot_checked")
    views = desk.studio._get("tabs", "api/dm/views/", {"project": desk.complaints.id})
    (tab,) = (view["id"] for view in views if view["data"]["title"] == SENT_BACK_TAB)
    page.goto(f"/projects/{desk.complaints.id}/data?tab={tab}")
    expect(page.get_by_text("Sent back by spot_checked")).to_have_count(2, timeout=60_000)
    expect(page.get_by_text(WRONG)).to_be_in_viewport()
    page.screenshot(path=PICTURES / "review-sent-back.png")
    page.goto(f"/projects/{desk.complaints.id}/data?tab={tab}&task={fix['task']}")
    expect(page.locator(".draft-status")).to_contain_text(f"needs_fix: {WRONG}", timeout=60_000)
    expect(page.get_by_text("Update", exact=True)).to_be_visible()
    page.screenshot(path=PICTURES / "review-reason.png")
