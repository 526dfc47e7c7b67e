"""One codec per control tag: what a model or a human says about it, as JSON, to regions and back.

Knows the shape of every control's value and of Label Studio's regions. Does not know prompts, rules or
where a value comes from. The law of this file, for every value that its own schema accepts and that is
in reading order: `from_regions(to_regions(value)) == value`.

A control that may hold several things has an array as its value, and nothing is the empty array. A
control that holds one thing has that thing, and nothing is the missing key (`null` when serialized).

Source:
    label-studio-sdk 2.1.2 `control_tags` for the region values; offsets measured on Label Studio 1.23.2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from xml.etree.ElementTree import Element  # the type only; parsing is defusedxml's, in `labelling`

from backend.errors import InvalidValue, SetupError

Json = Any  # what `json.loads` returns
Schema = dict[str, Any]
Region = dict[str, Any]

# Bounds of what a case does not bound itself. An unbounded string or array lets a constrained model run
# on to its token limit, so every one has a bound; these are generous for text that humans label.
MAX_TEXT = 2000
MAX_TEXTS = 20
MAX_QUOTE = 200
MAX_QUOTES = 100
MAX_NTH = 99
MAX_NUMBER = 1_000_000_000


@dataclass(frozen=True)
class Placed:
    """Regions made from a value, and a sentence for each part of it that has no place in the task."""

    regions: list[Region]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Control:
    """A control tag of a labelling config: the schema of its value and the way to regions and back."""

    tag: ClassVar[str]
    many: ClassVar[bool] = False
    name: str
    to_name: str
    required: bool
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: tuple[str, ...] = ()

    @classmethod
    def from_element(cls, element: Element) -> "Control":
        """Read the control from its XML element.

        Raises:
            SetupError: The tag uses something that this codec does not cover.
        """
        attributes = dict(element.attrib)
        name = attributes.get("name", "")
        for attribute in ("perRegion", "perItem"):
            if attributes.get(attribute) == "true":
                raise SetupError(
                    f"Control '{name}' ({element.tag}): {attribute}=\"true\" is not supported.",
                    hint=f"Remove {attribute} or make it a control of the whole task.",
                )
        return cls(
            name=name,
            to_name=attributes.get("toName", ""),
            # A control that may be hidden cannot be demanded.
            required=attributes.get("required") == "true" and "visibleWhen" not in attributes,
            attributes=attributes,
            options=cls.read_options(element),
        )

    @classmethod
    def read_options(cls, element: Element) -> tuple[str, ...]:
        """Read the labels or choices that the tag offers, in order; none by default."""
        return ()

    @property
    def is_many(self) -> bool:
        """Tell whether the value is an array (nothing = empty) rather than one thing (nothing = missing)."""
        return self.many

    def schema(self) -> Schema:
        """Give the JSON Schema of a present value, bounded so that constrained decoding ends."""
        raise NotImplementedError

    def to_regions(self, value: Json, source: str) -> Placed:
        """Turn a value that satisfies `schema` into regions.

        Args:
            value: The control's value.
            source: Plain text of the object that the control labels; spans are placed in it.
        """
        raise NotImplementedError

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Turn this control's regions back into a value; None when there is nothing.

        Raises:
            InvalidValue: A region does not fit the control.
        """
        raise NotImplementedError

    def region(self, value: dict[str, Json], index: int = 0) -> Region:
        """Wrap a region value; the id is the same for the same control and index on every run."""
        return {
            "id": f"{self.name}-{index}",
            "from_name": self.name,
            "to_name": self.to_name,
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

    def only_one(self, found: Sequence[Json]) -> Json | None:
        """Return the one thing found, None for nothing.

        Raises:
            InvalidValue: More than one was found.
        """
        if len(found) > 1:
            raise InvalidValue(f"Control '{self.name}' holds one value, found {len(found)}.")
        return found[0] if found else None


class Choices(Control):
    """`<Choices>`: an option, or an array of options where choice="multiple"."""

    tag = "Choices"

    @classmethod
    def read_options(cls, element: Element) -> tuple[str, ...]:
        """Read the flat list of choices.

        Raises:
            SetupError: The choices are nested, come from task data, or are missing.
        """
        name = element.get("name", "")
        if element.get("value", "").startswith("$"):
            raise SetupError(
                f"Control '{name}' (Choices) takes its choices from task data, which is not supported.",
                hint="List them as <Choice> tags.",
            )
        choices = [child for child in element.iter() if child.tag == "Choice"]
        if any(grandchild.tag == "Choice" for choice in choices for grandchild in choice):
            raise SetupError(
                f"Control '{name}' (Choices) has nested choices, which are not supported.",
                hint="Use a <Taxonomy> for a tree of choices.",
            )
        return _names(choices, f"Control '{name}' (Choices)")

    @property
    def is_many(self) -> bool:
        """Tell whether several choices may be picked."""
        return self.attributes.get("choice", "single") == "multiple"

    def schema(self) -> Schema:
        """Give an enum, or an array of it."""
        option: Schema = {"type": "string", "enum": list(self.options)}
        return self.array(option, len(self.options)) if self.is_many else option

    def to_regions(self, value: Json, source: str) -> Placed:
        """Make one region with the picked choices."""
        picked = list(value) if self.is_many else [value]
        return Placed([self.region({"choices": picked})] if picked else [])

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Collect the picked choices, in the order in which the config lists them."""
        picked = _collect(regions, "choices")
        unknown = sorted(set(picked) - set(self.options))
        if unknown:
            raise InvalidValue(f"Control '{self.name}' has no choice {unknown[0]!r}.")
        ordered = [option for option in self.options if option in picked]
        return ordered if self.is_many else self.only_one(ordered)


class TextArea(Control):
    """`<TextArea>`: a text where maxSubmissions="1", else an array of texts.

    A text never ends in a newline: Label Studio's editor may add one on a correction, so trailing
    newlines are dropped when regions are read, for drafts and humans alike.
    """

    tag = "TextArea"

    @property
    def is_many(self) -> bool:
        """Tell whether the annotator may submit several texts."""
        return self.attributes.get("maxSubmissions") != "1"

    def schema(self) -> Schema:
        """Give a non-empty bounded string, or an array of them."""
        text: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
        if not self.is_many:
            return text
        limit = int(self.attributes.get("maxSubmissions", "0") or 0)
        # The same text twice is two submissions: legal in the page, so no uniqueItems here.
        return {
            key: part for key, part in self.array(text, limit or MAX_TEXTS).items() if key != "uniqueItems"
        }

    def to_regions(self, value: Json, source: str) -> Placed:
        """Make one region that holds all texts."""
        texts = list(value) if self.is_many else [value]
        return Placed([self.region({"text": texts})] if texts else [])

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Collect the texts; empty ones count as nothing."""
        texts = [text.rstrip("\n") for text in _collect(regions, "text")]
        texts = [text for text in texts if text]
        return texts if self.is_many else self.only_one(texts)


class Labels(Control):
    """`<Labels>` on a Text: spans as quotes `{text, nth, label}`; offsets are computed, never asked for."""

    tag = "Labels"
    many = True

    @classmethod
    def read_options(cls, element: Element) -> tuple[str, ...]:
        """Read the labels."""
        labels = [child for child in element.iter() if child.tag == "Label"]
        return _names(labels, f"Control '{element.get('name')}' (Labels)")

    @property
    def several_labels(self) -> bool:
        """Tell whether one span may carry several labels."""
        return self.attributes.get("choice") == "multiple"

    def schema(self) -> Schema:
        """Give an array of quotes; `nth` counts earlier occurrences of the same text, from 0."""
        label: Schema = {"type": "string", "enum": list(self.options)}
        key = "label"
        if self.several_labels:
            key = "labels"
            label = {
                "type": "array",
                "items": label,
                "minItems": 1,
                "maxItems": len(self.options),
                "uniqueItems": True,
            }
        quote: Schema = {
            "type": "object",
            "properties": {
                "text": {"type": "string", "minLength": 1, "maxLength": MAX_QUOTE},
                "nth": {"type": "integer", "minimum": 0, "maximum": MAX_NTH},
                key: label,
            },
            "required": ["text", "nth", key],
            "additionalProperties": False,
        }
        return self.array(quote, MAX_QUOTES)

    def to_regions(self, value: Json, source: str) -> Placed:
        """Turn quoted spans into regions.

        Args:
            value: Quotes in reading order.
            source: Text in which the quotes stand.
        Returns:
            One region per quote that stands in the text; `start`, `end` half-open, code points. A
            problem for each other quote.
        """
        placed = Placed([])
        for index, quote in enumerate(value):
            starts = _occurrences(source, quote["text"])
            if quote["nth"] >= len(starts):
                placed.problems.append(
                    f"Control '{self.name}': quote {quote['text']!r} #{quote['nth']} is not in the text "
                    f"(found {len(starts)}, counted from 0)."
                )
                continue
            start = starts[quote["nth"]]
            labels = list(quote["labels"]) if self.several_labels else [quote["label"]]
            placed.regions.append(
                self.region(
                    {
                        "start": start,
                        "end": start + len(quote["text"]),
                        "text": quote["text"],
                        "labels": labels,
                    },
                    index,
                )
            )
        return placed

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Turn regions into quotes in reading order.

        Raises:
            InvalidValue: Offsets outside the text, no label, or one that the config does not have.
        """
        spans = []
        for region in regions:
            value = region.get("value", {})
            start, end = value.get("start"), value.get("end")
            whole = isinstance(start, int) and isinstance(end, int)
            if not whole or not 0 <= start < end <= len(source):
                raise InvalidValue(
                    f"Control '{self.name}': span {start}..{end} is outside its {len(source)} characters."
                )
            labels = [option for option in self.options if option in value.get("labels", [])]
            if not labels or len(labels) != len(value["labels"]):
                raise InvalidValue(
                    f"Control '{self.name}': labels {value.get('labels')!r} are not in the config."
                )
            if not self.several_labels and len(labels) > 1:
                raise InvalidValue(f"Control '{self.name}': a span holds one label, found {labels!r}.")
            spans.append((start, end, labels))
        quotes = []
        for start, end, labels in sorted(spans):
            text = source[start:end]
            quote = {"text": text, "nth": _occurrences(source, text).index(start)}
            quotes.append(quote | ({"labels": labels} if self.several_labels else {"label": labels[0]}))
        return quotes


class Rating(Control):
    """`<Rating>`: a whole number of stars, from 1."""

    tag = "Rating"

    def schema(self) -> Schema:
        """Give an integer from 1 to maxRating (5 if the config does not say)."""
        return {"type": "integer", "minimum": 1, "maximum": int(self.attributes.get("maxRating", "5"))}

    def to_regions(self, value: Json, source: str) -> Placed:
        """Make one region."""
        return Placed([self.region({"rating": value})])

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Read the stars; 0 stars is nothing."""
        return self.only_one([stars for stars in _single(regions, "rating") if stars])


class Number(Control):
    """`<Number>`: an integer where `step` is whole, else a number."""

    tag = "Number"

    def schema(self) -> Schema:
        """Give a bounded number; the bounds come from min and max."""
        step = float(self.attributes.get("step", "0") or 0)
        schema: Schema = {
            "type": "integer" if step and step.is_integer() else "number",
            "minimum": _number(self.attributes.get("min"), -MAX_NUMBER),
            "maximum": _number(self.attributes.get("max"), MAX_NUMBER),
        }
        return schema

    def to_regions(self, value: Json, source: str) -> Placed:
        """Make one region."""
        return Placed([self.region({"number": value})])

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Read the number."""
        return self.only_one(_single(regions, "number"))


class DateTime(Control):
    """`<DateTime>`: an ISO 8601 string, as exact as the control's `only` asks for."""

    tag = "DateTime"
    # Ranges in the pattern keep a constrained model from writing month 19; the validating `format` keyword
    # then refuses 31 February.
    _DATE: ClassVar[str] = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    _TIME: ClassVar[str] = "([01][0-9]|2[0-3]):[0-5][0-9]"

    def schema(self) -> Schema:
        """Give a string with an anchored pattern: date, time, or date and time."""
        # only="year" is left out: the page takes no number there and does not show a string.
        only = {part.strip() for part in self.attributes.get("only", "").split(",")} - {""}
        if only == {"date"}:
            return {"type": "string", "pattern": f"^{self._DATE}$", "format": "date", "maxLength": 10}
        if only == {"time"}:
            return {"type": "string", "pattern": f"^{self._TIME}$", "maxLength": 5}
        if only:
            raise SetupError(
                f"Control '{self.name}' (DateTime): only=\"{self.attributes['only']}\" is not supported.",
                hint='Use only="date" or only="time", or leave it out for date and time.',
            )
        return {"type": "string", "pattern": f"^{self._DATE}T{self._TIME}$", "maxLength": 16}

    def to_regions(self, value: Json, source: str) -> Placed:
        """Make one region."""
        return Placed([self.region({"datetime": value})])

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Read the date or time."""
        return self.only_one([moment for moment in _single(regions, "datetime") if moment])


class Taxonomy(Control):
    """`<Taxonomy>`: an array of paths through the tree, each written `Parent > Child`."""

    tag = "Taxonomy"
    many = True
    SEPARATOR: ClassVar[str] = " > "

    @classmethod
    def read_options(cls, element: Element) -> tuple[str, ...]:
        """Read every path through the tree, in reading order.

        Raises:
            SetupError: The tree comes from outside, is empty, or a name holds the separator.
        """
        name = element.get("name", "")
        if element.get("apiUrl") or element.get("value", "").startswith("$"):
            raise SetupError(
                f"Control '{name}' (Taxonomy) loads its tree from outside, which is not supported.",
                hint="Write the tree as nested <Choice> tags.",
            )
        leaves_only = element.get("leafsOnly") == "true"

        def walk(parent: Element, above: str) -> Iterable[str]:
            for child in parent:
                if child.tag != "Choice":
                    continue
                own = _name(child)
                if cls.SEPARATOR in own:
                    raise SetupError(
                        f"Control '{name}' (Taxonomy): {own!r} holds {cls.SEPARATOR!r}, the separator.",
                        hint="Rename the choice.",
                    )
                path = f"{above}{cls.SEPARATOR}{own}" if above else own
                below = list(walk(child, path))
                if not (leaves_only and below):
                    yield path
                yield from below

        paths = tuple(walk(element, ""))
        if not paths:
            raise SetupError(f"Control '{name}' (Taxonomy) has no choices.", hint="Add <Choice> tags.")
        return paths

    def schema(self) -> Schema:
        """Give an array of known paths."""
        limit = int(self.attributes.get("maxUsages", "0") or 0) or len(self.options)
        return self.array({"type": "string", "enum": list(self.options)}, limit)

    def to_regions(self, value: Json, source: str) -> Placed:
        """Make one region with all paths."""
        paths = [path.split(self.SEPARATOR) for path in value]
        return Placed([self.region({"taxonomy": paths})] if paths else [])

    def from_regions(self, regions: Sequence[Region], source: str) -> Json | None:
        """Collect the paths, in the order of the tree."""
        picked = [self.SEPARATOR.join(path) for path in _collect(regions, "taxonomy")]
        unknown = sorted(set(picked) - set(self.options))
        if unknown:
            raise InvalidValue(f"Control '{self.name}' has no path {unknown[0]!r}.")
        return [option for option in self.options if option in picked]


def _name(option: Element) -> str:
    return option.get("alias") or option.get("value") or ""


def _names(elements: Iterable[Element], where: str) -> tuple[str, ...]:
    names = tuple(_name(element) for element in elements)
    if not names or not all(names):
        raise SetupError(f"{where} has no options, or one without a value.", hint="Give each a value.")
    if len(set(names)) != len(names):
        raise SetupError(f"{where} offers the same option twice.", hint="Remove the double one.")
    return names


def _collect(regions: Sequence[Region], key: str) -> list[Json]:
    found: list[Json] = []
    for region in regions:
        value = region.get("value", {}).get(key, [])
        found.extend(value if isinstance(value, list) else [value])
    return found


def _single(regions: Sequence[Region], key: str) -> list[Json]:
    return [region["value"][key] for region in regions if region.get("value", {}).get(key) is not None]


def _occurrences(text: str, quote: str) -> list[int]:
    """List where a quote starts, overlapping occurrences included ("aa" stands in "aaa" twice)."""
    starts = []
    at = text.find(quote)
    while at >= 0:
        starts.append(at)
        at = text.find(quote, at + 1)
    return starts


def _number(text: str | None, default: int) -> int | float:
    if text is None or not text.strip():
        return default
    number = float(text)
    return int(number) if number.is_integer() else number


CONTROLS: tuple[type[Control], ...] = (Choices, TextArea, Labels, Rating, Number, DateTime, Taxonomy)
