"""A labelling config, compiled: controls, schemas, the canonical serialization, regions both ways.

Knows how the parts of the package fit together. Does not know prompts, models or business rules (`rules`);
it only carries the schemas that contain them.

Keywords of a case's schema.json for fields, besides those of `rules`:
    x-run     "python", "javascript" or "shell": the field is a program, which is run.
    x-human   true: only a human fills the field. Models do not see it and may not fill it, training targets
              do not contain it; it is read back and checked like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator

from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.choices import Choices
from draftloop.labelling.config import hash_config as hash_config  # noqa: PLC0414  its importers use this module
from draftloop.labelling.controls import Control, Page, PerItem, Placed, Region, Schema
from draftloop.labelling.form_fields import TextArea
from draftloop.labelling.overlays import read_overlay
from draftloop.labelling.question import Question as Question  # noqa: PLC0414
from draftloop.labelling.regions import Json, attach_to_spans, regions_of
from draftloop.labelling.satisfying import check_satisfiable
from draftloop.labelling.schemas import Schemas, parsed, serialized, shape
from draftloop.labelling.schemas import Value as Value  # noqa: PLC0414
from draftloop.labelling.sources import Task as Task  # noqa: PLC0414
from draftloop.labelling.sources import TaskSource, check_data
from draftloop.labelling.spans import Labels, Relations
from draftloop.labelling.tags import CONSOLE_NAME as CONSOLE_NAME  # noqa: PLC0414
from draftloop.labelling.tags import CONTROLS as CONTROLS  # noqa: PLC0414
from draftloop.labelling.tags import NEXT_KEY as NEXT_KEY  # noqa: PLC0414
from draftloop.labelling.tags import PROMPT_NAME as PROMPT_NAME  # noqa: PLC0414
from draftloop.labelling.tags import STATUS_KEY as STATUS_KEY  # noqa: PLC0414
from draftloop.labelling.tags import (
    parse_tags,
    read_consoles,
    read_controls,
    read_prompts,
    read_sources,
    shows_status,
)
from draftloop.labelling.visibility import picked_options, visible_value
from draftloop.runs.job import LANGUAGES, Language, Script
from draftloop.support.text import replace_lone_surrogates


@dataclass(frozen=True)
class Program:
    """The field that is a program, and its language."""

    field: str
    language: Language


@dataclass(frozen=True)
class Labelling:
    """A compiled labelling config. Made by `compile_labelling`; immutable and safe to share.

    controls       in the order of the page, relations last
    sources        the tags that show task data, in the order of the page
    schemas        the schemas of values
    config_hash    identifies the config
    shows_status   whether the page shows the reasons of a draft
    prompts        names of the TextAreas in which an annotator asks for a better draft
    consoles       by name of the TextArea that shows the output of code, the object that it belongs to
    program        the field that is a program, if any
    """

    controls: tuple[Control, ...]
    sources: tuple[TaskSource, ...]
    schemas: Schemas
    config_hash: str
    shows_status: bool
    prompts: tuple[str, ...] = ()
    consoles: Mapping[str, str] = field(default_factory=dict)
    program: Program | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Drop cached properties from pickles; they are recomputed after unpickling."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @property
    def validating_schema(self) -> Schema:
        """The schema of a value whose missing keys are absent."""
        return self.schemas.validating

    @property
    def decoding_schema(self) -> Schema:
        """The schema of a model's answer."""
        return self.schemas.decoding

    @property
    def human(self) -> frozenset[str]:
        """The fields that only humans fill."""
        return self.schemas.human

    @cached_property
    def dynamic(self) -> bool:
        """Whether tasks bring options, so that each task has schemas of its own."""
        return any(control.is_dynamic for control in self.controls)

    @property
    def span_controls(self) -> tuple[Labels, ...]:
        """The controls that label spans."""
        return tuple(control for control in self.controls if isinstance(control, Labels))

    @property
    def per_region_controls(self) -> tuple[Control, ...]:
        """The controls that are filled in for each span."""
        return tuple(control for labels in self.span_controls for control in labels.per_region_controls)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of task data that a task needs in order to be shown."""
        keys = (
            *(key for source in self.sources if source.name for key in source.keys),
            *(control.options.variable for control in (*self.controls, *self.per_region_controls)),
        )
        return tuple(dict.fromkeys(filter(None, keys)))

    @property
    def unjudged(self) -> frozenset[str]:
        """The controls that the SDK's import validator rejects although the page accepts them."""
        return frozenset(
            control.name
            for control in (*self.controls, *self.per_region_controls)
            if (isinstance(control, Choices) and control.nested)
            or not control.is_sdk_readable
            or ("toName" not in control.attributes and not isinstance(control, Relations | PerItem))
        )

    def words(self, regions: Json) -> str:
        """Return what an annotator wrote into the prompt TextAreas, one entry per line; empty for nothing.

        Args:
            regions: A result as Label Studio stores it: any JSON.
        """
        if not self.prompts:
            return ""
        try:
            readable = regions_of(regions)
        except InvalidValue:
            return ""
        parts = [
            region["value"].get("text") for region in readable if region.get("from_name") in self.prompts
        ]
        entries = (entry for part in parts for entry in (part if isinstance(part, list) else [part]))
        texts = (replace_lone_surrogates(entry).strip() for entry in entries if isinstance(entry, str))
        return "\n".join(text for text in texts if text)

    def for_task(self, task: Task) -> "Labelling":
        """Return the labelling with the options that the task brings; itself where it brings none.

        Raises:
            TaskError: The task lacks them.
        """
        if not self.dynamic:
            return self
        check_data(task)
        controls = tuple(control.for_task(task) for control in self.controls)
        try:
            schemas = Schemas.of(controls, self.schemas.overlay)
        except SetupError as error:
            raise TaskError(
                f"Task {task.id}: its options do not fit: {error.message}", hint=error.hint
            ) from error
        return replace(self, controls=controls, schemas=schemas)

    def read(self, task: Task | Question) -> Question:
        """Return a task as a question under this labelling; a question is returned as it is.

        Raises:
            TaskError: The task lacks the options that the config takes from it.
        """
        return task if isinstance(task, Question) else Question(self.for_task(task), task)

    def inputs(self, task: Task) -> Mapping[str, str]:
        """Return the texts that the annotator reads, by key of task data, in the order of the page.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        return Question(self, task).inputs

    def encode(self, value: Value) -> str:
        """Serialize a value canonically: compact, raw UTF-8, key order of the schema, absent = null.

        The model is asked for exactly this text, and examples and training targets contain it: a model that
        was trained with other spacing fails under constrained decoding.
        """
        return serialized(
            {key: part for key, part in value.items() if key not in self.human}, self.decoding_schema
        )

    def decode(self, text: str) -> Value:
        """Parse a model's answer; keys that are null become absent. Nothing else is changed.

        Raises:
            InvalidValue: Not JSON, not an object, a repeated key, a field that only humans fill, or
                something that no page can show: a lone surrogate, a number that JavaScript does not
                represent exactly, a nesting without end.
        """
        value = parsed(text)
        for name in self.human & value.keys():
            raise InvalidValue(f"The answer fills '{name}', which only a human does.")
        return value

    def script(self, value: Value) -> Script | None:
        """Return the program in a value; None where there is none."""
        code = value.get(self.program.field) if self.program else None
        return (
            Script(code, self.program.language) if self.program and isinstance(code, str) and code else None
        )

    def to_regions(self, value: Value, task: Task | Question) -> Placed:
        """Convert a decoded value to regions, in the order of the page.

        Any JSON object is accepted: a part that does not have its control's shape becomes a problem.

        Returns:
            The regions, and a problem for each part of the value that does not fit the task.
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
        shown = visible_value(self.controls, fitting, placed.problems)
        page = Page(question.passages, picked_options(self.controls, shown))
        for control in self.controls:
            if control.name in shown:
                made = control.to_regions(shown[control.name], page)
                placed.regions.extend(made.regions)
                placed.problems.extend(made.problems)
            elif isinstance(control, Labels) and isinstance(value.get(control.name), list):
                page.quotes.extend([None] * len(value[control.name]))
        return placed

    def from_regions(self, regions: Json, task: Task | Question) -> Value:
        """Read a value back from the regions of a prediction or an annotation.

        Regions of controls that the config no longer has are an error: if they were dropped, a training
        row would be made from half of an annotation without notice. Texts of prompts and consoles are not
        part of a value.

        Args:
            regions: The result as Label Studio stores it: any JSON.
            task: The task.
        Raises:
            InvalidValue: The result is no list of regions, or a region does not fit the config.
            TaskError: The task lacks a key that the config shows.
        """
        question = self.read(task)
        if self.dynamic:
            return question.labelling.from_regions(regions, question)
        every_control = (*self.controls, *self.per_region_controls)
        by_control: dict[str, list[Region]] = {control.name: [] for control in every_control}
        for region in regions_of(regions):
            is_relation = region.get("type") == "relation"
            name = Relations.NAME if is_relation else region.get("from_name")
            if name in self.prompts or name in self.consoles:
                continue
            if name not in by_control:
                what = "relations" if is_relation else f"a region of control {name!r}"
                raise InvalidValue(f"The annotation holds {what}, which the config lacks.")
            by_control[name].append(region)
        attach_to_spans(
            by_control,
            [control.name for control in self.span_controls],
            [control.name for control in self.per_region_controls],
        )
        page = Page(question.passages, regions=by_control)
        value = {}
        for control in self.controls:
            part = control.from_regions(by_control[control.name], page)
            if part is not None:
                value[control.name] = part
        return value

    @cached_property
    def _shapes(self) -> Mapping[str, Validator]:
        """By control, a validator of the shape of its part of a value."""
        return {control.name: Draft202012Validator(shape(control.schema())) for control in self.controls}


