"""One codec per control tag: what a model or a human says about it, as JSON, to regions and back.

Knows the shape of every control's value and of Label Studio's regions, for controls of a whole task;
spans and what hangs on them are in `spans`. Does not know prompts, rules or where a value comes from.
The law of both files, for every value that its own schema accepts and that is in reading order:
`from_regions(to_regions(value)) == value`.

A control that may hold several things has an array as its value, and nothing is the empty array. A
control that holds one thing has that thing, and nothing is the missing key (`null` when serialized).

Source:
    label-studio-sdk 2.1.2 `control_tags` for the region values; the rest measured on Label Studio 1.23.2.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from xml.etree.ElementTree import Element  # the type only; parsing is defusedxml's, in `labelling`

from draftloop.errors import InvalidValue, SetupError, TaskError
from draftloop.labelling.attributes import (
    Attributes,
    fill_in,
    leading_integer,
    leading_number,
    to_number,
    whole_variable,
)
from draftloop.labelling.conditions import Condition
from draftloop.labelling.regions import Json as Json  # noqa: PLC0414  where the other codecs look for it
from draftloop.labelling.regions import Region as Region  # noqa: PLC0414
from draftloop.labelling.regions import collect, number_of, place_of, shortened, single, text_of
from draftloop.labelling.sources import Passage, Source, Task, entries, plain

Schema = dict[str, Any]

# Bounds of what a case does not bound itself. An unbounded string or array lets a constrained model run
# on to its token limit, so every one has a bound; these are generous for text that humans label.
MAX_TEXT = 2000
MAX_TEXTS = 20
MAX_SUBMISSIONS = 1000
MAX_QUOTE = 200
MAX_NUMBER = 1_000_000_000
MAX_SAFE = 2**53 - 1  # the whole numbers that JavaScript can tell apart
MAX_STARS = 1000
MAX_PICKED = 50  # of options that only a task knows


@dataclass(frozen=True)
class Placed:
    """Regions made from a value, and a sentence for each part of it that has no place in the task."""

    regions: list[Region]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What a control needs to know of the rest of the page while its value becomes regions or comes back.

    passages    by name of object tag, of those that spans are quoted from
    picked      by name of control, the options that are picked in the value at hand
    regions     by name of control, when regions are read
    quotes      the quotes of all span controls in order: id of the region, None where it has no place
    """

    passages: Mapping[str, Passage] = field(default_factory=dict)
    picked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    regions: Mapping[str, Sequence[Region]] = field(default_factory=dict)
    quotes: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Option:
    """Something to pick: the name that results carry, what the page shows for it, what is below it.

    `value` holds words in which task data is filled in; they are the name, too, where it is empty.
    """

    name: str
    words: str = ""
    children: tuple["Option", ...] = ()
    value: str = ""

    @property
    def has_data(self) -> bool:
        """Whether task data is filled in here or below."""
        return bool(self.value) or any(child.has_data for child in self.children)

    def filled_in(self, task: Task) -> "Option":
        """Return the option as the page shows it for a task."""
        shown = fill_in(self.value, task.data) if self.value else ""
        children = tuple(child.filled_in(task) for child in self.children)
        return Option(self.name or shown, shown if self.name and self.value else self.words, children)


