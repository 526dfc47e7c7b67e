"""Codecs of the controls that hold texts, numbers and dates: TextArea, Rating, Number, DateTime.

Knows how Label Studio stores them. The law that they obey is that of `controls`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from draftloop.labelling.attributes import leading_integer, leading_number, to_number
from draftloop.labelling.controls import (
    MAX_NUMBER,
    MAX_SAFE,
    MAX_STARS,
    MAX_SUBMISSIONS,
    MAX_TEXT,
    MAX_TEXTS,
    Control,
    Json,
    Page,
    Placed,
    Region,
    Schema,
)
from draftloop.labelling.regions import collect, number_of, only_one, single, text_of


class TextArea(Control):
    """`<TextArea>`: a text where maxSubmissions="1", else an array of texts.

    Label Studio's editor may add a newline at the end of a corrected text, so trailing newlines are dropped
    when regions are read.
    """

    tag = "TextArea"
    nothing: ClassVar[Mapping[str, Any]] = {"text": []}

    @property
    def is_many(self) -> bool:
        """Whether the annotator may submit several texts."""
        return self.max_texts != 1

    @property
    def max_texts(self) -> int:
        """The largest number of texts that may be submitted; `MAX_TEXTS` where the config sets no limit.

        Raises:
            SetupError: The page accepts no text.
        """
        limit_text = self.attributes.get("maxSubmissions")
        if not limit_text:
            return MAX_TEXTS
        limit = leading_integer(limit_text)
        if limit is None or limit < 1:  # the page shows no input box
            raise self.attributes.refusal(
                "maxSubmissions", "Label Studio takes no text then; write a number from 1, or leave it out."
            )
        return min(limit, MAX_SUBMISSIONS)

    def schema(self) -> Schema:
        """Return the schema of a non-empty bounded string, or of an array of them."""
        text: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
        if not self.is_many:
            return text
        limit = self.max_texts
        # The page accepts the same text twice, as two submissions: no uniqueItems.
        return {key: part for key, part in self.array_schema(text, limit).items() if key != "uniqueItems"}

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region with all texts."""
        texts = list(value) if self.is_many else [value]
        return Placed([self.region({"text": texts})] if texts else [])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Collect the texts; empty ones count as nothing."""
        # The page stores `text`; some tools write the name of the tag.
        parts = collect(self.name, regions, "textarea", "text")
        texts = [text_of(self.name, part).rstrip("\n") for part in parts]
        texts = [text for text in texts if text]
        return texts if self.is_many else only_one(self.name, texts)


class Rating(Control):
    """`<Rating>`: a whole number of stars, from 1."""

    tag = "Rating"
    nothing: ClassVar[Mapping[str, Any]] = {"rating": 0}

    @property
    def is_sdk_readable(self) -> bool:
        """Whether the SDK's import validator reads the tag as the page does; it rejects "10.0"."""
        return super().is_sdk_readable and self.attributes.get("maxRating", "5").isdecimal()

    def schema(self) -> Schema:
        """Return the schema of an integer from 1 to maxRating (by default 5)."""
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
        return only_one(self.name, [stars for stars in numbers if stars])


class Number(Control):
    """`<Number>`: an integer where `step` is whole, else a number."""

    tag = "Number"
    nothing: ClassVar[Mapping[str, Any]] = {}  # the page accepts no null here

    def schema(self) -> Schema:
        """Return the schema of a number between min and max."""
        least, most = self._bound("min", none=-math.inf), self._bound("max", none=math.inf)
        if least == -math.inf:
            least = -MAX_NUMBER if most >= -MAX_NUMBER else most - MAX_NUMBER
        if most == math.inf:
            most = MAX_NUMBER if least <= MAX_NUMBER else least + MAX_NUMBER
        if least > most:
            raise self.attributes.refusal("max", f"It is below the minimum, {least}.")
        # The page counts steps from the minimum, and accepts any number where `step` is not one, as in "any".
        step = leading_number(self.attributes.get("step", ""))
        base = least if "min" in self.attributes else 0
        whole = bool(step) and step.is_integer() and float(base).is_integer()
        return {"type": "integer" if whole else "number", "minimum": least, "maximum": most}

    def _bound(self, name: str, *, none: float) -> int | float:
        """Read a bound; `none` stands for a missing one."""
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
        return only_one(
            self.name, [number_of(self.name, part) for part in single(self.name, regions, "number")]
        )


class DateTime(Control):
    """`<DateTime>`: an ISO 8601 string, as exact as the control's `only` asks for."""

    tag = "DateTime"
    nothing: ClassVar[Mapping[str, Any]] = {"datetime": ""}
    # Ranges in the pattern stop a constrained model from writing month 19; the validating keyword `format`
    # rejects 31 February afterwards.
    _DATE: ClassVar[str] = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    _TIME: ClassVar[str] = "([01][0-9]|2[0-3]):[0-5][0-9]"

    def schema(self) -> Schema:
        """Return the schema of a string with an anchored pattern: date, time, or date and time."""
        # only="year" is not supported: the page accepts no number there and does not show a string.
        only = self.attributes.get("only", "")
        parts = {part.strip() for part in only.split(",")} - {""}
        if self.attributes.get("format") and only != "time":
            raise self.attributes.refusal("format", "Leave it out: dates are read and written in ISO 8601.")
        if only == "time":
            return {"type": "string", "pattern": f"^{self._TIME}$", "maxLength": 5}
        if parts in ({"date"}, {"date", "month"}):
            return {"type": "string", "pattern": f"^{self._DATE}$", "format": "date", "maxLength": 10}
        if parts and parts != {"date", "time"}:
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
        return only_one(self.name, [moment for moment in moments if moment])
