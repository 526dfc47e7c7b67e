"""Object tags: what the annotator reads of a task, and the text that a model reads in its place.

Knows how Label Studio shows task data. Does not know controls, or positions in texts (`passages`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from draftloop.errors import SetupError, TaskError
from draftloop.labelling.attributes import (
    Attributes,
    as_text,
    cut_name,
    fill_in,
    look_up,
    variables,
    whole_variable,
)
from draftloop.labelling.passages import DialoguePassage, HtmlPassage, Passage, PlainPassage, plain_text
from draftloop.labelling.regions import too_deep
from draftloop.support.strict_json import DEEPEST
from draftloop.support.text import has_lone_surrogate

OBJECTS = ("Text", "HyperText", "Paragraphs", "Table", "List", "Markdown", "Image")

# The default `valueType` of tags; another one means that the data are not in the task itself.
_VALUE_TYPES = {"Text": "text", "HyperText": "text", "Paragraphs": "json", "Table": "json"}


@dataclass(frozen=True)
class Task:
    """A Label Studio task: its id, the data that it was imported with, and its project where that matters.

    `project` decides which input files its code may read; 0 is none.
    """

    id: int
    data: Mapping[str, Any]
    project: int = 0


@dataclass(frozen=True)
class TaskSource:
    """A tag that shows something of a task.

    key        the key of task data where `words` is a single variable; else empty
    words      the tag's `value`: text and variables
    heading    the heading under which a model reads it; empty where it shows no task data, so that models
               do not read it
    """

    name: str
    tag: str
    key: str
    words: str = ""
    heading: str = ""
    attributes: Attributes = field(default_factory=Attributes, repr=False)

    @classmethod
    def of(cls, attributes: Attributes) -> "TaskSource":
        """Read a tag.

        Raises:
            SetupError: It shows data that are not in the task itself, or a variable that the page does not
                read.
        """
        tag, name = attributes.tag, attributes.get("name", "")
        is_list = tag == "Image" and bool(attributes.get("valueList"))
        words = attributes["valueList"] if is_list else attributes.value
        kind = _VALUE_TYPES.get(tag)
        if kind and (
            attributes.get("valueType", kind) != kind or attributes.get("encoding", "none") != "none"
        ):
            raise SetupError(
                f"Object '{name}' ({tag}) does not show text from task data.",
                hint='Give it value="$key" and no valueType or encoding.',
            )
        if cut_name(words):
            raise SetupError(
                f"{tag} '{name}' has value=\"{words}\", which the page does not read as one key.",
                hint="Give the key a name of ASCII letters, digits and _, in the data and here.",
            )
        key = whole_variable(words)
        if not key and variables(words) and (is_list or tag in ("Table", "List", "Paragraphs")):
            raise SetupError(
                f"Object '{name}' ({tag}) has value=\"{words}\".",
                hint='It shows one key of task data: value="$key".',
            )
        source = cls(name, tag, key, words, key or name or "_".join(variables(words)), attributes)
        if tag == "HyperText":
            source.is_inline  # noqa: B018  raises for a value that is neither true nor false
        return source if variables(words) else replace(source, heading="")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of task data that it shows."""
        return tuple(variables(self.words))

    @property
    def is_inline(self) -> bool:
        """Whether the page inserts its HTML into its own document rather than into an iframe."""
        return self.attributes.flag("inline")

    @property
    def is_list(self) -> bool:
        """Whether it shows a list of images, one at a time."""
        return self.tag == "Image" and bool(self.attributes.get("valueList"))

    def text(self, task: Task) -> str:
        """Return the text that a model reads.

        Raises:
            TaskError: The task lacks the key, or holds something that cannot be read as text.
        """
        return self._checked(self._text(task), task)

    def passage(self, task: Task) -> Passage:
        """Return the text that spans are quoted from.

        Raises:
            TaskError: As `text`.
        """
        if self.tag == "HyperText":
            html = self._checked(self._string(task), task)
            return HtmlPassage.of(html, inline=self.is_inline)
        if self.tag == "Paragraphs":
            return DialoguePassage.of(self._checked(words, task) for _, words in self._utterances(task))
        return PlainPassage(self.text(task))

    def entries(self, task: Task) -> list[Any]:
        """Return the entries of a list of task data.

        Raises:
            TaskError: It is not a list.
        """
        return entries(task, self.key)

    def _text(self, task: Task) -> str:
        if self.tag == "HyperText":
            return HtmlPassage.of(self._string(task), inline=self.is_inline, images=True).text
        if self.tag == "Paragraphs":
            return "\n".join(f"{name}: {words}" if name else words for name, words in self._utterances(task))
        if self.tag == "Table":
            return self._table(task)
        if self.tag == "List":
            return "\n".join(_listed(entry) for entry in self.entries(task))
        if self.tag == "Image":
            addresses = self.entries(task) if self.is_list else [self._string(task)]
            return "\n".join(f"[image: {str(address)[:200]}]" for address in addresses)
        return self._string(task)

    def _string(self, task: Task) -> str:
        shown = {key: look_up(task.data, key) for key in self.keys}
        unreadable = [key for key, part in shown.items() if part is not None and not _is_readable(part)]
        # The page writes "undefined" for a missing key among others; a task without any of them has no text.
        if shown and (unreadable or all(part is None for part in shown.values())):
            if self.tag not in OBJECTS:
                return ""  # the page does not show it
            key = unreadable[0] if unreadable else self.keys[0]
            raise TaskError(
                f"Task {task.id}: key '{key}' is {'not text' if unreadable else 'missing'}.",
                hint=f"The config shows ${key}; import the task with this key.",
            )
        text = fill_in(self.words, task.data)
        # The page shows a Text as HTML, whose parser drops NUL characters: they have no position.
        return text if self.tag == "HyperText" else text.replace("\0", "")

    def _utterances(self, task: Task) -> list[tuple[str, str]]:
        name_key = self.attributes.get("nameKey") or "author"
        text_key = self.attributes.get("textKey") or "text"
        utterances = []
        for entry in self.entries(task):
            words = _shown(entry.get(text_key)) if isinstance(entry, Mapping) else None
            if words is None:
                raise TaskError(
                    f"Task {task.id}: an entry of '{self.key}' has no text under '{text_key}'.",
                    hint=f'It is a list of {{"{name_key}": ..., "{text_key}": ...}}.',
                )
            utterances.append((_shown(entry.get(name_key)) or "", words))
        return utterances

    def _table(self, task: Task) -> str:
        table = look_up(task.data, self.key)
        if isinstance(table, str):
            try:
                table = json.loads(table)
            except (ValueError, RecursionError):
                table = None
            table = None if too_deep(table) else table
        if isinstance(table, list) and table and all(isinstance(row, Mapping) for row in table):
            return "\n".join(" | ".join(_row(row)) for row in table)
        if isinstance(table, list):
            table = {str(place): cell for place, cell in enumerate(table)}
        elif isinstance(table, Mapping):
            table = dict(sorted(table.items(), key=lambda row: str(row[0]).lower()))  # as the page does
        else:
            raise TaskError(
                f"Task {task.id}: key '{self.key}' is not a table.",
                hint='Import an object: {"name": "value", ...}, or a list of them.',
            )
        return "\n".join(_row(table))

    def _checked(self, text: str, task: Task) -> str:
        if has_lone_surrogate(text):
            raise _lone_surrogate(task, self.key)
        return text


