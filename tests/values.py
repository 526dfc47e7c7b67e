"""Values that fill a whole form, for any labelling: made from its controls, so that every codec is at work."""

import re
from typing import Any

from backend.core.choices import Pairwise, Ranker
from backend.core.controls import Control, DateTime, Number, PerItem, Rating, TextArea
from backend.core.labelling import Labelling, Task, Value
from backend.core.sources import Passage, occurrences
from backend.core.spans import Labels, Relations


def filled(labelling: Labelling, task: Task) -> Value:
    """Give a value with something in every control that the page shows for it."""
    bound = labelling.for_task(task)
    passages = {source.name: source for source in bound.sources}
    value: Value = {}
    for control in bound.controls:
        if isinstance(control, Labels):
            value[control.name] = _quotes(control, passages[control.to_name].passage(task))
        elif isinstance(control, Relations):
            value[control.name] = _arrows(control)
        else:
            value[control.name] = _one(control)
    return value


def _quotes(control: Labels, passage: Passage) -> list[dict[str, Any]]:
    """Quote the second, the second last and the last word, so that something precedes them."""
    words = [found.span() for found in re.finditer(r"\w+", passage.text)]
    quotes = []
    for index, (start, end) in enumerate(words[i] for i in sorted({place % len(words) for place in (1, -1, -2)})):
        text = passage.text[start:end]
        label = control.options[index % len(control.options)]
        quote = {"text": text, "nth": occurrences(passage.text, text).index(start)}
        quote |= {"labels": [label]} if control.several_labels else {"label": label}
        quotes.append(quote | {inner.name: _one(inner) for inner in control.inner})
    return quotes


def _arrows(control: Control) -> list[dict[str, Any]]:
    arrow: dict[str, Any] = {"from": 0, "to": 1, "direction": "right"}
    return [arrow | ({"labels": [control.options[0]]} if control.options else {})]


def _one(control: Control) -> Any:
    if isinstance(control, PerItem):
        return [_one(control.one) for _ in range(control.count)]
    if isinstance(control, TextArea):
        return ["eins 😀", "zwei\ndrei"] if control.is_many else "一行 text"
    if isinstance(control, Pairwise):
        return "right"
    if isinstance(control, Ranker):
        ids = list(reversed(control.options))
        if not control.buckets:
            return ids
        return {name: ids[:2] if name == control.buckets[0] else ids[2:3] for name in control.buckets}
    if isinstance(control, Rating):
        return 3
    if isinstance(control, Number):
        return control.schema()["minimum"]
    if isinstance(control, DateTime):
        return {"time": "10:30", "date": "2026-01-02"}.get(control.attributes.get("only", ""), "2026-01-02T10:30")
    picked = [control.options[0], control.options[-1]]
    return list(dict.fromkeys(picked)) if control.is_many else picked[-1]
