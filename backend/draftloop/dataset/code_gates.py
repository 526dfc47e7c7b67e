"""The gates of code tasks: the submitted program runs again in a clean sandbox and leaves its files.

Knows what is run again, and how what came of it is judged. Does not know the sandbox, nor where runs are
kept: whoever does hands in a `Rerun` and the runs that are known (`dataset/reruns.py`), nor how files are
looked at (`file_check`).

    verdict_passes   the annotator's own verdict
    can_be_run       its input files are there, as they were
    code_runs        every script ends well, within max(30 s, twice the time of the draft's run)
    files_exist      declared files, else those that the draft wrote, are there, not empty, as they claim
    same_output      (told, stops nothing) it prints and leaves what it did before
    not_run_again    (told, stops nothing) the team decided to export it unrun
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
from draftloop.runs.run import INSTRUCTION_KEY, InputFile, Run, inputs_of, outputs_of, settled

VERDICT_KEY = "verdict"  # controls of a code task's config, where it has them
COMMENT_KEY = "comment"

_MIN_LIMIT_S = 30.0  # of a re-run
_TIMES_THE_DRAFT = 2
_SHOWN_FILES = 3  # in a reason
_QUOTED_CHARS = 300  # of what a program printed
_TEXTS: tuple[Literal["code", "stdout", "stderr"], ...] = ("code", "stdout", "stderr")  # of a step
# Files of the same content, when they are written twice. Of others the date is a part: xlsx, pdf, svg.
_WITHOUT_A_DATE = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".png")


class Rerun(Protocol):
    """Something that runs programs again, from nothing, in a sandbox."""

    def __call__(self, scripts: Sequence[Script], inputs: Sequence[InputFile], limit_s: float) -> Attempt:
        """Run scripts one after another in one fresh folder, in a cold interpreter.

        Args:
            scripts: What to run.
            inputs: Files that they read.
            limit_s: Wall time for all of them; whoever runs them may allow less.
        Returns:
            What came of it.
        Raises:
            TaskError: It cannot be started: an input is missing.
            ServiceError: The sandbox did not do its part.
        """
        ...


@dataclass(frozen=True)
class CodeTask:
    """The submitted program, and what it is measured against.

    value        what the annotator submitted
    scripts      the program in it
    inputs       files that it reads
    declared     names of files that the task asks for; may be empty
    instruction  what is wanted
    drafted      the program of the draft, where there was one
    texts        JSON in which personal data is looked for, in the order of `dataset.judge`
    run          the run of exactly these scripts that the page shows, where there is one
    draft        the run of the draft's program, where it is known
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
        """The files that have to be there: the declared ones, else those of the draft, else its own.

        None where nothing is known of them before it has run.
        """
        if self.declared:
            return self.declared
        known = self.draft if self.draft is not None and self.draft.ok else self.run
        return None if known is None else tuple(file.path for file in known.last.files)

    @property
    def limit_s(self) -> float:
        """Wall time that a re-run may take, in seconds."""
        known = self.draft or self.run
        if known is None or known.origin == "gate":  # no measure of itself
            return _MIN_LIMIT_S
        return max(_MIN_LIMIT_S, *(_TIMES_THE_DRAFT * attempt.wall_s for attempt in _of_final_code(known)))


@dataclass(frozen=True)
class Evidence:
    """What gates of code tasks look at: a program, and what is known of it by now.

    task       the program
    again      its attempt, once it ran again; where it does not run again, the one that is known
    has_files  whether that attempt ended with the check of its files
    refused    why it cannot be run again
    """

    task: CodeTask
    again: Attempt | None = None
    has_files: bool = False
    refused: TaskError | None = None


@dataclass(frozen=True)
class Checked:
    """What the gates found: why a program was stopped, what is told of it, what it did alone when it ran."""

    stopped: FailedGate | None = None
    notes: tuple[Note, ...] = ()
    attempt: Attempt | None = None


