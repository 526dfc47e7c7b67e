"""The gates of code tasks: the submitted program runs again in a clean sandbox and leaves its files.

Knows what is run again, and how what came of it is judged. Does not know the sandbox: whoever has one
hands in a `Rerun`, and calls `judged_again` for the sample of a code task right after `judge`. Files are
opened where they lie, by a program of ours that runs after the submitted ones in the same fresh folder:
the sandbox has the libraries, and nothing untrusted is opened here. What programs printed is told as it
is: personal data in it are not masked.

    verdict_passes   the annotator's own verdict
    code_runs        every script ends well, within max(30 s, twice the time of the draft's run)
    files_exist      declared files, else those that the draft wrote, are there, not empty, as they claim
    same_output      (told, stops nothing) it prints what it printed before
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from backend.core.dataset import Rejected
from backend.core.execution import Attempt, Script
from backend.core.labelling import Value
from backend.core.runs import InputFile, Run
from backend.core.sample import Attempt as Told
from backend.core.sample import File, Note, Sample, Step, present

VERDICT_KEY = "verdict"  # controls of a code task's config, where it has them
COMMENT_KEY = "comment"

_LEAST_S = 30.0  # of a re-run
_TIMES_THE_DRAFT = 2
_SHOWN_FILES = 3  # in a reason

# Prints one JSON object: what is wrong, by file. Modules come from the sandbox, not from the job's folder.
_CHECKER = """
import os, sys
sys.path = [part for part in sys.path if part not in ("", os.getcwd())]
import csv, json
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
        with open(path, encoding="utf-8-sig", newline="") as stream:
            for row in csv.reader(stream, strict=True):
                pass
    elif ending in ("txt", "md", "html", "svg"):
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                pass
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

    def __call__(self, scripts: Sequence[Script], inputs: Sequence[InputFile], limit_s: float) -> Run:
        """Run scripts one after another in one fresh folder, in a cold interpreter.

        Args:
            scripts: What to run.
            inputs: Files that they read.
            limit_s: Wall time for all of them; whoever runs them may allow less.
        Returns:
            What came of it in its last attempt; the run's key is of no interest here.
        Raises:
            TaskError: It cannot be started: an input is missing.
            ServiceError: The sandbox did not do its part.
        """
        ...


@dataclass(frozen=True)
class CodeTask:
    """The submitted program, and what it is measured against.

    value      what the annotator submitted
    run        the run of exactly the submitted scripts, as the page showed it
    declared   names of files that the task asks for; may be empty
    draft      the run of the draft, where there was one
    """

    value: Value
    run: Run
    declared: tuple[str, ...] = ()
    draft: Run | None = None

    @property
    def scripts(self) -> tuple[Script, ...]:
        """The submitted scripts."""
        return tuple(step.script for step in self.run.last.steps)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The files that have to be there: the declared ones, else those of the draft, else its own."""
        wrote = (self.draft or self.run).last.files
        return self.declared or tuple(file.path for file in wrote)

    @property
    def limit_s(self) -> float:
        """Wall time that a re-run may take, in seconds."""
        return max(_LEAST_S, _TIMES_THE_DRAFT * (self.draft or self.run).last.wall_s)


def verdict_passes(value: Value) -> str | None:
    """Stop what the annotator themself says is not right."""
    verdict = value.get(VERDICT_KEY)
    if verdict in (None, "pass"):
        return None
    comment = value.get(COMMENT_KEY)
    return f"The annotator says {verdict}{f': {comment}' if comment else '.'}"


def code_runs(task: CodeTask, again: Attempt) -> str | None:
    """Stop programs that do not end well when they are run again, from nothing."""
    if len(again.steps) > len(task.scripts) or again.outcome == "ok":
        return None  # what came after them is our own
    return f"Run again, it does not end well ({again.outcome}): {again.reason or 'no reason'}"


def files_exist(task: CodeTask, again: Attempt) -> str | None:
    """Stop programs that do not leave their files, not empty, and as what they claim to be."""
    if not task.wanted:
        return None
    wrong = _wrong_files(task, again)
    if wrong is None:
        return "Its files could not be looked at: the check after it did not end."
    told = [f"{path} {what}" for path, what in sorted(wrong.items())]
    more = f" and {len(told) - _SHOWN_FILES} more" if len(told) > _SHOWN_FILES else ""
    return f"Run again: {'; '.join(told[:_SHOWN_FILES])}{more}" if told else None


def same_output(task: CodeTask, again: Attempt) -> str | None:
    """Note programs that print something else than before: they depend on time, chance or order."""
    before = [(step.stdout, step.stderr) for step in task.run.last.steps]
    now = [(step.stdout, step.stderr) for step in again.steps[: len(task.scripts)]]
    return None if before == now else "Run again, it prints something else than before."


def run_again(task: CodeTask, rerun: Rerun) -> tuple[tuple[str, str] | None, tuple[Note, ...]]:
    """Run a submitted program again and pass it through the gates of code tasks.

    Args:
        task: The program.
        rerun: Runs it.
    Returns:
        The gate that it failed and the reason, or None; and what is told besides.
    Raises:
        TaskError: As `rerun`.
        ServiceError: As `rerun`.
    """
    said = verdict_passes(task.value)
    if said is not None:
        return (verdict_passes.__name__, said), ()
    scripts = task.scripts
    if task.wanted:
        scripts = (*scripts, checker(task.wanted))
    again = rerun(scripts, task.run.inputs, task.limit_s).last
    for gate in (code_runs, files_exist):
        reason = gate(task, again)
        if reason is not None:
            return (gate.__name__, reason), ()
    noted = same_output(task, again)
    return None, (Note(gate=same_output.__name__, reason=noted),) if noted else ()


def checker(wanted: Sequence[str]) -> Script:
    """Give the program that opens files in the folder it runs in, and prints what is wrong by file."""
    return Script(f"WANTED = {json.dumps(list(wanted))}\n{_CHECKER}")


def judged_again(sample: Sample, task: CodeTask, rerun: Rerun) -> Sample | Rejected:
    """Give the sample of a code task with its run, or say which gate of code tasks it failed.

    Raises:
        TaskError: As `rerun`.
        ServiceError: As `rerun`.
    """
    stopped, notes = run_again(task, rerun)
    if stopped is not None:
        return Rejected(
            sample.project, sample.task, sample.annotation, sample.case, *stopped, metadata=sample.metadata
        )
    run = task.run
    names = (gate.__name__ for gate in (verdict_passes, code_runs, files_exist))
    return replace(
        sample,
        gates=(*sample.gates, *names),
        notes=(*sample.notes, *notes),
        attempts=tuple(_told(attempt) for attempt in run.attempts if attempt.steps),
        input_files=tuple(
            File(path=file.name, size_bytes=file.size_bytes, sha256=file.sha256) for file in run.inputs
        ),
        output_files=_files(run.last),
    )


def _wrong_files(task: CodeTask, again: Attempt) -> dict[str, str] | None:
    if len(again.steps) != len(task.scripts) + 1 or again.steps[-1].exit_status != 0:
        return None
    try:
        found = json.loads(again.steps[-1].stdout)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


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
