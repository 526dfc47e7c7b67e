"""Codecs of spans, of the controls that are filled in for each span, and of relations between spans.

A span is a quote `{text, nth, label}`: `nth` counts earlier occurrences of the same text, from 0. The passage
computes offsets; models are never asked for them. A control with perRegion="true" is one more key of each
quote, named after the control. A relation names two quotes by their indices in the arrays of quotes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar
from xml.etree.ElementTree import Element

from draftloop.errors import InvalidValue, SetupError
from draftloop.labelling.attributes import Attributes, variables
from draftloop.labelling.conditions import Condition
from draftloop.labelling.controls import (
    MAX_QUOTE,
    Control,
    Json,
    Page,
    Placed,
    Region,
    Schema,
)
from draftloop.labelling.options import Option, OptionSet
from draftloop.labelling.passages import occurrences
from draftloop.labelling.regions import collect, shortened, text_of
from draftloop.labelling.sources import Task, TaskSource

MAX_QUOTES = 100
MAX_NTH = 99
MAX_RELATIONS = 100


@dataclass(frozen=True)
class Labels(Control):
    """`<Labels>`: quotes of a Text or HyperText, in reading order.

    per_region_controls   the controls that are filled in for each of them
    """

    tag = "Labels"
    option_tag = "Label"
    many = True
    objects: ClassVar[tuple[str, ...]] = ("Text", "HyperText")
    per_region_controls: tuple[Control, ...] = ()

    @property
    def several_labels(self) -> bool:
        """Whether a span may have several labels."""
        return self.attributes.one_of("choice", ("single", "multiple"), "single") == "multiple"

    def read_option(self, attributes: Attributes, children: tuple[Option, ...]) -> Option:
        """Read one label; its text in the page may contain task data.

        Raises:
            SetupError: Results would contain the name of a variable.
        """
        if not variables(attributes.value):
            return super().read_option(attributes, children)
        if not attributes.get("alias"):
            raise attributes.refusal(
                "value",
                'Results would contain this very text: give it an alias, or write <Labels> value="$key".',
            )
        return Option(attributes["alias"], "", children, attributes.value)

    def bind_objects(self, objects: Mapping[str, TaskSource]) -> Control:
        """Check that it labels one text that spans can be quoted from.

        Raises:
            SetupError: It does not.
        """
        super().bind_objects(objects)
        if len(self.to_names) > 1:
            raise self.attributes.refusal(
                "toName", f"Spans belong to one object; write a <{self.tag}> for each."
            )
        labelled = objects[self.to_name].tag
        if labelled not in self.objects:
            raise SetupError(
                f"Control '{self.name}' ({self.tag}) labels a {labelled}.",
                hint=f"It labels spans of {' or '.join(f'<{tag}>' for tag in self.objects)}.",
            )
        return self

    def with_per_region(self, controls: Sequence[Control]) -> "Labels":
        """Return the control with controls that are filled in for each span.

        Raises:
            SetupError: One has the name of a key of quotes.
        """
        for control in controls:
            if control.name in ("text", "nth", "label", "labels"):
                raise SetupError(
                    f"Control '{control.name}' ({control.tag}) is perRegion, and quotes already have a key "
                    "of that name.",
                    hint="Give it another name.",
                )
        return replace(self, per_region_controls=tuple(controls))

    @property
    def is_dynamic(self) -> bool:
        """Whether the task brings options of this control or of a per-region one."""
        return super().is_dynamic or any(control.is_dynamic for control in self.per_region_controls)

    def for_task(self, task: Task) -> Control:
        """Return the control with the task's options, those of its per-region controls included."""
        control = super().for_task(task) if self.options.needs_task else self
        per_region = tuple(control.for_task(task) for control in self.per_region_controls)
        return replace(control, per_region_controls=per_region)  # type: ignore[call-arg]

    def schema(self) -> Schema:
        """Return the schema of an array of quotes."""
        label: Schema = self.option_schema()
        key = "label"
        if self.several_labels:
            key = "labels"
            label = {
                "type": "array",
                "items": label,
                "minItems": 1,
                "maxItems": len(self.options.names) or MAX_QUOTES,
                "uniqueItems": True,
            }
        quote: Schema = {
            "type": "object",
            "properties": {
                "text": {"type": "string", "minLength": 1, "maxLength": MAX_QUOTE},
                "nth": {"type": "integer", "minimum": 0, "maximum": MAX_NTH},
                key: label,
                **{control.name: control.schema() for control in self.per_region_controls},
            },
            "required": [
                *("text", "nth", key),
                *(
                    control.name
                    for control in self.per_region_controls
                    if control.required or control.is_many
                ),
            ],
            "additionalProperties": False,
        }
        return self.array_schema(quote, MAX_QUOTES)

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Convert quotes in reading order to regions.

        Returns:
            One region for each quote that occurs in the text, followed by those of its per-region controls,
            with the same id; one problem for each quote that does not occur.
        """
        passage = page.passages[self.to_name]
        placed = Placed([])
        starts_of: dict[str, list[int]] = {}
        for index, quote in enumerate(value):
            text, nth = quote["text"], int(quote["nth"])  # 1.0 is an integer in JSON Schema
            starts = starts_of.setdefault(text, occurrences(passage.text, text) if text else [])
            position = None
            if 0 <= nth < len(starts):
                position = passage.place(starts[nth], starts[nth] + len(text))
            if position is None:
                placed.problems.append(
                    f"Control '{self.name}': quote {text!r} #{nth} is not in the text "
                    f"(found {len(starts)}, counted from 0)."
                )
                page.quotes.append(None)
                continue
            labels = list(quote["labels"]) if self.several_labels else [quote["label"]]
            region = self.region({**position, self.tag.lower(): labels}, index)
            placed.regions.append(region)
            page.quotes.append(region["id"])
            for control in self.per_region_controls:
                made = self._per_region(control, quote, labels, page)
                placed.problems.extend(made.problems)
                placed.regions.extend(
                    each | {"id": region["id"], "value": {**position, **each["value"]}}
                    for each in made.regions
                )
        return placed

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Convert regions to quotes in reading order.

        Raises:
            InvalidValue: Offsets are outside the text, or a label is missing or not in the config.
        """
        passage = page.passages[self.to_name]
        spans: list[tuple[int, int, list[str], Json]] = []
        for region in regions:
            try:
                start, end = passage.find(region["value"])
            except InvalidValue as error:
                raise InvalidValue(f"Control '{self.name}': {error.message}") from error
            given = [text_of(self.name, part) for part in collect(self.name, [region], self.tag.lower())]
            labels = [name for name in self.options.names if name in given]
            if not labels or set(labels) != set(given):
                raise InvalidValue(f"Control '{self.name}': labels {shortened(given)} are not in the config.")
            if not self.several_labels and len(labels) > 1:
                raise InvalidValue(f"Control '{self.name}': a span holds one label, not {labels!r}.")
            spans.append((start, end, labels, region.get("id")))
        per_region = {
            control.name: _by_id(page.regions.get(control.name, ())) for control in self.per_region_controls
        }
        quotes = []
        for start, end, labels, span_id in sorted(spans, key=lambda span: span[:3]):
            text = passage.text[start:end]
            quote = {"text": text, "nth": occurrences(passage.text, text).index(start)}
            quote |= {"labels": labels} if self.several_labels else {"label": labels[0]}
            for control in self.per_region_controls:
                part = control.from_regions(per_region[control.name].get(span_id, []), page)
                if part is not None:
                    quote[control.name] = part
            quotes.append(quote)
            page.quotes.append(span_id)
        return quotes

    def _per_region(
        self, control: Control, quote: Mapping[str, Json], labels: Sequence[str], page: Page
    ) -> Placed:
        part = quote.get(control.name)
        picked = {
            other.name: other.picked(quote[other.name])
            for other in self.per_region_controls
            if quote.get(other.name)
        }
        shown = all(
            condition.allows(self.name, labels) and condition.holds({**page.picked, **picked})
            for condition in control.conditions
        )
        where = f"for {', '.join(labels)} {quote['text']!r}"
        if part is None or part == []:
            if shown and control.attributes.flag("required"):
                return Placed([], [f"Control '{control.name}' must be filled in {where}."])
            return Placed([])
        if not shown:
            return Placed([], [f"Control '{control.name}' is not shown {where}, so it holds nothing."])
        return control.to_regions(part, page)


