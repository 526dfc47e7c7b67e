"""Values for any labelling, made from its controls: one that fills the whole form, and hypothesis's own."""

import json
import re
from typing import Any

from hypothesis import strategies as st

from draftloop.labelling.choices import Pairwise, Ranker
from draftloop.labelling.controls import Control, PerItem
from draftloop.labelling.form_fields import DateTime, Number, Rating, TextArea
from draftloop.labelling.labelling import Labelling, Task, Value
from draftloop.labelling.passages import Passage, occurrences
from draftloop.labelling.spans import Labels, Relations
from draftloop.labelling.visibility import visible_value

# Label Studio refuses nothing here, but a lone surrogate cannot be sent as JSON, and its editor drops
# newlines at the end.
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(
    lambda text: text.rstrip("\n") or "."
)


def filled(labelling: Labelling, task: Task) -> Value:
    """Return a value with something in every control that the page shows for it."""
    bound = labelling.for_task(task)
    sources = {source.name: source for source in bound.sources}
    value: Value = {}
    quoted: set[str] = set()
    for control in bound.controls:
        if isinstance(control, Labels):
            # The second, the second last and the last word, so that something precedes them; then the first.
            places = (0,) if control.to_name in quoted else (1, -1, -2)
            quoted.add(control.to_name)
            value[control.name] = _quotes(control, sources[control.to_name].passage(task), places)
        elif isinstance(control, Relations):
            arrow: dict[str, Any] = {"from": 0, "to": 1, "direction": "right"}
            value[control.name] = [
                arrow | ({"labels": [control.options.names[0]]} if control.options.names else {})
            ]
        else:
            value[control.name] = _one(control)
    return _visible(bound, value)


def _quotes(control: Labels, passage: Passage, places: tuple[int, ...]) -> list[dict[str, Any]]:
    words = [match.span() for match in re.finditer(r"\w+", passage.text)]
    quotes = []
    for index, place in enumerate(sorted({place % len(words) for place in places})):
        text = passage.text[slice(*words[place])]
        label = control.options.names[index % len(control.options.names)]
        quote = {"text": text, "nth": occurrences(passage.text, text).index(words[place][0])}
        quote |= {"labels": [label]} if control.several_labels else {"label": label}
        for other in control.per_region_controls:
            if all(condition.allows(control.name, [label]) for condition in other.conditions):
                quote[other.name] = _one(other)
            elif other.is_many:
                quote[other.name] = []
        quotes.append(quote)
    return quotes


def _one(control: Control) -> Any:
    if isinstance(control, PerItem):
        return [_one(control.item_control) for _ in range(control.count)]
    if isinstance(control, TextArea):
        return ["eins 😀", "zwei\ndrei"] if control.is_many else "一行 text"
    if isinstance(control, Pairwise):
        return "right"
    if isinstance(control, Ranker):
        ids = list(reversed(control.options.names))
        if not control.buckets:
            return ids
        rest = ids[3:] if control.default else []
        parts = {name: ids[:2] if name == control.buckets[0] else [] for name in control.buckets}
        return parts | {control.buckets[-1]: ids[2:3] + rest}
    if isinstance(control, Rating):
        return 3
    if isinstance(control, Number):
        return control.schema()["minimum"]
    if isinstance(control, DateTime):
        return {"time": "10:30", "date": "2026-01-02"}.get(
            control.attributes.get("only", ""), "2026-01-02T10:30"
        )
    picked = [control.options.names[0], control.options.names[-1]]
    return list(dict.fromkeys(picked)) if control.is_many else picked[-1]


def _visible(bound: Labelling, value: Value) -> Value:
    shown = visible_value(bound.controls, value, [])
    return shown | {
        control.name: [] for control in bound.controls if control.is_many and control.name not in shown
    }


