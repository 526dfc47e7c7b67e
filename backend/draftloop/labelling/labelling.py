"""A labelling config, compiled: two schemas, the canonical serialization, regions both ways.

Knows XML, the controls and how a case's schema overlays the one made from the XML. Does not know
prompts, models or business rules (`rules`); it only carries the schemas that hold them.

Keywords of a case's schema.json for fields, besides those of `rules`:
    x-run     "python", "javascript" or "shell": the field is a program, which is run.
    x-human   true: only a human fills the field. No model is told of it or may fill it, no training target
              holds it; it is read back and checked like any other.

The *validating* schema says everything about a value whose absent keys are missing. The *decoding*
schema says only what the pinned structured-output backend enforces, about a value in which every key
is present and an absent one is `null`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any
from xml.etree.ElementTree import Element  # the type only; parsing is defusedxml's, in `config`

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator

from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.attributes import Attributes, variables
from draftloop.labelling.choices import Choices, Pairwise, Ranker, Taxonomy
from draftloop.labelling.conditions import walk
from draftloop.labelling.config import hash_config as hash_config  # noqa: PLC0414  where everybody looks for it
from draftloop.labelling.config import parse_config
from draftloop.labelling.controls import (
    Control,
    DateTime,
    Number,
    Page,
    PerItem,
    Placed,
    Rating,
    Region,
    Schema,
    TextArea,
)
from draftloop.labelling.guidance import LeftOut
from draftloop.labelling.overlays import read_overlay
from draftloop.labelling.question import Question as Question  # noqa: PLC0414  where everybody looks for it
from draftloop.labelling.regions import Json, attached, identified, regions_of
from draftloop.labelling.satisfying import check_satisfiable
from draftloop.labelling.schemas import Value as Value  # noqa: PLC0414  where everybody looks for it
from draftloop.labelling.schemas import (
    compiled,
    decoding,
    human_fields,
    overlaid,
    parsed,
    serialized,
    shape,
)
from draftloop.labelling.sources import OBJECTS, Source, check_data
from draftloop.labelling.sources import Task as Task  # noqa: PLC0414  where everybody looks for it
from draftloop.labelling.spans import HyperTextLabels, Labels, ParagraphLabels, Relations
from draftloop.runs.job import LANGUAGES, Language, Script
from draftloop.runs.run import (
    PREVIEW_KEY,
    RUN_CHARTS_KEY,
    RUN_FILES_KEY,
    RUN_OUTPUT_KEY,
    RUN_STATUS_KEY,
    SCHEMA_KEY,
)
from draftloop.support.text import replace_lone_surrogates

CONTROLS: tuple[type[Control], ...] = (
    *(Choices, TextArea, Labels, HyperTextLabels, ParagraphLabels, Relations),
    *(Rating, Number, DateTime, Taxonomy, Pairwise, Ranker),
)

# The key of task data in which a draft's reasons are shown; never part of a prompt.
STATUS_KEY = "draft_status"
# That of a task's place in the order of labelling; never part of a prompt either.
NEXT_KEY = "label_next"
# What the page shows of a draft and of its run; nor is that.
_PAGE_ALONE = (STATUS_KEY, NEXT_KEY, RUN_STATUS_KEY, RUN_OUTPUT_KEY, RUN_CHARTS_KEY, RUN_FILES_KEY)
# A TextArea whose name begins so is no field: in it an annotator tells the model what to do better, ...
PROMPT_NAME = "prompt"
# ... and in this one an open page shows what came of the code that the annotator had run.
CONSOLE_NAME = "console"

_LAYOUT = (
    *("View", "Header", "Style", "Collapse", "Panel", "Filter", "Shortcut", "Hint"),
    *("Label", "Choice", "Relation", "Bucket"),
)
# Of these, the ones whose `value` may show task data besides that of objects.
_SHOWING = ("Header", "Panel", "TextArea", "Shortcut")
_IDS = ("id", "from_id", "to_id")  # of a region, and of the ends of a relation


_TAGS = (*OBJECTS, *_LAYOUT, *(control.tag for control in CONTROLS))


@dataclass(frozen=True)
class Program:
    """The field that is a program, and its language."""

    field: str
    language: Language


@dataclass(frozen=True)
class Labelling:
    """A compiled labelling config. Made by `compile_labelling`; immutable and safe to share."""

    controls: tuple[Control, ...]
    sources: tuple[Source, ...]
    validating_schema: Schema
    decoding_schema: Schema
    config_hash: str
    shows_status: bool
    prompts: tuple[str, ...] = ()
    consoles: Mapping[str, str] = field(default_factory=dict)  # by name, the object that it stands beside
    human: frozenset[str] = frozenset()
    program: Program | None = None
    overlay: Mapping[str, Any] = field(default_factory=dict, repr=False)
    left_out: tuple[LeftOut, ...] = ()  # of the decoding schema; checked after the model has answered

    def __getstate__(self) -> dict[str, Any]:
        """Give what is pickled: what is found from it is found again there."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @cached_property
    def dynamic(self) -> bool:
        """Tell whether options come from each task, so that each task has schemas of its own."""
        return any(control.is_dynamic for control in self.controls)

    @property
    def per_region_controls(self) -> tuple[Control, ...]:
        """The controls that are filled in for each span."""
        return tuple(inner for host in self._hosts() for inner in host.inner)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of task data without which a task cannot be shown."""
        found = (
            *(key for source in self.sources if source.name for key in source.keys),
            *(control.variable for control in (*self.controls, *self.per_region_controls)),
        )
        return tuple(dict.fromkeys(filter(None, found)))

    @property
    def unjudged(self) -> frozenset[str]:
        """The controls whose regions the page takes and the SDK, judge of bulk imports, does not."""
        return frozenset(
            control.name
            for control in (*self.controls, *self.per_region_controls)
            if (isinstance(control, Choices) and control.nested)
            or not control.is_usual
            or ("toName" not in control.attributes and not isinstance(control, Relations | PerItem))
        )

    def words(self, regions: Json) -> str:
        """Give what an annotator wrote into the prompt TextAreas, an entry a line; empty for nothing.

        Args:
            regions: A result as Label Studio stores it: any JSON.
        """
        if not self.prompts:
            return ""
        try:
            readable = regions_of(regions)
        except InvalidValue:
            return ""
        asked = [
            region["value"].get("text") for region in readable if region.get("from_name") in self.prompts
        ]
        entries = (entry for part in asked for entry in (part if isinstance(part, list) else [part]))
        texts = (replace_lone_surrogates(entry).strip() for entry in entries if isinstance(entry, str))
        return "\n".join(text for text in texts if text)

    def for_task(self, task: Task) -> "Labelling":
        """Give the labelling with the options that the task brings; itself where it brings none.

        Raises:
            TaskError: The task lacks them.
        """
        if not self.dynamic:
            return self
        check_data(task)
        controls = tuple(control.for_task(task) for control in self.controls)
        try:
            validating = overlaid(compiled(controls), self.overlay)
            schema, left_out = decoding(validating, self.human)
        except SetupError as error:
            raise TaskError(
                f"Task {task.id}: its options do not fit: {error.message}", hint=error.hint
            ) from error
        return replace(
            self,
            controls=controls,
            validating_schema=validating,
            decoding_schema=schema,
            left_out=left_out,
        )

    def read(self, task: Task | Question) -> Question:
        """Return a task as the question that it is under this labelling; a question is one already.

        Raises:
            TaskError: The task lacks the options that it has to bring.
        """
        return task if isinstance(task, Question) else Question(self.for_task(task), task)

    def inputs(self, task: Task) -> Mapping[str, str]:
        """Give the texts that the annotator reads, by key of task data, in the order of the page.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        return Question(self, task).inputs

    def encode(self, value: Value) -> str:
        """Serialize a value canonically: compact, raw UTF-8, key order of the schema, absent = null.

        This very string is what the model is asked for, what examples show and what training targets
        are: a model trained with other spacing loses everything under constrained decoding.
        """
        return serialized(
            {key: part for key, part in value.items() if key not in self.human}, self.decoding_schema
        )

    def decode(self, text: str) -> Value:
        """Read a model's answer; keys that are null are absent. Nothing else is changed.

        Raises:
            InvalidValue: Not JSON, not an object, the same key twice, a field that only humans fill, or
                what no page can show: half a character, a number that JavaScript does not know, an endless
                nesting.
        """
        found = parsed(text)
        for name in self.human & found.keys():
            raise InvalidValue(f"The answer fills '{name}', which only a human does.")
        return found

    def script(self, value: Value) -> Script | None:
        """Return the program that a value holds; None where it holds none."""
        code = value.get(self.program.field) if self.program else None
        return (
            Script(code, self.program.language) if self.program and isinstance(code, str) and code else None
        )

    def to_regions(self, value: Value, task: Task | Question) -> Placed:
        """Turn a decoded value into regions, in the order of the page.

        Any JSON object is taken: what does not have its control's shape is left out and told.

        Returns:
            The regions, and a sentence for each part of the value that has no place in the task.
        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        question = self.read(task)
        if self.dynamic:
            return question.labelling.to_regions(value, question)
        placed = Placed([])
        fitting: Value = {}
        for control in self.controls:
            part = value.get(control.name)
            if part is None:
                continue
            if self._shapes[control.name].is_valid(part):
                fitting[control.name] = part
            else:
                placed.problems.append(
                    f"Control '{control.name}' ({control.tag}) cannot show {str(part)[:80]!r}."
                )
        shown = self._shown(fitting, placed.problems)
        page = Page(question.passages, _picked(self.controls, shown))
        for control in self.controls:
            if control.name in shown:
                own = control.to_regions(shown[control.name], page)
                placed.regions.extend(own.regions)
                placed.problems.extend(own.problems)
            elif isinstance(control, Labels) and isinstance(value.get(control.name), list):
                page.quotes.extend([None] * len(value[control.name]))
        return placed

    def relaid(self, before: Value, after: Value, task: Task, mark: str) -> list[Region]:
        """Give the regions that lay a new value over another one in an open page.

        The page replaces what stands in a control of the whole task and adds spans, but it has no way to
        take something away: so what the new value leaves empty is emptied, spans of both values stay as
        they are, with all that hangs on them, and those of the older one alone are left to the human.

        Args:
            before: What the page holds.
            after: What it shall hold.
            task: The task.
            mark: Makes new ids: the page breaks where a span has the id of another one.
        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        hosts = {host.name for host in self._hosts()}
        old = self.to_regions(before, task).regions
        there = [(region["from_name"], region["value"]) for region in old if region.get("from_name") in hosts]
        new = self.to_regions(after, task).regions
        same = {
            region["id"]
            for region in new
            if "from_name" in region and (region["from_name"], region["value"]) in there
        }
        relaid = [
            {key: f"{part}-{mark}" if key in _IDS else part for key, part in region.items()}
            for region in new
            if not same & {region.get(key) for key in _IDS}
        ]
        emptied = [
            control.region(dict(control.nothing))
            for control in self.controls
            if control.nothing is not None
            and control.name not in self.human
            and before.get(control.name) not in (None, [])
            and after.get(control.name) in (None, [])
        ]
        return [*relaid, *emptied]

    def console(self, words: str, mark: str) -> list[Region]:
        """Give the regions that write words into the consoles of an open page.

        Args:
            words: What came of the code.
            mark: Makes a new id.
        """
        return [
            {
                "id": f"{name}-{mark}",
                "from_name": name,
                "to_name": to_name,
                "type": "textarea",
                "value": {"text": [words]},
            }
            for name, to_name in self.consoles.items()
        ]

    def from_regions(self, regions: Json, task: Task | Question) -> Value:
        """Read a value back from the regions of a prediction or an annotation.

        Regions of controls that the config no longer has are an error, not dropped: a training row
        made from half of an annotation would be wrong without anybody seeing it. What stands in a prompt
        or a console is no part of a value.

        Args:
            regions: The result as Label Studio stores it: any JSON.
            task: The task.
        Raises:
            InvalidValue: A region does not fit the config, or is none.
            TaskError: The task lacks a key that the config shows.
        """
        question = self.read(task)
        if self.dynamic:
            return question.labelling.from_regions(regions, question)
        every_control = (*self.controls, *self.per_region_controls)
        by_control: dict[str, list[Region]] = {control.name: [] for control in every_control}
        for region in regions_of(regions):
            arrow = region.get("type") == "relation"
            name = Relations.NAME if arrow else region.get("from_name")
            if name in self.prompts or name in self.consoles:
                continue
            if name not in by_control:
                what = "relations" if arrow else f"a region of control {name!r}"
                raise InvalidValue(f"The annotation holds {what}, which the config lacks.")
            by_control[name].append(region)
        self._attach(by_control)
        page = Page(question.passages, regions=by_control)
        value = {}
        for control in self.controls:
            part = control.from_regions(by_control[control.name], page)
            if part is not None:
                value[control.name] = part
        return value

    def _attach(self, by_control: dict[str, list[Region]]) -> None:
        """Give each span an id, and each region that hangs on one the id of its span."""
        hosts = tuple(self._hosts())
        if not hosts:
            return
        spans = identified([region for host in hosts for region in by_control[host.name]])
        for host in hosts:
            by_control[host.name] = [span for span in spans if span["from_name"] == host.name]
        for inner in (inner for host in hosts for inner in host.inner):
            by_control[inner.name] = [attached(inner.name, hung, spans) for hung in by_control[inner.name]]

    @cached_property
    def _shapes(self) -> Mapping[str, Validator]:
        """By control, what tells whether a part of a value has its shape."""
        return {control.name: Draft202012Validator(shape(control.schema())) for control in self.controls}

    def _hosts(self) -> Iterator[Labels]:
        return (control for control in self.controls if isinstance(control, Labels))

    def _shown(self, value: Value, problems: list[str]) -> Value:
        """Leave out what stands in hidden controls, and tell it; tell what shown ones demand."""
        shown = dict(value)
        for control in (*self.controls, *self.controls):  # twice: hiding one may hide another
            hiding = [
                condition
                for condition in control.conditions
                if condition.hides and not condition.holds(_picked(self.controls, shown))
            ]
            says = shown.get(control.name) not in (None, [])
            if hiding and control.name in shown:
                del shown[control.name]
                if says:
                    problems.append(
                        f"Control '{control.name}' is shown only where {hiding[0]}, so it holds nothing."
                    )
        for control in self.controls:
            demands = control.conditions and control.attributes.flag("required")
            if (
                demands
                and shown.get(control.name) in (None, [])
                and all(
                    condition.when.startswith("choice-") and condition.holds(_picked(self.controls, shown))
                    for condition in control.conditions
                )
            ):
                problems.append(f"Control '{control.name}' must be filled in: {control.conditions[0]}.")
        return shown


