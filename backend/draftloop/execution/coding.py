"""The code of drafts: run, corrected by the model that wrote it, and judged.

Knows which field of a case is a program and what a draft becomes when that program is run. Does not know how
a model is called (the caller passes a function) or how code is contained (`runner`).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from draftloop.errors import DraftloopError, ServiceError, SetupError, TaskError
from draftloop.execution.runner import AskAgain, Execution
from draftloop.labelling.labelling import Task, Value
from draftloop.labelling.rules import Reason
from draftloop.prompting.prompt import Case, Completion, Message, render_runs
from draftloop.runs.job import Script
from draftloop.runs.run import (
    INSTRUCTION_KEY,
    Origin,
    Run,
    inputs_of,
    missing_outputs,
    outputs_of,
    run_key,
)
from draftloop.support.retry import retrying
from draftloop.support.text import has_lone_surrogate

_log = structlog.get_logger("backend")

_QUOTED_CHARS = 300  # of what a program printed
_TRIES = 3  # where the sandbox fails: the next try starts a new one
_LEAST_S = 1.0  # a run that starts at the deadline is ended at once, as late


@dataclass(frozen=True)
class Answered:
    """What a model answered, with the answer that is kept last, and the run of its code."""

    value: Value | None
    reasons: tuple[Reason, ...]
    answers: tuple[Completion, ...]
    run: Run | None = None


# Calls the model again, with messages on the runs of its earlier code.
Ask = Callable[[Sequence[Message]], Answered]


class Coding:
    """Runs what drafts and humans wrote. Safe to call from several threads."""

    def __init__(self, execution: Execution | None, closed: threading.Event) -> None:
        """Prepare.

        Args:
            execution: What runs code; None where it is switched off.
            closed: Ends what runs when set.
        """
        self._execution = execution
        self._closed = closed

    def environment(self, case: Case) -> str:
        """Describe where a case's code runs; empty for other cases, and where it does not run."""
        if case.labelling.program is None or self._execution is None:
            return ""
        return self._execution.runner.describe()

    def manifest(self, case: Case) -> Mapping[str, Any]:
        """Return the part of a manifest that decides what a case's code does; empty for other cases."""
        if case.labelling.program is None:
            return {}
        if self._execution is None:
            return {"execution": {"mode": "off"}}
        return {"execution": {"mode": self._execution.mode, **self._execution.runner.parts()}}

    def rerun_of_human(self, case: Case, task: Task, value: Value, *, limit_s: float) -> Run | None:
        """Run exactly the code that a human has in the page, unless the store has its run.

        Returns:
            The run; None where the value holds no code, or code is not run here.
        Raises:
            TaskError: The task's input files are not what they were, or the code cannot be sent.
            SetupError: Code cannot be contained here.
            ServiceError: The sandbox did not do its part.
        """
        script = case.labelling.script(value)
        if script is not None and has_lone_surrogate(script.code):
            raise TaskError(
                f"Task {task.id}: the code holds half a character (a lone surrogate).",
                hint="Delete it, and run it again.",
            )
        return self.rerun(case, task, value, time.monotonic() + limit_s, origin="human")

    def rerun(self, case: Case, task: Task, value: Value, ends: float, *, origin: Origin) -> Run | None:
        """Run a value's code once; where it ran to its end before, return that run.

        Args:
            case: The task's case.
            task: The task.
            value: What holds the code.
            ends: The deadline, on the monotonic clock.
            origin: Who wants it.
        Returns:
            The run; None where the value holds no code, or code is not run here.
        Raises:
            TaskError: An input file of the task is missing, or was changed.
            SetupError: Code cannot be contained here.
            ServiceError: The sandbox did not do its part.
        """
        script = case.labelling.script(value)
        if script is None or self._execution is None:
            return None
        runner, inputs = self._execution.runner, inputs_of(task.data)
        # Before a stored run is shown: a file's hash alone must not open the runs on it.
        runner.check_inputs(inputs, task.project)
        stored = runner.stored(run_key([script], inputs))
        if stored is not None and stored.last.outcome in ("ok", "failed"):
            return stored  # a run that was stopped may have timed out under load; run it again
        return self._call(
            lambda: runner.rerun(
                [script],
                inputs,
                origin=origin,
                project=task.project,
                instruction=_instruction(task),
                limit_s=max(_LEAST_S, ends - time.monotonic()),
            ),
            ends,
        )

    def run_and_correct(
        self, case: Case, task: Task, answered: Answered, ask: Ask, *, version: str, ends: float
    ) -> Answered:
        """Run the code of an answer; let the model correct it until it ends well.

        Args:
            case: The task's case.
            task: The task.
            answered: The answer.
            ask: Asks for a better one.
            version: That of the draft.
            ends: The deadline, on the monotonic clock.
        Returns:
            The answer whose code ran last, with its run, and reasons where that did not end well; the
            answer unchanged where it holds no code, or drafts are not run.
        """
        first = None if answered.value is None else case.labelling.script(answered.value)
        if first is None or self._execution is None or self._execution.mode != "auto":
            return answered
        drafts = {first.code: answered}
        asked: list[Completion] = []

        def ask_again(conversation: Sequence[Message]) -> Script | None:
            turns: list[tuple[Value, str]] = []
            for ran, output in zip(conversation[::2], conversation[1::2], strict=True):
                turns.append((drafts[ran.content].value or {}, output.content))
            try:
                better = ask(render_runs(case, turns))
            except (ServiceError, SetupError, TaskError) as error:
                _log.info("code not mended", task=task.id, error=type(error).__name__)
                return None
            asked.extend(better.answers)
            script = None if better.value is None else case.labelling.script(better.value)
            if script is None or script.code in drafts:  # a script that failed would fail again
                return None
            drafts[script.code] = better
            return script

        try:
            run = self._run(self._execution, task, first, ask_again, version, ends)
            failed = run_reasons(case, task, run)
        except DraftloopError as error:
            reason = Reason("run", _field(case), f"The code was not run: {error}")
            return Answered(answered.value, (*answered.reasons, reason), answered.answers)
        kept = drafts[run.script.code]
        last = kept.answers[-1]
        others = tuple(answer for answer in (*answered.answers, *asked) if answer is not last)
        return Answered(kept.value, (*kept.reasons, *failed), (*others, last), run)

    def _run(
        self, execution: Execution, task: Task, first: Script, ask_again: AskAgain, version: str, ends: float
    ) -> Run:
        inputs, outputs = inputs_of(task.data), outputs_of(task.data)
        return self._call(
            lambda: execution.runner.draft(
                _instruction(task),
                inputs,
                outputs,
                first,
                ask_again,
                limit_s=max(_LEAST_S, ends - time.monotonic()),
                project=task.project,
                version=version,
                cancelled=self._closed,
            ),
            ends,
        )

    def _call(self, run: Callable[[], Run], ends: float) -> Run:
        """Call a function that runs code; retry where the sandbox fails and time is left."""
        return retrying(attempts=_TRIES, limit_s=ends - time.monotonic(), closed=self._closed)(run)


def run_reasons(case: Case, task: Task, run: Run) -> tuple[Reason, ...]:
    """List why code that was run needs a human; nothing where it ended well and left its declared files.

    Raises:
        TaskError: The task's declared files are no list of names.
    """
    field = _field(case)
    if not run.ok:
        lines = run.last.stderr.strip().split("\n")
        words = f"{run.last.reason} {lines[-1][:_QUOTED_CHARS]}" if lines[-1] else run.last.reason
        return (Reason("run", field, words),)
    missing = missing_outputs(run.last, outputs_of(task.data))
    return tuple(Reason("run", field, f"It did not leave {name!r}, or left it empty.") for name in missing)


def _field(case: Case) -> str:
    return case.labelling.program.field if case.labelling.program else ""


def _instruction(task: Task) -> str:
    return str(task.data.get(INSTRUCTION_KEY, ""))
