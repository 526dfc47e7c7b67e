"""Which controls the page shows for a value.

Knows what hiding a control does to a value. When a control is shown is decided in `conditions`.
"""

from collections.abc import Mapping, Sequence

from draftloop.labelling.controls import Control, Json


def picked_options(controls: Sequence[Control], value: Mapping[str, Json]) -> dict[str, Sequence[str]]:
    """Return the options that a value picks, by control."""
    return {
        control.name: control.picked(value[control.name]) for control in controls if control.name in value
    }


def visible_value(
    controls: Sequence[Control], value: Mapping[str, Json], problems: list[str]
) -> dict[str, Json]:
    """Return a value without the parts of hidden controls.

    Args:
        controls: The controls of the whole task.
        value: A value that has the shape of the controls.
        problems: Is extended by a message for each part that is dropped, and for each control that is shown
            and must be filled in but is empty.
    """
    shown = dict(value)
    for control in (*controls, *controls):  # twice: hiding one control may hide another
        hiding = [
            condition
            for condition in control.conditions
            if condition.hides and not condition.holds(picked_options(controls, shown))
        ]
        is_hidden = bool(hiding) and control.name in shown
        if is_hidden and shown.pop(control.name) not in (None, []):
            problems.append(f"Control '{control.name}' is shown only where {hiding[0]}, so it holds nothing.")
    picked = picked_options(controls, shown)
    problems.extend(
        f"Control '{control.name}' must be filled in: {control.conditions[0]}."
        for control in controls
        if shown.get(control.name) in (None, []) and _is_required(control, picked)
    )
    return shown


def _is_required(control: Control, picked: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a control with conditions is required and shown for certain."""
    return (
        bool(control.conditions)
        and control.attributes.flag("required")
        and all(
            condition.when.startswith("choice-") and condition.holds(picked)
            for condition in control.conditions
        )
    )