@dataclass(frozen=True)
class Control:
    """A control tag of a labelling config: the schema of its value and the way to regions and back.

    `variable` is the key of task data that holds its options, `own` are those of the config in which task
    data stands; `bound` tells that they have been read. `is_usual` tells whether the SDK, judge of bulk
    imports, reads the tag as the page does.
    """

    tag: ClassVar[str]
    option_tag: ClassVar[str] = ""
    many: ClassVar[bool] = False
    nothing: ClassVar[Mapping[str, Any] | None] = None  # region value that empties it in an open page
    name: str
    to_name: str
    required: bool
    attributes: Attributes = field(default_factory=Attributes, repr=False)
    options: tuple[str, ...] = ()
    variable: str = ""
    own: tuple[Option, ...] = ()
    bound: bool = False
    is_usual: bool = True
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> "Control":
        """Read the control from its XML element.

        Args:
            element: The tag.
            conditions: When it is shown: its own and those of the tags around it.
        Raises:
            SetupError: The tag uses something that this codec does not cover.
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
            # A control that may be hidden cannot be demanded.
            required=attributes.flag("required") and not conditions,
            attributes=attributes,
            variable=variable,
            conditions=conditions,
            is_usual=all(
                Attributes.of(tag).is_usual for tag in element.iter() if tag.tag in (cls.tag, cls.option_tag)
            ),
        )
        if not cls.option_tag:
            return control
        found = tuple(control.read_options(element))
        if any(option.has_data for option in found):
            return replace(control, own=found, is_usual=False)
        return control.with_options(found)

    def read_options(self, element: Element) -> Iterator[Option]:
        """Read the options of the config; they may stand in a View.

        Raises:
            SetupError: The page shows another text than it stores.
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
            SetupError: Results would hold something else than the page shows.
        """
        return Option(attributes.get("alias") or attributes.value, attributes.get("hint", ""), children)

    def with_options(self, found: tuple[Option, ...]) -> "Control":
        """Take options beside those it has.

        Raises:
            SetupError: There are none, or one without a value.
        """
        names = tuple(self.flat(found))
        if not (names or self.variable) or not all(names):
            raise SetupError(
                f"Control '{self.name}' ({self.tag}) has no options, or one without a value.",
                hint=f"Add <{self.option_tag}> tags, each with a value.",
            )
        # One of Label Studio's own templates offers an option twice: in results they are the same.
        return replace(self, options=tuple(dict.fromkeys((*self.options, *names))))

    def flat(self, found: Iterable[Option]) -> Iterator[str]:
        """List the options as values name them."""
        return (option.name for option in found)

    def connected(self, objects: Mapping[str, Source]) -> "Control":
        """Check the object tags that it labels, and take from them what it needs.

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
        """The object tags that it names."""
        return self.to_name.split(",")

    def for_task(self, task: Task) -> "Control":
        """Give the control with the options that the task brings; itself where it brings none.

        Raises:
            TaskError: The task lacks them.
        """
        if not self.is_dynamic:
            return self
        found = (*self._own(task), *self._entries(task))
        try:
            if not found:
                raise SetupError("No options.")
            return replace(self.with_options(found), bound=True)
        except SetupError as error:
            raise TaskError(
                f"Task {task.id} gives control '{self.name}' no options, or one without words.",
                hint=f'${self.variable} is a list of {{"value": ...}}.'
                if self.variable
                else "Import the task with all keys that its options show.",
            ) from error

    def read_entries(self, found: Iterable[Any]) -> Iterator[Option]:
        """Read options from task data."""
        for entry in found:
            if isinstance(entry, Mapping):
                words = str(entry.get("html") or entry.get("hint") or "")
                children = entry.get("children")
                yield Option(
                    str(entry.get("alias") or entry.get("value") or ""),
                    plain(words) if "<" in words else words,
                    tuple(self.read_entries(children if isinstance(children, list) else ())),
                )

    def told(self, task: Task) -> str:
        """Describe the options that the task brings, one a line, for a model to read.

        Raises:
            TaskError: The task lacks them.
        """
        return "\n".join(_told((*self._own(task), *self._entries(task))))

    def _own(self, task: Task) -> Iterator[Option]:
        return (option.filled_in(task) for option in self.own)

    def _entries(self, task: Task) -> Iterator[Option]:
        found = self.read_entries(entries(task, self.variable)) if self.variable else ()
        return (option.filled_in(task) for option in found)

    @property
    def is_dynamic(self) -> bool:
        """Tell whether the task brings options that have not been read yet."""
        return bool(self.variable or self.own) and not self.bound

    @property
    def is_many(self) -> bool:
        """Tell whether the value is an array (nothing = empty) rather than one thing (nothing = missing)."""
        return self.many

    def schema(self) -> Schema:
        """Give the JSON Schema of a present value, bounded so that constrained decoding ends."""
        raise NotImplementedError

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Turn a value that satisfies `schema` into regions."""
        raise NotImplementedError

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Turn this control's regions back into a value; None when there is nothing.

        Raises:
            InvalidValue: A region does not fit the control.
        """
        raise NotImplementedError

    def picked(self, value: Json) -> Sequence[str]:
        """Name the options that a value picks, for conditions on this control."""
        return ()

    def region(self, value: dict[str, Json], index: int = 0) -> Region:
        """Wrap a region value; the id is the same for the same control and index on every run."""
        return {
            "id": f"{self.name}-{index}",
            "from_name": self.name,
            "to_name": self.to_names[0],
            "type": self.tag.lower(),
            "value": value,
        }

    def array(self, items: Schema, max_items: int) -> Schema:
        """Give the schema of an array value; `required` means at least one."""
        return {
            "type": "array",
            "items": items,
            "minItems": 1 if self.required else 0,
            "maxItems": max_items,
            "uniqueItems": True,
        }

    def option(self) -> Schema:
        """Give the schema of one option; any short text while only a task knows them."""
        if self.is_dynamic:
            return {"type": "string", "minLength": 1, "maxLength": MAX_QUOTE}
        return {"type": "string", "enum": list(self.options)}

    def known(self, names: Iterable[str], what: str) -> list[str]:
        """Order options as the config lists them.

        Raises:
            InvalidValue: One is not in the config.
        """
        found = set(names)
        unknown = sorted(found - set(self.options))
        if unknown:
            raise InvalidValue(f"Control '{self.name}' has no {what} {unknown[0]!r}.")
        return [option for option in self.options if option in found]

    def only_one(self, found: Sequence[Json]) -> Json | None:
        """Return the one thing found, None for nothing.

        Raises:
            InvalidValue: More than one was found.
        """
        if len(found) > 1:
            raise InvalidValue(f"Control '{self.name}' holds one value, found {len(found)}.")
        return found[0] if found else None


