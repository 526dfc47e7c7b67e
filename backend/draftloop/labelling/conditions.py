"""When a control is shown: `visibleWhen` and `when...` of the tag itself and of the tags around it.

Knows how Label Studio decides it from what is picked. A control that hangs on spans is also bound to
labels. Does not know controls or values. What depends on a click alone (`region-selected` for a control
of the whole task, `no-region-selected`) is taken as shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from xml.etree.ElementTree import Element

from draftloop.labelling.attributes import Attributes

_BY_CHOICE = ("choice-selected", "choice-unselected")
# The tags that hear `visibleWhen`; of the others the page leaves it unread.
_HIDEABLE = ("View", "Markdown", "Choices", "Taxonomy", "TextArea")


class _Picks(NamedTuple):
    """A control that conditions look at: results name its options by their `aliases`, `is_flat` as words."""

    tag: str
    aliases: Mapping[str, str]
    is_flat: bool


@dataclass(frozen=True)
class Condition:
    """One condition. `tag` and `values` are empty where any will do.

    hides  whether the page hides the control where it does not hold; else it only demands nothing there
    """

    when: str
    tag: str = ""
    values: tuple[str, ...] = ()
    among: tuple[str, ...] = ()  # controls that are looked at
    hides: bool = True

    def holds(self, picked: Mapping[str, Sequence[str]]) -> bool:
        """Decide it from the picked options of each control."""
        if self.when not in _BY_CHOICE:
            return True
        among = [picked.get(name, ()) for name in self.among]
        found = any(set(options) & set(self.values) if self.values else options for options in among)
        return found == (self.when == "choice-selected")

    def allows(self, control: str, labels: Sequence[str]) -> bool:
        """Decide it for a span of a control that has labels."""
        if self.when != "region-selected":
            return True
        return (not self.tag or self.tag == control) and (
            not self.values or bool(set(self.values) & set(labels))
        )

    def __str__(self) -> str:
        what = " or ".join(map(repr, self.values)) or "anything"
        where = f" in '{self.tag}'" if self.tag else ""
        return f"{what} is {'not ' if self.when == 'choice-unselected' else ''}picked{where}"


def walk(root: Element) -> Iterator[tuple[Element, tuple[Condition, ...]]]:
    """Go through a config in reading order, each tag with the conditions under which it is shown."""
    names = _picks(root)

    def below(
        element: Element, around: tuple[Condition, ...]
    ) -> Iterator[tuple[Element, tuple[Condition, ...]]]:
        own = _own(Attributes.of(element), names)
        if element.tag.lower() == "textarea":  # the page shows its box all the same
            own = (replace(condition, hides=False) for condition in own)
        conditions = (*around, *own)
        yield element, conditions
        for child in element:
            yield from below(child, conditions)

    return below(root, ())


def _own(attributes: Attributes, names: Mapping[str, _Picks]) -> Iterator[Condition]:
    when, labels = attributes.get("visibleWhen", ""), attributes.get("whenLabelValue")
    if attributes.tag in _HIDEABLE:
        if when in _BY_CHOICE:
            yield _by_choice(attributes, names)
        elif when == "region-selected":
            tag = attributes.get("whenTagName", "")
            yield Condition(when, tag, _listed(labels) if labels else ())
        elif not when and attributes.get("whenChoiceValue"):
            # Without `visibleWhen` the page compares the words as they stand with those of all controls.
            flat = tuple(name for name, picks in names.items() if picks.is_flat)
            yield Condition("choice-selected", "", (attributes["whenChoiceValue"],), flat)
    if labels is not None and attributes.flag("perRegion"):
        yield Condition("region-selected", "", _listed(labels))


def _by_choice(attributes: Attributes, names: Mapping[str, _Picks]) -> Condition:
    when, tag = attributes["visibleWhen"], attributes.get("whenTagName", "")
    if not tag:  # then any choice will do: the page does not look at `whenChoiceValue`
        return Condition(when, among=tuple(name for name, picks in names.items() if picks.tag == "Choices"))
    if tag not in names:
        raise attributes.refusal("whenTagName", "Name a <Choices> or <Taxonomy> of the config.")
    words = attributes.get("whenChoiceValue")
    values = () if words is None else words.split(",")
    return Condition(when, tag, tuple(names[tag].aliases.get(word, word) for word in values), (tag,))


def _picks(root: Element) -> dict[str, _Picks]:
    """Return for every control what its options are called in results: conditions may use either word."""
    found = {}
    for control in root.iter():
        if control.tag in ("Choices", "Taxonomy"):
            attributes = Attributes.of(control)
            options = [Attributes.of(option) for option in control.iter("Choice")]
            found[attributes.get("name", "")] = _Picks(
                control.tag,
                {option.value: option.get("alias") or option.value for option in options},
                is_flat=control.tag == "Choices" and not attributes.flag("allowNested"),
            )
    return found


def _listed(words: str) -> tuple[str, ...]:
    """List labels: one may hold a comma, so the words are one, too. The page strips nothing."""
    return tuple(dict.fromkeys((words, *words.split(","))))
