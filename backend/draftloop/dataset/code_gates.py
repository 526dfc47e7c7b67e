"""The gates of code tasks: the submitted program must run again in a clean sandbox and write its files.

Knows what is run again, and how the run is judged. Does not know the sandbox or where runs are stored
(`reruns` passes in a `Rerun` and the stored runs), nor how files are checked (`file_check`).

    verdict_passes   the annotator's own verdict
    can_be_run       its input files exist, unchanged
    code_runs        every script succeeds, within max(30 s, twice the time of the draft's run)
    files_exist      declared files, else those that the draft wrote, exist, are not empty and open
    same_output      (a note) it prints and writes the same as before
    not_run_again    (a note) the team decided to export it without running it
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

from draftloop.dataset.file_check import checker, wrong_files
from draftloop.dataset.gates import Annotation, Candidate, Rejected, draft_of
from draftloop.dataset.personal import Mask
from draftloop.dataset.sample import (
    VERDICT_GATE,
    FailedGate,
    Gate,
    Note,
    Sample,
    SampleAttempt,
    SampleFile,
    SampleStep,
    check_gates,
    collect_notes,
    present,
)
from draftloop.errors import TaskError
from draftloop.labelling.labelling import Value
from draftloop.prompting.prompt import Case
from draftloop.runs.job import Attempt, Script
from draftloop.runs.run import INSTRUCTION_KEY, InputFile, Run, inputs_of, normalize_script, outputs_of

VERDICT_KEY = "verdict"  # controls of a code task's config, where it has them
COMMENT_KEY = "comment"

_MIN_LIMIT_S = 30.0  # of a re-run
_TIMES_THE_DRAFT = 2
_SHOWN_FILES = 3  # in a reason
_QUOTED_CHARS = 300  # of a program's output
_TEXTS: tuple[Literal["code", "stdout", "stderr"], ...] = ("code", "stdout", "stderr")  # of a step
# Formats whose files have equal bytes when written twice. Others contain the date: xlsx, pdf, svg.
_WITHOUT_A_DATE = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".png")


class Rerun(Protocol):
    """Runs programs again in a fresh sandbox."""

    def __call__(self, scripts: Sequence[Script], inputs: Sequence[InputFile], limit_s: float) -> Attempt:
        """Run scripts one after another in one fresh folder, in a cold interpreter.

        Args:
            scripts: What to run.
            inputs: Files that they read.
            limit_s: Wall time for all of them; the runner may allow less.
        Raises:
            TaskError: The run cannot start: an input is missing.
            ServiceError: The sandbox failed.
        """
        ...


@dataclass(frozen=True)
class CodeTask:
    """The submitted program, and what its run is compared with.

    value        what the annotator submitted
    scripts      the program in it
    inputs       files that it reads
    declared     names of files that the task asks for; may be empty
    instruction  what the task asks for
    drafted      the program of the draft, if any
    texts        JSON in which `Mask` looks for personal data, in the order of `gates.judge`
    run          the stored run of exactly these scripts, if any
    draft        the stored run of the draft's program, if any
    """

    value: Value
    scripts: tuple[Script, ...]
    inputs: tuple[InputFile, ...] = ()
    declared: tuple[str, ...] = ()
    instruction: str = ""
    drafted: Script | None = None
    texts: tuple[Any, ...] = ()
    run: Run | None = None
    draft: Run | None = None

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The files that must exist: the declared ones, else those of the draft's run, else of its own run.

        None where no run is known yet.
        """
        if self.declared:
            return self.declared
        known = self.draft if self.draft is not None and self.draft.ok else self.run
        return None if known is None else tuple(file.path for file in known.last.files)

    @property
    def limit_s(self) -> float:
        """Wall time that a re-run may take, in seconds."""
        known = self.draft or self.run
        if known is None or known.origin == "gate":  # a gate's own run sets no limit
            return _MIN_LIMIT_S
        return max(_MIN_LIMIT_S, *(_TIMES_THE_DRAFT * attempt.wall_s for attempt in _of_final_code(known)))


@dataclass(frozen=True)
class Evidence:
    """What the gates of code tasks check: a program, and its attempt.

    task       the program
    again      the attempt of the rerun; without a rerun, the stored one; None before
    has_files  whether that attempt ended with the check of its files
    refused    why it cannot be run again
    """

    task: CodeTask
    again: Attempt | None = None
    has_files: bool = False
    refused: TaskError | None = None


@dataclass(frozen=True)
class Checked:
    """The gates' result: the gate that stopped the program, notes, and its attempt without the file check."""

    stopped: FailedGate | None = None
    notes: tuple[Note, ...] = ()
    attempt: Attempt | None = None