class TextArea(Control):
    """`<TextArea>`: a text where maxSubmissions="1", else an array of texts.

    A text never ends in a newline: Label Studio's editor may add one on a correction, so trailing
    newlines are dropped when regions are read, for drafts and humans alike.
    """

    tag = "TextArea"
    nothing: ClassVar[Mapping[str, Any]] = {"text": []}

    @property
    def is_many(self) -> bool:
        """Tell whether the annotator may submit several texts."""
        return self.max_texts != 1

    @property
    def max_texts(self) -> int:
        """How many texts the annotator may submit; `MAX_TEXTS` where the config sets no limit.

        Raises:
            SetupError: The page takes none.
        """
        words = self.attributes.get("maxSubmissions")
        if not words:
            return MAX_TEXTS
        limit = leading_integer(words)
        if limit is None or limit < 1:  # the page shows no box to write in
            raise self.attributes.refusal(
                "maxSubmissions", "Label Studio takes no text then; write a number from 1, or leave it out."
            )
        return min(limit, MAX_SUBMISSIONS)

    def schema(self) -> Schema:
        """Give a non-empty bounded string, or an array of them."""
        text: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
        if not self.is_many:
            return text
        limit = self.max_texts
        # The same text twice is two submissions: legal in the page, so no uniqueItems here.
        return {key: part for key, part in self.array(text, limit).items() if key != "uniqueItems"}

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region that holds all texts."""
        texts = list(value) if self.is_many else [value]
        return Placed([self.region({"text": texts})] if texts else [])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Collect the texts; empty ones count as nothing."""
        # The page stores `text`; some write what the tag is called.
        found = collect(self.name, regions, "textarea", "text")
        texts = [text_of(self.name, part).rstrip("\n") for part in found]
        texts = [text for text in texts if text]
        return texts if self.is_many else self.only_one(texts)


class Rating(Control):
    """`<Rating>`: a whole number of stars, from 1."""

    tag = "Rating"
    nothing: ClassVar[Mapping[str, Any]] = {"rating": 0}

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> Control:
        """Read the tag; the SDK takes no "10.0"."""
        control = super().from_element(element, conditions)
        is_plain = control.attributes.get("maxRating", "5").isdecimal()
        return replace(control, is_usual=control.is_usual and is_plain)

    def schema(self) -> Schema:
        """Give an integer from 1 to maxRating (5 if the config does not say)."""
        most = to_number(self.attributes.get("maxRating", "5"))
        if not (most.is_integer() and 1 <= most <= MAX_STARS):
            raise self.attributes.refusal("maxRating", f"Write a whole number from 1 to {MAX_STARS}.")
        return {"type": "integer", "minimum": 1, "maximum": int(most)}

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region."""
        return Placed([self.region({"rating": value})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the stars; 0 stars is nothing."""
        numbers = (number_of(self.name, stars) for stars in single(self.name, regions, "rating"))
        return self.only_one([stars for stars in numbers if stars])


class Number(Control):
    """`<Number>`: an integer where `step` is whole, else a number."""

    tag = "Number"
    nothing: ClassVar[Mapping[str, Any]] = {}  # the page takes no null here

    def schema(self) -> Schema:
        """Give a bounded number; the bounds come from min and max."""
        least, most = self._bound("min", none=-math.inf), self._bound("max", none=math.inf)
        if least == -math.inf:
            least = -MAX_NUMBER if most >= -MAX_NUMBER else most - MAX_NUMBER
        if most == math.inf:
            most = MAX_NUMBER if least <= MAX_NUMBER else least + MAX_NUMBER
        if least > most:
            raise self.attributes.refusal("max", f"It is below the minimum, {least}.")
        # The page counts steps from the minimum, and takes any number where `step` is none, as in "any".
        step = leading_number(self.attributes.get("step", ""))
        base = least if "min" in self.attributes else 0
        whole = bool(step) and step.is_integer() and float(base).is_integer()
        return {"type": "integer" if whole else "number", "minimum": least, "maximum": most}

    def _bound(self, name: str, *, none: float) -> int | float:
        """Read a bound; `none` says that there is none."""
        bound = to_number(self.attributes[name]) if name in self.attributes else none
        if bound == none:
            return none
        if not abs(bound) <= MAX_SAFE:
            raise self.attributes.refusal(
                name, f"Write a number like 1.5, at most {MAX_SAFE:,}, or leave it out."
            )
        return int(bound) if bound.is_integer() else bound

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region."""
        return Placed([self.region({"number": value})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the number."""
        return self.only_one([number_of(self.name, part) for part in single(self.name, regions, "number")])