def submitted(annotation: Annotation, case: Case) -> CodeTask | None:
    """Read the program that an annotation submits; None where its case has none, or it is empty.

    Raises:
        TaskError: The annotation is no sample: `dataset.judge` says why.
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
    """Stop code that the annotator themself says is not right."""
    verdict = evidence.task.value.get(VERDICT_KEY)
    if verdict in (None, "pass"):
        return None
    comment = evidence.task.value.get(COMMENT_KEY)
    return f"The annotator says {verdict}{f': {comment}' if comment else '.'}"


def can_be_run(evidence: Evidence) -> str | None:
    """Stop code whose input files are gone, or not what they were; each sync tries it again."""
    return None if evidence.refused is None else _cannot_be_run(evidence.refused)


def code_runs(evidence: Evidence) -> str | None:
    """Stop code that does not end well when it is run again: cold, from its inputs alone, in time."""
    again = evidence.again
    if again is None or again.outcome == "ok" or len(again.steps) > len(evidence.task.scripts):
        return None  # what came after the scripts is our own
    lines = again.steps[-1].stderr.strip().split("\n") if again.steps else [""]
    last = f" {lines[-1][:_QUOTED_CHARS]}" if lines[-1] else ""
    return f"It does not end well ({again.outcome}): {again.reason or 'no reason'}{last}"


def files_exist(evidence: Evidence) -> str | None:
    """Stop code that does not leave its declared files, not empty, as what they claim to be."""
    if evidence.again is None or not evidence.has_files:
        return None
    wrong = wrong_files(evidence.again, after=len(evidence.task.scripts))
    if wrong is None:
        return "Its files could not be looked at: the check after it did not end."
    listed = [f"{path} {what}" for path, what in sorted(wrong.items())]
    more = f" and {len(listed) - _SHOWN_FILES} more" if len(listed) > _SHOWN_FILES else ""
    return f"Run again: {'; '.join(listed[:_SHOWN_FILES])}{more}" if listed else None


def same_output(evidence: Evidence) -> str | None:
    """Note code that prints or leaves something else than before: it depends on time, chance or order."""
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
    """Note code that was exported without running it again (`--no-rerun`)."""
    if evidence.again is not None:
        return None
    known = "its run in the page is told" if evidence.task.run else "nobody has run exactly this code"
    return f"It was not run again (--no-rerun); {known}."


CodeGate = Gate[Evidence, str | None]
CAN_BE_RUN: CodeGate = Gate("can_be_run", can_be_run)
NOT_RUN_AGAIN: CodeGate = Gate("not_run_again", not_run_again)

# The first that gives a reason rejects the sample. One that needs a run lets pass what has none yet.
_BEFORE_A_RUN: tuple[CodeGate, ...] = (Gate(VERDICT_GATE, verdict_passes),)
_OF_A_RUN: tuple[CodeGate, ...] = (
    CAN_BE_RUN,
    Gate("code_runs", code_runs),
    Gate("files_exist", files_exist),
)
CODE_GATES: tuple[CodeGate, ...] = (*_BEFORE_A_RUN, *_OF_A_RUN)

# What is told and stops nothing.
CODE_NOTES: tuple[CodeGate, ...] = (Gate("same_output", same_output), NOT_RUN_AGAIN)

# ---------------------------------------------------------------------------------- flow


def run_again(task: CodeTask, rerun: Rerun | None) -> Checked:
    """Run a submitted program again and pass it through the gates of code tasks.

    Args:
        task: The program.
        rerun: Runs it; None where the team decided that it is not run again.
    Returns:
        The gate that stopped it with the reason, or what is told of it, and what it did.
    Raises:
        ServiceError: As `rerun`.
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
    alone = replace(evidence.again, steps=steps, wall_s=round(sum(step.wall_s for step in steps), 3))
    return Checked(notes=collect_notes(CODE_NOTES, replace(evidence, again=alone)), attempt=alone)


def _evidence(task: CodeTask, rerun: Rerun) -> Evidence:
    """Run a program again, with a check of its files after it.

    Raises:
        TaskError: As `rerun`.
        ServiceError: As `rerun`.
    """
    wanted = task.wanted
    if wanted is None:  # what it leaves is what it has to leave, which its first run tells
        first = Evidence(task, rerun(task.scripts, task.inputs, task.limit_s))
        if first.again is None or check_gates(CODE_GATES, first) is not None:
            return first
        wanted = tuple(file.path for file in first.again.files)
    task = replace(task, declared=wanted)
    scripts = (*task.scripts, checker(wanted)) if wanted else task.scripts
    return Evidence(task, rerun(scripts, task.inputs, task.limit_s), has_files=bool(wanted))


def unrunnable(sample: Sample, error: TaskError) -> Rejected:
    """Return what an annotation is whose code cannot be read from its task."""
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
    """Give the sample of a code task with its run, or say which gate of code tasks it failed.

    Args:
        sample: It as `dataset.judge` gave it.
        task: Its program.
        checked: What the gates found.
        run: The run of exactly the submitted program, where there is one.
        mask: Country of telephone numbers where stand-ins take the place of personal data; empty: nowhere.
    """
    attempts = [_attempt_record(attempt) for attempt in _story(run)] if run else []
    stopped = checked.stopped
    if mask:
        printed = [{name: step[name] for name in _TEXTS} for attempt in attempts for step in attempt["steps"]]
        # First what the sample was masked with, in its order: so the same data has the same stand-in.
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
    """List the attempts at the scripts that the last one is at: more than one, where that was stopped."""
    return [attempt for attempt in run.attempts if _scripts(attempt) == _scripts(run.last)]


def _story(run: Run) -> list[Attempt]:
    """List the attempts from which there is something to learn: of the same scripts only the last one."""
    earlier = [one for one in run.attempts[:-1] if one.steps and _scripts(one) != _scripts(run.last)]
    return [*earlier, run.last]


def _scripts(attempt: Attempt) -> list[Script]:
    return [settled(step.script) for step in attempt.steps]


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
    told = {"outcome": attempt.outcome, "steps": steps, "reason": attempt.reason or None, "files": files}
    return cast("SampleAttempt", present(told))


def _files(attempt: Attempt) -> tuple[SampleFile, ...]:
    return tuple(
        SampleFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in attempt.files
    )