def compile_labelling(xml: str, overlay: Mapping[str, Any] | None = None) -> Labelling:
    """Compile a labelling config.

    Args:
        xml: The config as Label Studio holds it.
        overlay: A case's schema.json: JSON Schema that tightens the one made from the XML, or describes its
            fields; it cannot add or rename controls.
    Raises:
        SetupError: Not XML, an unsupported tag, a control without its object, an overlay that does
            not fit.
    """
    root = parse_tags(xml)
    sources = tuple(read_sources(root))
    controls = read_controls(root, sources)
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
    schemas = Schemas.of(controls, {} if overlay is None else overlay)
    if overlay:
        human = schemas.human
        check_satisfiable(
            schemas.validating, schemas.decoding, read_overlay(overlay).without_required(human), human
        )
    return Labelling(
        controls=controls,
        sources=sources,
        schemas=schemas,
        config_hash=hash_config(xml),
        shows_status=shows_status(root),
        prompts=read_prompts(root),
        consoles=read_consoles(root),
        program=_program(controls, schemas.validating),
    )


def _program(controls: tuple[Control, ...], validating: Schema) -> Program | None:
    fields = validating["properties"].items()
    programs = [(name, part["x-run"]) for name, part in fields if "x-run" in part]
    if not programs:
        return None
    name, language = programs[0]
    control = next(control for control in controls if control.name == name)
    if len(programs) > 1 or not isinstance(control, TextArea) or control.is_many or language not in LANGUAGES:
        raise SetupError(
            f"schema.json: x-run of '{name}' is {language!r}, of {len(programs)}.",
            hint=f'Write it once, at a <TextArea maxSubmissions="1">, as one of {", ".join(LANGUAGES)}.',
        )
    return Program(name, language)