def _picked(controls: Sequence[Control], value: Value) -> dict[str, Sequence[str]]:
    """Return the options that a value picks, by control."""
    return {
        control.name: control.picked(value[control.name]) for control in controls if control.name in value
    }


def compile_labelling(xml: str, overlay: Mapping[str, Any] | None = None) -> Labelling:
    """Compile a labelling config.

    Args:
        xml: The config as Label Studio holds it.
        overlay: A case's schema.json: JSON Schema that is laid over the one made from the XML. It may
            tighten and describe; it cannot add or rename controls.
    Raises:
        SetupError: Not XML, an unsupported tag, a control without its object, an overlay that does
            not fit.
    """
    root = parse_config(xml, _TAGS)
    _check_tags(root)
    sources = tuple(_sources(root))
    controls = tuple(_controls(root, sources))
    if not controls:
        raise SetupError(
            "The labelling config has no control to fill.",
            hint=f"Add one of {', '.join(f'<{control.tag}>' for control in CONTROLS)}.",
        )
    if not any(source.heading for source in sources) and not any(control.is_dynamic for control in controls):
        raise SetupError(
            "The labelling config shows nothing of a task, so there is nothing for a model to read.",
            hint='Show a key of task data, as in <Text name="text" value="$text"/>.',
        )
    if all(source.tag == "Image" for source in sources):
        raise SetupError(
            "The labelling config shows nothing but images, which the model cannot see.",
            hint="Show text beside them.",
        )
    overlay = {} if overlay is None else overlay
    validating = overlaid(compiled(controls), overlay)
    human = human_fields(validating)
    schema, left_out = decoding(validating, human)
    if overlay:
        check_satisfiable(validating, schema, read_overlay(overlay).without_required(human), human)
    return Labelling(
        controls=controls,
        sources=sources,
        validating_schema=validating,
        decoding_schema=schema,
        left_out=left_out,
        config_hash=hash_config(xml),
        shows_status=any(STATUS_KEY in variables(Attributes.of(element).value) for element in root.iter()),
        prompts=tuple(area["name"] for area in _named(root, PROMPT_NAME)),
        consoles={area["name"]: area.get("toName", "") for area in _named(root, CONSOLE_NAME)},
        human=human,
        program=_program(controls, validating),
        overlay=overlay,
    )


