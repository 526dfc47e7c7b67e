"""Codecs of the controls that pick among options: Choices, Taxonomy, Pairwise, Ranker.

Knows how Label Studio stores picked options, and paths through nested options. The law that they obey and
the shapes of their values are those of `controls`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar
from xml.etree.ElementTree import Element

from draftloop.errors import InvalidValue, SetupError
from draftloop.labelling.attributes import Attributes, to_number, variables
from draftloop.labelling.conditions import Condition
from draftloop.labelling.controls import (
    MAX_PICKED,
    Control,
    Json,
    Page,
    Placed,
    Region,
    Schema,
)
from draftloop.labelling.options import Option
from draftloop.labelling.regions import collect, only_one, shortened, single, text_of
from draftloop.labelling.sources import Task, TaskSource

SEPARATOR = " > "  # joins the steps of a path through nested options
_REST = "_"  # the page's key for ids that are in no bucket


class Choices(Control):
    """`<Choices>`: an option, or an array of options where choice="multiple".

    With allowNested="true" an option is a path to a leaf, written `Parent > Child`. Label Studio also
    stores each parent whose leaves are all picked; that is redundant, so values do not contain it.
    """

    tag = "Choices"
    option_tag = "Choice"
    nothing: ClassVar[Mapping[str, Any]] = {"choices": []}

    @property
    def nested(self) -> bool:
        """Whether options are paths."""
        return self.attributes.flag("allowNested")

    def read_option(self, attributes: Attributes, children: tuple[Option, ...]) -> Option:
        """Read one option: results contain its alias, or its text with task data filled in."""
        option = _option(self, attributes, children)
        if not variables(attributes.value):
            return option
        return replace(option, name=attributes.get("alias", ""), template=attributes.value)

    def read_task_options(self, listed: Iterable[Any]) -> Iterator[Option]:
        """Yield options from a list of task data, whose text may contain task data itself."""
        listed = list(listed)
        named = [entry for entry in listed if isinstance(entry, Mapping)]
        for option, entry in zip(super().read_task_options(listed), named, strict=True):
            has_data = option.name == entry.get("value") and bool(variables(option.name))
            yield replace(option, name="", template=option.name) if has_data else option

    def option_names(self, options: Iterable[Option]) -> Iterator[str]:
        """Yield the options, or the paths to the leaves.

        Raises:
            SetupError: Choices are nested, which the page does not show.
        """
        if self.nested:
            yield from _paths(options, self, leaves_only=True)
            return
        for option in options:
            if option.children:
                raise SetupError(
                    f"Control '{self.name}' (Choices) has nested choices without allowNested.",
                    hint='Set allowNested="true", or use a <Taxonomy>.',
                )
            yield option.name

    @property
    def is_many(self) -> bool:
        """Whether several choices may be picked."""
        return (
            self.attributes.one_of("choice", ("single", "single-radio", "multiple"), "single") == "multiple"
        )

    def schema(self) -> Schema:
        """Return the schema of an option, or of an array of options."""
        if not self.is_many:
            return self.option_schema()
        return self.array_schema(self.option_schema(), len(self.options.names) or MAX_PICKED)

    def picked(self, value: Json) -> Sequence[str]:
        """Return the picked choices; of paths the last step."""
        return [path.rsplit(SEPARATOR, 1)[-1] for path in (value if isinstance(value, list) else [value])]

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region with the picked choices."""
        picked: list[Json] = list(value) if self.is_many else [value]
        if self.nested:
            picked = self._with_parents(picked)
        return Placed([self.region({"choices": picked})] if picked else [])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Collect the picked choices, in the order in which the config lists them."""
        picked = [_joined(self.name, part) for part in collect(self.name, regions, "choices")]
        if self.nested:
            parents = {parent for option in self.options.names for parent in _parents(option)}
            picked = [path for path in picked if path not in parents]
        ordered = self.options.in_order(picked, self.name, "choice")
        return ordered if self.is_many else only_one(self.name, ordered)

    def _with_parents(self, picked: list[str]) -> list[Json]:
        incomplete = {
            parent for path in self.options.names if path not in picked for parent in _parents(path)
        }
        paths: dict[str, None] = {}  # a set that keeps the order
        for path in picked:
            paths.update(dict.fromkeys(parent for parent in _parents(path) if parent not in incomplete))
            paths[path] = None
        return [path.split(SEPARATOR) for path in paths]


class Taxonomy(Control):
    """`<Taxonomy>`: an array of paths through the tree, each written `Parent > Child`."""

    tag = "Taxonomy"
    option_tag = "Choice"
    nothing: ClassVar[Mapping[str, Any]] = {"taxonomy": []}
    many = True

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> Control:
        """Read the tree of options.

        Raises:
            SetupError: The page loads it from a server.
        """
        attributes = Attributes.of(element)
        if attributes.get("apiUrl"):
            raise SetupError(
                f"Control '{attributes.get('name')}' (Taxonomy) loads its tree from outside (apiUrl).",
                hint='Write the tree as nested <Choice> tags, or take it from the task: value="$key".',
            )
        if attributes.flag("labeling"):
            raise attributes.refusal(
                "labeling", "Label spans with <Labels>, and ask for the tree on each of them: perRegion."
            )
        return super().from_element(element, conditions)

    def option_names(self, options: Iterable[Option]) -> Iterator[str]:
        """Yield every path through the tree, in reading order."""
        return _paths(options, self, leaves_only=self.attributes.flag("leafsOnly"))

    def read_option(self, attributes: Attributes, children: tuple[Option, ...]) -> Option:
        """Read one step of the tree; the page shows its text as it is written."""
        return _option(self, attributes, children)

    def schema(self) -> Schema:
        """Return the schema of an array of paths."""
        most = len(self.options.names) or MAX_PICKED
        if self.attributes.get("maxUsages"):
            limit = to_number(self.attributes["maxUsages"])  # where it is no number the page sets no limit
            if limit < 1:
                raise self.attributes.refusal(
                    "maxUsages", "It allows nothing to be picked; write a number from 1."
                )
            most = int(limit) if limit < most else most
        return self.array_schema(self.option_schema(), most)

    def picked(self, value: Json) -> Sequence[str]:
        """Return the last step of each path."""
        return [path.rsplit(SEPARATOR, 1)[-1] for path in value]

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region with all paths."""
        paths = [path.split(SEPARATOR) for path in value]
        return Placed([self.region({"taxonomy": paths})] if paths else [])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Collect the paths, in the order of the tree."""
        paths = chain.from_iterable(self._paths(region) for region in regions)
        return self.options.in_order(paths, self.name, "path")

    def _paths(self, region: Region) -> list[str]:
        """Read the paths of a region. A list of texts is one path, or several of one step each."""
        parts = collect(self.name, [region], "taxonomy")
        steps = [_joined(self.name, part) for part in parts]
        whole = SEPARATOR.join(steps)
        if (
            any(isinstance(part, list) for part in parts)
            or len(steps) == 1
            or whole not in self.options.names
        ):
            return steps
        if set(steps) <= set(self.options.names):
            raise InvalidValue(
                f"Control '{self.name}': {shortened(parts)} may be one path or {len(parts)}.",
                hint="Write a list of paths: [[...], [...]].",
            )
        return [whole]


class Pairwise(Control):
    """`<Pairwise>`: which of two objects is better, `left` or `right`."""

    tag = "Pairwise"

    def bind_objects(self, objects: Mapping[str, TaskSource]) -> Control:
        """Check that it compares two objects."""
        if len(set(self.to_names)) != 2 or len(self.to_names) != 2:
            raise SetupError(
                f"Control '{self.name}' (Pairwise) has toName=\"{self.to_name}\".",
                hint="Name two different object tags, separated by a comma.",
            )
        return super().bind_objects(objects)

    def schema(self) -> Schema:
        """Return the schema of a side, which describes both by the names of their objects."""
        left, right = self.to_names
        words = f"left is {left}, right is {right}"
        return {"type": "string", "enum": ["left", "right"], "description": words}

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region."""
        return Placed([self.region({"selected": value})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the side; `none` counts as no value."""
        parts = (text_of(self.name, part) for part in single(self.name, regions, "selected"))
        sides = [side for side in parts if side not in ("none", "")]
        if not set(sides) <= {"left", "right"}:
            raise InvalidValue(f"Control '{self.name}' knows left and right, not {shortened(sides[0])}.")
        return only_one(self.name, sides)


@dataclass(frozen=True)
class Ranker(Control):
    """`<Ranker>` of a List: all its ids, best first; with `<Bucket>`s, an array of ids for each of them.

    Without a default bucket, ids that are in no bucket stay in the list. With one, each id is in a bucket.
    """

    tag = "Ranker"
    buckets: tuple[str, ...] = ()
    default: str = ""

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> Control:
        """Read the buckets."""
        control = super().from_element(element, conditions)
        tags = [Attributes.of(child) for child in element if child.tag == "Bucket"]
        buckets = [bucket for bucket in tags if bucket.get("name")]
        default = next((bucket["name"] for bucket in buckets if bucket.flag("default")), "")
        names = tuple(bucket["name"] for bucket in buckets)
        # The page always submits an order; an annotator cannot leave it open.
        return replace(control, required=not conditions, buckets=names, default=default)  # type: ignore[call-arg]

    def bind_objects(self, objects: Mapping[str, TaskSource]) -> Control:
        """Return the control with the key of the List that it ranks.

        Raises:
            SetupError: It ranks something other than a List.
        """
        source = objects.get(self.to_name)
        if source is None or source.tag != "List" or not source.key:
            raise SetupError(
                f"Control '{self.name}' (Ranker) has toName=\"{self.to_name}\", which is no <List>.",
                hint='Point toName at a <List value="$key"/>.',
            )
        return replace(self, options=replace(self.options, variable=source.key))

    def read_task_options(self, listed: Iterable[Any]) -> Iterator[Option]:
        """Yield the ids of the list."""
        for entry in listed:
            yield Option(str(entry["id"]) if isinstance(entry, Mapping) and "id" in entry else "")

    def describe_options(self, task: Task) -> str:
        """Return an empty text: the model reads the list itself."""
        return ""

    def schema(self) -> Schema:
        """Return the schema of an array of ids, or of one array for each bucket."""
        count = len(self.options.names)
        if not self.buckets:
            ranked = self.array_schema(self.option_schema(), count or MAX_PICKED)
            return ranked | {"minItems": count or 1}
        picked = {**self.array_schema(self.option_schema(), count or MAX_PICKED), "minItems": 0}
        return {
            "type": "object",
            "properties": dict.fromkeys(self.buckets, picked),
            "required": list(self.buckets),
            "additionalProperties": False,
        }

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region, unless an id is missing or repeated."""
        columns: dict[str, list[str]] = dict(value) if self.buckets else {self.name: list(value)}
        ids = [name for column in columns.values() for name in column]
        repeated = next((name for name in ids if ids.count(name) > 1), None)
        if repeated is not None:
            return Placed([], [f"Control '{self.name}': {repeated!r} is ranked twice."])
        missing = [name for name in self.options.names if name not in ids]
        if missing and (self.default or not self.buckets):
            return Placed([], [f"Control '{self.name}': {missing[0]!r} is not ranked."])
        return Placed([self.region({"ranker": columns})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the order; ids that stay in the list are not part of the value."""
        # A Ranker without buckets may store a plain list.
        rankings = [region["value"].get("ranker") for region in regions]
        lists = [part for part in rankings if isinstance(part, list)]
        if lists and not self.buckets:
            ranking: Json = only_one(self.name, [{self.name: part} for part in lists if part])
        else:
            ranking = only_one(self.name, single(self.name, regions, "ranker"))
        if ranking is None:
            return None
        names = self.buckets or (self.name,)
        if not isinstance(ranking, dict) or ranking.keys() - {*names, _REST}:
            raise InvalidValue(f"Control '{self.name}' ranks {', '.join(names)}, not {shortened(ranking)}.")
        columns = {name: self._ids(ranking.get(name)) for name in names}
        self._ids(ranking.get(_REST))
        return columns if self.buckets else columns[self.name]

    def _ids(self, column: Json) -> list[str]:
        if not isinstance(column, list | None):
            raise InvalidValue(f"Control '{self.name}': {shortened(column)} is not a list of items.")
        ids = [text_of(self.name, part) for part in column or ()]
        self.options.in_order(ids, self.name, "item")
        return ids


def _joined(name: str, path: Json) -> str:
    """Return a path through nested options, or a single option, as values write it."""
    return SEPARATOR.join(text_of(name, step) for step in (path if isinstance(path, list) else [path]))


def _paths(
    options: Iterable[Option], control: Control, *, leaves_only: bool, parent: str = ""
) -> Iterator[str]:
    for option in options:
        if SEPARATOR in option.name:
            raise SetupError(
                f"Control '{control.name}' ({control.tag}): {option.name!r} contains the separator ' > '.",
                hint="Rename the choice.",
            )
        path = f"{parent}{SEPARATOR}{option.name}" if parent else option.name
        if not (leaves_only and option.children):
            yield path
        yield from _paths(option.children, control, leaves_only=leaves_only, parent=path)


def _option(control: Control, attributes: Attributes, children: tuple[Option, ...]) -> Option:
    if attributes.get("alias") == "":  # the page accepts it and stores nothing
        raise attributes.refusal("alias", f"Name the choice of '{control.name}', or leave the alias out.")
    return Option(attributes.get("alias") or attributes.value, attributes.get("hint", ""), children)


def _parents(path: str) -> Iterator[str]:
    steps = path.split(SEPARATOR)
    return (SEPARATOR.join(steps[:depth]) for depth in range(1, len(steps)))
