"""sync over Ray Data: the bytes of the single-machine way, whatever dies on the way."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from draftloop.app.execution import RemoteReruns, _reruns
from draftloop.cli.servers import PYTHONPATH
from draftloop.dataset import formats
from draftloop.dataset.formats import FORMATS
from draftloop.dataset.ray import RayData
from draftloop.dataset.records import OrderedMap
from draftloop.dataset.sync import Report, sync
from draftloop.errors import ServiceError, SetupError, Unreachable
from draftloop.labelling.labelling import STATUS_KEY, Labelling, Task
from draftloop.labelstudio import LabelStudio
from draftloop.prompting.cases import Cases
from draftloop.runs.run import NO_RUN
from draftloop.settings import ExecutionSettings
from draftloop.support.environments import MODELS, ROOT
from tests.fake_label_studio import fake_label_studio
from tests.verbs import kill, run, start

CASES = Cases(ROOT / "label_config")
TASKS = 3000
OPTIONS = {
    "formats": tuple(form.name for form in FORMATS),
    "tokenizer": str(MODELS / "tiny-qwen3"),
    "max_tokens": 200,
    "mask": True,
    "spot_check": 0.05,
}


# ---------------------------------------------------------------------------------- a project


def data(number: int) -> dict[str, str]:
    """Complaints; every 50th repeats the one before, every 40th is too long."""
    seed = sha256(str(number - (number % 50 == 0)).encode()).hexdigest()
    words = f"我叫张{number}😀,电话 138{number:08},{seed}{'很' * 400 * (number % 40 == 0)},快递还没到!"
    return {"text": words, "draft_status": ""}


def regions(number: int, **value: str) -> list[dict[str, Any]]:
    filled = {"name": f"张{number}", "question": "快递还没到!", **value}
    return [
        {"from_name": name, "to_name": "text", "type": "textarea", "value": {"text": [part]}}
        for name, part in filled.items()
    ]


def predictions(number: int) -> list[dict[str, Any]]:
    if number % 3 == 0:
        return []
    result = regions(number, **({"name": "我叫"} if number % 3 == 1 else {}))
    return [{"id": number, "result": result, "score": number % 10 / 10, "model_version": "m-0123456789"}]


def annotations(number: int) -> list[dict[str, Any]]:
    """Accepted, corrected and written ones; some of two humans, skipped, or not in the text."""
    result = regions(number, **({"name": "李四"} if number % 31 == 0 else {}))
    return [
        {
            "id": 10 * number + place,
            "result": result,
            "was_cancelled": number % 29 == 0,
            "completed_by": 1 + place,
            "created_at": "2026-01-01T00:00:00.000001Z",
            "updated_at": f"2026-01-01T00:00:{place:02}.{number:06}Z",
            "lead_time": 0.1 * number,
            "parent_prediction": number if number % 3 else None,
        }
        for place in range(1 + (number % 7 == 0))
    ]


@contextmanager
def project(tasks: int = TASKS) -> Iterator[LabelStudio]:
    with fake_label_studio(CASES.config("complaint"), tasks, data) as fake:
        fake.annotations, fake.predictions = annotations, predictions
        with LabelStudio(fake.url, "a-token") as studio:
            yield studio


def synced(studio: LabelStudio, folder: Path, each: OrderedMap = map) -> Report:
    return sync(studio, CASES, folder, [1], wanted_case="complaint", changes=OPTIONS, each=each)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes of the project, with every gate that stops something at work."""
    folder = tmp_path_factory.mktemp("single") / "d"
    with project() as studio:
        counts = synced(studio, folder).counts
    stopped = {"not_skipped", "is_grounded", "one_per_task", "fits_tokens", "spot_checked"}
    assert stopped <= counts["stopped_by"].keys()
    assert min(counts[name] for name in ("train", "test", "accepted", "corrected", "written")) > 100
    return content(folder)


# ---------------------------------------------------------------------------------- pieces of work


def one_more(number: int) -> int:
    return number + 1


def refuses(number: int) -> int:
    if number == 70:
        raise SetupError("70 is refused.", hint="Take another.")
    return number


