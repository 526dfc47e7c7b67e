"""What every codec of a control tag has in common: its value as JSON, to regions and back.

The codecs of single tags are in `form_fields`, `choices` and `spans`. Every codec obeys one law, for each
value that its schema accepts and that is in reading order: `from_regions(to_regions(value)) == value`.
Does not know prompts, rules or where a value comes from.

The value of a control that may hold several things is an array, empty where it holds nothing. The value of
a control that holds one thing is that thing; its key is missing (`null` when serialized) where it holds
nothing.

Source:
    label-studio-sdk 2.1.2 `control_tags` for the region values; the rest measured on Label Studio 1.23.2.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from xml.etree.ElementTree import Element  # the type only; parsing is defusedxml's, in `labelling`

from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.attributes import Attributes, whole_variable
from draftloop.labelling.conditions import Condition
from draftloop.labelling.options import Option, OptionSet, describe
from draftloop.labelling.passages import Passage, plain_text
from draftloop.labelling.regions import Json as Json  # noqa: PLC0414  the other codecs import it from here
from draftloop.labelling.regions import Region as Region  # noqa: PLC0414
from draftloop.labelling.regions import place_of, shortened
from draftloop.labelling.sources import Task, TaskSource, entries

Schema = dict[str, Any]

# Bounds where a case states none. A constrained model may fill an unbounded string or array up to its token
# limit, so each has a bound; these are generous for text that humans label.
MAX_TEXT = 2000
MAX_TEXTS = 20
MAX_SUBMISSIONS = 1000
MAX_QUOTE = 200
MAX_NUMBER = 1_000_000_000
MAX_SAFE = 2**53 - 1  # larger integers are not exact in JavaScript
MAX_STARS = 1000
MAX_PICKED = 50  # where a task brings the options


@dataclass(frozen=True)
class Placed:
    """Regions made from a value, and a message for each part of it that does not fit the task."""

    regions: list[Region]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What a control reads of the rest of the page while its value is converted.

    passages    by name of object tag: the texts that spans are quoted from
    picked      by name of control: the options that the value picks
    regions     by name of control: the regions that are read
    quotes      the region id of each quote of all span controls, in order; None for one without a position
    """

    passages: Mapping[str, Passage] = field(default_factory=dict)
    picked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    regions: Mapping[str, Sequence[Region]] = field(default_factory=dict)
    quotes: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Control:
    """A control tag of a labelling config: the schema of its value, and its codec.

    option_tag   the tag of its options; empty for a control without options
    many         whether its value is an array
    nothing      the region value that empties the control in an open page; None where the page cannot do it
    """

    tag: ClassVar[str]
    option_tag = ""
    many = False
    nothing: ClassVar[Mapping[str, Any] | None] = None
    name: str
    to_name: str
    required: bool
    attributes: Attributes = field(default_factory=Attributes, repr=False)
    options: OptionSet = field(default_factory=OptionSet)
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> "Control":
        """Read the control from its XML element.

        Args:
            element: The tag.
            conditions: When the page shows it: its own conditions and those of the tags around it.
        Raises:
            SetupError: The tag has an attribute that this codec does not support.
        """
        attributes = Attributes.of(element)
        variable = whole_variable(attributes.value) if cls.option_tag else ""
        if cls.option_tag and "$" in attributes.value and not variable:
            raise attributes.refusal(
                "value",
                'Options come from one key of task data: value="$key", in ASCII letters, digits and _.',
            )
        if attributes.flag("perRegion") and attributes.flag("perItem"):
            raise attributes.refusal(
                "perItem", "Label Studio opens no config with perRegion and perItem at once."
            )
        control = cls(
            name=attributes.get("name", ""),
            to_name=attributes.get("toName", ""),
            # A control that may be hidden cannot be required.
            required=attributes.flag("required") and not conditions,
            attributes=attributes,
            options=OptionSet(
                variable=variable,
                is_sdk_readable=all(
                    Attributes.of(tag).is_sdk_readable
                    for tag in element.iter()
                    if tag.tag in (cls.tag, cls.option_tag)
                ),
            ),
            conditions=conditions,
        )
        if not cls.option_tag:
            return control
        options = tuple(control.read_options(element))
        if any(option.has_data for option in options):
            return replace(control, options=replace(control.options, templates=options))
        return control.with_options(options)

    def read_options(self, element: Element) -> Iterator[Option]:
        """Read the options of the config, also those inside a View.

        Raises:
            SetupError: Results would contain another text than the page shows.
        """
        for child in element:
            if child.tag != self.option_tag:
                yield from self.read_options(child)
                continue
            attributes = Attributes.of(child)
            yield self.read_option(attributes, tuple(self.read_options(child)))

    def read_option(self, attributes: Attributes, children: tuple[Option, ...]) -> Option:
        """Read one option.

        Raises:
            SetupError: Results would contain another text than the page shows.
        """
        return Option(attributes.get("alias") or attributes.value, attributes.get("hint", ""), children)

    def with_options(self, added: tuple[Option, ...]) -> "Control":
        """Return the control with options added to its own.

        Raises:
            SetupError: There are none, or one without a value.
        """
        names = tuple(self.option_names(added))
        if not (names or self.options.variable) or not all(names):
            raise SetupError(
                f"Control '{self.name}' ({self.tag}) has no options, or one without a value.",
                hint=f"Add <{self.option_tag}> tags, each with a value.",
            )
        # One of Label Studio's own templates lists an option twice; results do not distinguish them.
        names = tuple(dict.fromkeys((*self.options.names, *names)))
        return replace(self, options=replace(self.options, names=names))

    def option_names(self, options: Iterable[Option]) -> Iterator[str]:
        """Yield the options as values name them."""
        return (option.name for option in options)

    def bind_objects(self, objects: Mapping[str, TaskSource]) -> "Control":
        """Check the object tags that it labels, and return the control with what it takes from them.

        Raises:
            SetupError: It cannot label one of them.
        """
        for name in self.to_names:
            if name not in objects:
                raise SetupError(
                    f"Control '{self.name}' ({self.tag}) has toName=\"{self.to_name}\", "
                    "which is no object tag of the config.",
                    hint="Point toName at the name of an object tag, without spaces.",
                )
        return self

    @property
    def to_names(self) -> list[str]:
        """The names of the object tags that it labels."""
        return self.to_name.split(",")

    def for_task(self, task: Task) -> "Control":
        """Return the control with the options that the task brings; itself where it brings none.

        Raises:
            TaskError: The task lacks them.
        """
        if not self.is_dynamic:
            return self
        options = tuple(self.options.of_task(task, self.read_task_options))
        try:
            if not options:
                raise SetupError("No options.")
            control = self.with_options(options)
            return replace(control, options=replace(control.options, is_resolved=True))
        except SetupError as error:
            raise TaskError(
                f"Task {task.id} gives control '{self.name}' no options, or one without words.",
                hint=f'${self.options.variable} is a list of {{"value": ...}}.'
                if self.options.variable
                else "Import the task with all keys that its options show.",
            ) from error

    def read_task_options(self, listed: Iterable[Any]) -> Iterator[Option]:
        """Yield options from a list of task data."""
        for entry in listed:
            if isinstance(entry, Mapping):
                hint = str(entry.get("html") or entry.get("hint") or "")
                children = entry.get("children")
                yield Option(
                    str(entry.get("alias") or entry.get("value") or ""),
                    plain_text(hint) if "<" in hint else hint,
                    tuple(self.read_task_options(children if isinstance(children, list) else ())),
                )

    def describe_options(self, task: Task) -> str:
        """Describe the options that the task brings, one a line, for a model to read.

        Raises:
            TaskError: The task lacks them.
        """
        return describe(self.options.of_task(task, self.read_task_options))

    @property
    def is_sdk_readable(self) -> bool:
        """Whether the SDK's import validator reads the tag as the page does."""
        return self.options.is_sdk_readable and not self.options.templates

    @property
    def is_dynamic(self) -> bool:
        """Whether the task brings options that have not been read yet."""
        return self.options.needs_task and not self.options.is_resolved

    @property
    def is_many(self) -> bool:
        """Whether the value is an array."""
        return self.many

    def schema(self) -> Schema:
        """Return the JSON Schema of a present value, bounded so that constrained decoding ends."""
        raise NotImplementedError

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Convert a value that satisfies `schema` to regions."""
        raise NotImplementedError

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Convert this control's regions to a value; None where they hold nothing.

        Raises:
            InvalidValue: A region does not fit the control.
        """
        raise NotImplementedError

    def picked(self, value: Json) -> Sequence[str]:
        """Return the options that a value picks, for conditions on this control."""
        return ()

    def region(self, value: dict[str, Json], index: int = 0) -> Region:
        """Wrap a region value; the id depends on the control and the index alone."""
        return {
            "id": f"{self.name}-{index}",
            "from_name": self.name,
            "to_name": self.to_names[0],
            "type": self.tag.lower(),
            "value": value,
        }

    def array_schema(self, items: Schema, max_items: int) -> Schema:
        """Return the schema of an array value; a required control holds at least one item."""
        return {
            "type": "array",
            "items": items,
            "minItems": 1 if self.required else 0,
            "maxItems": max_items,
            "uniqueItems": True,
        }

    def option_schema(self) -> Schema:
        """Return the schema of one option: any short text while the task's options are not read."""
        if self.is_dynamic:
            return {"type": "string", "minLength": 1, "maxLength": MAX_QUOTE}
        return {"type": "string", "enum": list(self.options.names)}