class DateTime(Control):
    """`<DateTime>`: an ISO 8601 string, as exact as the control's `only` asks for."""

    tag = "DateTime"
    nothing: ClassVar[Mapping[str, Any]] = {"datetime": ""}
    # Ranges in the pattern keep a constrained model from writing month 19; the validating `format` keyword
    # then refuses 31 February.
    _DATE: ClassVar[str] = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    _TIME: ClassVar[str] = "([01][0-9]|2[0-3]):[0-5][0-9]"

    def schema(self) -> Schema:
        """Give a string with an anchored pattern: date, time, or date and time."""
        # only="year" is left out: the page takes no number there and does not show a string.
        words = self.attributes.get("only", "")
        only = {part.strip() for part in words.split(",")} - {""}
        if self.attributes.get("format") and words != "time":
            raise self.attributes.refusal("format", "Leave it out: dates are read and written in ISO 8601.")
        if words == "time":
            return {"type": "string", "pattern": f"^{self._TIME}$", "maxLength": 5}
        if only in ({"date"}, {"date", "month"}):
            return {"type": "string", "pattern": f"^{self._DATE}$", "format": "date", "maxLength": 10}
        if only and only != {"date", "time"}:
            raise self.attributes.refusal(
                "only", 'Write only="date" or only="time", or leave it out for date and time.'
            )
        return {"type": "string", "pattern": f"^{self._DATE}T{self._TIME}$", "maxLength": 16}

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region."""
        return Placed([self.region({"datetime": value})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the date or time."""
        moments = (text_of(self.name, part) for part in single(self.name, regions, "datetime"))
        return self.only_one([moment for moment in moments if moment])


@dataclass(frozen=True)
class PerItem(Control):
    """A control with perItem="true": its value for each thing that the object shows, in order."""

    tag = "PerItem"
    many = True
    inner: Control | None = None
    count: int = 0

    @property
    def one(self) -> Control:
        """The control for one of the things."""
        assert self.inner is not None  # noqa: S101  a default is needed only because the fields above have one
        return self.inner

    def connected(self, objects: Mapping[str, Source]) -> Control:
        """Take the number of things from the object.

        Raises:
            SetupError: The object shows a single thing.
        """
        source = objects.get(self.to_name)
        if source is None or not source.several:
            raise SetupError(
                f"Control '{self.name}' ({self.one.tag}) is perItem, but '{self.to_name}' shows one thing.",
                hint='perItem is for <Image valueList="$key"/>.',
            )
        return replace(self, inner=self.one.connected(objects), variable=source.key)

    def for_task(self, task: Task) -> Control:
        """Count the things."""
        count = len(entries(task, self.variable))
        return replace(self, inner=self.one.for_task(task), count=count, bound=True)

    def told(self, task: Task) -> str:
        """Describe the inner control's options."""
        return self.one.told(task) if self.one.variable or self.one.own else ""

    def schema(self) -> Schema:
        """Give an array with one place for each thing; a single value that is absent is null in it."""
        item = self.one.schema()
        if not self.one.is_many:
            item = {"anyOf": [item, {"type": "null"}]}
        return {
            "type": "array",
            "items": item,
            "minItems": self.count,
            "maxItems": self.count if self.bound else MAX_PICKED,
        }

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make the regions of each thing, told apart by `item_index`."""
        placed = Placed([])
        for index, part in enumerate(value[: self.count]):
            own = self.one.to_regions(part, page) if part is not None else Placed([])
            placed.problems.extend(own.problems)
            placed.regions.extend(
                region | {"id": f"{self.name}-{index}", "item_index": index} for region in own.regions
            )
        return placed

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the value of each thing."""
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
        return [self.one.from_regions(by_index.get(index, []), page) for index in range(self.count)]


def _told(found: Iterable[Option], above: str = "") -> Iterator[str]:
    for option in found:
        path = f"{above} > {option.name}" if above else option.name
        yield f"- {path}: {option.words}" if option.words else f"- {path}"
        yield from _told(option.children, path)