def _check_tags(root: Element) -> None:
    known = (*OBJECTS, *(control.tag for control in CONTROLS))
    for element in root.iter():
        if element.tag not in known and element.tag not in _LAYOUT:
            raise SetupError(
                f"Tag <{element.tag}> of the labelling config is not supported.",
                hint="Supported: " + ", ".join(f"<{tag}>" for tag in known) + ".",
            )


def _sources(root: Element) -> Iterator[Source]:
    """List what shows task data, and the objects that do not, in the order of the page."""
    found = [
        _source(attributes)
        for attributes in map(Attributes.of, root.iter())
        if attributes.tag in (*OBJECTS, *_SHOWING)
        and not set(_PAGE_ALONE).intersection(variables(attributes.get("valueList") or attributes.value))
    ]
    objects = {source.heading for source in found if source.tag in OBJECTS}
    words: dict[str, str] = {}  # by heading
    for source in found:
        if source.tag not in OBJECTS and (not source.heading or source.key in objects):
            continue
        heading, count = source.heading, 1
        while heading and words.setdefault(heading, source.words) != source.words:
            count += 1
            heading = f"{source.heading}_{count}"
        yield replace(source, heading=heading)


def _source(attributes: Attributes) -> Source:
    if attributes.value == f"${PREVIEW_KEY}":  # of the files a model reads the same as plain text
        attributes = Attributes("Text", {**attributes, "value": f"${SCHEMA_KEY}"})
    return Source.of(attributes)