@st.composite
def values(draw: st.DrawFn, labelling: Labelling, task: Task) -> Value:
    """Draw a value in reading order that the page can show for the task."""
    bound = labelling.for_task(task)
    sources = {source.name: source for source in bound.sources}
    value: Value = {}
    quotes = 0
    for control in bound.controls:
        if isinstance(control, Labels):
            value[control.name] = draw(_some_quotes(control, sources[control.to_name].passage(task)))
            quotes += len(value[control.name])
        elif isinstance(control, Relations):
            value[control.name] = draw(_some_arrows(control, quotes))
        elif control.is_many or control.required or draw(st.booleans()):
            value[control.name] = draw(_some(control))
    return _visible(bound, value)


@st.composite
def _some_quotes(draw: st.DrawFn, control: Labels, passage: Passage) -> list[dict[str, Any]]:
    quotes: dict[tuple[int, int, tuple[str, ...]], dict[str, Any]] = {}
    for _ in range(draw(st.integers(0, 4)) if passage.text else 0):
        start = draw(st.integers(0, len(passage.text) - 1))
        end = min(len(passage.text), start + draw(st.integers(1, 8)))
        labels = (
            draw(_subset(control.options.names).filter(bool))
            if control.several_labels
            else [draw(st.sampled_from(control.options.names))]
        )
        if passage.place(start, end) is None:
            continue
        text = passage.text[start:end]
        quote: dict[str, Any] = {"text": text, "nth": occurrences(passage.text, text).index(start)}
        quote |= {"labels": labels} if control.several_labels else {"label": labels[0]}
        for other in control.per_region_controls:
            allowed = all(condition.allows(control.name, labels) for condition in other.conditions)
            if other.required or (allowed and draw(st.booleans())):
                quote[other.name] = draw(_some(other))
            elif other.is_many:
                quote[other.name] = []
        quotes[start, end, tuple(labels)] = quote
    return [quotes[key] for key in sorted(quotes, key=lambda key: (key[0], key[1], list(key[2])))]


@st.composite
def _some_arrows(draw: st.DrawFn, control: Control, quotes: int) -> list[dict[str, Any]]:
    arrows = []
    for _ in range(draw(st.integers(0, 3)) if quotes > 1 else 0):
        start, end = draw(st.lists(st.integers(0, quotes - 1), min_size=2, max_size=2, unique=True))
        arrow: dict[str, Any] = {
            "from": start,
            "to": end,
            "direction": draw(st.sampled_from(["right", "bi"])),
        }
        arrows.append(
            arrow | ({"labels": draw(_subset(control.options.names))} if control.options.names else {})
        )
    different = {json.dumps(arrow): arrow for arrow in arrows}
    return sorted(different.values(), key=lambda arrow: (arrow["from"], arrow["to"], json.dumps(arrow)))


def _some(control: Control) -> st.SearchStrategy[Any]:
    if isinstance(control, PerItem):
        one = (
            _some(control.item_control)
            if control.item_control.is_many
            else st.none() | _some(control.item_control)
        )
        return st.lists(one, min_size=control.count, max_size=control.count)
    if isinstance(control, TextArea):
        return st.lists(ANYTHING, max_size=min(3, control.max_texts)) if control.is_many else ANYTHING
    if isinstance(control, Pairwise):
        return st.sampled_from(["left", "right"])
    if isinstance(control, Ranker):
        return _some_ranking(control)
    if isinstance(control, Rating):
        return st.integers(1, control.schema()["maximum"])
    if isinstance(control, Number | DateTime):
        return st.just(_one(control))
    return _subset(control.options.names) if control.is_many else st.sampled_from(control.options.names)


@st.composite
def _some_ranking(draw: st.DrawFn, control: Ranker) -> Any:
    ids = draw(st.permutations(control.options.names))
    if not control.buckets:
        return list(ids)
    columns: dict[str, list[str]] = {name: [] for name in control.buckets}
    for name in ids:
        bucket = draw(st.sampled_from(control.buckets if control.default else (*control.buckets, "")))
        if bucket:
            columns[bucket].append(name)
    return columns


def _subset(options: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.tuples(*[st.booleans() for _ in options]).map(
        lambda picked: [option for option, taken in zip(options, picked, strict=True) if taken]
    )