@dataclass(frozen=True)
class PerItem(Control):
    """A control with perItem="true": one value for each image of the list that the object shows, in order."""

    tag = "PerItem"
    many = True
    item_control: Control = field(kw_only=True)
    count: int = 0

    def bind_objects(self, objects: Mapping[str, TaskSource]) -> Control:
        """Return the control with the key of the list that the object shows.

        Raises:
            SetupError: The object shows no list.
        """
        source = objects.get(self.to_name)
        if source is None or not source.is_list:
            raise SetupError(
                f"Control '{self.name}' ({self.item_control.tag}) is perItem, but '{self.to_name}' shows "
                "one thing.",
                hint='perItem is for <Image valueList="$key"/>.',
            )
        options = replace(self.options, variable=source.key)
        return replace(self, item_control=self.item_control.bind_objects(objects), options=options)

    def for_task(self, task: Task) -> Control:
        """Return the control with the number of images in the task's list."""
        return replace(
            self,
            item_control=self.item_control.for_task(task),
            count=len(entries(task, self.options.variable)),
            options=replace(self.options, is_resolved=True),
        )

    @property
    def is_sdk_readable(self) -> bool:
        """Whether the SDK's import validator reads the tag as the page does."""
        return self.item_control.is_sdk_readable

    def describe_options(self, task: Task) -> str:
        """Describe the options of the control that is repeated."""
        return self.item_control.describe_options(task) if self.item_control.options.needs_task else ""

    def schema(self) -> Schema:
        """Return the schema of an array with one value for each image; a missing single value is null."""
        item = self.item_control.schema()
        if not self.item_control.is_many:
            item = {"anyOf": [item, {"type": "null"}]}
        return {
            "type": "array",
            "items": item,
            "minItems": self.count,
            "maxItems": self.count if self.options.is_resolved else MAX_PICKED,
        }

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make the regions of each image; `item_index` is its index."""
        placed = Placed([])
        for index, part in enumerate(value[: self.count]):
            one = self.item_control.to_regions(part, page) if part is not None else Placed([])
            placed.problems.extend(one.problems)
            placed.regions.extend(
                region | {"id": f"{self.name}-{index}", "item_index": index} for region in one.regions
            )
        return placed

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the value of each image."""
        by_index: dict[int, list[Region]] = {}
        for region in regions:
            index = place_of(region.get("item_index") or 0)
            if index is None:
                raise InvalidValue(
                    f"Control '{self.name}': item_index {shortened(region['item_index'])} counts no thing."
                )
            by_index.setdefault(index, []).append(region)
        if by_index and max(by_index) >= self.count:
            raise InvalidValue(
                f"Control '{self.name}' is about {self.count} things, not {max(by_index) + 1}."
            )
        return [self.item_control.from_regions(by_index.get(index, []), page) for index in range(self.count)]
