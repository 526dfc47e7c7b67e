"""Codecs of the controls that pick among options: Choices, Taxonomy, Pairwise, Ranker.

Knows how Label Studio stores what is picked, and paths through nested options. The law and the shapes
of values are those of `controls`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from xml.etree.ElementTree import Element

from backend.core.conditions import Condition
from backend.core.controls import (
    MAX_PICKED,
    Control,
    Json,
    Option,
    Page,
    Placed,
    Region,
    Schema,
    collect,
    single,
)
from backend.core.sources import Source, Task
from backend.errors import InvalidValue, SetupError

SEPARATOR = " > "  # between the steps of a path through nested options


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
        return self.attributes.get("allowNested", self.attributes.get("allownested")) == "true"

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
        return self.attributes.get("choice", "single") == "multiple"

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
        picked = [
            path if isinstance(path, str) else SEPARATOR.join(path) for path in collect(regions, "choices")
        ]
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
        if element.get("apiUrl"):
            raise SetupError(
                f"Control '{element.get('name')}' (Taxonomy) loads its tree from outside (apiUrl).",
                hint='Write the tree as nested <Choice> tags, or take it from the task: value="$key".',
            )
        return super().from_element(element, conditions)

    def flat(self, found: Iterable[Option]) -> Iterator[str]:
        """List every path through the tree, in reading order."""
        return _paths(found, self, leaves_only=self.attributes.get("leafsOnly") == "true")

    def schema(self) -> Schema:
        """Give an array of known paths."""
        limit = int(self.attributes.get("maxUsages", "0") or 0) or len(self.options) or MAX_PICKED
        return self.array(self.option(), limit)

    def picked(self, value: Json) -> Sequence[str]:
        """Name the last step of each path."""
        return [path.rsplit(SEPARATOR, 1)[-1] for path in value]

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region with all paths."""
        paths = [path.split(SEPARATOR) for path in value]
        return Placed([self.region({"taxonomy": paths})] if paths else [])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Collect the paths, in the order of the tree."""
        return self.known((SEPARATOR.join(path) for path in collect(regions, "taxonomy")), "path")


class Pairwise(Control):
    """`<Pairwise>`: which of two objects is better, `left` or `right`."""

    tag = "Pairwise"

    def connected(self, objects: Mapping[str, Source]) -> Control:
        """Check that it compares two objects."""
        if len(self.to_name.split(",")) != 2:
            raise SetupError(
                f"Control '{self.name}' (Pairwise) has toName=\"{self.to_name}\".",
                hint="Name two object tags, separated by a comma.",
            )
        return super().connected(objects)

    def schema(self) -> Schema:
        """Give the two sides, told by the names of what stands there."""
        left, right = (name.strip() for name in self.to_name.split(","))
        words = f"left is {left}, right is {right}"
        return {"type": "string", "enum": ["left", "right"], "description": words}

    def to_regions(self, value: Json, page: Page) -> Placed:
        """Make one region."""
        return Placed([self.region({"selected": value})])

    def from_regions(self, regions: Sequence[Region], page: Page) -> Json | None:
        """Read the side; `none` is nothing."""
        sides = [side for side in single(regions, "selected") if side != "none"]
        if not set(sides) <= {"left", "right"}:
            raise InvalidValue(f"Control '{self.name}' knows left and right, not {sides[0]!r}.")
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
        found = [child for child in element if child.tag == "Bucket" and child.get("name")]
        default = next((child.get("name", "") for child in found if child.get("default") == "true"), "")
        names = tuple(child.get("name", "") for child in found)
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
        found: Mapping[str, list[str]] | None = self.only_one(single(regions, "ranker"))
        if found is None:
            return None
        columns = {name: found.get(name, []) for name in self.buckets or (self.name,)}
        for column in columns.values():
            self.known(column, "item")
        return columns if self.buckets else columns[self.name]


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


def _above(path: str) -> Iterator[str]:
    steps = path.split(SEPARATOR)
    return (SEPARATOR.join(steps[:depth]) for depth in range(1, len(steps)))
