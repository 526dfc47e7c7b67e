"""The tags of a labelling config: its objects, its controls, and what else the page shows.

Knows which tags are supported and how they depend on each other. Does not know schemas or values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from xml.etree.ElementTree import Element  # the type only; parsing is defusedxml's, in `config`

from draftloop.errors import SetupError
from draftloop.labelling.attributes import Attributes, variables
from draftloop.labelling.choices import Choices, Pairwise, Ranker, Taxonomy
from draftloop.labelling.conditions import walk
from draftloop.labelling.config import parse_config
from draftloop.labelling.controls import Control, PerItem
from draftloop.labelling.form_fields import DateTime, Number, Rating, TextArea
from draftloop.labelling.sources import OBJECTS, TaskSource
from draftloop.labelling.spans import HyperTextLabels, Labels, ParagraphLabels, Relations
from draftloop.runs.run import (
    PREVIEW_KEY,
    RUN_CHARTS_KEY,
    RUN_FILES_KEY,
    RUN_OUTPUT_KEY,
    RUN_STATUS_KEY,
    SCHEMA_KEY,
)

CONTROLS: tuple[type[Control], ...] = (
    *(Choices, TextArea, Labels, HyperTextLabels, ParagraphLabels, Relations),
    *(Rating, Number, DateTime, Taxonomy, Pairwise, Ranker),
)

# The key of task data that shows the reasons of a draft.
STATUS_KEY = "draft_status"
# The key of task data with a task's place in the order of labelling.
NEXT_KEY = "label_next"
# Keys that only the page shows; prompts never contain them.
_PAGE_KEYS = (STATUS_KEY, NEXT_KEY, RUN_STATUS_KEY, RUN_OUTPUT_KEY, RUN_CHARTS_KEY, RUN_FILES_KEY)
# Prefixes of the names of TextAreas that are not fields: in a prompt an annotator asks the model for a better
# draft; in a console an open page shows the output of the code that the annotator ran.
PROMPT_NAME = "prompt"
CONSOLE_NAME = "console"

_LAYOUT = (
    *("View", "Header", "Style", "Collapse", "Panel", "Filter", "Shortcut", "Hint"),
    *("Label", "Choice", "Relation", "Bucket"),
)
# Tags other than objects whose `value` may show task data.
_SHOWING = ("Header", "Panel", "TextArea", "Shortcut")
_TAGS = (*OBJECTS, *_LAYOUT, *(control.tag for control in CONTROLS))
_CLASSES = {control.tag: control for control in CONTROLS}


def parse_tags(xml: str) -> Element:
    """Parse a labelling config and check that every tag is supported.

    Raises:
        SetupError: Not XML, nested too deeply, or an unsupported tag.
    """
    root = parse_config(xml, _TAGS)
    _check_tags(root)
    return root


def _check_tags(root: Element) -> None:
    known = (*OBJECTS, *(control.tag for control in CONTROLS))
    for element in root.iter():
        if element.tag not in known and element.tag not in _LAYOUT:
            raise SetupError(
                f"Tag <{element.tag}> of the labelling config is not supported.",
                hint="Supported: " + ", ".join(f"<{tag}>" for tag in known) + ".",
            )


def read_sources(root: Element) -> Iterator[TaskSource]:
    """Yield the object tags and the other tags that show task data, in the order of the page.

    Raises:
        SetupError: An object shows data that are not in the task itself.
    """
    sources = [
        _source(attributes)
        for attributes in map(Attributes.of, root.iter())
        if attributes.tag in (*OBJECTS, *_SHOWING)
        and not set(_PAGE_KEYS).intersection(variables(attributes.get("valueList") or attributes.value))
    ]
    objects = {source.heading for source in sources if source.tag in OBJECTS}
    words: dict[str, str] = {}  # by heading
    for source in sources:
        if source.tag not in OBJECTS and (not source.heading or source.key in objects):
            continue
        heading, count = source.heading, 1
        while heading and words.setdefault(heading, source.words) != source.words:
            count += 1
            heading = f"{source.heading}_{count}"
        yield replace(source, heading=heading)


def _source(attributes: Attributes) -> TaskSource:
    if attributes.value == f"${PREVIEW_KEY}":  # the model reads the schema of the files as plain text
        attributes = Attributes("Text", {**attributes, "value": f"${SCHEMA_KEY}"})
    return TaskSource.of(attributes)


def shows_status(root: Element) -> bool:
    """Return whether the page shows the reasons of a draft."""
    return any(STATUS_KEY in variables(Attributes.of(element).value) for element in root.iter())


def read_prompts(root: Element) -> tuple[str, ...]:
    """Return the names of the TextAreas in which an annotator asks for a better draft."""
    return tuple(area["name"] for area in _areas(root, PROMPT_NAME))


def read_consoles(root: Element) -> Mapping[str, str]:
    """Return the TextAreas that show the output of code, each with the object that it belongs to."""
    return {area["name"]: area.get("toName", "") for area in _areas(root, CONSOLE_NAME)}


def _areas(root: Element, prefix: str) -> Iterator[Attributes]:
    areas = (Attributes.of(element) for element in root.iter() if element.tag == TextArea.tag)
    return (area for area in areas if area.get("name", "").startswith(prefix))


def _is_field(attributes: Attributes) -> bool:
    return not (
        attributes.tag == TextArea.tag and attributes.get("name", "").startswith((PROMPT_NAME, CONSOLE_NAME))
    )


def read_controls(root: Element, sources: tuple[TaskSource, ...]) -> tuple[Control, ...]:
    """Read the controls in the order of the page; relations come last, as they count the spans before them.

    Raises:
        SetupError: An attribute is not supported, or a control does not fit its object.
    """
    objects = {source.name: source for source in sources if source.name and source.tag in OBJECTS}
    controls: list[Control] = []
    per_region: list[Control] = []
    for element, conditions in walk(root):
        attributes = Attributes.of(element)
        if element.tag not in _CLASSES or not _is_field(attributes):
            continue
        control = _CLASSES[element.tag].from_element(element, conditions)
        if not control.to_name:
            # The page stores the regions of a control without toName under the first object.
            control = replace(control, to_name=next(iter(objects), ""))
        if not control.name or control.name in {other.name for other in (*controls, *per_region)}:
            raise SetupError(
                f"A <{element.tag}> has {'the name of another control' if control.name else 'no name'}.",
                hint="Give every control a name of its own.",
            )
        if attributes.flag("perItem"):
            item_control = replace(control, required=False)
            control = PerItem(control.name, control.to_name, required=False, item_control=item_control)
        control = control.bind_objects(objects)
        (per_region if attributes.flag("perRegion") else controls).append(control)
    return tuple(_with_per_region(controls, per_region))


def _with_per_region(controls: list[Control], per_region: list[Control]) -> Iterator[Control]:
    """Yield the controls of a whole task; those that label spans hold their per-region controls."""
    span_controls = [control for control in controls if isinstance(control, Labels)]
    for control in per_region:
        if control.to_name not in {labels.to_name for labels in span_controls}:
            raise SetupError(
                f"Control '{control.name}' ({control.tag}) is perRegion, but no control labels spans of "
                f"'{control.to_name}'.",
                hint="Add a <Labels>, or make it a control of the whole task.",
            )
    relations = [control for control in controls if isinstance(control, Relations)]
    if relations and not span_controls:
        raise SetupError("<Relations> has no spans to relate.", hint="Add a <Labels>.")
    for control in controls:
        if isinstance(control, Labels):
            yield control.with_per_region([other for other in per_region if other.to_name == control.to_name])
        elif control not in relations:
            yield control
    yield from relations
