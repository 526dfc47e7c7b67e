"""sync against a fake Label Studio: what it writes, what it reads again, and what of memory it takes."""

import gc
import hashlib
import json
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest

from draftloop.dataset.folder import Lines, is_intact, manifest_of
from draftloop.dataset.formats import messages, trl_dpo, trl_kto
from draftloop.dataset.ray import RayData
from draftloop.dataset.records import explain
from draftloop.dataset.sync import Report, count_tokens, sync
from draftloop.errors import SetupError
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from draftloop.support.environments import MODELS, ROOT
from tests.fake_label_studio import FakeLabelStudio, fake_label_studio
from tests.samples import written_out

CASES = Cases(ROOT / "label_config")
CASE = CASES.get("sentiment")
(CONTROL,) = CASE.labelling.controls


LETTERS = str.maketrans("0123456789", "ghijklmnop")  # digits would be looked at as telephone numbers


def data(number: int) -> dict[str, str]:
    text = hashlib.sha256(str(number).encode()).hexdigest().translate(LETTERS)
    return {"text": text, "draft_status": ""}


def annotation(number: int, **more: Any) -> dict[str, Any]:
    region = {
        "from_name": CONTROL.name,
        "to_name": "text",
        "type": "choices",
        "value": {"choices": [CONTROL.options.names[number % 2]]},
    }
    return {
        "id": 100_000 + number,
        "result": [region],
        "was_cancelled": False,
        "completed_by": 1 + number % 3,
        "created_at": f"2026-01-01T00:00:00.{number:06}Z",
        "updated_at": f"2026-01-01T00:00:00.{number:06}Z",
        "lead_time": 3.0,
        **more,
    }


@contextmanager
def project(tasks: int, page_tasks: int = 1000) -> Iterator[tuple[FakeLabelStudio, LabelStudio]]:
    with fake_label_studio(CASES.config("sentiment"), tasks, data) as fake:
        fake.annotations = lambda number: [annotation(number)]
        with LabelStudio(fake.url, "a-token", page_tasks=page_tasks) as studio:
            yield fake, studio