def check_data(task: Task) -> None:
    """Check that a task's data are not nested too deeply.

    Raises:
        TaskError: They are.
    """
    if too_deep(dict(task.data)):
        raise TaskError(
            f"Task {task.id}: its data are nested deeper than {DEEPEST} levels.",
            hint="Import it without the deeply nested part.",
        )


def entries(task: Task, key: str) -> list[Any]:
    """Return a list of task data.

    Raises:
        TaskError: The task has no list there.
    """
    listed = look_up(task.data, key)
    if not isinstance(listed, list):
        raise TaskError(
            f"Task {task.id}: key '{key}' is {'missing' if listed is None else 'not a list'}.",
            hint=f"The config takes a list from ${key}; import the task with it.",
        )
    if any(map(has_lone_surrogate, _texts(listed))):
        raise _lone_surrogate(task, key)
    return listed


def _texts(part: Any) -> Iterator[str]:
    """List the texts of a list of task data, keys included."""
    pending = [part]
    while pending:
        current = pending.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, Mapping):
            pending.extend((*current.keys(), *current.values()))
        elif isinstance(current, list):
            pending.extend(current)


def _lone_surrogate(task: Task, key: str) -> TaskError:
    return TaskError(
        f"Task {task.id}: the text under '{key}' holds a lone surrogate (half a character).",
        hint="Correct the text where it comes from.",
    )


def _row(cells: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {json.dumps(cell, ensure_ascii=False) if isinstance(cell, dict | list) else cell}"
        for name, cell in cells.items()
    ]


def _is_readable(value: Any) -> bool:
    """Return whether the page shows a value as readable text."""
    if isinstance(value, list):
        return all(part is None or _is_readable(part) for part in value)
    return isinstance(value, str | int | float)


def _shown(value: Any) -> str | None:
    return as_text(value) if _is_readable(value) else None


def _listed(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    parts = [str(entry.get(key)) for key in ("title", "body") if entry.get(key)]
    if entry.get("html"):
        parts.append(plain_text(str(entry["html"])))
    return f"[{entry.get('id')}] " + "\n".join(parts)
