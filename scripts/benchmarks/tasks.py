"""Import and sync, the real commands on a real Label Studio, against the SDK's own calls.

Import: the SDK posts all rows in one call. Sync: the SDK lists all tasks with their annotations and writes
nothing; ours reads, checks, splits and writes a dataset. Both read the same file or project; pairs change
order.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import orjson
from label_studio_sdk import LabelStudio as Sdk

from demo.corpus import generate
from draftloop.cli import servers
from draftloop.labelling.labelling import STATUS_KEY
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from scripts.benchmarks.commands import Used, run

TOKEN = "bench-token"  # noqa: S105  of a server that lives as long as this run
_CASE = "sentiment"

Tell = Callable[[str], None]


def measure(
    folder: Path, pairs: int, tasks: int, annotated: int, tell: Tell
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure import and sync.

    Args:
        folder: For Label Studio's data, row files and datasets.
        pairs: Interleaved pairs of each.
        tasks: Rows of an import.
        annotated: Annotated tasks of a sync.
        tell: Takes progress, in words.
    Returns:
        `import_vs_sdk`, `sync_vs_sdk_listing`, `sync_again_vs_sdk_listing`: tasks per second of ours over the
        SDK's, and the seconds.
    Raises:
        ServerError: Label Studio does not start.
        RuntimeError: A command failed.
    """
    with servers.start_label_studio(folder / "studio", token=TOKEN, password=TOKEN) as server:
        bench = _Bench(folder, server.url, tell)
        imports = [bench.import_pair(tasks, pair) for pair in range(pairs)]
        project = bench.project(annotated)
        syncs = [bench.sync_pair(project, annotated, pair) for pair in range(pairs)]
    figures = {
        "import_vs_sdk": statistics.median(pair["sdk"] / pair["ours"] for pair in imports),
        "sync_vs_sdk_listing": statistics.median(pair["sdk"] / pair["ours"] for pair in syncs),
        "sync_again_vs_sdk_listing": statistics.median(pair["sdk"] / pair["again"] for pair in syncs),
    }
    samples = {
        "import_tasks": tasks,
        "import_s": imports,
        "sync_tasks": annotated,
        "sync_s": syncs,
    }
    return figures, samples


class _Bench:
    def __init__(self, folder: Path, url: str, tell: Tell) -> None:
        self._folder = folder
        self._url = url
        self._tell = tell
        self._names = count(1)
        self._config = Cases(ROOT / "label_config").config(_CASE)
        client = httpx.Client(timeout=900, follow_redirects=True, trust_env=False)
        self._sdk = Sdk(base_url=url, api_key=TOKEN, httpx_client=client, timeout=900)

    def project(self, annotated: int = 0) -> int:
        """Make a project, with annotated tasks if any are wanted."""
        made = self._sdk.projects.create(title=f"bench {next(self._names)}", label_config=self._config)
        number = int(made.id or 0)
        rows: list[Any] = [
            {"data": {"text": one.text, "draft_status": ""}, "annotations": [{"result": _regions(one.value)}]}
            for one in generate(_CASE, "train", annotated, seed=1)
        ]
        for start in range(0, len(rows), 1000):
            self._sdk.projects.import_tasks(id=number, request=rows[start : start + 1000])
        return number

    def import_pair(self, tasks: int, pair: int) -> dict[str, float]:
        """Import the same rows into two new projects."""
        file = self._folder / f"rows-{pair}.jsonl"
        texts = generate(_CASE, "train", tasks, seed=100 + pair)
        rows = [{"text": f"{number} {one.text}"} for number, one in enumerate(texts)]
        file.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))

        def ours(project: int) -> None:
            self._verb("import_tasks", ["--project", str(project), str(file)])

        def sdk(project: int) -> None:
            lines = file.read_bytes().splitlines()
            sent: list[Any] = [{"data": {STATUS_KEY: "", **orjson.loads(line)}} for line in lines]
            self._sdk.projects.import_tasks(id=project, request=sent, return_task_ids=True)

        seconds: dict[str, float] = {}
        for side, import_all in _order({"ours": ours, "sdk": sdk}, pair):
            project = self.project()
            started = time.perf_counter()
            import_all(project)
            seconds[side] = time.perf_counter() - started
        self._tell(f"import of {tasks}: {seconds['ours']:.1f} s, the SDK {seconds['sdk']:.1f} s")
        return seconds

    def sync_pair(self, project: int, annotated: int, pair: int) -> dict[str, float]:
        """Sync a project into a new dataset, again into the same one, and list it with the SDK."""
        dataset = self._folder / f"dataset-{pair}"
        seconds: dict[str, float] = {}

        def ours() -> None:
            arguments = ["--project", str(project), "--case", _CASE, "--out", str(dataset)]
            for side in ("ours", "again"):
                started = time.perf_counter()
                self._verb("sync", arguments)
                seconds[side] = time.perf_counter() - started

        def sdk() -> None:
            started = time.perf_counter()
            listed = sum(1 for _ in self._sdk.tasks.list(project=project, fields="all"))
            seconds["sdk"] = time.perf_counter() - started
            if listed != annotated:
                raise RuntimeError(f"the SDK listed {listed} of {annotated} tasks")

        for _, side in _order({"ours": ours, "sdk": sdk}, pair):
            side()
        self._tell(
            f"sync of {annotated}: {seconds['ours']:.1f} s, again {seconds['again']:.1f} s, "
            f"the SDK's listing {seconds['sdk']:.1f} s"
        )
        return seconds

    def _verb(self, name: str, arguments: Sequence[str]) -> None:
        run_verb(name, arguments, self._url, self._folder)


def run_verb(name: str, arguments: Sequence[str], url: str, folder: Path) -> Used:
    """Run a command on the bench's Label Studio.

    Raises:
        RuntimeError: It failed.
    """
    environment = {
        "LABEL_STUDIO_URL": url,
        "LABEL_STUDIO_API_KEY": TOKEN,
        "LEDGER_URL": f"sqlite:///{folder}/ledger.sqlite3",
    }
    return run([str(ROOT / "scripts" / name), *arguments], environment, folder / f"{name}.log")


def _order(sides: dict[str, Callable[..., None]], pair: int) -> list[tuple[str, Callable[..., None]]]:
    return list(sides.items()) if pair % 2 else list(reversed(sides.items()))


def _regions(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": "sentiment-0",
            "from_name": "sentiment",
            "to_name": "text",
            "type": "choices",
            "value": {"choices": [value["sentiment"]]},
        }
    ]
