"""What people see of a run: the entries of its task's data, and a page of its own.

Knows HTML. Does not know where pages and files are served. Everything that a run says was written by
untrusted code: it stands in the page as text and never as markup.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
# What a browser does not forbid is told where script is asked for; docs/how-to/artifacts.md has it in full.
SCRIPT_WORDS = (
    "This file was written by code that a model wrote. Its script runs in a frame of its own: it cannot read "
    "this page, your logins, cookies or other files, and its requests are refused. Chromium 156 lets nothing "
    "out. Browsers without Connection-Allowlist cannot stop it from sending what is in this file elsewhere "
    "(by WebRTC, or in the names of hosts that it has looked up): run it there only if the task&#x27;s data "
    "may leave."
)
_SAFE_LINK = re.compile(r"(?:https?://|/|\.\./)")


def run_address(base: str, key: str) -> str:
    """Give the address of a run's page below a base address."""
    return f"{base.rstrip('/')}/runs/{key}"


def file_address(base: str, file: OutputFile) -> str:
    """Give the stable address of a file below a base address; its name rides along for the browser."""
    return f"{base.rstrip('/')}/a/{file.sha256}?name={quote(_name(file.path), safe='')}"


def task_fields(run: Run, links: Mapping[str, str], *, run_url: str, charts: Sequence[str]) -> dict[str, Any]:
    """Give what the data of a run's task says of it.

    Args:
        run: The run.
        links: Addresses of the files of the last attempt, by path; a file without one is named only.
        run_url: Address of the run page.
        charts: Addresses of the pictures to show, in order.
    Returns:
        The entries of task data, by the RUN_*_KEY names.
    """
    return {
        RUN_KEY: run.key,
        RUN_STATUS_KEY: _status(run, run_url),
        RUN_OUTPUT_KEY: _output(run.last),
        RUN_CHARTS_KEY: list(charts),
        RUN_FILES_KEY: _files(run.last, lambda file: links.get(file.path, ""), _TASK_FILES, tab=True),
    }


def page(run: Run, link: Callable[[OutputFile], str], *, script: str = "", notice: str = "") -> str:
    """Write the page of a run: every attempt with all that came of it, the last one first in sight.

    Args:
        run: The run.
        link: Gives the address of a file.
        script: SHA-256 of the HTML file whose script the reader has asked for.
        notice: A sentence to the reader.
    Returns:
        HTML that needs no script. Pictures stand in it; HTML files are frames that see nothing of the page
        and run no script but that of the one file.
    """
    count = len(run.attempts)
    earlier = [
        f"<details><summary>Attempt {number} of {count}: {_words(attempt)}</summary>"
        f"{_attempt(attempt, link)}</details>"
        for number, attempt in enumerate(run.attempts[:-1], 1)
    ]
    facts = [_ORIGINS[run.origin], run.at, *([run.version] if run.version else [])]
    inputs = _list(
        f"<code>input/{_name_html(file.name)}</code> ({size(file.size_bytes)})" for file in run.inputs
    )
    parts = [
        _notice(notice),
        f"<header><h1 class={run.last.outcome}>{_words(run.last)}</h1>",
        f"<p class=facts>{' &middot; '.join(map(_text, facts))}<br>",
        f"Run <code>{_text(run.key)}</code></p></header>",
        f"<section><h2>Instruction</h2><p class=words>{_text(run.instruction)}</p>",
        f"<h3>Inputs</h3>{inputs}</section>" if inputs else "</section>",
        f"<section><h2>{f'Attempt {count} of {count}' if count > 1 else 'The run'}</h2>",
        f"{_attempt(run.last, link, _shown(run.last, link, script))}</section>",
        f"<section><h2>Before it</h2>{''.join(earlier)}</section>" if earlier else "",
    ]
    return _html(f"Run {_text(run.key[:10])}: {_ENDED[run.last.outcome].lower()}", parts)


def file_page(sha256: str, name: str, size_bytes: int, kind: Kind, *, script: bool, notice: str = "") -> str:
    """Write the page in which a picture or an HTML file is shown that is opened by itself.

    Args:
        sha256: The file.
        name: Its name.
        size_bytes: Its size.
        kind: What it is shown as.
        script: Whether the reader has asked for its script.
        notice: A sentence to the reader.
    """
    address = f"?name={quote(name, safe='')}"
    shown = (
        f"<img src='{html.escape(address)}' alt='{_name_html(name)}'>"
        if kind in PICTURES
        else _frame(address, name, script=script)
        if kind == "html" or script
        else ""
    )
    ask = "" if kind in PICTURES else _ask_for_script(f"{address}&script=run", running=script)
    parts = [
        _notice(notice),
        f"<section><h2>{_name_html(name)} ({size(size_bytes)})</h2><figure>{shown}</figure>{ask}",
        f"<p class=facts>SHA-256 <code>{_text(sha256)}</code></p></section>",
    ]
    return _html(_name_html(name), parts)


