"""The gates of code tasks: the submitted program runs again in a clean sandbox and leaves its files.

Knows what is run again, and how what came of it is judged. Does not know the sandbox, nor where runs are
kept: whoever does hands in a `Rerun` and the runs that are known (`backend/reruns.py`). Files are opened
where they lie, by a program of ours that runs after the submitted ones in the same fresh folder: the sandbox
has the libraries, and nothing untrusted is opened here.

    verdict_passes   the annotator's own verdict
    can_be_run       its input files are there, as they were
    code_runs        every script ends well, within max(30 s, twice the time of the draft's run)
    files_exist      declared files, else those that the draft wrote, are there, not empty, as they claim
    same_output      (told, stops nothing) it prints and leaves what it did before
    not_run_again    (told, stops nothing) the team decided to export it unrun
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

from backend.core.dataset import Annotation, Candidate, Rejected, draft_of
from backend.core.execution import Attempt, Script
from backend.core.labelling import Value
from backend.core.personal import Mask
from backend.core.prompting import Case
from backend.core.runs import INSTRUCTION_KEY, InputFile, Run, inputs_of, outputs_of
from backend.core.sample import Attempt as Told
from backend.core.sample import File, Note, Sample, Step, present
from backend.errors import TaskError

VERDICT_KEY = "verdict"  # controls of a code task's config, where it has them
COMMENT_KEY = "comment"

_LEAST_S = 30.0  # of a re-run
_TIMES_THE_DRAFT = 2
_SHOWN_FILES = 3  # in a reason
_QUOTED_CHARS = 300  # of what a program printed
_TEXTS: tuple[Literal["code", "stdout", "stderr"], ...] = ("code", "stdout", "stderr")  # of a step
# Files of the same content, when they are written twice. Of others the date is a part: xlsx, pdf, svg.
_WITHOUT_A_DATE = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".png")

# Prints one JSON object: what is wrong, by file. Modules come from the sandbox, not from the job's folder.
_CHECKER = """
import os, sys
sys.path = [part for part in sys.path if part not in ("", os.getcwd())]
import csv, json
csv.field_size_limit(2**31 - 1)
def encoding_of(path):
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            with open(path, encoding=encoding) as stream:
                for line in stream:
                    pass
            return encoding
        except UnicodeDecodeError as error:
            wrong = error
    raise wrong
def opened(path):
    ending = path.rsplit(".", 1)[-1].lower()
    if ending in ("png", "jpg", "jpeg", "gif", "webp", "bmp"):
        from PIL import Image
        with Image.open(path) as image:
            image.load()
    elif ending == "pdf":
        from pypdf import PdfReader
        if not PdfReader(path).pages:
            raise ValueError("no page")
    elif ending in ("xlsx", "xlsm"):
        from openpyxl import load_workbook
        if not load_workbook(path, read_only=True).sheetnames:
            raise ValueError("no sheet")
    elif ending == "json":
        with open(path, encoding="utf-8") as stream:
            json.load(stream)
    elif ending == "jsonl":
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                json.loads(line)
    elif ending == "csv":
        with open(path, encoding=encoding_of(path), newline="") as stream:
            for row in csv.reader(stream, strict=True):
                pass
    elif ending in ("txt", "md", "html", "svg"):
        encoding_of(path)
found = {}
for path in WANTED:
    try:
        if not os.path.isfile(path):
            found[path] = "is not there"
        elif not os.path.getsize(path):
            found[path] = "is empty"
        else:
            opened(path)
    except BaseException as error:
        found[path] = "does not open as what it claims to be: " + (str(error)[:120] or type(error).__name__)
