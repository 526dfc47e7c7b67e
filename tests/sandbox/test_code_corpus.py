"""Programs of the code corpus do what they are asked for, in the sandbox that runs those of models.

CODE_TASKS says how many of each family and split are tried (12 by default), CODE_SEED from which seed on.
"""

import os

import pytest

from demo.corpus.code_checks import mistakes
from demo.corpus.code_failures import failure
from demo.corpus.code_kinds import FAMILIES, KINDS, Family
from demo.corpus.code_tasks import CodeTask, generate
from demo.corpus.words import Split
from draftloop.execution.runner import describe_attempt
from draftloop.runs.job import Attempt, Limits, SandboxJob, Script
from draftloop.runs.run import missing_outputs
from tests.sandbox.conftest import Field

COUNT = int(os.environ.get("CODE_TASKS", "12"))
SEED = int(os.environ.get("CODE_SEED", "0"))


def run(place: Field, task: CodeTask, code: str) -> Attempt:
    inputs = {}
    for name, content in task.files.items():
        path = place.inputs / name
        path.write_bytes(content)
        inputs[name] = str(path)
    return place.run_job(SandboxJob((Script(code),), inputs, Limits()))


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_program_leaves_the_right_files(one_place: Field, family: Family, split: Split) -> None:
    kinds = [kind for kind in KINDS if kind.family == family]
    for task in generate(split, COUNT, SEED, kinds):
        attempt = run(one_place, task, task.program)
        said = (
            f"{task.kind.name} {task.fault}: {task.instruction}\n{task.program}\n{describe_attempt(attempt)}"
        )
        assert attempt.outcome == "ok", said
        assert not mistakes(task, one_place.outputs, attempt.stdout), said


def test_a_wrong_program_is_detected(one_place: Field) -> None:
    changes = {
        ".sum()": ".min()",
        "nlargest(": "nsmallest(",
        "> ": ">= 0 * ",
        "== ": "!= ",
        '.merge(other, on="': '.merge(other.head(1), on="',
        'plt.savefig("': 'plt.close()\nplt.savefig("',
    }
    tried = 0
    for task in generate("held_out", 60, SEED):
        for right, wrong in changes.items():
            if right in task.program and task.fault is None:
                attempt = run(one_place, task, task.program.replace(right, wrong, 1))
                assert attempt.outcome == "failed" or mistakes(task, one_place.outputs, attempt.stdout), (
                    task.program.replace(right, wrong, 1)
                )
                tried += 1
                break
    assert tried > 10


def test_the_description_of_a_fault_is_that_of_the_corpus(one_place: Field) -> None:
    seen: dict[str, CodeTask] = {}
    kinds = [kind for kind in KINDS if kind.name in ("sum", "monthly", "count")]
    for task in generate("train", 60, SEED, kinds, fault_share=1.0):
        seen.setdefault(task.fault or "", task)
    assert set(seen) == {"unit", "comma", "gap", "date_gap", "date_form", "long_row", "late_gb18030"}
    for fault, task in seen.items():
        attempt = run(one_place, task, task.first)
        said = describe_attempt(attempt, missing_outputs(attempt, task.outputs))
        assert attempt.outcome == "failed", fault
        assert said == failure(task), fault
        mended = run(one_place, task, task.program)
        assert not mistakes(task, one_place.outputs, mended.stdout), fault
