"""The corpus of code tasks: what it draws, and that its prompts are those of the backend."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from demo.corpus.code_checks import mistakes
from demo.corpus.code_failures import SHOWN_CHARS, answered, conversations, failure
from demo.corpus.code_kinds import FAMILIES, KINDS
from demo.corpus.code_tasks import SYSTEM, generate, only_gb18030, target, user_text, write_demo
from demo.corpus.words import Draw, Split, alphabet, word_files, word_list
from draftloop.execution.heads import look
from draftloop.execution.preview import to_text
from draftloop.execution.runner import _SHOWN_CHARS
from draftloop.importing.code_tasks import CodeTasks
from draftloop.importing.rows import read_rows
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Message, render, render_runs
from draftloop.runs.run import OUTPUTS_KEY, SCHEMA_KEY
from draftloop.support.environments import MODELS, ROOT

SPLITS: tuple[Split, ...] = ("train", "held_out")
CASE = Cases(ROOT / "label_config").get("code_analysis")
COUNT = 120


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_tasks_and_another_seed_others(split: Split) -> None:
    first = [(user_text(task), task.program, task.files) for task in generate(split, 20, 3)]
    assert first == [(user_text(task), task.program, task.files) for task in generate(split, 20, 3)]
    assert first != [(user_text(task), task.program, task.files) for task in generate(split, 20, 4)]


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompt_is_the_backends_own(split: Split) -> None:
    for task in generate(split, COUNT, 1):
        data = {"instruction": task.instruction, SCHEMA_KEY: task.schema, OUTPUTS_KEY: list(task.outputs)}
        asked = (Message("system", SYSTEM), Message("user", user_text(task)))
        assert render(CASE, Task(1, data), "compact") == asked
        assert CASE.labelling.encode({"code": task.program}) == target(task.program)
        assert CASE.labelling.decode(target(task.program)) == {"code": task.program}


@pytest.mark.parametrize("split", SPLITS)
def test_files_are_described_as_the_import_describes_them(split: Split, tmp_path: Path) -> None:
    tasks = list(generate(split, COUNT, 2))
    assert any(name.endswith(".xlsx") for task in tasks for name in task.files)
    for task in tasks:
        said = []
        for name, content in task.files.items():
            (tmp_path / name).write_bytes(content)
            said.append(to_text(look(tmp_path / name, name)))
        assert task.schema == "\n\n".join(said)


def test_the_message_after_a_failure_is_that_of_the_backend() -> None:
    turns = [drawn for drawn in conversations("train", COUNT, 0) if len(drawn[0]) > 2]
    assert turns
    for messages, _ in turns:
        code = json.loads(messages[2]["content"])
        output = messages[3]["content"].removeprefix("The code was run:\n").rpartition("\n")[0]
        messages_of_run = render_runs(CASE, [(code, output)])
        assert [(one.role, one.content) for one in messages_of_run] == [
            (one["role"], one["content"]) for one in messages[2:]
        ]
        assert messages[3]["content"] == answered(output)
    assert SHOWN_CHARS == _SHOWN_CHARS


def test_a_mended_program_differs_from_the_first_one_and_says_what_the_traceback_says() -> None:
    faults = [task for task in generate("held_out", 60, 0, fault_share=1.0) if task.fault]
    assert len({task.fault for task in faults}) >= 5
    for task in faults:
        assert task.first != task.program
        said = failure(task)
        bad = task.scene.slots.get("bad")
        if bad:
            assert bad in said
            assert bad not in task.schema
            assert f'"{bad}"' in task.program
    assert not any(task.first != task.program for task in generate("train", 40, 0) if not task.fault)


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_copied_stands_in_the_prompt(split: Split) -> None:
    for task in generate(split, COUNT, 5):
        prompt = user_text(task)
        for slot, word in task.scene.slots.items():
            if f'"{word}"' in task.first and slot != "prefix":
                assert word in prompt, (slot, word, task.kind.name)


def test_every_kind_is_drawn_and_has_clauses_in_both_splits_and_languages() -> None:
    drawn = {task.kind.name for task in generate("held_out", 150, 0)}
    assert drawn == {kind.name for kind in KINDS}
    assert {kind.family for kind in KINDS} == set(FAMILIES)
    for split in SPLITS:
        for language in ("zh", "en"):
            named = {line.partition(": ")[0] for line in word_list(split, f"code_clauses_{language}")}
            assert named == drawn


def test_columns_and_items_of_one_split_are_in_no_list_of_the_other() -> None:
    def words(split: Split) -> set[str]:
        lists = [name for name in word_files(split) if name.startswith(("code_groups", "code_values"))]
        lines = [line for name in lists for line in word_list(split, name)]
        return {word for line in lines for word in line.replace("=", ",").split(",")}

    assert not words("train") & words("held_out")


def test_the_lists_of_code_tasks_bring_no_character_that_the_shipped_tokenizer_lacks() -> None:
    shipped = Tokenizer.from_file(str(MODELS / "tiny-qwen3" / "tokenizer.json"))
    for character in alphabet():
        assert len(shipped.encode(character, add_special_tokens=False).ids) == 1, character


def test_demo_tasks_are_imported_with_their_files_and_have_checks(tmp_path: Path) -> None:
    tasks = write_demo(tmp_path, 60, 0)
    config = (ROOT / "label_config/code_analysis/config.xml").read_text(encoding="utf-8")
    importing = CodeTasks(config, tmp_path / "inputs")
    rows = list(read_rows(tmp_path / "tasks.jsonl", compile_labelling(config), code_tasks=True))
    assert len(rows) == len(tasks) == 60
    assert [sum(task.family == family for task in tasks) for family in FAMILIES] == [20, 20, 20]
    for (_, row, *_rest), task in zip(rows, tasks, strict=True):
        assert isinstance(row, dict)
        data = importing.fill(row)
        assert render(CASE, Task(1, data), "compact")[1].content == user_text(task)
        assert mistakes(task, tmp_path, ""), "nothing was run yet"


def test_what_is_written_in_gb18030_alone_cannot_be_read_as_utf8() -> None:
    assert "台脾".encode("gb18030").decode()  # such pairs are drawn now and then
    draw = Draw("train", random.Random(1))
    for _ in range(20_000):
        with pytest.raises(UnicodeDecodeError):
            only_gb18030(draw).encode("gb18030").decode()