print(json.dumps(found))
"""


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
            return _LEAST_S
        return max(_LEAST_S, *(_TIMES_THE_DRAFT * attempt.wall_s for attempt in _of_final_code(known)))


@dataclass(frozen=True)
class Checked:
    """What the gates found: why a program was stopped, what is told of it, what it did alone when it ran."""

    stopped: tuple[str, str] | None = None
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
    value = case.labelling.from_regions(annotation.regions, annotation.task)
    script = case.labelling.script(value)
    if script is None:
        return None
    draft = draft_of(Candidate(annotation, case, value))
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


def verdict_passes(value: Value) -> str | None:
    """Stop code that the annotator themself says is not right."""
    verdict = value.get(VERDICT_KEY)
    if verdict in (None, "pass"):
        return None
    comment = value.get(COMMENT_KEY)
    return f"The annotator says {verdict}{f': {comment}' if comment else '.'}"


def can_be_run(error: TaskError) -> str:
    """Stop code whose input files are gone, or not what they were; each sync tries it again."""
    return f"It cannot be run again: {error}"


def code_runs(task: CodeTask, again: Attempt) -> str | None:
    """Stop code that does not end well when it is run again: cold, from its inputs alone, in time."""
    if again.outcome == "ok" or len(again.steps) > len(task.scripts):
        return None  # what came after the scripts is our own
    lines = again.steps[-1].stderr.strip().splitlines() if again.steps else []
    last = f" {lines[-1][:_QUOTED_CHARS]}" if lines else ""
    return f"It does not end well ({again.outcome}): {again.reason or 'no reason'}{last}"


def files_exist(task: CodeTask, again: Attempt) -> str | None:
    """Stop code that does not leave its declared files, not empty, as what they claim to be."""
    if not task.wanted:
        return None
    wrong = _wrong_files(task, again)
    if wrong is None:
        return "Its files could not be looked at: the check after it did not end."
    told = [f"{path} {what}" for path, what in sorted(wrong.items())]
    more = f" and {len(told) - _SHOWN_FILES} more" if len(told) > _SHOWN_FILES else ""
    return f"Run again: {'; '.join(told[:_SHOWN_FILES])}{more}" if told else None


def same_output(task: CodeTask, again: Attempt) -> str | None:
    """Note code that prints or leaves something else than before: it depends on time, chance or order."""
    if task.run is None:
        return None
    before = task.run.last
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
    told = [*parts, *other[:_SHOWN_FILES]]
    return f"Run again, it is not what it was: {', '.join(told)}{more}." if told else None


def not_run_again(task: CodeTask) -> str:
    """Note code that was exported without running it again (`--no-rerun`)."""
    known = "its run in the page is told" if task.run else "nobody has run exactly this code"
    return f"It was not run again (--no-rerun); {known}."


# The first that gives a reason rejects the sample.
CODE_GATES: tuple[Callable[..., str | None], ...] = (verdict_passes, can_be_run, code_runs, files_exist)

# What is told and stops nothing.
CODE_NOTES: tuple[Callable[..., str | None], ...] = (same_output, not_run_again)

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
    said = verdict_passes(task.value)
    if said is not None:
        return Checked((verdict_passes.__name__, said))
    if rerun is None:
        failed = code_runs(task, task.run.last) if task.run else None
        if failed is not None:
            return Checked((code_runs.__name__, failed))
        return Checked(notes=(Note(gate=not_run_again.__name__, reason=not_run_again(task)),))
    try:
        return _checked(task, rerun)
    except TaskError as error:
        return Checked((can_be_run.__name__, can_be_run(error)))


def _checked(task: CodeTask, rerun: Rerun) -> Checked:
    wanted = task.wanted
    if wanted is None:  # what it leaves is what it has to leave, which its first run tells
        first = rerun(task.scripts, task.inputs, task.limit_s)
        failed = code_runs(task, first)
        if failed is not None:
            return Checked((code_runs.__name__, failed))
        wanted = tuple(file.path for file in first.files)
    task = replace(task, declared=wanted)
    scripts = (*task.scripts, checker(wanted)) if wanted else task.scripts
    again = rerun(scripts, task.inputs, task.limit_s)
    for gate in (code_runs, files_exist):
        reason = gate(task, again)
        if reason is not None:
            return Checked((gate.__name__, reason))
    steps = again.steps[: len(task.scripts)]
    alone = replace(again, steps=steps, wall_s=round(sum(step.wall_s for step in steps), 3))
    noted = same_output(task, alone)
    return Checked(notes=(Note(gate=same_output.__name__, reason=noted),) if noted else (), attempt=alone)


def checker(wanted: Sequence[str]) -> Script:
    """Give the program that opens files in the folder it runs in, and prints what is wrong by file."""
    return Script(f"WANTED = {json.dumps(list(wanted))}\n{_CHECKER}")


def finished(
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
    attempts = [_told(attempt) for attempt in _story(run)] if run else []
    stopped = checked.stopped
    if mask:
        printed = [{name: step[name] for name in _TEXTS} for attempt in attempts for step in attempt["steps"]]
        # First what the sample was masked with, in its order: so the same data has the same stand-in.
        hide = Mask([*task.texts, printed, stopped and stopped[1]], mask)
        for attempt in attempts:
            for step in attempt["steps"]:
                step.update({name: hide(step[name]) for name in _TEXTS})  # type: ignore[typeddict-item]
        stopped = stopped and (stopped[0], hide(stopped[1]))
    if stopped is not None:
        return Rejected(
            sample.project, sample.task, sample.annotation, sample.case, *stopped, metadata=sample.metadata
        )
    ran = [] if checked.attempt is None else [can_be_run, code_runs, files_exist]
    return replace(
        sample,
        gates=(*sample.gates, *(gate.__name__ for gate in (verdict_passes, *ran))),
        notes=(*sample.notes, *checked.notes),
        attempts=tuple(attempts),
        input_files=tuple(
            File(path=file.name, size_bytes=file.size_bytes, sha256=file.sha256) for file in task.inputs
        ),
        output_files=_files(run.last) if run else (),
        metadata={**sample.metadata, **({"run": run.key, "run_by": run.origin} if run else {})},
    )


def _wrong_files(task: CodeTask, again: Attempt) -> dict[str, str] | None:
    if len(again.steps) != len(task.scripts) + 1 or again.steps[-1].exit_status != 0:
        return None
    try:
        found = json.loads(again.steps[-1].stdout)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _of_final_code(run: Run) -> list[Attempt]:
    """List the attempts at the scripts that the last one is at: more than one, where that was stopped."""
    return [attempt for attempt in run.attempts if _scripts(attempt) == _scripts(run.last)]


def _story(run: Run) -> list[Attempt]:
    """List the attempts from which there is something to learn: of the same scripts only the last one."""
    earlier = [one for one in run.attempts[:-1] if one.steps and _scripts(one) != _scripts(run.last)]
    return [*earlier, run.last]


def _scripts(attempt: Attempt) -> list[Script]:
    return [step.script for step in attempt.steps]


def _told(attempt: Attempt) -> Told:
    steps = [
        Step(
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
    return cast("Told", present(told))


def _files(attempt: Attempt) -> tuple[File, ...]:
    return tuple(
        File(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in attempt.files
    )