def dies(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def code_of(_: int) -> Path:
    return Path(formats.__file__)


@dataclass(frozen=True)
class DiesOnce:
    """Kills the process that does the 40th piece of work, the first time."""

    function: Callable[[Any], Any]
    flag: Path

    def __call__(self, item: Any) -> Any:
        with (self.flag / str(os.getpid())).open("a") as log:
            log.write(".")
            if log.tell() == 40 and not (self.flag / "died").exists():
                (self.flag / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.function(item)


@contextmanager
def machines(number: int = 2) -> Iterator[Cluster]:
    """Start what Ray takes for machines: processes apart, each with a store and workers of its own."""
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        for _ in range(number - 1):
            cluster.add_node(**small)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


# ---------------------------------------------------------------------------------- tests


def test_results_come_in_order_and_errors_as_they_are() -> None:
    with RayData(cpus=2) as rays:
        assert list(rays(one_more, range(5000))) == list(range(1, 5001))
        assert list(rays(one_more, [])) == []
        results: list[int] = []
        with pytest.raises(SetupError, match=r"70 is refused\. Take another"):
            results.extend(rays(refuses, count()))  # endless: it is not all read first
        with pytest.raises(ServiceError, match="WorkerCrashed"):
            list(rays(dies, range(10)))
        assert list(rays(one_more, range(10))) == list(range(1, 11))


def test_no_cluster_at_the_address_is_said() -> None:
    with pytest.raises(Unreachable, match=r"No Ray cluster answers at 127\.0\.0\.1:9"):
        RayData("127.0.0.1:9")


def test_the_dataset_is_the_same_byte_for_byte_also_where_a_process_dies(
    single: dict[str, bytes], tmp_path: Path
) -> None:
    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        flag = tmp_path / type(function).__name__
        flag.mkdir()
        done = 0
        for made in rays(DiesOnce(function, flag), items):
            done += 1
            yield made
        assert (flag / "died").exists() == (done > 0)
        deaths.append(done)

    deaths: list[int] = []
    with RayData(cpus=2) as rays, project() as studio:
        synced(studio, tmp_path / "d", each)
    assert len([done for done in deaths if done > 0]) == 2, "while judging and while finishing"
    assert content(tmp_path / "d") == single


def test_the_dataset_is_the_same_where_one_of_two_machines_dies(
    single: dict[str, bytes], tmp_path: Path
) -> None:
    with machines() as cluster:
        left = cluster.list_all_nodes()

        def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            yield from rays(function, struck(items))

        def struck(items: Iterable[Any]) -> Iterator[Any]:
            for number, item in enumerate(items):
                if number == 1500 and len(left) == 2:
                    assert rays.cpus == 2
                    cluster.remove_node(left.pop(), allow_graceful=False)
                yield item

        with RayData(cluster.address) as rays, project() as studio:
            synced(studio, tmp_path / "d", each)
        assert len(left) == 1
    assert content(tmp_path / "d") == single


def test_the_verb_leaves_nothing_of_ray_and_no_process_when_it_is_killed(tmp_path: Path) -> None:
    temporary = Path(tempfile.mkdtemp())  # short: Ray puts sockets below it
    with fake_label_studio(CASES.config("complaint"), 400, data) as fake:
        fake.annotations, fake.predictions = annotations, predictions
        env = {
            **os.environ,
            "PYTHONPATH": PYTHONPATH,
            "LABEL_STUDIO_URL": fake.url,
            "LABEL_STUDIO_API_KEY": "a-token",
            "CASES_DIR": str(ROOT / "label_config"),
            "TMPDIR": str(temporary),
        }
        arguments = ("sync", "--project", 1, "--case", "complaint", "--out")
        code, _, err = run(env, *arguments, tmp_path / "here")
        assert code == 0, err
        killed = start(env, *arguments, tmp_path / "there", "--engine", "ray")
        while killed.poll() is None and not list(temporary.glob("ray-*/session_*/logs/worker-*")):
            time.sleep(0.05)
        kill(killed)
        ends = time.monotonic() + 60
        while processes(temporary) and time.monotonic() < ends:
            time.sleep(0.5)
        assert processes(temporary) == []
        for left in temporary.iterdir():
            shutil.rmtree(left)
        code, out, err = run(env, *arguments, tmp_path / "there", "--engine", "ray")
        assert code == 0, err
        assert "Ray: " in err
        assert "samples" in out
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert list(temporary.iterdir()) == []
    assert processes(temporary) == []
    temporary.rmdir()


def processes(folder: Path) -> list[str]:
    """List the running processes that name a folder."""
    kept = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            kept.append(line)
    return kept


def test_a_machine_works_with_the_code_that_was_sent() -> None:
    with machines(1) as cluster, RayData(cluster.address) as rays:
        (path,) = set(rays(code_of, range(3)))
    assert not path.is_relative_to(ROOT)


def test_code_is_run_again_on_the_machines_and_counts_here_as_if_it_had_run_here(tmp_path: Path) -> None:
    table = b"a,b\n1,2\n"
    inputs = [
        {"name": "t.csv", "path": "t.csv", "size_bytes": len(table), "sha256": sha256(table).hexdigest()}
    ]
    wanted = {"inputs": inputs, "output_files": ["out.txt"]}
    labelling = CASES.get("code_analysis").labelling
    config = CASES.config("code_analysis")
    with scratch() as folder, fake_label_studio(config, 12, lambda n: code_data(n) | wanted) as fake:
        (folder / "inputs" / "shared").mkdir(parents=True)
        (folder / "inputs" / "shared" / "t.csv").write_bytes(table)
        fake.annotations = lambda number: code_annotations(labelling, number)
        execution = ExecutionSettings.model_validate(
            {"input_root": folder / "inputs", "sandbox_folder": folder / "runs"}
        )
        url = str(folder / "artifacts")

        def synced_with(name: str, each: OrderedMap, there: RemoteReruns | None) -> tuple[Report, int]:
            reruns = _reruns(url, execution, 2, there)
            report = sync(
                studio,
                CASES,
                tmp_path / name,
                [1],
                wanted_case="code_analysis",
                make_reruns=lambda: reruns,
                each=each,
            )
            return report, reruns.ran

        with LabelStudio(fake.url, "a-token") as studio:
            with machines() as cluster, RayData(cluster.address) as rays:
                report, ran_here = synced_with("there", rays, RemoteReruns(url, execution))
            assert (report.programs, report.ran, ran_here) == (12, 12, 0)
            assert report.counts["stopped_by"] == {"code_runs": 3, "files_exist": 3}
            report, ran_here = synced_with("here", map, None)
            assert (report.programs, ran_here) == (12, 0), "runs by the other machine count here"
    assert content(tmp_path / "there") == content(tmp_path / "here")


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder that the sandbox's own users may enter."""
    with tempfile.TemporaryDirectory(prefix="ray-code-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def code_data(number: int) -> dict[str, Any]:
    asked = {
        "instruction": f"Task {number}: add them up.",
        "input_preview": "",
        "input_schema": "t.csv: a, b",
    }
    return {**NO_RUN, **asked, STATUS_KEY: ""}


def code_annotations(labelling: Labelling, number: int) -> list[dict[str, Any]]:
    """Programs, each another: two of four are good, one fails, one leaves nothing."""
    ends = ('open("out.txt", "w").write(str(total))', "raise SystemExit(3)", "pass")
    code = f'total = sum(map(int, open("input/t.csv").read().split()[1].split(","))) + {number}\n'
    value = {"code": code + ends[max(0, number % 4 - 1)], "verdict": "pass"}
    regions = labelling.to_regions(value, Task(number, code_data(number))).regions
    times = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:01Z"}
    return [{"id": number, "result": list(regions), "was_cancelled": False, "completed_by": 1, **times}]


def test_an_engine_that_there_is_not_is_said(tmp_path: Path) -> None:
    for options, words in (
        (("--engine", "spark"), "There is no engine 'spark'"),
        (("--ray-address", "127.0.0.1:9"), "Add --engine ray"),
    ):
        env = {**os.environ, "PYTHONPATH": PYTHONPATH, "LABEL_STUDIO_API_KEY": "a-token"}
        code, _, err = run(env, "sync", "--out", tmp_path / "d", *options)
        assert code == 1
        assert words in err