def submitted(annotation: Annotation, case: Case) -> CodeTask | None:
    """Return the program that an annotation submits; None where its case has none, or it is empty.

    Raises:
        TaskError: The annotation is no sample; `gates.judge` returns the reason.
    """
    if case.labelling.program is None:
        return None
    case = case.for_task(annotation.task)
    question = case.labelling.read(annotation.task)
    value = case.labelling.from_regions(annotation.regions, question)
    script = case.labelling.script(value)
    if script is None:
        return None
    draft = draft_of(Candidate(annotation, case, value, question))
    data = annotation.task.data
    return CodeTask(
        value=value,
        scripts=(script,),
        inputs=inputs_of(data),
        declared=outputs_of(data),
        instruction=str(data.get(INSTRUCTION_KEY, "")),
        drafted=None if draft is None else case.labelling.script(draft),
        texts=(data, value, draft, case.labelling.words(annotation.regions)),
    )


# ---------------------------------------------------------------------------------- gates


def verdict_passes(evidence: Evidence) -> str | None:
    """Stop code that its annotator marked as wrong."""
    verdict = evidence.task.value.get(VERDICT_KEY)
    if verdict in (None, "pass"):
        return None
    comment = evidence.task.value.get(COMMENT_KEY)
    return f"The annotator says {verdict}{f': {comment}' if comment else '.'}"


def can_be_run(evidence: Evidence) -> str | None:
    """Stop code whose input files are missing or changed; each sync tries it again."""
    return None if evidence.refused is None else _cannot_be_run(evidence.refused)


def code_runs(evidence: Evidence) -> str | None:
    """Stop code that fails when it is run again in a new interpreter, from its inputs only, in time."""
    again = evidence.again
    if again is None or again.outcome == "ok" or len(again.steps) > len(evidence.task.scripts):
        return None  # the failing step is our file check
    lines = again.steps[-1].stderr.strip().split("\n") if again.steps else [""]
    last = f" {lines[-1][:_QUOTED_CHARS]}" if lines[-1] else ""
    return f"It does not end well ({again.outcome}): {again.reason or 'no reason'}{last}"


def files_exist(evidence: Evidence) -> str | None:
    """Stop code whose declared files are missing, empty, or not of the format that their names claim."""
    if evidence.again is None or not evidence.has_files:
        return None
    wrong = wrong_files(evidence.again, after=len(evidence.task.scripts))
    if wrong is None:
        return "Its files could not be looked at: the check after it did not end."
    listed = [f"{path} {what}" for path, what in sorted(wrong.items())]
    more = f" and {len(listed) - _SHOWN_FILES} more" if len(listed) > _SHOWN_FILES else ""
    return f"Run again: {'; '.join(listed[:_SHOWN_FILES])}{more}" if listed else None


def same_output(evidence: Evidence) -> str | None:
    """Note code with other output or files than before: it depends on time, chance or order."""
    if evidence.task.run is None or evidence.again is None:
        return None
    before, again = evidence.task.run.last, evidence.again
    parts = [
        name
        for name in ("stdout", "stderr")
        if [getattr(step, name) for step in before.steps] != [getattr(step, name) for step in again.steps]
    ]
    left, now = ({file.path: file.sha256 for file in one.files} for one in (before, again))
    other = [
        path
        for path in sorted(left.keys() | now.keys())
        if (path in left) != (path in now)
        or (path.lower().endswith(_WITHOUT_A_DATE) and left[path] != now[path])
    ]
    more = f" and {len(other) - _SHOWN_FILES} more" if len(other) > _SHOWN_FILES else ""
    changed = [*parts, *other[:_SHOWN_FILES]]
    return f"Run again, it is not what it was: {', '.join(changed)}{more}." if changed else None


def not_run_again(evidence: Evidence) -> str | None:
    """Note code that is exported without a rerun (`--no-rerun`)."""
    if evidence.again is not None:
        return None
    known = "its run in the page is told" if evidence.task.run else "nobody has run exactly this code"
    return f"It was not run again (--no-rerun); {known}."


CodeGate = Gate[Evidence, str | None]
CAN_BE_RUN: CodeGate = Gate("can_be_run", can_be_run)
NOT_RUN_AGAIN: CodeGate = Gate("not_run_again", not_run_again)

# The first that gives a reason rejects the sample. Gates that need a run pass a program without one.
_BEFORE_A_RUN: tuple[CodeGate, ...] = (Gate(VERDICT_GATE, verdict_passes),)
_OF_A_RUN: tuple[CodeGate, ...] = (
    CAN_BE_RUN,
    Gate("code_runs", code_runs),
    Gate("files_exist", files_exist),
)
CODE_GATES: tuple[CodeGate, ...] = (*_BEFORE_A_RUN, *_OF_A_RUN)

# These add notes and stop nothing.
CODE_NOTES: tuple[CodeGate, ...] = (Gate("same_output", same_output), NOT_RUN_AGAIN)

# ---------------------------------------------------------------------------------- flow


