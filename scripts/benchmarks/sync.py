"""Sync of a large project, the real command on a real Label Studio, against every other way to read it.

Every task has a draft and an annotation, two of three as drafted. The other ways only fetch: Label Studio's
own (pages of several sizes, the export of its menu, a snapshot with the predictions in it), and the SDK's
default listing, which makes objects of what comes. Ours checks, splits and writes a dataset besides. All read
the same project on the same server, one after the other; every other round in the opposite order.
"""

import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import httpx
import orjson
from label_studio_sdk import LabelStudio as Sdk

from demo.corpus import generate
from draftloop.cli import servers
from draftloop.labelling.labelling import Task
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from scripts.benchmarks.commands import Used
from scripts.benchmarks.tasks import TOKEN, run_verb

_CASE = "complaint"
_PAGES = (100, 500, 1000, 5000)  # the first is Label Studio's and the SDK's own
_BATCH = 1000  # tasks of an import
_OVERLAP_S = 310  # sync reads again what changed in the five minutes before the last change that it saw

Tell = Callable[[str], None]
Way = Callable[[], int]


def measure(
    folder: Path, tasks: int, rounds: int, tell: Tell, *, settled_s: float = _OVERLAP_S
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure a first sync, one with nothing new, and the other ways to read the same project.

    Args:
        folder: For Label Studio's data and the datasets.
        tasks: Tasks of the project.
        rounds: How often everything is done; medians count.
        tell: Takes progress, in words.
        settled_s: How much later than the others the last task changes, as in a project that people work in.
    Returns:
        `sync_SIZE_vs_sdk_listing` and `sync_SIZE_vs_fastest`: seconds of the SDK's listing, and of the
        fastest of Label Studio's own ways, over ours; `sync_SIZE_peak_mb`; `sync_nothing_new_s`; all seconds.
    Raises:
        ServerError: Label Studio does not start.
        RuntimeError: A command failed, or a way did not give every task.
    """
    size = f"{tasks // 1000}k" if tasks >= 1000 else str(tasks)
    took: dict[str, list[float]] = {}
    peaks_mb: list[float] = []
    with (
        servers.start_label_studio(folder / "studio", token=TOKEN, password=TOKEN) as server,
        _Bench(folder, server.url, tasks) as bench,
    ):
        started = time.perf_counter()
        project = bench.project()
        filled = time.perf_counter()
        tell(f"{tasks} tasks with drafts and annotations are there after {filled - started:.0f} s")
        time.sleep(settled_s)
        bench.change_one(project)
        for number in range(rounds):
            ways = bench.ways(project)
            dataset = folder / f"dataset-{number}"

            def ours() -> int:
                used = bench.sync(project, dataset)  # noqa: B023  # called in this round
                peaks_mb.append(used.peak_mb)
                manifest = orjson.loads((dataset / "manifest.json").read_bytes())  # noqa: B023
                return int(manifest["counts"]["annotations"])

            ways["ours"] = ours
            for name in ways if number % 2 == 0 else reversed(ways):
                began = time.perf_counter()
                read = ways[name]()
                took.setdefault(name, []).append(time.perf_counter() - began)
                tell(f"{name}: {took[name][-1]:.1f} s")
                if read != tasks:
                    raise RuntimeError(f"{name}: {read} of {tasks} tasks")
            again = bench.sync(project, dataset)
            took.setdefault("nothing new", []).append(again.wall_s)
            tell(f"nothing new: {again.wall_s:.1f} s")
    middle = {name: statistics.median(seconds) for name, seconds in took.items()}
    fastest = min(middle[name] for name in middle if name not in ("ours", "sdk listing", "nothing new"))
    figures = {
        f"sync_{size}_vs_sdk_listing": middle["sdk listing"] / middle["ours"],
        f"sync_{size}_vs_fastest": fastest / middle["ours"],
        f"sync_{size}_peak_mb": max(peaks_mb),
        "sync_nothing_new_s": middle["nothing new"],
    }
    return figures, {"tasks": tasks, "seconds": took, "peaks_mb": peaks_mb}


class _Bench:
    def __init__(self, folder: Path, url: str, tasks: int) -> None:
        self._folder, self._url, self._tasks = folder, url, tasks
        self._labelling = Cases(ROOT / "label_config").get(_CASE).labelling
        self._config = Cases(ROOT / "label_config").config(_CASE)
        self._below = httpx.Client(timeout=3600, follow_redirects=True, trust_env=False)
        self._sdk = Sdk(base_url=url, api_key=TOKEN, httpx_client=self._below, timeout=3600)
        self._raw = httpx.Client(
            base_url=url, headers={"Authorization": f"Token {TOKEN}"}, timeout=3600, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._below.close()
        self._raw.close()

    def project(self) -> int:
        """Make the project with all its tasks."""
        made = self._sdk.projects.create(title="bench of sync", label_config=self._config)
        number = int(made.id or 0)
        rows: Iterator[Any] = self._rows()
        while batch := list(islice(rows, _BATCH)):
            self._sdk.projects.import_tasks(id=number, request=batch)
        # Over the API that an annotation came of a draft is said one at a time: half an hour of 25,000.
        (file,) = (self._folder / "studio").glob("*.sqlite3")
        with closing(sqlite3.connect(file, timeout=60)) as database, database:
            database.execute(
                "UPDATE task_completion SET lead_time = 12.5, parent_prediction_id = "
                "(SELECT id FROM prediction WHERE prediction.task_id = task_completion.task_id) "
                "WHERE project_id = ?",
                [number],
            )
        return number

    def _rows(self) -> Iterator[dict[str, Any]]:
        for number, one in enumerate(generate(_CASE, "train", self._tasks, seed=1)):
            data = {"text": f"{number} {one.text}", "draft_status": ""}
            right = list(self._labelling.to_regions(one.value, Task(number, data)).regions)
            drafted = right[: -1 if number % 3 == 0 else None]
            yield {
                "data": data,
                "predictions": [{"result": drafted, "score": 0.5, "model_version": "bench-0123456789"}],
                "annotations": [{"result": right}],
            }

    def change_one(self, project: int) -> None:
        """Write the data of one task again, which makes it the one that changed last."""
        (task,) = orjson.loads(self._get("/api/tasks/", {"project": project, "page_size": 1}))["tasks"]
        self._raw.patch(f"/api/tasks/{task['id']}/", json={"data": task["data"]}).raise_for_status()

    def sync(self, project: int, dataset: Path) -> Used:
        """Sync the project, with the real command."""
        arguments = ["--project", str(project), "--case", _CASE, "--out", str(dataset)]
        return run_verb("sync", arguments, self._url, self._folder)

    def ways(self, project: int) -> dict[str, Way]:
        """Return the other ways to read the project; each returns the number of tasks that it read."""
        return {
            **{f"pages of {size}": partial(self._pages, project, size) for size in _PAGES},
            "export": partial(self._export, project),
            "snapshot": partial(self._snapshot, project),
            "sdk listing": lambda: sum(1 for _ in self._sdk.tasks.list(project=project, fields="all")),
        }

    def _pages(self, project: int, size: int) -> int:
        read = 0
        for page in count(1):
            wanted: dict[str, Any] = {"project": project, "page": page, "page_size": size, "fields": "all"}
            listed = orjson.loads(self._get("/api/tasks/", wanted))
            read += len(listed["tasks"])
            if read >= listed["total"]:
                break
        return read

    def _export(self, project: int) -> int:
        path = f"/api/projects/{project}/export"
        return len(orjson.loads(self._get(path, {"exportType": "JSON"})))

    def _snapshot(self, project: int) -> int:
        path = f"/api/projects/{project}/exports/"
        options = {"serialization_options": {"predictions": {"only_id": False}}}
        made = self._raw.post(path, json=options).raise_for_status().json()
        while (state := orjson.loads(self._get(f"{path}{made['id']}"))["status"]) != "completed":
            if state == "failed":
                raise RuntimeError("the snapshot failed")
            time.sleep(0.2)
        return len(orjson.loads(self._get(f"{path}{made['id']}/download", {"exportType": "JSON"})))

    def _get(self, path: str, wanted: dict[str, Any] | None = None) -> bytes:
        return self._raw.get(path, params=wanted).raise_for_status().content
