"""The measure of a code model, with answers that are known: no model is asked."""

import json

from demo.corpus.code_kinds import KINDS
from demo.corpus.code_tasks import CodeTask, generate, target
from demo.evaluate_code_model import Messages, evaluate, figures

TASKS = list(generate("held_out", 10, 3)) + list(
    generate("held_out", 4, 3, [kind for kind in KINDS if kind.name == "sum"], fault_share=1.0)
)


def test_the_corpus_own_answers_are_all_right_those_with_a_fault_after_a_traceback() -> None:
    def ask(task: CodeTask, messages: Messages) -> str:
        assert len(messages) == 2 or "Traceback" in messages[-1]["content"]
        return target(task.first if len(messages) == 2 else task.program)

    measured = figures(evaluate(TASKS, ask))
    faults = sum(task.fault is not None for task in TASKS)
    assert faults >= 4
    plain = len(TASKS) - faults
    expected = {"count": plain, "ran": 1.0, "right": 1.0, "later": 0, "faults": faults, "mended": faults}
    assert measured == expected


def test_wrong_answers_are_counted_as_what_they_are() -> None:
    answers = {
        0: "{",
        1: target("raise SystemExit(3)"),
        2: json.dumps({"code": "open('nothing', 'w')"}),
    }
    plain = [task for task in TASKS if task.fault is None][:4]

    def ask(task: CodeTask, messages: Messages) -> str:
        place = plain.index(task)
        if place == 3:
            return target("1 / 0" if len(messages) == 2 else task.program)
        return answers[place]

    tried = evaluate(plain, ask)
    assert [one.right for one in tried] == [False, False, False, True]
    assert [one.turns for one in tried] == [1, 1, 1, 2]
    assert figures(tried) == {"count": 4, "ran": 0.0, "right": 0.0, "later": 1, "faults": 0, "mended": 0}