def synced(studio: LabelStudio, folder: Path, **changes: Any) -> Report:
    return sync(studio, CASES, folder, [1], wanted_case="sentiment", changes=changes)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(folder: Path, name: str = "samples.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def test_the_second_sync_writes_nothing_and_a_changed_task_equals_a_first_one(tmp_path: Path) -> None:
    with project(40) as (fake, studio):
        first = synced(studio, tmp_path / "d")
        assert (first.looked_at, first.new) == (40, 40)
        assert "report.html" in first.written
        assert "40 annotations of 40 tasks" in (tmp_path / "d" / "report.html").read_text(encoding="utf-8")
        before = content(tmp_path / "d")
        assert synced(studio, tmp_path / "d").written == ()
        assert content(tmp_path / "d") == before
        fake.changed = lambda number: (
            "2026-02-01T00:00:00.000000Z" if number == 7 else "2025-01-01T00:00:00.000000Z"
        )
        other = annotation(8)["result"]
        fake.annotations = lambda number: [annotation(number, **({"result": other} if number == 7 else {}))]
        later = synced(studio, tmp_path / "d")
        assert (later.looked_at, later.new, later.changed, later.gone) == (1, 0, 1, 0)
        synced(studio, tmp_path / "fresh")
    assert content(tmp_path / "d") == content(tmp_path / "fresh")


def test_odd_results_are_rejected_with_a_reason_and_cost_the_others_nothing(tmp_path: Path) -> None:
    wrong = [{"from_name": CONTROL.name, "type": "textarea", "value": {"text": [None]}}]
    odd: dict[int, Any] = {3: wrong, 5: {"a": 1}, 7: [None], 9: "text", 11: [[]]}
    with project(12) as (fake, studio):
        right = fake.annotations
        fake.annotations = lambda number: [{**right(number)[0], "parent_prediction": number}]
        fake.predictions = lambda number: [
            {
                "id": number,
                "task": number,
                "result": odd.get(13 - number),
                "score": None,
                "model_version": "m",
            }
        ]
        synced(studio, tmp_path / "right")
        fake.annotations = lambda number: [
            annotation(number, **({"result": odd[number]} if number in odd else {}))
        ]
        report = synced(studio, tmp_path / "d")
    assert report.counts["rejected"] == len(odd)
    assert len(lines(tmp_path / "right")) + len(lines(tmp_path / "right", "held.jsonl")) == 12
    reasons = {row["task"]: row["reason"] for row in lines(tmp_path / "d", "rejected.jsonl")}
    assert reasons.keys() == odd.keys()
    assert f"Control '{CONTROL.name}': a region holds 'text', not 'choices'" in reasons[3]


def test_a_damaged_file_and_a_spool_leave_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with project(12) as (_, studio):
        synced(studio, folder)
        before = content(folder)
        for name in ("samples.jsonl", "report.html", "alpaca.jsonl"):
            (folder / name).write_bytes(before[name][:-5])
            manifest = manifest_of(folder)
            assert manifest is not None
            assert not is_intact(folder, manifest)
            synced(studio, folder)
            assert content(folder) == before


def test_what_a_killed_sync_left_aside_is_removed_also_where_nothing_is_new(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with project(12) as (_, studio):
        synced(studio, folder)
        before = content(folder)
        # Killed between two files, the same bytes as before: the manifest matches.
        (folder / ".report.html.part").write_bytes(before["report.html"])
        assert synced(studio, folder).written == ()
        assert content(folder) == before


def test_lines_are_read_by_place_also_after_their_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n":1}\n{"n":"\xe4\xb8\xad"}\n')
    with Lines(tmp_path) as stored:
        old = list(stored.read("a.jsonl"))
        new = [stored.add(f'{{"n":{number}}}\n'.encode()) for number in (3, 4)]
        (tmp_path / "b.jsonl").write_bytes(b"{}\n")
        (tmp_path / "b.jsonl").replace(tmp_path / "a.jsonl")
        assert [record["n"] for _, record in old] == [1, "中"]
        assert [stored.get(place)["n"] for place in (old[1][0], old[0][0], new[1], new[0])] == ["中", 1, 4, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.integration
def test_memory_holds_less_than_two_kilobytes_of_each_sample(tmp_path: Path) -> None:
    """The peak of a sync that reads a full folder and all tasks again, over that of a small one."""

    def peak(tasks: int) -> int:
        folder = tmp_path / str(tasks)
        # How many pages are held at the peak is a matter of moments; these weigh little.
        with project(tasks, page_tasks=100) as (_, studio):
            synced(studio, folder)
            gc.collect()
            tracemalloc.start()
            report = synced(studio, folder, formats=("messages",))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert (report.looked_at, report.counts["samples"]) == (tasks, tasks)
            return peak

    small, large = 500, 1700
    per_sample = (peak(large) - peak(small)) / (large - small)
    assert per_sample < 2048, f"{per_sample:.0f} bytes"


def test_work_that_was_pickled_gives_the_same_bytes(tmp_path: Path) -> None:
    """What an engine that works elsewhere does, without one."""

    def elsewhere(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            work = pickle.loads(pickle.dumps((function, item)))
            yield pickle.loads(pickle.dumps(work[0](work[1])))

    def decided(folder: Path, **how: Any) -> dict[str, bytes]:
        changes = {"tokenizer": str(MODELS / "tiny-qwen3"), "mask": True, "max_tokens": 90}
        sync(studio, CASES, folder, [1], wanted_case="sentiment", changes=changes, **how)
        return content(folder)

    with project(8) as (_, studio):
        synced(studio, tmp_path / "d")  # counts none, so that a later one counts again
        assert decided(tmp_path / "d", each=elsewhere) == decided(tmp_path / "here")
        assert decided(tmp_path / "elsewhere", each=elsewhere) == content(tmp_path / "here")


def test_a_first_sync_counts_tokens_once(tmp_path: Path) -> None:
    done: Counter[str] = Counter()

    def watched(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            done[type(function).__name__] += 1
            yield function(item)

    changes = {"tokenizer": str(MODELS / "tiny-qwen3")}
    with project(3) as (_, studio):
        sync(studio, CASES, tmp_path / "d", [1], wanted_case="sentiment", changes=changes, each=watched)
    assert done == {"_Judge": 3, "_RecordFinalizer": 3}


def test_a_task_is_explained_from_the_folder(tmp_path: Path) -> None:
    with project(3) as (_, studio):
        synced(studio, tmp_path / "d")
    history = explain(tmp_path / "d", 2)
    assert history[0] == "Task 2 of project 1, case sentiment:"
    assert any("written without a draft" in line for line in history)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_a_missing_ray_is_an_error_with_a_hint() -> None:
    with pytest.raises(SetupError, match=r"not installed.*draftloop sync --engine ray runs in its own"):
        RayData()


HOLDING = ["a", "use </think> here", "<|im_end|>", "x <|reserved_7|> y", "<tool_response>x</tool_response>"]


def test_texts_with_control_tokens_are_held_and_come_back_with_another_tokenizer(tmp_path: Path) -> None:
    def held() -> dict[int, str]:
        held = lines(tmp_path / "dataset", "held.jsonl")
        return {line["task"]: line["held"]["reason"] for line in held}

    texts = [*HOLDING, *(data(number)["text"] for number in range(8))]
    with fake_label_studio(
        CASES.config("sentiment"), len(texts), lambda number: {"text": texts[number - 1], "draft_status": ""}
    ) as fake:
        fake.annotations = lambda number: [annotation(number)]
        with LabelStudio(fake.url, "a-token") as studio:
            synced(studio, tmp_path / "dataset")
            assert sorted(held()) == [2, 3, 5]
            assert held()[2].startswith("It holds </think>, which the target model's tokenizer reads as")
            assert held()[5].startswith("It holds <tool_response>, </tool_response>, which")
            without = content(tmp_path / "dataset")
            synced(studio, tmp_path / "dataset", tokenizer=str(MODELS / "tiny-qwen3"))
            assert sorted(held()) == [2, 3, 4, 5]
            synced(studio, tmp_path / "dataset", tokenizer="")
            assert content(tmp_path / "dataset") == without


def test_a_draft_with_control_tokens_makes_no_row_of_preference(tmp_path: Path) -> None:
    (plain, *_) = [sample for sample in written_out(code=False) if sample.verdict == "corrected"]
    sample = count_tokens(replace(plain, draft_target='{"a":"</think>"}'), None)
    assert (sample.control_tokens, len(sample.notes)) == ((), len(plain.notes) + 1)
    assert count_tokens(sample, None) is sample
    assert trl_dpo(plain)
    assert trl_kto(plain)
    assert trl_dpo(sample) == trl_kto(sample) == []
    assert len(messages(sample)) == 1
    assert count_tokens(replace(sample, draft_target=plain.draft_target), None) == count_tokens(plain, None)


def test_control_tokens_in_what_a_program_printed_hold_the_sample() -> None:
    plain = written_out(code=True)[0]
    (attempt, *others) = plain.attempts
    keys: tuple[Literal["code", "stdout", "stderr"], ...] = ("code", "stdout", "stderr")
    for key in keys:
        step = attempt["steps"][0].copy()
        step[key] = "print('<|im_end|>')"
        changed = replace(plain, attempts=({**attempt, "steps": [step]}, *others))
        assert count_tokens(changed, None).control_tokens == ("<|im_end|>",)
    assert count_tokens(plain, None).control_tokens == ()