def _named(root: Element, prefix: str) -> Iterator[Attributes]:
    areas = (Attributes.of(element) for element in root.iter() if element.tag == TextArea.tag)
    return (area for area in areas if area.get("name", "").startswith(prefix))


def _is_field(attributes: Attributes) -> bool:
    return not (
        attributes.tag == TextArea.tag and attributes.get("name", "").startswith((PROMPT_NAME, CONSOLE_NAME))
    )


def _program(controls: tuple[Control, ...], validating: Schema) -> Program | None:
    fields = validating["properties"].items()
    found = [(name, part["x-run"]) for name, part in fields if "x-run" in part]
    if not found:
        return None
    name, language = found[0]
    control = next(control for control in controls if control.name == name)
    if len(found) > 1 or not isinstance(control, TextArea) or control.is_many or language not in LANGUAGES:
        raise SetupError(
            f"schema.json: x-run of '{name}' is {language!r}, of {len(found)}.",
            hint=f'It stands once, at a <TextArea maxSubmissions="1">, and is one of {", ".join(LANGUAGES)}.',
        )
    return Program(name, language)


def _controls(root: Element, sources: tuple[Source, ...]) -> Iterator[Control]:
    """Read the controls in the order of the page, relations last: they count what stands before them."""
    classes = {control.tag: control for control in CONTROLS}
    objects = {source.name: source for source in sources if source.name and source.tag in OBJECTS}
    found: list[Control] = []
    hung: list[Control] = []
    for element, conditions in walk(root):
        attributes = Attributes.of(element)
        if element.tag not in classes or not _is_field(attributes):
            continue
        control = classes[element.tag].from_element(element, conditions)
        if not control.to_name:
            # What names no object is stored as about the first one, where the page stores it at all.
            control = replace(control, to_name=next(iter(objects), ""))
        if not control.name or control.name in {known.name for known in (*found, *hung)}:
            raise SetupError(
                f"A <{element.tag}> has {'the name of another control' if control.name else 'no name'}.",
                hint="Give every control a name of its own.",
            )
        if attributes.flag("perItem"):
            plain = replace(control, required=False)
            control = PerItem(
                control.name, control.to_name, required=False, inner=plain, is_usual=control.is_usual
            )
        control = control.connected(objects)
        (hung if attributes.flag("perRegion") else found).append(control)
    yield from _hosting(found, hung)


def _hosting(found: list[Control], hung: list[Control]) -> Iterator[Control]:
    spans = [control for control in found if isinstance(control, Labels)]
    for control in hung:
        if control.to_name not in {host.to_name for host in spans}:
            raise SetupError(
                f"Control '{control.name}' ({control.tag}) is perRegion, but no control labels spans of "
                f"'{control.to_name}'.",
                hint="Add a <Labels>, or make it a control of the whole task.",
            )
    last = [control for control in found if isinstance(control, Relations)]
    if last and not spans:
        raise SetupError("<Relations> has no spans to relate.", hint="Add a <Labels>.")
    for control in found:
        if isinstance(control, Labels):
            yield control.holding([inner for inner in hung if inner.to_name == control.to_name])
        elif control not in last:
            yield control
    yield from last