def unshown(name: str) -> str:
    """Write what stands in a run's page in the place of an HTML file that is not shown without a click."""
    words = "is not shown without a click: it may run script or open addresses."
    return _html(_name_html(name), [f"<p>{_name_html(name)} {words}</p>"])


def _html(title: str, parts: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def _notice(words: str) -> str:
    return f"<section class=failed>{_text(words)}</section>" if words else ""


def _frame(address: str, name: str, *, script: bool) -> str:
    """Frame an HTML file, whose address has a query already."""
    how = "as=script" if script else "as=frame"
    return (
        f"<iframe sandbox='{'allow-scripts' if script else ''}' loading='lazy' "
        f"src='{html.escape(f'{address}&{how}')}' title='{_name_html(name)}'></iframe>"
    )


def _ask_for_script(address: str, *, running: bool) -> str:
    if running:
        return f"<p class=facts>Its script runs. {SCRIPT_WORDS}</p>"
    return (
        f"<p><a class=button href='{html.escape(address)}'>Run this file&#x27;s script</a></p>"
        f"<p class=facts>{SCRIPT_WORDS}</p>"
    )


def _words(attempt: Attempt) -> str:
    reason = f": {_text(attempt.reason)}" if attempt.reason else ""
    return f"{_ENDED[attempt.outcome]} after {seconds(round(attempt.wall_s, 2))}{reason}"


def _status(run: Run, run_url: str) -> str:
    tries = f", {len(run.attempts)} attempts" if len(run.attempts) > 1 else ""
    said = f"<b>{_ENDED[run.last.outcome]}</b> after {seconds(round(run.last.wall_s, 2))}{tries}"
    reason = f"<br>{_text(run.last.reason)}" if run.last.reason else ""
    notes = "".join(f"<br>{_text(note)}" for note in run.last.notes)
    return f"{said} &middot; {_anchor(run_url, 'the whole run', tab=True)}{reason}{notes}"


def _output(attempt: Attempt) -> str:
    streams = [("", attempt.stdout), ("<b>Errors and warnings</b>", attempt.stderr)]
    parts = [
        f"{title}<pre style='{PRE_STYLE}'>\n{_cut(text, _TASK_CHARS)}</pre>"
        for title, text in streams
        if text.strip()
    ]
    return "".join(parts) or "<i>It printed nothing.</i>"


def _attempt(attempt: Attempt, link: Callable[[OutputFile], str], shown: str = "") -> str:
    steps = [
        _step(step, f"Step {number}: " if len(attempt.steps) > 1 else "")
        for number, step in enumerate(attempt.steps, 1)
    ]
    used = (
        f"{seconds(round(attempt.cpu_s, 2))} of processor time, {size(attempt.peak_memory_bytes)} of memory"
    )
    parts = [
        f"<p class={attempt.outcome}>{_words(attempt)}</p>",
        _list(_text(note) for note in attempt.notes),
        f"<p class=facts>{used}</p>",
        shown,
    ]
    files = _files(attempt, link, len(attempt.files), tab=False)
    return "".join([*parts, *steps, f"<h3>Files</h3>{files}"])


def _shown(attempt: Attempt, link: Callable[[OutputFile], str], script: str) -> str:
    """Show the pictures and HTML files of an attempt."""
    charts = [file for file in attempt.files if named_kind(file.path) in PICTURES]
    pages = [file for file in attempt.files if named_kind(file.path) == "html"]
    figures = []
    for file in charts[:_PAGE_CHARTS]:
        name = _name_html(file.path)
        picture = f"<img src='{_href(link(file))}' alt='{name}' title='{name}'>"
        figures.append(f"<figure>{picture}<figcaption>{name}</figcaption></figure>")
    for file in pages[:_PAGE_CHARTS]:
        running = file.sha256 == script
        frame = _frame(link(file), file.path, script=running) if _SAFE_LINK.match(link(file)) else ""
        ask = _ask_for_script(f"?script={file.sha256}#{file.sha256}", running=running)
        name = _name_html(file.path)
        figures.append(
            f"<figure id='{_text(file.sha256)}'>{frame}<figcaption>{name}</figcaption>{ask}</figure>"
        )
    return "".join(figures)


def _step(step: Step, title: str) -> str:
    code = _cut(step.script.code, _PAGE_CHARS)
    parts = [
        f"<h3>{title}{_LANGUAGES[step.script.language]}</h3><pre class=code>\n{code}</pre>",
        f"<p class=facts>Exit status {step.exit_status}, {seconds(round(step.wall_s, 2))}</p>",
    ]
    streams = [
        ("Printed", "", step.stdout, step.stdout_cut_bytes),
        ("Errors and warnings", " class=errors", step.stderr, step.stderr_cut_bytes),
    ]
    for words, mark, text, cut_bytes in streams:
        if text or cut_bytes:
            left_out = f" <small>({size(cut_bytes)} were not kept)</small>" if cut_bytes else ""
            parts.append(f"<h4>{words}{left_out}</h4><pre{mark}>\n{_cut(text, _PAGE_CHARS)}</pre>")
    return "".join(parts)


def _files(attempt: Attempt, link: Callable[[OutputFile], str], at_most: int, *, tab: bool) -> str:
    rows = []
    for file in attempt.files[:at_most]:
        address = link(file)
        name = _name_html(file.path)
        rows.append(f"{_anchor(address, name, tab=tab) if address else name} ({size(file.size_bytes)})")
    if len(attempt.files) > at_most:
        rows.append(f"and {len(attempt.files) - at_most} more, see the whole run")
    rows += [
        f"{_name_html(left.path)} was not kept: {_text(left.reason)}" for left in attempt.refused[:at_most]
    ]
    return _list(rows) or "<i>It left no files.</i>"


def _list(rows: Iterable[str]) -> str:
    items = "".join(f"<li>{row}</li>" for row in rows)
    return f"<ul>{items}</ul>" if items else ""


def _anchor(address: str, shown: str, *, tab: bool) -> str:
    """Link what is already HTML; the annotation page must stay open, so there a link opens another tab."""
    target = " target='_blank' rel='noopener noreferrer'" if tab else ""
    return f"<a href='{_href(address)}'{target}>{shown}</a>"


def _href(address: str) -> str:
    return html.escape(address) if _SAFE_LINK.match(address) else "#"


def _cut(text: str, at_most: int) -> str:
    """Escape a text, without its middle where it is too long."""
    if len(text) <= at_most:
        return _text(text)
    head = int(at_most * _HEAD)
    tail = at_most - head
    mark = f"\n<b>[... {len(text) - at_most:,} characters are left out here ...]</b>\n"
    return f"{_text(text[:head])}{mark}{_text(text[-tail:])}"


def _text(text: str) -> str:
    """Escape a text: what a terminal would obey is taken out, what cannot be shown is a replacement mark."""
    plain = _TERMINAL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    plain = _TURNING.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)
    return html.escape(_UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", plain))


def _name_html(path: str) -> str:
    return html.escape(_shown_name(path))


def _shown_name(path: str) -> str:
    """Give a path on one line: what is no printable character stands as its code."""
    shown = "".join(
        character if character.isprintable() or character == "\u3000" else f"\\u{ord(character):04x}"
        for character in path
    )
    return shown if len(shown) <= 200 else f"{shown[:150]}...{shown[-47:]}"


def _name(path: str) -> str:
    """Give a file's own name, so that it can ride in an address."""
    return path.rpartition("/")[2].encode("utf-8", "replace").decode()[-200:]


_STYLE = """
body{margin:0;background:#f6f7f9;color:#1c2330;
font:15px/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans","Noto Sans CJK SC","PingFang SC",
"Microsoft YaHei",sans-serif}
main{max-width:66rem;margin:0 auto;padding:1.5rem 1rem 4rem}
header,section{background:#fff;border:1px solid #e1e4ea;border-radius:8px;padding:1rem 1.25rem}
header,section{margin:0 0 1rem}
h1{font-size:1.25rem;margin:0 0 .25rem}h2{font-size:1.05rem;margin:0 0 .5rem}
h3{font-size:.95rem;margin:1rem 0 .25rem}h4{font-size:.85rem;margin:.75rem 0 .25rem;color:#5b6472}
h1,p,li,summary,figcaption,h4{overflow-wrap:anywhere}
.words{white-space:pre-wrap;margin:0}.facts{color:#5b6472;font-size:.85rem;margin:.25rem 0}
.ok{color:#146c43}.failed,.timeout,.killed{color:#a6261d}
pre{margin:0;padding:.75rem;background:#f6f7f9;border:1px solid #e1e4ea;border-radius:6px;overflow:auto;
max-height:34rem;white-space:pre-wrap;overflow-wrap:anywhere}
pre,code{font:13px/1.5 ui-monospace,"SF Mono","DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace}
pre.code{background:#fbfbf4}pre.errors{background:#fdf5f4}
figure{margin:1rem 0}figure img{max-width:100%;border:1px solid #e1e4ea;border-radius:6px}
figcaption{color:#5b6472;font-size:.85rem}
iframe{width:100%;height:34rem;border:1px solid #e1e4ea;border-radius:6px;background:#fff}
ul{margin:.25rem 0;padding-left:1.25rem}details{border-top:1px solid #e1e4ea;padding:.5rem 0}
summary{cursor:pointer}a{color:#1a56b0}
a.button{display:inline-block;padding:.25rem .75rem;border:1px solid #1a56b0;border-radius:6px}
"""
