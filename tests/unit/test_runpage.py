"""What people see of a run is what it said, as text: nothing that code wrote becomes markup."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser, LexborNode

from draftloop.execution.run_page import file_address, page, run_address, task_fields
from draftloop.runs.run import (
    RUN_CHARTS_KEY,
    RUN_FILES_KEY,
    RUN_KEY,
    RUN_OUTPUT_KEY,
    RUN_STATUS_KEY,
    Run,
)
from tests.code_runs import attempt, output, png, refused, run

HOSTILE = "</pre></style></title><script>x()</script><img src=x onerror=x()>'\"&<!--"
NAMES = [
    "a\nb.png",
    "</a><script>x()</script>.png",
    "' onerror='x().png",
    "\u202egnp.exe",
    "😀/图 表.png",
    "a?b#c%d&e.png",
    "\udc80.png",
]
LINK = "https://drafts.example/runs/"


def fields(one: Run, **links: str) -> dict[str, Any]:
    return task_fields(one, links, run_url=f"{LINK}{one.key}", charts=["/data/upload/1/a.png"])


def tags(markup: str) -> set[str]:
    tree = LexborHTMLParser(markup)
    return {node.tag or "" for node in tree.css("*")} - {"html", "head", "body"}


def first(markup: str, selector: str) -> LexborNode:
    node = LexborHTMLParser(markup).css_first(selector)
    assert node is not None
    return node


def own(markup: str) -> str:
    return " ".join(LexborHTMLParser(markup).text().split())


def hostile_run() -> Run:
    files = tuple(output(name, png()) for name in NAMES)
    bad = attempt(HOSTILE, HOSTILE, HOSTILE, 1, reason=HOSTILE, files=files)
    last = attempt(
        HOSTILE, HOSTILE, HOSTILE, files=files, notes=(HOSTILE,), refused=(refused(HOSTILE, HOSTILE),)
    )
    return run(bad, last, instruction=HOSTILE, version=HOSTILE)


def test_a_task_says_how_its_run_ended_and_leads_to_all_of_it() -> None:
    one = run(attempt(exit_status=1, stdout="", stderr="KeyError: '额'"), attempt(stdout="合计 12\n"))
    task_data = fields(one)
    assert own(task_data[RUN_STATUS_KEY]) == "Ended well after 1.25 s, 2 attempts · the whole run"
    link = first(task_data[RUN_STATUS_KEY], "a").attributes
    assert (link["href"], link["target"]) == (f"{LINK}{one.key}", "_blank")
    assert "noopener" in (link["rel"] or "")
    assert "合计 12" in task_data[RUN_OUTPUT_KEY]
    assert "KeyError" not in task_data[RUN_OUTPUT_KEY], "that was an earlier attempt's"
    assert task_data[RUN_KEY] == one.key
    assert task_data[RUN_CHARTS_KEY] == ["/data/upload/1/a.png"]
    assert own(task_data[RUN_FILES_KEY]) == "It left no files."


def test_a_run_that_failed_says_why_and_shows_errors_apart() -> None:
    task_data = fields(run(attempt(stdout="", stderr="ValueError: x\n", exit_status=1)))
    assert own(task_data[RUN_STATUS_KEY]).endswith("the whole runIt ended with status 1.")
    assert own(task_data[RUN_STATUS_KEY]).startswith("Failed after 1.25 s")
    assert own(task_data[RUN_OUTPUT_KEY]) == "Errors and warningsValueError: x"
    assert own(fields(run(attempt(stdout="")))[RUN_OUTPUT_KEY]) == "It printed nothing."


def test_files_are_listed_with_sizes_and_links_where_there_are_some() -> None:
    files = (output("汇总.csv", b"1" * 2048), output("表.xlsx", b"22"))
    task_data = fields(
        run(attempt(files=files, refused=(refused("l"),))), **{"汇总.csv": "https://d/a/1?x=1&y='"}
    )
    assert own(task_data[RUN_FILES_KEY]) == "汇总.csv (2 KB)表.xlsx (2 bytes)l was not kept: a link"
    (link,) = LexborHTMLParser(task_data[RUN_FILES_KEY]).css("a")
    assert link.attributes["href"] == "https://d/a/1?x=1&y='"


def test_huge_output_is_cut_in_a_task_and_on_the_page_and_marked() -> None:
    text = "".join(f"line {number}\n" for number in range(200_000))
    files = tuple(output(f"{number}.txt", b"") for number in range(1000))
    one = run(attempt(stdout=text, stderr=text, files=files))
    task_data = fields(one)
    assert len(json.dumps(task_data)) < 60_000
    assert task_data[RUN_OUTPUT_KEY].count("characters are left out here") == 2
    for kept in ("line 0\n", "line 199999\n"):
        assert kept in task_data[RUN_OUTPUT_KEY]
    assert "and 900 more, see the whole run" in task_data[RUN_FILES_KEY]
    whole = page(one, lambda file: file_address("..", file))
    assert len(whole) < 800_000
    assert f"{len(text) - 200_000:,} characters are left out here" in whole
    assert whole.count("<li>") == 1000 + 1


def test_nothing_that_code_wrote_is_markup_in_a_task() -> None:
    one = hostile_run()
    task_data = fields(one, **dict.fromkeys(NAMES, "javascript:x()"))
    allowed = {"b", "br", "a", "pre", "ul", "li", "i"}
    for key in (RUN_STATUS_KEY, RUN_OUTPUT_KEY, RUN_FILES_KEY):
        assert tags(task_data[key]) <= allowed
        assert "javascript:" not in task_data[key]
    assert own(task_data[RUN_OUTPUT_KEY]).count("<script>x()</script>") == 2


def test_nothing_that_code_wrote_is_markup_on_the_page() -> None:
    tree = LexborHTMLParser(page(hostile_run(), lambda file: file_address("..", file)))
    assert tree.css("script") == []
    assert len(tree.css("style")) == 1
    for node in tree.css("*"):
        assert not [name for name in node.attributes if name.startswith("on")]
    shown = tree.css("figure img")
    assert len(shown) == len(NAMES) - 1  # the one that only reads like a picture's name
    for image in shown:
        address = urlsplit(image.attributes["src"] or "")
        assert re.fullmatch(r"\.\./a/[0-9a-f]{64}", address.path)
        assert address.fragment == ""
        assert set(parse_qs(address.query)) == {"name"}
    words = tree.body.text() if tree.body else ""
    assert "a\\u000ab.png" in words
    assert "\\u202egnp.exe" in words
    assert "\u202e" not in words


def test_the_page_shows_every_attempt_with_all_that_came_of_it() -> None:
    files = (output("图.png", png()), output("交互.html", b"<script>"), output("r.md", b"x"))
    one = run(attempt("boom()", "", "NameError", 1), attempt("print('好')", "好\n", files=files))
    text = page(one, lambda file: file_address("..", file))
    tree = LexborHTMLParser(text)
    words = tree.body.text() if tree.body else ""
    for wanted in (
        *("按月汇总销售额。", "input/销售.csv", "Attempt 1 of 2", "Attempt 2 of 2", "boom()", "NameError"),
        *("Exit status 1, 1.25 s", "Exit status 0, 1.25 s", "It ended with status 1.", "print('好')", "r.md"),
        *("0.9 s of processor time, 50 MB of memory", "m-0123456789", one.key, "2026-01-02T03:04:05Z"),
    ):
        assert wanted in words, wanted
    (image,), (frame,) = tree.css("figure img"), tree.css("iframe")
    assert image.attributes["src"] == f"../a/{files[0].sha256}?name=%E5%9B%BE.png"
    assert frame.attributes["sandbox"] == ""
    assert (frame.attributes["src"] or "").endswith("&as=frame")
    asked = page(one, lambda file: file_address("..", file), script=files[1].sha256)
    (frame,) = LexborHTMLParser(asked).css("iframe")
    assert frame.attributes["sandbox"] == "allow-scripts"
    assert (frame.attributes["src"] or "").endswith("&as=script")
    assert [node.attributes["href"] for node in tree.css("li a")] == [
        file_address("..", file) for file in files
    ]


def test_what_a_terminal_obeys_is_taken_out() -> None:
    task_data = fields(
        run(attempt(stdout="\x1b[1;31m红\x1b[0m\x1b]0;t\x07 10%\r20%\r\n\x00\x08\ud800 \u202eabc\n"))
    )
    shown = first(task_data[RUN_OUTPUT_KEY], "pre").text()
    assert shown.strip("\n") == "红 10%\n20%\n��� \\u202eabc"
    task_data[RUN_OUTPUT_KEY].encode()


@pytest.mark.parametrize("base", ["https://x.example/drafts", "https://x.example/drafts/", ".."])
def test_addresses_hold_below_a_prefix(base: str) -> None:
    file = output("out/图 1.png", b"x")
    assert file_address(base, file) == f"{base.rstrip('/')}/a/{file.sha256}?name=%E5%9B%BE%201.png"
    assert run_address(base, "k") == f"{base.rstrip('/')}/runs/k"


# All that is neither a control character, nor half of one, nor none yet.
SHOWN = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cn", "Cs"]))


@given(SHOWN)
def test_what_can_be_shown_reads_as_it_was_written(text: str) -> None:
    whole = page(run(attempt(text, text, text)), lambda file: file_address("..", file))
    shown = [node.text() for node in LexborHTMLParser(whole).css("pre")]
    assert shown == [text] * (3 if text else 1)


@given(st.text(), st.text(min_size=1))
def test_no_text_becomes_markup_or_cannot_be_sent(text: str, name: str) -> None:
    one = run(attempt(text, text, text, files=(output(name, b""),), refused=(refused(name, text),)))
    task_data = fields(one, **{name: "https://d/a"})
    assert tags(task_data[RUN_OUTPUT_KEY]) <= {"b", "pre", "i"}
    assert tags(task_data[RUN_FILES_KEY]) <= {"ul", "li", "a"}
    for key in (RUN_STATUS_KEY, RUN_OUTPUT_KEY, RUN_FILES_KEY):
        task_data[key].encode()
    page(one, lambda file: file_address("..", file)).encode()