def run_again(task: CodeTask, rerun: Rerun | None) -> Checked:
    """Run a submitted program again and pass it through the gates of code tasks.

    Args:
        task: The program.
        rerun: Runs it; None where the team decided that it is not run again.
    Returns:
        The gate that stopped it with the reason, or its notes and its attempt.
    Raises:
        ServiceError: `rerun` failed.
    """
    stopped = check_gates(_BEFORE_A_RUN, Evidence(task))
    if stopped is not None:
        return Checked(stopped)
    if rerun is None:
        stopped = check_gates(CODE_GATES, Evidence(task, task.run.last)) if task.run else None
        return Checked(stopped, notes=() if stopped else collect_notes(CODE_NOTES, Evidence(task)))
    try:
        evidence = _evidence(task, rerun)
    except TaskError as error:
        evidence = Evidence(task, refused=error)
    stopped = check_gates(CODE_GATES, evidence)
    if stopped is not None or evidence.again is None:
        return Checked(stopped)
    steps = evidence.again.steps[: len(task.scripts)]
    own = replace(evidence.again, steps=steps, wall_s=round(sum(step.wall_s for step in steps), 3))
    return Checked(notes=collect_notes(CODE_NOTES, replace(evidence, again=own)), attempt=own)


def _evidence(task: CodeTask, rerun: Rerun) -> Evidence:
    """Run a program again, followed by the check of its files.

    Raises:
        TaskError: An input is missing.
        ServiceError: `rerun` failed.
    """
    wanted = task.wanted
    if wanted is None:  # its first run shows which files it writes
        first = Evidence(task, rerun(task.scripts, task.inputs, task.limit_s))
        if first.again is None or check_gates(CODE_GATES, first) is not None:
            return first
        wanted = tuple(file.path for file in first.again.files)
    task = replace(task, declared=wanted)
    scripts = (*task.scripts, checker(wanted)) if wanted else task.scripts
    return Evidence(task, rerun(scripts, task.inputs, task.limit_s), has_files=bool(wanted))


def unrunnable(sample: Sample, error: TaskError) -> Rejected:
    """Reject a sample whose code cannot be read from its task."""
    return Rejected(
        sample.project,
        sample.task,
        sample.annotation,
        sample.case,
        CAN_BE_RUN.name,
        _cannot_be_run(error),
        metadata=sample.metadata,
    )


def finalize_sample(
    sample: Sample, task: CodeTask, checked: Checked, run: Run | None, *, mask: str = ""
) -> Sample | Rejected:
    """Return the sample of a code task with its run, or reject it with the gate that stopped it.

    Args:
        sample: The sample, as `gates.judge` returned it.
        task: Its program.
        checked: The gates' result.
        run: The run of exactly the submitted program, if any.
        mask: Country of telephone numbers, where personal data is replaced by stand-ins; empty: no masking.
    """
    attempts = [_attempt_record(attempt) for attempt in _story(run)] if run else []
    stopped = checked.stopped
    if mask:
        printed = [{name: step[name] for name in _TEXTS} for attempt in attempts for step in attempt["steps"]]
        # The sample's own texts first, in the order of its mask, so that equal data gets equal stand-ins.
        hide = Mask([*task.texts, printed, stopped and stopped.reason], mask)
        for attempt in attempts:
            for step in attempt["steps"]:
                step.update({name: hide(step[name]) for name in _TEXTS})  # type: ignore[typeddict-item]
        stopped = stopped and FailedGate(stopped.gate, hide(stopped.reason))
    if stopped is not None:
        return Rejected(
            sample.project, sample.task, sample.annotation, sample.case, *stopped, metadata=sample.metadata
        )
    passed = _BEFORE_A_RUN if checked.attempt is None else CODE_GATES
    return replace(
        sample,
        gates=(*sample.gates, *(gate.name for gate in passed)),
        notes=(*sample.notes, *checked.notes),
        attempts=tuple(attempts),
        input_files=tuple(
            SampleFile(path=file.name, size_bytes=file.size_bytes, sha256=file.sha256) for file in task.inputs
        ),
        output_files=_files(run.last) if run else (),
        metadata={**sample.metadata, **({"run": run.key, "run_by": run.origin} if run else {})},
    )


def _cannot_be_run(error: TaskError) -> str:
    return f"It cannot be run again: {error}"


def _of_final_code(run: Run) -> list[Attempt]:
    """Return the attempts at the scripts of the last attempt: several where earlier ones were stopped."""
    return [attempt for attempt in run.attempts if _scripts(attempt) == _scripts(run.last)]


def _story(run: Run) -> list[Attempt]:
    """Return the attempts worth training on: of several at the final scripts only the last one."""
    earlier = [one for one in run.attempts[:-1] if one.steps and _scripts(one) != _scripts(run.last)]
    return [*earlier, run.last]


def _scripts(attempt: Attempt) -> list[Script]:
    return [normalize_script(step.script) for step in attempt.steps]


def _attempt_record(attempt: Attempt) -> SampleAttempt:
    steps = [
        SampleStep(
            language=step.script.language,
            code=step.script.code,
            stdout=step.stdout,
            stderr=step.stderr,
            exit_status=step.exit_status,
            wall_s=round(step.wall_s, 3),
        )
        for step in attempt.steps
    ]
    files = list(_files(attempt)) or None
    record = {"outcome": attempt.outcome, "steps": steps, "reason": attempt.reason or None, "files": files}
    return cast("SampleAttempt", present(record))


def _files(attempt: Attempt) -> tuple[SampleFile, ...]:
    return tuple(
        SampleFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in attempt.files
    )
