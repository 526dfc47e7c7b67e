"""When a control is shown: `visibleWhen` and `when...` of the tag itself and of the tags around it.

Knows how Label Studio decides it from what is picked. A control that hangs on spans is also bound to
labels. Does not know controls or values. What depends on a click alone (`region-selected` for a control
of the whole task, `no-region-selected`) is taken as shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element


@dataclass(frozen=True)
class Condition:
    """One condition. `tag` and `values` are empty where any will do."""

    when: str
    tag: str = ""
    values: tuple[str, ...] = ()

    def holds(self, picked: Mapping[str, Sequence[str]]) -> bool:
        """Decide it from the picked options of each control."""
        if self.when not in ("choice-selected", "choice-unselected"):
            return True
        among = [picked.get(self.tag, ())] if self.tag else list(picked.values())
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
    names = _names(root)

    def below(
        element: Element, around: tuple[Condition, ...]
    ) -> Iterator[tuple[Element, tuple[Condition, ...]]]:
        conditions = (*around, *_own(element, names))
        yield element, conditions
        for child in element:
            yield from below(child, conditions)

    return below(root, ())


def _own(element: Element, names: Mapping[str, Mapping[str, str]]) -> Iterator[Condition]:
    when, tag = element.get("visibleWhen", ""), element.get("whenTagName", "")
    labels, choices = _listed(element.get("whenLabelValue")), _listed(element.get("whenChoiceValue"))
    aliases = names.get(tag, {})
    if when.startswith("choice-") or (choices and not when):
        yield Condition(when or "choice-selected", tag, tuple(aliases.get(name, name) for name in choices))
    elif when == "region-selected" or (labels and element.get("perRegion") == "true"):
        yield Condition("region-selected", tag, labels)


def _names(root: Element) -> dict[str, dict[str, str]]:
    """Give for every control what its options are called in results: conditions may use either word."""
    return {
        control.get("name", ""): {
            option.get("value", ""): option.get("alias") or option.get("value") or ""
            for option in control.iter()
            if option.tag == "Choice"
        }
        for control in root.iter()
        if control.tag in ("Choices", "Taxonomy")
    }


def _listed(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (words or "").split(",") if word.strip())
