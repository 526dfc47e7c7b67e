"""A task as a model and the rules read it.

Knows what a labelling shows of a task. Does not know values, models or rules. The steps of a draft share one
question, so that a task is read once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from draftloop.labelling.passages import Passage
from draftloop.labelling.sources import OBJECTS, Task, check_data
from draftloop.runs.run import OUTPUTS_KEY, outputs_of

if TYPE_CHECKING:
    from draftloop.labelling.labelling import Labelling


@dataclass(frozen=True)
class Question:
    """A task under its labelling; each part is computed once, on first use.

    labelling   the task's labelling, with the options that the task brings
    task        the task
    """

    labelling: "Labelling"
    task: Task

    @cached_property
    def inputs(self) -> Mapping[str, str]:
        """The texts that the annotator reads, by key of task data, in the order of the page.

        The files that its code must write follow, then the options that the task brings, so that a model
        reads what their names mean.

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
            described = control.describe_options(task) if control.options.needs_task else ""
            if described:
                texts.setdefault(control.options.variable or control.name, described)
        return texts

    @cached_property
    def text(self) -> str:
        """The text that a model reads: the inputs, under headings where there are several.

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
        quoted = {control.to_name for control in self.labelling.span_controls}
        return {
            source.name: source.passage(self.task)
            for source in self.labelling.sources
            if source.name in quoted
        }
