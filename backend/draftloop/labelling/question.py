"""A task as a model and the rules read it.

Knows what a labelling shows of a task. Does not know values, models or rules: each of them is handed the
question, so that a task is read once however many steps its draft takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from draftloop.labelling.sources import OBJECTS, Passage, Task, check_data
from draftloop.labelling.spans import Labels
from draftloop.runs.run import OUTPUTS_KEY, outputs_of

if TYPE_CHECKING:
    from draftloop.labelling.labelling import Labelling


@dataclass(frozen=True)
class Question:
    """A task under its labelling; each part is read when it is first asked for, and once.

    labelling   the task's labelling, with the options that the task brings
    task        the task
    """

    labelling: "Labelling"
    task: Task

    @cached_property
    def inputs(self) -> Mapping[str, str]:
        """The texts that the annotator reads, by key of task data, in the order of the page.

        Files that its code must leave and options that the task brings follow, the latter for a model to know
        what their names stand for.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        labelling, task = self.labelling, self.task
        check_data(task)
        shown = ((source, source.text(task)) for source in labelling.sources if source.heading)
        texts = {source.heading: text for source, text in shown if text or source.tag in OBJECTS}
        if labelling.program and (outputs := outputs_of(task.data)):
            texts[OUTPUTS_KEY] = "\n".join(outputs)
        for control in (*labelling.controls, *labelling.per_region_controls):
            words = control.told(task) if control.variable or control.own else ""
            if words:
                texts.setdefault(control.variable or control.name, words)
        return texts

    @cached_property
    def text(self) -> str:
        """The one text that a model reads: the inputs, under headings where there are several.

        Raises:
            TaskError: As `inputs`.
        """
        if len(self.inputs) == 1:
            return next(iter(self.inputs.values()))
        return "\n\n".join(f"## {key}\n{text}" for key, text in self.inputs.items())

    @cached_property
    def passages(self) -> Mapping[str, Passage]:
        """The texts that spans are quoted from, by the name of their object.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        quoted = {control.to_name for control in self.labelling.controls if isinstance(control, Labels)}
        return {
            source.name: source.passage(self.task)
            for source in self.labelling.sources
            if source.name in quoted
        }
