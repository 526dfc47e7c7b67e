"""sync against a fake Label Studio: what it writes, what it reads again, and what of memory it takes."""

import gc
import hashlib
import json
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from backend.edge.cases import Cases
from backend.edge.folder import Lines, is_intact, manifest_of
from backend.edge.labelstudio import LabelStudio
from backend.edge.labelstudio.queries import FULL
from backend.edge.ray import RayData
from backend.errors import SetupError
from backend.records import explain
from backend.sync import Report, sync
from scripts.servers import ROOT
from tests.fake_label_studio import FakeLabelStudio, fake_label_studio

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
        "value": {"choices": [CONTROL.options[number % 2]]},
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
def project(tasks: int) -> Iterator[tuple[FakeLabelStudio, LabelStudio]]:
    with fake_label_studio(CASES.config("sentiment"), tasks, data) as fake:
        fake.annotations = lambda number: [annotation(number)]
        with LabelStudio(fake.url, "a-token") as studio:
            yield fake, studio


def synced(studio: LabelStudio, folder: Path, **changes: Any) -> Report:
    return sync(studio, CASES, folder, [1], wanted_case="sentiment", changes=changes)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(folder: Path, name: str = "samples.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


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


def test_lines_are_found_by_their_place_also_after_others_took_their_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n":1}\n{"n":"\xe4\xb8\xad"}\n')
    with Lines(tmp_path) as found:
        old = list(found.read("a.jsonl"))
        new = [found.add(f'{{"n":{number}}}\n'.encode()) for number in (3, 4)]
        (tmp_path / "b.jsonl").write_bytes(b"{}\n")
        (tmp_path / "b.jsonl").replace(tmp_path / "a.jsonl")
        assert [record["n"] for _, record in old] == [1, "中"]
        assert [found.get(place)["n"] for place in (old[1][0], old[0][0], new[1], new[0])] == ["中", 1, 4, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.integration
def test_memory_holds_less_than_two_kilobytes_of_each_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak of a sync that reads a full folder and all tasks again, over that of a small one."""
    # How many pages are held at the peak is a matter of moments; these weigh little.
    monkeypatch.setattr("backend.edge.labelstudio.tasks._PAGE", 100)
    monkeypatch.setitem(FULL, "page_size", 100)

    def peak(tasks: int) -> int:
        folder = tmp_path / str(tasks)
        with project(tasks) as (_, studio):
            synced(studio, folder)
            gc.collect()
            tracemalloc.start()
            report = synced(studio, folder, formats=("messages",))
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert (report.looked_at, report.counts["samples"]) == (tasks, tasks)
            return found

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
        changes = {"tokenizer": str(ROOT / "models" / "tiny-qwen3"), "mask": True, "max_tokens": 90}
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

    changes = {"tokenizer": str(ROOT / "models" / "tiny-qwen3")}
    with project(3) as (_, studio):
        sync(studio, CASES, tmp_path / "d", [1], wanted_case="sentiment", changes=changes, each=watched)
    assert done == {"_Judge": 3, "_Finish": 3}


def test_the_story_of_a_task_is_told_from_the_folder(tmp_path: Path) -> None:
    with project(3) as (_, studio):
        synced(studio, tmp_path / "d")
    told = explain(tmp_path / "d", 2)
    assert told[0] == "Task 2 of project 1, case sentiment:"
    assert any("written without a draft" in line for line in told)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_its_engine_says_how_to_get_it() -> None:
    with pytest.raises(SetupError, match=r"not installed.*scripts/sync --engine ray runs in its own"):
        RayData()
