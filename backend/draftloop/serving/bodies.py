"""Bodies of Label Studio's requests: tasks, projects, events of webhooks, regions of an open page.

Knows which fields of a body are read; trusts none of them. Does not know what is done with them.

Source:
    Label Studio 1.23.2, measured.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from flask import request

from draftloop.errors import SetupError, TaskError
from draftloop.labelling.controls import Region
from draftloop.labelling.labelling import Task, Value
from draftloop.prompting.prompt import Case
from draftloop.support.strict_json import DEEPEST
from draftloop.support.text import replace_lone_surrogates

_NESTING = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_MOST_LEVELS = 2 * DEEPEST


def is_task(task: Any) -> bool:
    """Check that an entry of `tasks` has data to draft from."""
    return isinstance(task, dict) and isinstance(task.get("data"), dict)


def read_task(task: Mapping[str, Any], project: int) -> Task:
    """Read a task; one without an id, as upstream's examples send them, has 0."""
    return Task(task["id"] if is_id(task.get("id")) else 0, task["data"], project)


def is_id(number: Any) -> bool:
    """Check that a value is an integer that the ledger can store."""
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63  # as in SQL


def parse_id(digits: str) -> int:
    """Parse an id of a query string.

    Raises:
        ValueError: It is no integer, or too large.
    """
    number = int(digits)
    if not is_id(number):
        raise ValueError(digits)
    return number


def read_body() -> dict[str, Any]:
    """Read the JSON object of the current request.

    Raises:
        SetupError: The body is not a JSON object.
    """
    try:
        body = request.get_json(silent=True, force=True)
    except RecursionError:  # one task that is nested without end must not cost the others theirs
        try:
            body = json.loads(_cut_deep_nesting(request.get_data(as_text=True)))
        except ValueError:
            body = None
    if not isinstance(body, dict):
        raise SetupError("The body is not a JSON object.", hint="Send one, as Label Studio does.")
    return body


def _cut_deep_nesting(text: str) -> str:
    """Return JSON with null for what is nested deeper than any task that is drafted."""
    kept = []
    level, start = 0, 0
    for token in _NESTING.finditer(text):
        opens, closes = token[0] in "[{", token[0] in "]}"
        level += opens
        if level == _MOST_LEVELS + 1:
            if opens:
                kept += [text[start : token.start()], "null"]
            elif closes:
                start = token.end()
        level -= closes
    return "".join([*kept, text[start:]])


def project_id(body: dict[str, Any]) -> int:
    """Read the project's id from "<id>.<created>"; 0 where there is none, as in a test call."""
    head = str(body.get("project") or "").split(".")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) < 15 else 0


def read_event(body: dict[str, Any]) -> tuple[str, int, int]:
    """Read a webhook's action, the id of its project, and how many annotations that has; 0 where unsaid."""
    action, about = replace_lone_surrogates(str(body.get("action"))[:40]), body.get("project")
    if not isinstance(about, dict):
        return action, project_id(body), 0
    numbers: list[Any] = [about.get("id"), about.get("total_annotations_number")]
    project, annotations = (int(number) if is_id(number) else 0 for number in numbers)
    return action, project, annotations


def context_regions(body: dict[str, Any]) -> list[Region]:
    """Read the regions of an interactive call; none in every other call."""
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    return _regions(context)


def _regions(holder: Any) -> list[Region]:
    result = holder.get("result") if isinstance(holder, dict) else None
    entries = result if isinstance(result, list) else []
    return [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and (isinstance(entry.get("value"), dict) or entry.get("type") == "relation")
    ]


def current_value(case: Case, task: Task, row: Mapping[str, Any], context: list[Region]) -> Value | None:
    """Return the value that an annotator sees while they ask.

    The context holds the regions of the touched control's kind; the others are those of whatever was saved
    last for the task: the page's own draft, an annotation, or our prediction.
    """
    kinds = [row.get(kind) for kind in ("predictions", "annotations", "drafts")]
    saved = [entry for kind in kinds if isinstance(kind, list) for entry in kind if isinstance(entry, dict)]
    saved.sort(key=lambda entry: str(entry.get("updated_at") or entry.get("created_at") or ""))
    touched = [region.get("from_name") for region in context]
    before = _regions(saved[-1] if saved else None)
    kept = [region for region in before if region.get("from_name") not in touched]
    try:
        return case.for_task(task).labelling.from_regions([*kept, *context], task) or None
    except TaskError:
        return None  # made under an older config, or by hand: then the words alone must do
