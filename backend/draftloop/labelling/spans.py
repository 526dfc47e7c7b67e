"""Codecs of spans, of the controls that hang on them, and of relations between them.

Spans are quotes `{text, nth, label}`: `nth` counts earlier occurrences of the same text, from 0. Offsets
are computed by the passage, never asked for. A control with perRegion="true" is one more key of each
quote, named like the control. A relation names two quotes by their places in the arrays of quotes.
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
    Option,
    Page,
    Placed,
    Region,
    Schema,
)
from draftloop.labelling.regions import collect, shortened, text_of
from draftloop.labelling.sources import Source, Task, occurrences

MAX_QUOTES = 100
MAX_NTH = 99
MAX_RELATIONS = 100


@dataclass(frozen=True)
class Labels(Control):
    """`<Labels>`: quotes of a Text or HyperText, in reading order.

    `inner` are the controls that hang on each of them.
    """

    tag = "Labels"
    option_tag = "Label"
    many = True
    objects: ClassVar[tuple[str, ...]] = ("Text", "HyperText")
    inner: tuple[Control, ...] = ()

    @property
    def several_labels(self) -> bool:
        """Tell whether one span may carry several labels."""
        return self.attributes.one_of("choice", ("single", "multiple"), "single") == "multiple"

    def read_option(self, attributes: Attributes, children: tuple[Option, ...]) -> Option:
        """Read one label, whose words in the page may hold task data.

        Raises:
            SetupError: Results would hold the name of a variable.
        """
        if not variables(attributes.value):
            return super().read_option(attributes, children)
        if not attributes.get("alias"):
            raise attributes.refusal(
                "value", 'Results would hold these very words: give it an alias, or <Labels> value="$key".'
            )
        return Option(attributes["alias"], "", children, attributes.value)

    def connected(self, objects: Mapping[str, Source]) -> Control:
        """Check that it labels a text in which spans can be counted.

        Raises:
            SetupError: It does not.
        """
        super().connected(objects)
        if len(self.to_names) > 1:
            raise self.attributes.refusal(
                "toName", f"Spans are of one object; write a <{self.tag}> for each."
            )
        found = objects[self.to_name].tag
        if found not in self.objects:
            raise SetupError(
                f"Control '{self.name}' ({self.tag}) labels a {found}.",
                hint=f"It labels spans of {' or '.join(f'<{tag}>' for tag in self.objects)}.",
            )
        return self

    def holding(self, inner: Sequence[Control]) -> "Labels":
        """Hang controls on each span.

        Raises:
            SetupError: One has the name of a quote's own key.
        """
        for control in inner:
            if control.name in ("text", "nth", "label", "labels"):
                raise SetupError(
                    f"Control '{control.name}' ({control.tag}) hangs on spans, whose quotes have a key "
                    "of that name.",
                    hint="Give it another name.",
                )
        return replace(self, inner=tuple(inner))

    @property
    def is_dynamic(self) -> bool:
        """Tell whether the task brings options, of this control or of one that hangs on its spans."""
        return super().is_dynamic or any(control.is_dynamic for control in self.inner)

    def for_task(self, task: Task) -> Control:
        """Read the task's options, of the inner controls too."""
        control = super().for_task(task) if self.variable or self.own else self
        inner = tuple(control.for_task(task) for control in self.inner)
        return replace(control, inner=inner)  # type: ignore[call-arg]

    def schema(self) -> Schema:
        """Give an array of quotes."""
        label: Schema = self.option()
        key = "label"
        if self.several_labels:
            key = "labels"
            label = {
                "type": "array",
                "items": label,
                "minItems": 1,
                "maxItems": len(self.options) or MAX_QUOTES,
                "uniqueItems": True,
            }
        quote: Schema = {
            "type": "object",
            "properties": {
                "text": {"type": "string", "minLength": 1, "maxLength": MAX_QUOTE},
                "nth": {"type": "integer", "minimum": 0, "maximum": MAX_NTH},
                key: label,
                **{control.name: control.schema() for control in self.inner},
            },
            "required": [
                *("text", "nth", key),
                *(control.name for control in self.inner if control.required or control.is_many),
            ],
            "additionalProperties": False,
        }
        return self.array(quote, MAX_QUOTES)

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Turn quotes in reading order into regions.

        Returns:
            One region per quote that stands in the text, followed by those of what hangs on it, with the
            same id. A problem for each other quote.
        """
        passage = page.passages[self.to_name]
        placed = Placed([])
        found: dict[str, list[int]] = {}
        for index, quote in enumerate(value):
            text, nth = quote["text"], int(quote["nth"])  # 1.0 is an integer in JSON Schema
            starts = found.setdefault(text, occurrences(passage.text, text) if text else [])
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
            for control in self.inner:
                own = self._hung(control, quote, labels, page)
                placed.problems.extend(own.problems)
                placed.regions.extend(
                    hung | {"id": region["id"], "value": {**position, **hung["value"]}}
                    for hung in own.regions
                )
        return placed

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Turn regions into quotes in reading order.

        Raises:
            InvalidValue: Offsets outside the text, no label, or one that the config does not have.
        """
        passage = page.passages[self.to_name]
        spans: list[tuple[int, int, list[str], Json]] = []
        for region in regions:
            try:
                start, end = passage.find(region["value"])
            except InvalidValue as error:
                raise InvalidValue(f"Control '{self.name}': {error.message}") from error
            given = [text_of(self.name, part) for part in collect(self.name, [region], self.tag.lower())]
            labels = [option for option in self.options if option in given]
            if not labels or set(labels) != set(given):
                raise InvalidValue(f"Control '{self.name}': labels {shortened(given)} are not in the config.")
            if not self.several_labels and len(labels) > 1:
                raise InvalidValue(f"Control '{self.name}': a span holds one label, found {labels!r}.")
            spans.append((start, end, labels, region.get("id")))
        hung = {control.name: _by_id(page.regions.get(control.name, ())) for control in self.inner}
        quotes = []
        for start, end, labels, span_id in sorted(spans, key=lambda span: span[:3]):
            text = passage.text[start:end]
            quote = {"text": text, "nth": occurrences(passage.text, text).index(start)}
            quote |= {"labels": labels} if self.several_labels else {"label": labels[0]}
            for control in self.inner:
                part = control.from_regions(hung[control.name].get(span_id, []), page)
                if part is not None:
                    quote[control.name] = part
            quotes.append(quote)
            page.quotes.append(span_id)
        return quotes

    def _hung(self, control: Control, quote: Mapping[str, Json], labels: Sequence[str], page: Page) -> Placed:
        part = quote.get(control.name)
        own = {inner.name: inner.picked(quote[inner.name]) for inner in self.inner if quote.get(inner.name)}
        shown = all(
            condition.allows(self.name, labels) and condition.holds({**page.picked, **own})
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
    """`<ParagraphLabels>`: quotes of a Paragraphs; a quote may run over the end of an utterance."""

    tag = "ParagraphLabels"
    objects = ("Paragraphs",)


class Relations(Control):
    """`<Relations>`: arrows between quotes, `{from, to, direction, labels}`.

    `from` and `to` count the quotes of all span controls, in the order of the value, from 0. An arrow to
    the left is told as one to the right with its ends exchanged.
    """

    tag = "Relations"
    option_tag = "Relation"
    many = True
    NAME: ClassVar[str] = "relations"

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> Control:
        """Read the labels of arrows; there may be none. The tag has no name of its own."""
        labels = [Attributes.of(child).value for child in element.iter("Relation")]
        options = tuple(dict.fromkeys(filter(None, labels)))
        return cls(cls.NAME, "", required=False, attributes=Attributes.of(element), options=options)

    def connected(self, objects: Mapping[str, Source]) -> Control:
        """Take it as it is: relations are between regions."""
        return self

    def schema(self) -> Schema:
        """Give an array of arrows."""
        end = {"type": "integer", "minimum": 0, "maximum": MAX_QUOTES - 1}
        one = self.attributes.one_of("choice", ("single", "multiple"), "multiple") == "single"
        properties: Schema = {
            "from": {**end, "description": "which quote, counted from 0"},
            "to": end,
            "direction": {"type": "string", "enum": ["right", "bi"]},
        }
        if self.options:
            properties["labels"] = {
                "type": "array",
                "items": self.option(),
                "minItems": 0,
                "maxItems": 1 if one else len(self.options),
                "uniqueItems": True,
            }
        arrow: Schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return self.array(arrow, MAX_RELATIONS)

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one relation per arrow whose quotes have a place."""
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
            placed.regions.append(relation | ({"labels": list(arrow["labels"])} if self.options else {}))
        return placed

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read arrows in the order of the quotes that they begin at.

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
            labels = self.known([text_of(self.name, part) for part in given], "relation")
            arrows.append(arrow | ({"labels": labels} if self.options else {}))
        return sorted(arrows, key=lambda arrow: (arrow["from"], arrow["to"], json.dumps(arrow)))


def _by_id(regions: Sequence[Region]) -> dict[Json, list[Region]]:
    found: dict[Json, list[Region]] = {}
    for region in regions:
        if region.get("id") is not None:
            found.setdefault(region["id"], []).append(region)
    return found
