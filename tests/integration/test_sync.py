"""sync: the dataset is a function of what Label Studio holds, whatever happened on the way."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from draftloop.dataset.records import explain
from draftloop.dataset.sync import Report, sync
from draftloop.errors import SetupError
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases
from draftloop.support.environments import MODELS
from tests.conftest import LabelStudioServer
from tests.verbs import environment, kill, run, start, start_warm

FOLDER = Path(__file__).parents[2] / "label_config"
CASES = Cases(FOLDER)
LABELLING = CASES.get("complaint").labelling
FILES = {
    *("samples.jsonl", "held.jsonl", "rejected.jsonl", "sample.schema.json", "manifest.json"),
    *("README.md", "dataset_info.json", "report.html"),
    *("alpaca.jsonl", "alpaca.test.jsonl", "messages.jsonl", "messages.test.jsonl"),
}


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


@pytest.fixture
def project(studio: LabelStudio) -> Project:
    """A project with 30 drafted tasks, of which the first 20 have an annotation."""
    made = studio.create_project(f"sync {time.time_ns()}", CASES.config("complaint"))
    rows = [{"text": f"我叫张三{n}😀,快递还没到!", "draft_status": ""} for n in range(30)]
    list(studio.import_tasks(made, rows))
    tasks = list(studio.tasks(made))
    predictions = [
        {"task": task["id"], "result": regions(task["data"]["text"]), "score": 0.5, "model_version": "m-1"}
        for task in tasks
    ]
    assert studio.import_predictions(made, predictions) == []
    for task in list(studio.tasks(made, full=True))[:20]:
        draft = task["predictions"][0]
        studio.submit_annotation(task["id"], draft["result"], parent_prediction=draft["id"], lead_time_s=1.5)
    return made


def regions(text: str, **value: str) -> list[dict[str, Any]]:
    """The form filled in: name and question, unless the test says otherwise."""
    filled = {"name": text[2:4], "question": text[-7:], **value}
    return [
        {"from_name": name, "to_name": "text", "type": "textarea", "value": {"text": [part]}}
        for name, part in filled.items()
    ]


def synced(studio: LabelStudio, project: Project, folder: Path) -> Report:
    return sync(studio, CASES, folder, [project.id], wanted_case="complaint")


def content(folder: Path) -> dict[str, bytes]:
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(contents) == FILES
    return contents


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def lines(folder: Path, name: str = "samples.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def annotated(studio: LabelStudio, project: Project) -> list[dict[str, Any]]:
    return [task for task in studio.tasks(project, full=True) if task["annotations"]]


def test_counts_add_up_and_the_manifest_names_every_file(
    studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    report = synced(studio, project, tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_bytes())
    counts = manifest["counts"]
    assert counts["annotations"] == counts["samples"] + counts["rejected"] == 20
    assert counts["samples"] == counts["train"] + counts["test"]
    assert counts["samples"] == counts["accepted"] + counts["corrected"] + counts["written"]
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert {name: entry["rows"] for name, entry in manifest["files"].items() if "rows" in entry} == {
        name: len(lines(tmp_path / "d", name)) for name in manifest["files"] if name.endswith(".jsonl")
    }
    assert (report.new, report.changed, report.gone) == (20, 0, 0)
    schema = Draft202012Validator(json.loads((tmp_path / "d" / "sample.schema.json").read_bytes()))
    for row in lines(tmp_path / "d"):
        schema.validate(row)
    order = [(row["task"], row["annotation"]) for row in lines(tmp_path / "d")]
    assert order == sorted(order)


def test_with_nothing_new_nothing_is_written(studio: LabelStudio, project: Project, tmp_path: Path) -> None:
    synced(studio, project, tmp_path / "d")
    before = times(tmp_path / "d")
    report = synced(studio, project, tmp_path / "d")
    assert report.written == ()
    assert times(tmp_path / "d") == before


def test_a_sync_after_a_change_equals_a_first_one(
    studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    synced(studio, project, tmp_path / "d")
    tasks = annotated(studio, project)
    free = [task for task in studio.tasks(project, full=True) if not task["annotations"]]
    edited, emptied, deleted, lost = tasks[0], tasks[1], tasks[2], tasks[3]
    text = edited["data"]["text"]

    new = studio.submit_annotation(free[0]["id"], regions(free[0]["data"]["text"]))
    studio._sdk.annotations.update(edited["annotations"][0]["id"], result=regions(text, name="我叫"))
    studio._sdk.annotations.update(emptied["annotations"][0]["id"], result=[], was_cancelled=True)
    studio._sdk.annotations.delete(deleted["annotations"][0]["id"])
    studio._sdk.tasks.delete(str(lost["id"]))
    report = synced(studio, project, tmp_path / "d")

    assert (report.new, report.changed, report.gone) == (1, 2, 2)
    rows = {row["annotation"]: row for row in lines(tmp_path / "d")}
    assert rows[edited["annotations"][0]["id"]]["value"]["name"] == "我叫"
    assert rows[edited["annotations"][0]["id"]]["verdict"] == "corrected"
    assert rows[edited["annotations"][0]["id"]]["changed"] == ["name"]
    assert rows[new]["verdict"] == "written"
    assert {row["task"] for row in rows.values()}.isdisjoint({deleted["id"], lost["id"], emptied["id"]})
    (rejected,) = lines(tmp_path / "d", "rejected.jsonl")
    assert (rejected["task"], rejected["gate"]) == (emptied["id"], "not_skipped")

    synced(studio, project, tmp_path / "fresh")
    assert content(tmp_path / "d") == content(tmp_path / "fresh")


def test_a_deleted_task_is_noticed_even_when_nothing_else_happened(
    studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    synced(studio, project, tmp_path / "d")
    lost = annotated(studio, project)[-1]
    studio._sdk.tasks.delete(str(lost["id"]))
    assert synced(studio, project, tmp_path / "d").gone == 1
    assert lost["id"] not in {row["task"] for row in lines(tmp_path / "d")}


def test_only_what_changed_is_read_again(studio: LabelStudio, project: Project, tmp_path: Path) -> None:
    synced(studio, project, tmp_path / "d")
    manifest = tmp_path / "d" / "manifest.json"
    # As if the last sync was long ago and its overlap were over: nothing changed since then.
    text = manifest.read_text(encoding="utf-8")
    cursor = json.loads(text)["projects"][str(project.id)]["source"]["cursor"]
    manifest.write_text(text.replace(cursor, cursor.replace(cursor[:4], str(int(cursor[:4]) + 1))))
    assert synced(studio, project, tmp_path / "d").looked_at == 0


def test_a_changed_config_makes_all_samples_anew(
    studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    synced(studio, project, tmp_path / "d")
    studio.set_label_config(project, project.label_config.replace('rows="3"', 'rows="4"'))
    report = synced(studio, project, tmp_path / "d")
    assert report.looked_at >= 20
    assert report.changed == 20  # each carries the hash of the config that it was read with


def test_the_folder_remembers_its_projects_and_knows_another_server(
    studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match="--project"):
        sync(studio, CASES, tmp_path / "d")
    other = studio.create_project(f"other {time.time_ns()}", CASES.config("named_entities"))
    (ids,) = studio.import_tasks(other, [{"text": "张三住在北京", "draft_status": ""}])
    span = {"start": 0, "end": 2, "text": "张三", "labels": ["PER"]}
    region = {"from_name": "entities", "to_name": "text", "type": "labels", "value": span}
    studio.submit_annotation(ids[0], [region])
    synced(studio, project, tmp_path / "d")
    sync(studio, CASES, tmp_path / "d", [other.id])
    assert sync(studio, CASES, tmp_path / "d").written == ()
    rows = lines(tmp_path / "d")
    assert {row["case"] for row in rows} == {"complaint", "named_entities"}
    assert rows[-1]["value"] == {"entities": [{"text": "张三", "nth": 0, "label": "PER"}]}
    manifest = tmp_path / "d" / "manifest.json"
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace(project.created_at, "2001-01-01T00:00:00Z")
    )
    with pytest.raises(SetupError, match="another Label Studio"):
        sync(studio, CASES, tmp_path / "d")


def test_damaged_files_are_made_anew(studio: LabelStudio, project: Project, tmp_path: Path) -> None:
    synced(studio, project, tmp_path / "d")
    before = content(tmp_path / "d")
    for name in sorted(FILES - {"manifest.json"}):
        (tmp_path / "d" / name).write_bytes(before[name][:-5])
        synced(studio, project, tmp_path / "d")
        assert content(tmp_path / "d") == before
    (tmp_path / "d" / "samples.jsonl").unlink()
    synced(studio, project, tmp_path / "d")
    assert content(tmp_path / "d") == before
    (tmp_path / "d" / "manifest.json").write_text("{")
    with pytest.raises(SetupError, match="Remove it"):
        synced(studio, project, tmp_path / "d")


def test_two_syncs_of_one_folder_do_not_mix(studio: LabelStudio, project: Project, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def second() -> None:
        try:
            synced(studio, project, tmp_path / "d")
        except SetupError as error:
            errors.append(error)

    class Watching:
        def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
            pass

        def advance(self, count: int = 1) -> None:
            if not errors:
                thread = threading.Thread(target=second)
                thread.start()
                thread.join()

    sync(
        studio,
        CASES,
        tmp_path / "d",
        [project.id],
        wanted_case="complaint",
        progress=Watching(),
    )
    assert "Another sync" in str(errors[0])


def test_killed_at_any_moment_and_run_again_it_gives_the_same_bytes(
    label_studio: LabelStudioServer, studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    synced(studio, project, tmp_path / "fresh")
    env = environment(label_studio, tmp_path)
    arguments = ("sync", "--project", project.id, "--case", "complaint", "--out", tmp_path / "d")
    for moment in sorted(FILES - {"manifest.json"}):
        # Killed as soon as this file stands: later ones are missing, or those of the state before.
        if (tmp_path / "d" / moment).exists():
            (tmp_path / "d" / moment).unlink()
        process = start(env, *arguments)
        while process.poll() is None and not (tmp_path / "d" / moment).exists():
            time.sleep(0.0005)
        kill(process)
    code, out, err = run(env, *arguments)
    assert code == 0, err
    assert content(tmp_path / "d") == content(tmp_path / "fresh")
    before = times(tmp_path / "d")
    code, out, err = run(env, *arguments)
    assert code == 0, err
    assert "nothing new" in out
    assert times(tmp_path / "d") == before


def test_killed_at_ten_random_moments_and_run_again_it_gives_the_same_bytes(
    label_studio: LabelStudioServer, studio: LabelStudio, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of 300 tasks, of 5,000 with --scale: `kill -9`, wherever it happens to be."""
    project = studio.create_project(f"killed {time.time_ns()}", CASES.config("complaint"))
    fill(label_studio, project, 5000 if request.config.getoption("--scale") else 300)
    env = environment(label_studio, tmp_path)
    forms = ("--format", "messages", "--format", "llama-factory", "--parquet", "--spot-check", 0.05)

    def started(name: str) -> ForkServerProcess:
        at = ("--project", project.id, "--case", "complaint", "--out", tmp_path / name)
        return start_warm(env, "sync", *at, *forms)

    def content(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    start_warm(env, "sync", "--help").join()
    began = time.monotonic()
    process = started("fresh")
    while not (tmp_path / "fresh").exists():
        time.sleep(0.001)
    first = time.monotonic() - began
    process.join()
    last = time.monotonic() - began
    assert process.exitcode == 0
    assert {"held.jsonl", "messages.parquet"} < content("fresh").keys()

    chance = random.Random(5)
    unfinished = 0
    for _ in range(10):
        process = started("d")
        time.sleep(chance.uniform(first, last))
        unfinished += process.is_alive()
        process.kill()
        process.join()
    assert unfinished, "the moments lie within its run"
    process = started("d")
    process.join()
    assert process.exitcode == 0
    assert content("d") == content("fresh")


def fill(label_studio: LabelStudioServer, project: Project, tasks: int) -> None:
    """Import annotated tasks, every tenth skipped."""
    for begin in range(0, tasks, 1000):
        texts = {n: f"我叫张三{n}😀,{n * 7919}号快递还没到!" for n in range(begin, min(begin + 1000, tasks))}
        rows: list[Any] = [
            {
                "data": {"text": text, "draft_status": ""},
                "annotations": [{"result": regions(text), "was_cancelled": n % 10 == 0}],
            }
            for n, text in texts.items()
        ]
        label_studio.sdk.projects.import_tasks(id=project.id, request=rows)


def test_the_folder_remembers_what_was_decided_and_tells_the_story_of_a_task(
    label_studio: LabelStudioServer, studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    env = environment(label_studio, tmp_path)
    folder = tmp_path / "d"
    first, second, third = annotated(studio, project)[:3]
    text = first["data"]["text"]
    studio.submit_annotation(first["id"], regions(text, name="我叫"))
    studio._sdk.annotations.update(second["annotations"][0]["id"], result=[], was_cancelled=True)
    options = ("--format", "messages", "--format", "trl-dpo", "--parquet", "--policy", "agreement")
    tokens = ("--tokenizer", MODELS / "tiny-qwen3", "--max-tokens", 999)
    arguments = ("sync", "--project", project.id, "--case", "complaint", "--out", folder)
    code, out, err = run(env, *arguments, *options, *tokens)
    assert code == 0, err
    assert "21 annotations = 18 samples" in out
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["counts"]["stopped_by"] == {"not_skipped": 1, "one_per_task": 2}
    assert sorted(manifest["rows"]) == ["messages", "trl-dpo"]
    assert {name for name in manifest["files"] if name.endswith(".parquet")} == {
        *("messages.parquet", "messages.test.parquet", "trl-dpo.parquet", "trl-dpo.test.parquet")
    }
    assert all(row["tokens"] > 10 for row in lines(folder))

    code, out, _ = run(env, "sync", "--out", folder)
    assert code == 0
    assert "nothing new" in out
    assert json.loads((folder / "manifest.json").read_bytes())["options"] == manifest["options"]

    stories = {}
    for task in (first, second, third):
        code, stories[task["id"]], err = run(env, "sync", "--out", folder, "--explain", task["id"])
        assert code == 0, err
    assert stories[first["id"]].count("held back by one_per_task") == 2
    assert "rejected by not_skipped: The annotator skipped the task." in stories[second["id"]]
    assert "draft by m-1, score 0.50: accepted" in stories[third["id"]]
    assert "1 in messages, 0 in trl-dpo" in stories[third["id"]]
    assert "tokens of at most 999" in stories[third["id"]]
    code, out, _ = run(env, "sync", "--out", folder, "--explain", 10**9)
    assert (code, "no annotation" in out) == (0, True)

    code, out, _ = run(env, "sync", "--out", folder, "--format", "messages", "--files", "jsonl")
    assert code == 0
    assert not list(folder.glob("*.parquet"))
    assert (folder / "messages.jsonl").is_file()
    code, _, err = run(env, "sync", "--out", folder, "--format", "csv")
    assert (code, "There is no format 'csv'" in err) == (1, True)


def test_a_folder_of_the_version_before_is_made_anew_and_keeps_its_splits(
    studio: LabelStudio, project: Project, tmp_path: Path
) -> None:
    """The version before had no options, no schema, and splits by the hash of the text alone."""
    folder = tmp_path / "d"
    synced(studio, project, folder)
    fresh = content(folder)
    before = lines(folder)
    moved = before[0]
    old = [{"input": row["input"], "split": row["split"]} for row in before]
    old[0]["split"] = "train" if moved["split"] == "test" else "test"
    samples = "".join(f"{json.dumps(row)}\n" for row in old).encode()
    manifest = json.loads(fresh["manifest.json"])
    digest = {"bytes": len(samples), "rows": len(old), "sha256": hashlib.sha256(samples).hexdigest()}
    of_before = {"sync_version": 1, "projects": manifest["projects"], "files": {"samples.jsonl": digest}}
    for path in folder.iterdir():
        path.unlink()
    (folder / "samples.jsonl").write_bytes(samples)
    (folder / "manifest.json").write_text(json.dumps(of_before))
    with pytest.raises(SetupError, match="Run the sync first"):
        explain(folder, moved["task"])
    report = synced(studio, project, folder)
    assert report.counts["samples"] == 20
    after = {row["annotation"]: row["split"] for row in lines(folder)}
    assert after.pop(moved["annotation"]) == old[0]["split"]
    assert after == {row["annotation"]: row["split"] for row in before[1:]}
