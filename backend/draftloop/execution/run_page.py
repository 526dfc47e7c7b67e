"""What people see of a run: the entries of its task's data, and a page of its own.

Knows which parts of a run `templates/` shows. Does not know where pages and files are served. Everything in a
run was written by untrusted code: it stands in the page as text and never as markup.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from draftloop.execution.file_kinds import PICTURES, Kind, named_kind
from draftloop.execution.preview import PRE_STYLE
from draftloop.runs.job import Attempt, OutputFile, Step, seconds, size
from draftloop.runs.run import (
    RUN_CHARTS_KEY,
    RUN_FILES_KEY,
    RUN_KEY,
    RUN_OUTPUT_KEY,
    RUN_STATUS_KEY,
    Run,
)
from draftloop.support.templates import render

_TASK_CHARS = 20_000  # of each stream, in a task's data: Label Studio reads it with every list of tasks
_PAGE_CHARS = 200_000
_TASK_FILES = 100
_PAGE_CHARTS = 40  # shown at once; all are among the files
_HEAD = 3 / 4  # of what is kept of a cut text: its beginning, the rest is its end

_ENDED = {"ok": "Ended well", "failed": "Failed", "timeout": "Ran out of time", "killed": "Was stopped"}
_LANGUAGES = {"python": "Python", "javascript": "JavaScript", "shell": "Shell"}
_ORIGINS = {"draft": "Code of the draft", "human": "Code of a human", "gate": "Check of the final code"}
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Characters that turn the reading direction: code that reads otherwise than it runs.
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SAFE_LINK = re.compile(r"(?:https?://|/|\.\./)")


def run_address(base: str, key: str) -> str:
    """Return the address of a run's page below a base address."""
    return f"{base.rstrip('/')}/runs/{key}"


def file_address(base: str, file: OutputFile) -> str:
    """Return the stable address of a file below a base address; the browser reads its name there."""
    return f"{base.rstrip('/')}/a/{file.sha256}?name={quote(_name(file.path), safe='')}"


def task_fields(run: Run, links: Mapping[str, str], *, run_url: str, charts: Sequence[str]) -> dict[str, Any]:
    """Return the entries of task data that show a run.

    Args:
        run: The run.
        links: Addresses of the files of the last attempt, by path; a file without one is named only.
        run_url: Address of the run page.
        charts: Addresses of the pictures to show, in order.
    Returns:
        The entries of task data, by the RUN_*_KEY names.
    """
    last = run.last
    streams = [("", last.stdout), ("Errors and warnings", last.stderr)]
    return {
        RUN_KEY: run.key,
        RUN_STATUS_KEY: render(
            "execution/templates/task_status.html",
            run={
                "ended": _ENDED[last.outcome],
                "seconds": seconds(round(last.wall_s, 2)),
                "attempts": len(run.attempts),
                "address": _href(run_url),
                "reason": _visible(last.reason),
                "notes": [_visible(note) for note in last.notes],
            },
        ),
        RUN_OUTPUT_KEY: render(
            "execution/templates/task_output.html",
            streams=[
                {"title": title, "text": _cut(text, _TASK_CHARS)} for title, text in streams if text.strip()
            ],
            style=PRE_STYLE,
        ),
        RUN_CHARTS_KEY: list(charts),
        RUN_FILES_KEY: render(
            "execution/templates/task_files.html",
            listed=_files(last, lambda file: links.get(file.path, ""), _TASK_FILES),
        ),
    }


def page(run: Run, link: Callable[[OutputFile], str], *, script: str = "", notice: str = "") -> str:
    """Return the page of a run: every attempt with its output and files, the last one first.

    Args:
        run: The run.
        link: Returns the address of a file.
        script: SHA-256 of the HTML file whose script the reader has asked for.
        notice: A sentence to the reader.
    Returns:
        HTML that needs no script. Pictures stand in it; HTML files are frames that see nothing of the page
        and run no script but that of the one file.
    """
    return render(
        "execution/templates/run.html",
        title=f"Run {_visible(run.key[:10])}: {_ENDED[run.last.outcome].lower()}",
        notice=_visible(notice),
        facts=[
            _visible(fact) for fact in (_ORIGINS[run.origin], run.at, *([run.version] if run.version else []))
        ],
        key=_visible(run.key),
        instruction=_visible(run.instruction),
        inputs=[{"name": _one_line(file.name), "size": size(file.size_bytes)} for file in run.inputs],
        count=len(run.attempts),
        last=_attempt(run.last, link) | _shown(run.last, link, script),
        earlier=[_attempt(attempt, link) for attempt in run.attempts[:-1]],
    )


