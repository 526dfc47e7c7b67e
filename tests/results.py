"""Results of annotations and predictions as Label Studio's API takes them: any JSON, and nearly right."""

import copy
from typing import Any

from hypothesis import strategies as st

from draftloop.labelling.labelling import Labelling, Task
from tests.values import values

_TEXTS = st.text(st.characters(), max_size=4) | st.sampled_from(
    ["", "3", "3.0", "-1", "left", "\ud83d", "none"]
)
_NUMBERS = (
    st.integers(-2, 12)
    | st.sampled_from([2**53 + 1, 10**400, -(10**30)])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([3.0, 2.5, 1e300])
)
SCALARS = st.none() | st.booleans() | _NUMBERS | _TEXTS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)
_KEYS = (
    *(
        "text",
        "textarea",
        "choices",
        "taxonomy",
        "labels",
        "hypertextlabels",
        "paragraphlabels",
        "rating",
        "number",
    ),
    *("datetime", "selected", "ranker", "start", "end", "startOffset", "endOffset", "globalOffsets"),
)


@st.composite
def results(draw: st.DrawFn, labelling: Labelling, task: Task) -> Any:
    """Draw a result: any JSON, regions of any value for a config's controls, or changed right ones."""
    kind = draw(st.sampled_from(["anything", "regions", "changed", "changed", "changed"]))
    if kind == "anything":
        return draw(JSON)
    if kind == "regions":
        return draw(st.lists(_region(labelling), max_size=4))
    result = copy.deepcopy(labelling.to_regions(draw(values(labelling, task)), task).regions)
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, result)
    return result


def names_of(labelling: Labelling) -> list[str]:
    """Return the names of a config's controls and prompts."""
    controls = (*labelling.controls, *labelling.per_region_controls)
    return [*(control.name for control in controls), *labelling.prompts]


def _region(labelling: Labelling) -> st.SearchStrategy[Any]:
    value = st.dictionaries(st.sampled_from(_KEYS), JSON, max_size=4)
    return st.fixed_dictionaries(
        {},
        optional={
            "id": st.sampled_from(["a", "b"]) | JSON,
            "from_name": st.sampled_from(names_of(labelling)) | JSON,
            "type": st.sampled_from(["textarea", "choices", "labels", "relation"]) | JSON,
            "value": value | JSON,
            "item_index": JSON,
            "from_id": st.sampled_from(["a", "b"]) | JSON,
            "to_id": st.sampled_from(["a", "b"]) | JSON,
            "direction": JSON,
            "labels": JSON,
        },
    )


def _change(draw: st.DrawFn, result: list[Any]) -> None:
    """Change one place of a result: another value, none, a list around it, its first entry, its text."""
    holder: Any = result
    while isinstance(holder, dict | list) and holder:
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))))
        inner = holder[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
            holder = inner
            continue
        _change_entry(draw, holder, key)
        return


def _change_entry(draw: st.DrawFn, holder: Any, key: Any) -> None:
    inner = holder[key]
    how = draw(
        st.sampled_from(["replace", "drop", "wrap", "unwrap", "text", "float", "null", "twice", "rename"])
    )
    if how == "replace":
        holder[key] = draw(JSON)
    elif how == "drop":
        del holder[key]
    elif how == "wrap":
        holder[key] = [inner]
    elif how == "unwrap" and isinstance(inner, list) and inner:
        holder[key] = inner[0]
    elif how == "text":
        holder[key] = str(inner)[:50]
    elif how == "float" and isinstance(inner, int):
        holder[key] = float(inner) if abs(inner) < 2**1000 else 0.0
    elif how == "null":
        holder[key] = None
    elif how == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(inner))
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(_KEYS))] = holder.pop(key)
