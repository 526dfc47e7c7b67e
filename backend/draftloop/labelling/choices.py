"""Codecs of the controls that pick among options: Choices, Taxonomy, Pairwise, Ranker.

Knows how Label Studio stores what is picked, and paths through nested options. The law and the shapes
of values are those of `controls`.
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
    Option,
    Page,
    Placed,
    Region,
    Schema,
)
from draftloop.labelling.regions import collect, shortened, single, text_of
from draftloop.labelling.sources import Source, Task

SEPARATOR = " > "  # between the steps of a path through nested options
_REST = "_"  # where the page keeps the ids that are in no bucket


class Choices(Control):
    """`<Choices>`: an option, or an array of options where choice="multiple".

    With allowNested="true" an option is a path to a leaf, written `Parent > Child`. Label Studio also
    stores each parent whose leaves are all picked; that says nothing more, so values leave it out.
    """

    tag = "Choices"
    option_tag = "Choice"
    nothing: ClassVar[Mapping[str, Any]] = {"choices": []}

    @property
    def nested(self) -> bool:
        """Tell whether options are paths."""
        return self.attributes.flag("allowNested")

    def read_option(self, attributes: Attributes, children: tuple[Option, ...]) -> Option:
        """Read one option: results hold its alias, or its words with task data filled in."""
        option = _option(self, attributes, children)
        if not variables(attributes.value):
            return option
        return replace(option, name=attributes.get("alias", ""), value=attributes.value)

    def read_entries(self, found: Iterable[Any]) -> Iterator[Option]:
        """Read options from task data, in which the page fills in task data, too."""
        found = list(found)
        named = [entry for entry in found if isinstance(entry, Mapping)]
        for option, entry in zip(super().read_entries(found), named, strict=True):
            has_data = option.name == entry.get("value") and bool(variables(option.name))
            yield replace(option, name="", value=option.name) if has_data else option

    def flat(self, found: Iterable[Option]) -> Iterator[str]:
        """List the options, or the paths to the leaves.

        Raises:
            SetupError: Choices are nested, which the page does not show.
        """
        if self.nested:
            yield from _paths(found, self, leaves_only=True)
            return
        for option in found:
            if option.children:
                raise SetupError(
                    f"Control '{self.name}' (Choices) has nested choices without allowNested.",
                    hint='Set allowNested="true", or use a <Taxonomy>.',
                )
            yield option.name

    @property
    def is_many(self) -> bool:
        """Tell whether several choices may be picked."""
        return (
            self.attributes.one_of("choice", ("single", "single-radio", "multiple"), "single") == "multiple"
        )

    def schema(self) -> Schema:
        """Give an enum, or an array of it."""
        return self.array(self.option(), len(self.options) or MAX_PICKED) if self.is_many else self.option()

    def picked(self, value: Json) -> Sequence[str]:
        """Name the picked choices, of paths the last step."""
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
            parents = {parent for option in self.options for parent in _above(option)}
            picked = [path for path in picked if path not in parents]
        ordered = self.known(picked, "choice")
        return ordered if self.is_many else self.only_one(ordered)

    def _with_parents(self, picked: list[str]) -> list[Json]:
        missing = {parent for option in self.options if option not in picked for parent in _above(option)}
        found: dict[str, None] = {}
        for path in picked:
            found.update(dict.fromkeys(parent for parent in _above(path) if parent not in missing))
            found[path] = None
        return [path.split(SEPARATOR) for path in found]


class Taxonomy(Control):
    """`<Taxonomy>`: an array of paths through the tree, each written `Parent > Child`."""

    tag = "Taxonomy"
    option_tag = "Choice"
    nothing: ClassVar[Mapping[str, Any]] = {"taxonomy": []}
    many = True

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> Control:
        """Read the tree.

        Raises:
            SetupError: It is loaded from a server.
        """
        attributes = Attributes.of(element)
        if attributes.get("apiUrl"):
            raise SetupError(
                f"Control '{attributes.get('name')}' (Taxonomy) loads its tree from outside (apiUrl).",
                hint='Write the tree as nested <Choice> tags, or take it from the task: value="$key".',
            )
        if attributes.flag("labeling"):
            raise attributes.refusal(
                "labeling", "Label spans with <Labels>, and hang the tree on them: perRegion."
            )
        return super().from_element(element, conditions)

    def flat(self, found: Iterable[Option]) -> Iterator[str]:
        """List every path through the tree, in reading order."""
        return _paths(found, self, leaves_only=self.attributes.flag("leafsOnly"))

    def read_option(self, attributes: Attributes, children: tuple[Option, ...]) -> Option:
        """Read one step of the tree, which the page shows as it is written."""
        return _option(self, attributes, children)

    def schema(self) -> Schema:
        """Give an array of known paths."""
        most = len(self.options) or MAX_PICKED
        if self.attributes.get("maxUsages"):
            limit = to_number(self.attributes["maxUsages"])  # the page sets no limit where it is no number
            if limit < 1:
                raise self.attributes.refusal(
                    "maxUsages", "Nothing may be picked then; write a number from 1."
                )
            most = int(limit) if limit < most else most
        return self.array(self.option(), most)

    def picked(self, value: Json) -> Sequence[str]:
        """Name the last step of each path."""
        return [path.rsplit(SEPARATOR, 1)[-1] for path in value]

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region with all paths."""
        paths = [path.split(SEPARATOR) for path in value]
        return Placed([self.region({"taxonomy": paths})] if paths else [])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Collect the paths, in the order of the tree."""
        return self.known(chain.from_iterable(self._paths(region) for region in regions), "path")

    def _paths(self, region: Region) -> list[str]:
        """Read the paths of a region. A list of texts is one path, or several of one step each."""
        found = collect(self.name, [region], "taxonomy")
        steps = [_joined(self.name, part) for part in found]
        whole = SEPARATOR.join(steps)
        if any(isinstance(part, list) for part in found) or len(steps) == 1 or whole not in self.options:
            return steps
        if set(steps) <= set(self.options):
            raise InvalidValue(
                f"Control '{self.name}': {shortened(found)} may be one path or {len(found)}.",
                hint="Write a list of paths: [[...], [...]].",
            )
        return [whole]


class Pairwise(Control):
    """`<Pairwise>`: which of two objects is better, `left` or `right`."""

    tag = "Pairwise"

    def connected(self, objects: Mapping[str, Source]) -> Control:
        """Check that it compares two objects."""
        if len(set(self.to_names)) != 2 or len(self.to_names) != 2:
            raise SetupError(
                f"Control '{self.name}' (Pairwise) has toName=\"{self.to_name}\".",
                hint="Name two different object tags, separated by a comma.",
            )
        return super().connected(objects)

    def schema(self) -> Schema:
        """Give the two sides, told by the names of what stands there."""
        left, right = self.to_names
        words = f"left is {left}, right is {right}"
        return {"type": "string", "enum": ["left", "right"], "description": words}

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region."""
        return Placed([self.region({"selected": value})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the side; `none` is nothing."""
        found = (text_of(self.name, part) for part in single(self.name, regions, "selected"))
        sides = [side for side in found if side not in ("none", "")]
        if not set(sides) <= {"left", "right"}:
            raise InvalidValue(f"Control '{self.name}' knows left and right, not {shortened(sides[0])}.")
        return self.only_one(sides)


@dataclass(frozen=True)
class Ranker(Control):
    """`<Ranker>` of a List: all its ids, best first; with `<Bucket>`s, an array of ids for each of them.

    Without a default bucket, ids that are in no bucket stay in the list. With one, each id is somewhere.
    """

    tag = "Ranker"
    buckets: tuple[str, ...] = ()
    default: str = ""

    @classmethod
    def from_element(cls, element: Element, conditions: tuple[Condition, ...] = ()) -> Control:
        """Read the buckets."""
        control = super().from_element(element, conditions)
        found = [Attributes.of(child) for child in element if child.tag == "Bucket"]
        found = [bucket for bucket in found if bucket.get("name")]
        default = next((bucket["name"] for bucket in found if bucket.flag("default")), "")
        names = tuple(bucket["name"] for bucket in found)
        # The page always submits an order: there is no way to leave it open.
        return replace(control, required=not conditions, buckets=names, default=default)  # type: ignore[call-arg]

    def connected(self, objects: Mapping[str, Source]) -> Control:
        """Take the ids from the List that it ranks.

        Raises:
            SetupError: It ranks something else.
        """
        source = objects.get(self.to_name)
        if source is None or source.tag != "List" or not source.key:
            raise SetupError(
                f"Control '{self.name}' (Ranker) has toName=\"{self.to_name}\", which is no <List>.",
                hint='Point toName at a <List value="$key"/>.',
            )
        return replace(self, variable=source.key)

    def read_entries(self, found: Iterable[Any]) -> Iterator[Option]:
        """Read the ids of the list."""
        for entry in found:
            yield Option(str(entry["id"]) if isinstance(entry, Mapping) and "id" in entry else "")

    def told(self, task: Task) -> str:
        """Say nothing: the list itself is told."""
        return ""

    def schema(self) -> Schema:
        """Give an array of ids, or one for each bucket."""
        count = len(self.options)
        if not self.buckets:
            ranked = self.array(self.option(), count or MAX_PICKED)
            return ranked | {"minItems": count or 1}
        picked = {**self.array(self.option(), count or MAX_PICKED), "minItems": 0}
        return {
            "type": "object",
            "properties": dict.fromkeys(self.buckets, picked),
            "required": list(self.buckets),
            "additionalProperties": False,
        }

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region, where no id is lost or doubled."""
        columns: dict[str, list[str]] = dict(value) if self.buckets else {self.name: list(value)}
        ids = [name for column in columns.values() for name in column]
        doubled = next((name for name in ids if ids.count(name) > 1), None)
        if doubled is not None:
            return Placed([], [f"Control '{self.name}': {doubled!r} is ranked twice."])
        lost = [name for name in self.options if name not in ids]
        if lost and (self.default or not self.buckets):
            return Placed([], [f"Control '{self.name}': {lost[0]!r} is not ranked."])
        return Placed([self.region({"ranker": columns})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the order; what stays in the list is not told."""
        # A list by itself is what a Ranker without buckets holds.
        rankings = [region["value"].get("ranker") for region in regions]
        lists = [part for part in rankings if isinstance(part, list)]
        if lists and not self.buckets:
            found: Json = self.only_one([{self.name: part} for part in lists if part])
        else:
            found = self.only_one(single(self.name, regions, "ranker"))
        if found is None:
            return None
        names = self.buckets or (self.name,)
        if not isinstance(found, dict) or found.keys() - {*names, _REST}:
            raise InvalidValue(f"Control '{self.name}' ranks {', '.join(names)}; found {shortened(found)}.")
        columns = {name: self._ids(found.get(name)) for name in names}
        self._ids(found.get(_REST))
        return columns if self.buckets else columns[self.name]

    def _ids(self, column: Json) -> list[str]:
        if not isinstance(column, list | None):
            raise InvalidValue(f"Control '{self.name}': {shortened(column)} is not a list of items.")
        ids = [text_of(self.name, part) for part in column or ()]
        self.known(ids, "item")
        return ids


def _joined(name: str, path: Json) -> str:
    """Read a path through nested options, or an option alone."""
    return SEPARATOR.join(text_of(name, step) for step in (path if isinstance(path, list) else [path]))


def _paths(found: Iterable[Option], control: Control, *, leaves_only: bool, above: str = "") -> Iterator[str]:
    for option in found:
        if SEPARATOR in option.name:
            raise SetupError(
                f"Control '{control.name}' ({control.tag}): {option.name!r} holds a separator, ' > '.",
                hint="Rename the choice.",
            )
        path = f"{above}{SEPARATOR}{option.name}" if above else option.name
        if not (leaves_only and option.children):
            yield path
        yield from _paths(option.children, control, leaves_only=leaves_only, above=path)


def _option(control: Control, attributes: Attributes, children: tuple[Option, ...]) -> Option:
    if attributes.get("alias") == "":  # the page takes it, and stores nothing
        raise attributes.refusal("alias", f"Name the choice of '{control.name}', or leave the alias out.")
    return Option(attributes.get("alias") or attributes.value, attributes.get("hint", ""), children)


def _above(path: str) -> Iterator[str]:
    steps = path.split(SEPARATOR)
    return (SEPARATOR.join(steps[:depth]) for depth in range(1, len(steps)))
