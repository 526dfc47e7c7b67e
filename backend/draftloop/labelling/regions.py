"""Label Studio's regions, read with their shape checked.

Label Studio's API takes any JSON as the result of an annotation or a prediction. What can be read without
doubt is read: a text for a list with one text, `3.0` and `"3"` for 3. Everything else is an `InvalidValue`
that names the control and what stands there. Does not know controls, their options, or positions in texts.

Source:
    Label Studio 1.23.2: the types that the page's editor gives a result's value, and what it turns into them.
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

EXACT = 2**53  # larger integers are others in the page, which is JavaScript

# What a region says of the place of its span, beside the value of its control. A per-region TextArea has its
# texts under `text`, where the others have the span's.
_PLACE = frozenset({"start", "end", "startOffset", "endOffset", "globalOffsets", "text", "isText"})
_DIGITS = 40  # a longer text is no number that somebody wrote
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel, _short.maxlist, _short.maxdict = 3, 4, 4


def shortened(part: Json) -> str:
    """Return JSON in a few words, for a reason: `repr`, cut in every direction."""
    return _short.repr(part)


def too_deep(part: Json, limit: int = DEEPEST) -> bool:
    """Check whether JSON is nested deeper than a number of levels; without recursion."""
    level = [part]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def regions_of(result: Json) -> list[Region]:
    """Read the result of an annotation or a prediction: regions, each an object whose value is an object.

    Raises:
        InvalidValue: It is none, or is nested deeper than anything that a page stores.
    """
    if isinstance(result, str) and result.strip():  # the page parses it, too
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
    """Collect what a control's regions hold under a key, several things each; one alone counts as a list.

    Args:
        name: Of the control.
        regions: Those of the control.
        keys: Where its value stands; the first that is there counts.
    Raises:
        InvalidValue: A region holds something else instead.
    """
    found: list[Json] = []
    for part in _parts(name, regions, keys):
        found.extend(part if isinstance(part, list) else [part])
    return found


def single(name: str, regions: Sequence[Region], key: str) -> list[Json]:
    """List what a control's regions hold under a key, one thing each; a list with one thing counts as it.

    Args:
        name: Of the control.
        regions: Those of the control.
        key: Where its value stands.
    Raises:
        InvalidValue: A region holds something else instead, or several things.
    """
    found = []
    for part in _parts(name, regions, (key,)):
        if isinstance(part, list) and len(part) > 1:
            raise InvalidValue(f"Control '{name}' holds one value, found {shortened(part)}.")
        found.extend(part if isinstance(part, list) else [part])
    return found


def _parts(name: str, regions: Sequence[Region], keys: Sequence[str]) -> Iterator[Json]:
    for region in regions:
        value: Mapping[str, Json] = region["value"]
        there = [value[key] for key in keys if value.get(key) not in (None, "")]
        if there:
            if "start" not in value and any(other != there[0] for other in there[1:]):
                raise InvalidValue(
                    f"Control '{name}': a region holds two values, under {' and '.join(keys)}."
                )
            yield there[0]
            continue
        expected = {*keys, *(_PLACE if "start" in value else ())}
        other = sorted(
            key for key, found in value.items() if key not in expected and found not in (None, "", [])
        )
        if "start" in value:  # a span's labels may stand beside what hangs on it
            other = [key for key in other if not key.endswith("labels")]
        if other:
            raise InvalidValue(
                f"Control '{name}': a region holds {shortened(other[0])}, not '{keys[0]}'.",
                hint="It was made by another tool, or under another config.",
            )


def text_of(name: str, part: Json) -> str:
    """Read a text; a number counts as its digits.

    Raises:
        InvalidValue: It is neither.
    """
    if isinstance(part, str):
        return part
    if isinstance(part, int | float) and not isinstance(part, bool):
        number = number_of(name, part)
        return str(number)
    raise InvalidValue(f"Control '{name}': {shortened(part)} is not a text.")


def number_of(name: str, part: Json) -> int | float:
    """Read a number, whole ones as `int`; a text counts as the number that it is.

    Raises:
        InvalidValue: It is none, or none that the page can hold.
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
    """Read a place, counted from 0; None where it is none."""
    try:
        number = number_of("", part)
    except InvalidValue:
        return None
    return number if isinstance(number, int) and number >= 0 else None


# ---------------------------------------------------------------------------------- spans


def identified(spans: Sequence[Region]) -> list[Region]:
    """Return regions of spans with an id each: those without get one that no region has.

    Raises:
        InvalidValue: Spans at different places have one id.
    """
    known: dict[Json, Json] = {}
    found = []
    for number, span in enumerate(spans):
        span_id = ("span", number) if span.get("id") is None else span["id"]
        if known.setdefault(span_id, _place(span)) != _place(span):
            raise InvalidValue(f"Two spans at different places have the id {shortened(span_id)}.")
        found.append(span | {"id": span_id})
    return found


def attached(name: str, region: Region, spans: Sequence[Region]) -> Region:
    """Return a region that hangs on a span with that span's id; one without an id is found by its place.

    Args:
        name: Of its control.
        region: The region.
        spans: What it may hang on, as `identified` returns them.
    Raises:
        InvalidValue: There is no such span, or there are several.
    """
    region_id = region.get("id")
    if region_id is None:
        found = {span["id"] for span in spans if _place(span) == _place(region) != {}}
        if len(found) > 1:
            raise InvalidValue(
                f"A region of control '{name}' has no id and may hang on any of {len(found)} spans there."
            )
        region_id = next(iter(found), None)
    if region_id is None or region_id not in {span["id"] for span in spans}:
        raise InvalidValue(f"A region of control '{name}' hangs on no span of the annotation.")
    return region | {"id": region_id}


def _place(region: Region) -> dict[str, Json]:
    return {
        key: part
        for key, part in region["value"].items()
        if key in _PLACE - {"text", "isText"} and part is not None
    }
