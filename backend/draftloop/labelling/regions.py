"""Label Studio's regions, read with their shape checked.

Label Studio's API accepts any JSON as the result of an annotation or a prediction. What has one possible
meaning is read: a text for a list with one text, `3.0` and `"3"` for 3. Everything else is an `InvalidValue`
that names the control and the value. Does not know controls, their options, or positions in texts.

Source:
    Label Studio 1.23.2: the types of a result's value in the page's editor, and what it converts to them.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from reprlib import Repr
from typing import Any

from draftloop.errors import InvalidValue
from draftloop.support.strict_json import DEEPEST

Json = Any  # what `json.loads` returns
Region = dict[str, Any]

EXACT = 2**53  # larger integers are not exact in JavaScript

# Keys of a region's value that locate its span, beside the value of its control. A per-region TextArea has
# its texts under `text`, where other controls have the text of the span.
_PLACE = frozenset({"start", "end", "startOffset", "endOffset", "globalOffsets", "text", "isText"})
_DIGITS = 40  # a longer text is not read as a number
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel, _short.maxlist, _short.maxdict = 3, 4, 4


def shortened(part: Json) -> str:
    """Return a short `repr` of JSON for an error message."""
    return _short.repr(part)


def too_deep(part: Json, limit: int = DEEPEST) -> bool:
    """Return whether JSON is nested deeper than a number of levels; without recursion."""
    level = [part]
    for _ in range(limit):
        level = [
            child
            for outer in level
            if isinstance(outer, dict | list)
            for child in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def regions_of(result: Json) -> list[Region]:
    """Return the regions of an annotation's or a prediction's result; the value of each is an object.

    Raises:
        InvalidValue: It is no list of regions, or is nested deeper than anything that a page stores.
    """
    if isinstance(result, str) and result.strip():  # the page parses it too
        try:
            result = json.loads(result)
        except (ValueError, RecursionError):
            raise InvalidValue(
                f"The result is the text {shortened(result)}, not a list of regions."
            ) from None
    if result is None or result == "":
        return []
    if not isinstance(result, list):
        raise InvalidValue(f"The result is {shortened(result)}, not a list of regions.")
    if too_deep(result):
        raise InvalidValue(f"The result is nested deeper than {DEEPEST} levels.")
    for region in result:
        _check_region(region)
    return result


def _check_region(region: Json) -> None:
    if not isinstance(region, dict):
        raise InvalidValue(f"The result holds {shortened(region)} where a region belongs.")
    if region.get("type") == "relation":
        ids = [("from_id", "the end"), ("to_id", "the end")]
        where = "a relation"
    else:
        name = region.get("from_name")
        if not isinstance(name, str):
            raise InvalidValue(f"A region has from_name {shortened(name)}: it belongs to no control.")
        where = f"a region of control {name!r}"
        ids = [("id", "the id")]
        value = region.get("value")
        if not isinstance(value, dict):
            raise InvalidValue(f"The value of {where} is {shortened(value)}, not an object.")
    for key, what in ids:
        if not isinstance(region.get(key), str | int | None):
            raise InvalidValue(f"{what.capitalize()} of {where} is {shortened(region[key])}, not a text.")


# ---------------------------------------------------------------------------------- values


def collect(name: str, regions: Sequence[Region], *keys: str) -> list[Json]:
    """Return the items of the lists in a control's regions; a value that is no list counts as one item.

    Args:
        name: Name of the control.
        regions: The control's regions.
        keys: The keys that may hold the value; the first present one is read.
    Raises:
        InvalidValue: A region holds something else instead.
    """
    items: list[Json] = []
    for part in _parts(name, regions, keys):
        items.extend(part if isinstance(part, list) else [part])
    return items


def single(name: str, regions: Sequence[Region], key: str) -> list[Json]:
    """Return the single value of each of a control's regions; a list with one item counts as that item.

    Args:
        name: Name of the control.
        regions: The control's regions.
        key: The key that holds the value.
    Raises:
        InvalidValue: A region holds something else instead, or several values.
    """
    values = []
    for part in _parts(name, regions, (key,)):
        if isinstance(part, list) and len(part) > 1:
            raise InvalidValue(f"Control '{name}' holds one value, not {shortened(part)}.")
        values.extend(part if isinstance(part, list) else [part])
    return values


def only_one(name: str, values: Sequence[Json]) -> Json | None:
    """Return the only one of a control's values; None where there is none.

    Raises:
        InvalidValue: There are several.
    """
    if len(values) > 1:
        raise InvalidValue(f"Control '{name}' holds one value, not {len(values)}.")
    return values[0] if values else None


def _parts(name: str, regions: Sequence[Region], keys: Sequence[str]) -> Iterator[Json]:
    for region in regions:
        value: Mapping[str, Json] = region["value"]
        held = [value[key] for key in keys if value.get(key) not in (None, "")]
        if held:
            if "start" not in value and any(other != held[0] for other in held[1:]):
                raise InvalidValue(
                    f"Control '{name}': a region holds two values, under {' and '.join(keys)}."
                )
            yield held[0]
            continue
        expected = {*keys, *(_PLACE if "start" in value else ())}
        other = sorted(
            key for key, part in value.items() if key not in expected and part not in (None, "", [])
        )
        if "start" in value:  # its labels may stand beside the value of a per-region control
            other = [key for key in other if not key.endswith("labels")]
        if other:
            raise InvalidValue(
                f"Control '{name}': a region holds {shortened(other[0])}, not '{keys[0]}'.",
                hint="Another tool made it, or it belongs to another config.",
            )


def text_of(name: str, part: Json) -> str:
    """Return a text; a number is converted to its digits.

    Raises:
        InvalidValue: It is neither a text nor a number.
    """
    if isinstance(part, str):
        return part
    if isinstance(part, int | float) and not isinstance(part, bool):
        number = number_of(name, part)
        return str(number)
    raise InvalidValue(f"Control '{name}': {shortened(part)} is not a text.")


def number_of(name: str, part: Json) -> int | float:
    """Return a number, a whole one as `int`; a text that is a number is converted.

    Raises:
        InvalidValue: It is no number, or one that JavaScript cannot hold.
    """
    number: int | float
    if isinstance(part, str) and len(part) <= _DIGITS and _NUMBER.fullmatch(part.strip()):
        digits = part.strip()
        number = int(digits) if digits.lstrip("+-").isdigit() else float(digits)
    elif isinstance(part, int | float) and not isinstance(part, bool):
        number = part
    else:
        raise InvalidValue(f"Control '{name}': {shortened(part)} is not a number.")
    if isinstance(number, float) and math.isfinite(number) and number.is_integer() and abs(number) <= EXACT:
        number = int(number)
    if (isinstance(number, int) and abs(number) > EXACT) or not math.isfinite(number):
        raise InvalidValue(f"Control '{name}': {shortened(part)} is a number that the page cannot hold.")
    return number


def place_of(part: Json) -> int | None:
    """Return an index, counted from 0; None where it is no index."""
    try:
        number = number_of("", part)
    except InvalidValue:
        return None
    return number if isinstance(number, int) and number >= 0 else None


# ---------------------------------------------------------------------------------- spans


def identified(spans: Sequence[Region]) -> list[Region]:
    """Return regions of spans with an id each: a span without one gets an id that no region has.

    Raises:
        InvalidValue: Spans at different places have the same id.
    """
    known: dict[Json, Json] = {}
    with_ids = []
    for number, span in enumerate(spans):
        span_id = ("span", number) if span.get("id") is None else span["id"]
        if known.setdefault(span_id, _place(span)) != _place(span):
            raise InvalidValue(f"Two spans at different places have the id {shortened(span_id)}.")
        with_ids.append(span | {"id": span_id})
    return with_ids


def attached(name: str, region: Region, spans: Sequence[Region]) -> Region:
    """Return a per-region control's region with the id of its span, looked up by place where it has no id.

    Args:
        name: Name of the control.
        region: The region.
        spans: The spans, as `identified` returns them.
    Raises:
        InvalidValue: No span fits, or several do.
    """
    region_id = region.get("id")
    if region_id is None:
        ids = {span["id"] for span in spans if _place(span) == _place(region) != {}}
        if len(ids) > 1:
            raise InvalidValue(
                f"A region of control '{name}' has no id and may belong to any of {len(ids)} spans there."
            )
        region_id = next(iter(ids), None)
    if region_id is None or region_id not in {span["id"] for span in spans}:
        raise InvalidValue(f"A region of control '{name}' belongs to no span of the annotation.")
    return region | {"id": region_id}


def _place(region: Region) -> dict[str, Json]:
    return {
        key: part
        for key, part in region["value"].items()
        if key in _PLACE - {"text", "isText"} and part is not None
    }


def attach_to_spans(
    by_control: dict[str, list[Region]], span_controls: Sequence[str], per_region_controls: Sequence[str]
) -> None:
    """Set ids: one on each span, and that of its span on each region of a per-region control.

    Args:
        by_control: Regions by name of control; changed in place.
        span_controls: Names of the controls that label spans.
        per_region_controls: Names of the controls that are filled in for each span.
    Raises:
        InvalidValue: A region belongs to no span, or it is not clear to which one.
    """
    spans = identified([region for name in span_controls for region in by_control[name]])
    for name in span_controls:
        by_control[name] = [span for span in spans if span["from_name"] == name]
    for name in per_region_controls:
        by_control[name] = [attached(name, region, spans) for region in by_control[name]]