def file_page(sha256: str, name: str, size_bytes: int, kind: Kind, *, script: bool, notice: str = "") -> str:
    """Return the page of a picture or an HTML file that is opened by itself.

    Args:
        sha256: The file.
        name: Its name.
        size_bytes: Its size.
        kind: What it is shown as.
        script: Whether the reader has asked for its script.
        notice: A sentence to the reader.
    """
    return render(
        "execution/templates/file.html",
        title=_one_line(name),
        notice=_visible(notice),
        size=size(size_bytes),
        sha256=_visible(sha256),
        address=f"?name={quote(name, safe='')}",
        is_picture=kind in PICTURES,
        framed=kind == "html" or script,
        script=script,
    )


def unshown(name: str) -> str:
    """Return the page that replaces an HTML file which is not shown without a click."""
    return render("execution/templates/unshown.html", title=_one_line(name))


def _words(attempt: Attempt) -> str:
    reason = f": {_visible(attempt.reason)}" if attempt.reason else ""
    return f"{_ENDED[attempt.outcome]} after {seconds(round(attempt.wall_s, 2))}{reason}"


def _attempt(attempt: Attempt, link: Callable[[OutputFile], str]) -> dict[str, Any]:
    """Return what the page shows of an attempt; pictures and pages are shown of the last one alone."""
    several = len(attempt.steps) > 1
    return {
        "outcome": attempt.outcome,
        "words": _words(attempt),
        "notes": [_visible(note) for note in attempt.notes],
        "used": f"{seconds(round(attempt.cpu_s, 2))} of processor time, "
        f"{size(attempt.peak_memory_bytes)} of memory",
        "charts": [],
        "pages": [],
        "steps": [
            _step(step, f"Step {number}: " if several else "") for number, step in enumerate(attempt.steps, 1)
        ],
        "listed": _files(attempt, link, len(attempt.files)),
    }


def _shown(attempt: Attempt, link: Callable[[OutputFile], str], script: str) -> dict[str, Any]:
    """Return the pictures and HTML files of an attempt."""
    charts = [file for file in attempt.files if named_kind(file.path) in PICTURES]
    pages = [file for file in attempt.files if named_kind(file.path) == "html"]
    return {
        "charts": [
            {"address": _href(link(file)), "name": _one_line(file.path)} for file in charts[:_PAGE_CHARTS]
        ],
        "pages": [
            {
                "sha256": _visible(file.sha256),
                "address": link(file) if _SAFE_LINK.match(link(file)) else "",
                "name": _one_line(file.path),
                "running": file.sha256 == script,
                "ask": f"?script={file.sha256}#{file.sha256}",
            }
            for file in pages[:_PAGE_CHARTS]
        ],
    }


def _step(step: Step, title: str) -> dict[str, Any]:
    streams = [
        ("Printed", step.stdout, step.stdout_cut_bytes),
        ("Errors and warnings", step.stderr, step.stderr_cut_bytes),
    ]
    return {
        "title": title + _LANGUAGES[step.script.language],
        "code": _cut(step.script.code, _PAGE_CHARS),
        "exit_status": step.exit_status,
        "seconds": seconds(round(step.wall_s, 2)),
        "streams": [
            {
                "title": words,
                "errors": words != "Printed",
                "cut": size(cut_bytes) if cut_bytes else "",
                "text": _cut(text, _PAGE_CHARS),
            }
            for words, text, cut_bytes in streams
            if text or cut_bytes
        ],
    }


def _files(attempt: Attempt, link: Callable[[OutputFile], str], at_most: int) -> dict[str, Any]:
    return {
        "files": [
            {
                "address": _href(address) if (address := link(file)) else "",
                "name": _one_line(file.path),
                "size": size(file.size_bytes),
            }
            for file in attempt.files[:at_most]
        ],
        "more": max(0, len(attempt.files) - at_most),
        "refused": [
            {"name": _one_line(left.path), "reason": _visible(left.reason)}
            for left in attempt.refused[:at_most]
        ],
    }


def _href(address: str) -> str:
    return address if _SAFE_LINK.match(address) else "#"


def _cut(text: str, at_most: int) -> dict[str, Any]:
    """Split a text that is too long into its beginning and its end."""
    if len(text) <= at_most:
        return {"head": _visible(text), "left_out": 0, "tail": ""}
    head = int(at_most * _HEAD)
    return {
        "head": _visible(text[:head]),
        "left_out": len(text) - at_most,
        "tail": _visible(text[head - at_most :]),
    }


def _visible(text: str) -> str:
    """Remove what a terminal would obey; what cannot be shown becomes a replacement mark."""
    plain = _TERMINAL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    plain = _TURNING.sub(lambda match: f"\\u{ord(match[0]):04x}", plain)
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", plain)


def _one_line(path: str) -> str:
    """Return a path on one line: a character that is not printable becomes its code."""
    shown = "".join(
        character if character.isprintable() or character == "\u3000" else f"\\u{ord(character):04x}"
        for character in path
    )
    return shown if len(shown) <= 200 else f"{shown[:150]}...{shown[-47:]}"


def _name(path: str) -> str:
    """Return a file's own name, as an address can hold it."""
    return path.rpartition("/")[2].encode("utf-8", "replace").decode()[-200:]
