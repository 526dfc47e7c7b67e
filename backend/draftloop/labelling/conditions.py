"""When a control is shown: `visibleWhen` and `when...` of the tag itself and of the tags around it.

Knows how Label Studio decides it from picked options and, for per-region controls, from the span's labels.
Does not know controls or values. A control whose display depends only on a click (`region-selected` for a
control of the whole task, `no-region-selected`) counts as shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from xml.etree.ElementTree import Element

from draftloop.labelling.attributes import Attributes

_BY_CHOICE = ("choice-selected", "choice-unselected")
# The tags whose `visibleWhen` the page reads.
_HIDEABLE = ("View", "Markdown", "Choices", "Taxonomy", "TextArea")


class _Picks(NamedTuple):
    """A control that conditions refer to.

    aliases   by text of an option, its name in results
    is_flat   whether it is a Choices without nesting
    """

    tag: str
    aliases: Mapping[str, str]
    is_flat: bool


@dataclass(frozen=True)
class Condition:
    """One condition.

    tag      the control that it refers to; empty for any
    values   options or labels, one of which must be picked; empty for any
    among    the controls whose picked options decide
    hides    whether the page hides the control where it does not hold; else it is only optional there
    """

    when: str
    tag: str = ""
    values: tuple[str, ...] = ()
    among: tuple[str, ...] = ()
    hides: bool = True

    def holds(self, picked: Mapping[str, Sequence[str]]) -> bool:
        """Return whether it holds for the picked options of each control."""
        if self.when not in _BY_CHOICE:
            return True
        among = [picked.get(name, ()) for name in self.among]
        is_picked = any(set(options) & set(self.values) if self.values else options for options in among)
        return is_picked == (self.when == "choice-selected")

    def allows(self, control: str, labels: Sequence[str]) -> bool:
        """Return whether it holds for a span with these labels."""
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
    """Yield the tags of a config in reading order, each with the conditions under which it is shown."""
    names = _picks(root)

    def below(
        element: Element, around: tuple[Condition, ...]
    ) -> Iterator[tuple[Element, tuple[Condition, ...]]]:
        own = _own(Attributes.of(element), names)
        if element.tag.lower() == "textarea":  # the page shows its input box anyway
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
            # Without `visibleWhen` the page compares the literal text with the options of all controls.
            flat = tuple(name for name, picks in names.items() if picks.is_flat)
            yield Condition("choice-selected", "", (attributes["whenChoiceValue"],), flat)
    if labels is not None and attributes.flag("perRegion"):
        yield Condition("region-selected", "", _listed(labels))


def _by_choice(attributes: Attributes, names: Mapping[str, _Picks]) -> Condition:
    when, tag = attributes["visibleWhen"], attributes.get("whenTagName", "")
    if not tag:  # any choice satisfies it: the page ignores `whenChoiceValue`
        return Condition(when, among=tuple(name for name, picks in names.items() if picks.tag == "Choices"))
    if tag not in names:
        raise attributes.refusal("whenTagName", "Name a <Choices> or <Taxonomy> of the config.")
    words = attributes.get("whenChoiceValue")
    values = () if words is None else words.split(",")
    return Condition(when, tag, tuple(names[tag].aliases.get(word, word) for word in values), (tag,))


def _picks(root: Element) -> dict[str, _Picks]:
    """Return the controls with options, by name; conditions may use the text or the alias of an option."""
    picks = {}
    for control in root.iter():
        if control.tag in ("Choices", "Taxonomy"):
            attributes = Attributes.of(control)
            options = [Attributes.of(option) for option in control.iter("Choice")]
            picks[attributes.get("name", "")] = _Picks(
                control.tag,
                {option.value: option.get("alias") or option.value for option in options},
                is_flat=control.tag == "Choices" and not attributes.flag("allowNested"),
            )
    return picks


def _listed(words: str) -> tuple[str, ...]:
    """Return the labels of a list, and the whole text, as a label may contain commas; nothing is stripped."""
    return tuple(dict.fromkeys((words, *words.split(","))))