class HyperTextLabels(Labels):
    """`<HyperTextLabels>`: quotes of a HyperText or Text."""

    tag = "HyperTextLabels"
    objects = ("HyperText", "Text")


class ParagraphLabels(Labels):
    """`<ParagraphLabels>`: quotes of a Paragraphs; a quote may span several utterances."""

    tag = "ParagraphLabels"
    objects = ("Paragraphs",)


class Relations(Control):
    """`<Relations>`: arrows between quotes, `{from, to, direction, labels}`.

    `from` and `to` index the quotes of all span controls, in the order of the value, from 0. An arrow to the
    left is read as one to the right with its ends exchanged.
    """

    tag = "Relations"
    option_tag = "Relation"
    many = True
    NAME: ClassVar[str] = "relations"

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> Control:
        """Read the labels of arrows, if any. The tag has no name of its own."""
        labels = [Attributes.of(child).value for child in element.iter("Relation")]
        options = OptionSet(tuple(dict.fromkeys(filter(None, labels))))
        return cls(cls.NAME, "", required=False, attributes=Attributes.of(element), options=options)

    def bind_objects(self, objects: Mapping[str, TaskSource]) -> Control:
        """Return the control as it is: relations connect regions."""
        return self

    def schema(self) -> Schema:
        """Return the schema of an array of arrows."""
        end = {"type": "integer", "minimum": 0, "maximum": MAX_QUOTES - 1}
        one = self.attributes.one_of("choice", ("single", "multiple"), "multiple") == "single"
        properties: Schema = {
            "from": {**end, "description": "which quote, counted from 0"},
            "to": end,
            "direction": {"type": "string", "enum": ["right", "bi"]},
        }
        if self.options.names:
            properties["labels"] = {
                "type": "array",
                "items": self.option_schema(),
                "minItems": 0,
                "maxItems": 1 if one else len(self.options.names),
                "uniqueItems": True,
            }
        arrow: Schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return self.array_schema(arrow, MAX_RELATIONS)

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one relation for each arrow whose quotes occur in the text."""
        placed = Placed([])
        for arrow in value:
            ends = [
                page.quotes[int(arrow[end])] if 0 <= arrow[end] < len(page.quotes) else None
                for end in ("from", "to")
            ]
            if None in ends or ends[0] == ends[1]:
                placed.problems.append(
                    f"A relation goes from quote {arrow['from']} to quote {arrow['to']}: these are not two "
                    f"quotes of the text (there are {len(page.quotes)}, counted from 0)."
                )
                continue
            relation = {
                "type": "relation",
                "from_id": ends[0],
                "to_id": ends[1],
                "direction": arrow["direction"],
            }
            placed.regions.append(
                relation | ({"labels": list(arrow["labels"])} if self.options.names else {})
            )
        return placed

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read arrows, sorted by the quotes that they start at.

        Raises:
            InvalidValue: An end is no span of this value, or a label is not in the config.
        """
        index: dict[Json, int] = {
            span_id: at for at, span_id in enumerate(page.quotes) if span_id is not None
        }
        arrows = []
        for region in regions:
            ends = [index.get(region.get(end)) for end in ("from_id", "to_id")]
            if None in ends:
                raise InvalidValue("A relation goes to a region that is no span of the annotation.")
            direction = region.get("direction") or "right"
            if not isinstance(direction, str):
                raise InvalidValue(f"A relation has the direction {shortened(direction)}.")
            if direction == "left":
                direction, ends = "right", ends[::-1]
            arrow: dict[str, Json] = {"from": ends[0], "to": ends[1], "direction": direction}
            given = region.get("labels") or []
            given = given if isinstance(given, list) else [given]
            names = [text_of(self.name, part) for part in given]
            labels = self.options.in_order(names, self.name, "relation")
            arrows.append(arrow | ({"labels": labels} if self.options.names else {}))
        return sorted(arrows, key=lambda arrow: (arrow["from"], arrow["to"], json.dumps(arrow)))


def _by_id(regions: Sequence[Region]) -> dict[Json, list[Region]]:
    by_id: dict[Json, list[Region]] = {}
    for region in regions:
        if region.get("id") is not None:
            by_id.setdefault(region["id"], []).append(region)
    return by_id
