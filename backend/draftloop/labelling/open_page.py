"""Regions for a page that an annotator has open: a new draft over an older one, and the output of code.

Knows what an open page replaces, adds and cannot remove. Does not know how drafts are made.

Source:
    measured on Label Studio 1.23.2.
"""

from draftloop.labelling.controls import Region
from draftloop.labelling.labelling import Labelling, Task, Value

_IDS = ("id", "from_id", "to_id")  # keys of a region and of a relation that contain ids of regions


def overlay_regions(
    labelling: Labelling, before: Value, after: Value, task: Task, id_suffix: str
) -> list[Region]:
    """Return the regions that change an open page from one value to another.

    The page replaces the values of controls of a whole task and adds spans, but it cannot remove anything.
    So controls that are empty in the new value are emptied, spans of both values stay with all their
    per-region values, and the annotator removes the spans that only the older value has.

    Args:
        labelling: The labelling.
        before: What the page shows.
        after: What it is to show.
        task: The task.
        id_suffix: Makes ids new: the page breaks where two spans have the same id.
    Raises:
        TaskError: The task lacks a key that the config shows.
    """
    span_controls = {control.name for control in labelling.span_controls}
    old_spans = [
        (region["from_name"], region["value"])
        for region in labelling.to_regions(before, task).regions
        if region.get("from_name") in span_controls
    ]
    new = labelling.to_regions(after, task).regions
    unchanged = {
        region["id"]
        for region in new
        if "from_name" in region and (region["from_name"], region["value"]) in old_spans
    }
    changed = [
        {key: f"{part}-{id_suffix}" if key in _IDS else part for key, part in region.items()}
        for region in new
        if not unchanged & {region.get(key) for key in _IDS}
    ]
    emptied = [
        control.region(dict(control.nothing))
        for control in labelling.controls
        if control.nothing is not None
        and control.name not in labelling.human
        and before.get(control.name) not in (None, [])
        and after.get(control.name) in (None, [])
    ]
    return [*changed, *emptied]


def console_regions(labelling: Labelling, output: str, id_suffix: str) -> list[Region]:
    """Return the regions that write the output of code into the consoles of an open page.

    Args:
        labelling: The labelling.
        output: The text to show.
        id_suffix: Makes ids new.
    """
    return [
        {
            "id": f"{name}-{id_suffix}",
            "from_name": name,
            "to_name": to_name,
            "type": "textarea",
            "value": {"text": [output]},
        }
        for name, to_name in labelling.consoles.items()
    ]
