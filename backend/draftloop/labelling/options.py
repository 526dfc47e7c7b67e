"""The options of controls: what the config or a task offers to pick.

Knows how names, hints and task data make up an option. Does not know controls.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from draftloop.errors import InvalidValue
from draftloop.labelling.attributes import fill_in
from draftloop.labelling.sources import Task, entries


@dataclass(frozen=True)
class Option:
    """One option.

    name       what results and values contain; empty where `template` makes it
    hint       a description, shown to models
    children   the options below it
    template   its text in the page, where task data is filled in; else empty
    """

    name: str
    hint: str = ""
    children: tuple["Option", ...] = ()
    template: str = ""

    @property
    def has_data(self) -> bool:
        """Whether task data is filled in here or below."""
        return bool(self.template) or any(child.has_data for child in self.children)

    def filled_in(self, task: Task) -> "Option":
        """Return the option as the page shows it for a task."""
        shown = fill_in(self.template, task.data) if self.template else ""
        children = tuple(child.filled_in(task) for child in self.children)
        return Option(self.name or shown, shown if self.name and self.template else self.hint, children)


@dataclass(frozen=True)
class OptionSet:
    """The options of one control.

    names             as values name them, in the order of the config
    variable          the key of task data that holds options; empty where the config lists them all
    templates         options of the config whose text contains task data
    is_resolved       whether the options that a task brings have been read
    is_sdk_readable   whether the SDK reads the attributes of the control's tags as the page does
    """

    names: tuple[str, ...] = ()
    variable: str = ""
    templates: tuple[Option, ...] = ()
    is_resolved: bool = False
    is_sdk_readable: bool = True

    @property
    def needs_task(self) -> bool:
        """Whether each task brings options of its own."""
        return bool(self.variable or self.templates)

    def of_task(self, task: Task, read: Callable[[Iterable[Any]], Iterator[Option]]) -> Iterator[Option]:
        """Yield the options that a task brings.

        Args:
            task: The task.
            read: Parses the entries of a list of task data.
        Raises:
            TaskError: The task lacks them.
        """
        for option in self.templates:
            yield option.filled_in(task)
        if self.variable:
            for option in read(entries(task, self.variable)):
                yield option.filled_in(task)

    def in_order(self, names: Iterable[str], control: str, noun: str) -> list[str]:
        """Return names in the order of the config, each once.

        Args:
            names: Names of options.
            control: Name of the control, for the error message.
            noun: What its options are called, for the error message.
        Raises:
            InvalidValue: One of them is no option.
        """
        given = set(names)
        unknown = sorted(given - set(self.names))
        if unknown:
            raise InvalidValue(f"Control '{control}' has no {noun} {unknown[0]!r}.")
        return [name for name in self.names if name in given]


def describe(options: Iterable[Option]) -> str:
    """Describe options for a model to read: one path a line, with its hint."""
    return "\n".join(_descriptions(options))


def _descriptions(options: Iterable[Option], parent: str = "") -> Iterator[str]:
    for option in options:
        path = f"{parent} > {option.name}" if parent else option.name
        yield f"- {path}: {option.hint}" if option.hint else f"- {path}"
        yield from _descriptions(option.children, path)
