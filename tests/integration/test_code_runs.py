"""Code tasks with the real sandbox and the real Open Interpreter; a scripted model answers."""

import hashlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from draftloop.errors import ServiceError, SetupError
from draftloop.execution.interpreter import Interpreter, Interpreters
from draftloop.execution.runner import Runner
from draftloop.execution.sandbox import LastingSandbox, SandboxProcess, fresh_folder
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Message
from draftloop.runs.job import Limits, Script
from draftloop.runs.run import InputFile, missing_outputs, outputs_of
from draftloop.support.environments import ROOT, find_environment
from tests.conftest import installed
from tests.fake_sandbox import FakeStore

CHART = """
import matplotlib.pyplot as plt
import pandas as pd
frame = pd.read_csv("input/销售.csv")
frame.plot.bar(x="城市", y="金额", title="各城市销售额")
plt.tight_layout()
plt.savefig("图.png")
print(frame["金额"].sum())
"""
TABLE = "城市,金额\n北京,120\n上海,30\n".encode()
SALES = InputFile("销售.csv", "三月/销售.csv", len(TABLE), hashlib.sha256(TABLE).hexdigest())


@dataclass
class Bench:
    """A runner on a real sandbox and a real loop."""

    runner: Runner
    store: FakeStore
    sandboxes: list[SandboxProcess]
    home: Path


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with installed():
        pythons = [find_environment(name) / "bin" / "python" for name in ("sandbox", "open-interpreter")]
    with tempfile.TemporaryDirectory(prefix="code-runs-", dir="/var/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "inputs" / "shared" / "三月").mkdir(parents=True)
        (home / "inputs" / "shared" / "三月" / "销售.csv").write_bytes(TABLE)
        made: list[SandboxProcess] = []

        def start() -> SandboxProcess:
            made.append(
                SandboxProcess(pythons[0], fresh_folder(home / "runs"), inputs=[home / "inputs"], jobs=2)
            )
            return made[-1]

        sandbox, loops, store = (
            LastingSandbox(start),
            Interpreters(lambda: Interpreter(pythons[1]), 1),
            FakeStore(),
        )
        runner = Runner(
            sandbox,
            loops,
            store,
            inputs_root=home / "inputs",
            limits=Limits(wall_s=20),
            folder=home / "runs",
        )
        yield Bench(runner, store, made, home)
        loops.close()
        sandbox.close()
        assert list((home / "runs").iterdir()) == []


def mended(
    bench: Bench, first: str, *better: str, outputs: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Run a draft; return the outcomes of its attempts and the prompts after failures."""
    prompts: list[str] = []
    scripts = list(better)

    def ask_again(messages: Sequence[Message]) -> Script | None:
        prompts.append(messages[-1].content)
        return Script(scripts.pop(0)) if scripts else None

    run = bench.runner.draft("Sum", [SALES], outputs, Script(first), ask_again, limit_s=120)
    assert bench.store.runs[run.key] == run
    assert [path.name for path in (bench.home / "runs").glob("*-run-*")] == []
    return [attempt.outcome for attempt in run.attempts], prompts


def test_a_wrong_column_is_reported_and_mended_and_the_chart_is_kept(bench: Bench) -> None:
    wrong = CHART.replace('frame["金额"]', 'frame["销售额"]')
    outcomes, prompts = mended(bench, wrong, CHART, outputs=["图.png"])
    assert outcomes == ["failed", "ok"]
    assert "KeyError: '销售额'" in prompts[0]
    (run,) = (run for run in bench.store.runs.values() if run.script.code == CHART)
    assert run.last.stdout == "150\n"
    (chart,) = run.last.files
    assert bench.store.contents[chart.sha256].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "outcome", "words"),
    [
        ("import os; os._exit(3)", "failed", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV"),
        ("import signal, time\nsignal.alarm(0)\nwhile True: time.sleep(1)", "timeout", "Stopped after"),
        ("open('/etc/shadow').read()", "failed", "Error: [Errno"),
        ("import sys; sys.exit('{{ 1 + 1 }}')", "failed", "{{ 1 + 1 }}"),
    ],
)
def test_a_failure_is_reported_and_the_next_script_runs(
    bench: Bench, code: str, outcome: str, words: str
) -> None:
    runner = bench.runner
    if outcome == "timeout":
        runner = Runner(
            runner._sandbox,
            runner._loop,
            bench.store,
            inputs_root=bench.home / "inputs",
            limits=Limits(wall_s=1),
            folder=bench.home / "runs",
        )
    outcomes, prompts = mended(
        Bench(runner, bench.store, bench.sandboxes, bench.home), code, "print('right')"
    )
    assert outcomes == [outcome, "ok"]
    assert words in prompts[0]


def test_a_sandbox_that_is_killed_is_an_error_and_the_next_call_starts_another(bench: Bench) -> None:
    bench.runner.describe()
    os.kill(bench.sandboxes[-1].pid, signal.SIGKILL)
    began, count = time.monotonic(), len(bench.sandboxes)
    try:
        run = bench.runner.rerun([Script("print(1)")], [], origin="human")
    except ServiceError:
        run = bench.runner.rerun([Script("print(1)")], [], origin="human")
    assert (run.ok, len(bench.sandboxes)) == (True, count + 1)
    assert time.monotonic() - began < 60


def test_a_job_that_a_killed_sandbox_took_along_is_run_once_more(bench: Bench) -> None:
    bench.runner.describe()
    process, count = bench.sandboxes[-1], len(bench.sandboxes)

    def kill() -> None:
        time.sleep(1)
        os.kill(process.pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    run = bench.runner.rerun([Script("import time; time.sleep(3); print(2)")], [], origin="human")
    assert (run.ok, run.last.stdout) == (True, "2\n")
    assert len(bench.sandboxes) == count + 1


def test_code_reads_inputs_below_the_root_alone_and_writes_none(bench: Bench) -> None:
    run = bench.runner.rerun(
        [Script("print(open('input/销售.csv').read()); open('input/销售.csv', 'w')")], [SALES], origin="human"
    )
    assert (run.last.outcome, "北京" in run.last.stdout) == ("failed", True)
    assert (bench.home / "inputs" / "shared" / "三月" / "销售.csv").read_bytes() == TABLE


def test_the_description_names_what_is_installed(bench: Bench) -> None:
    words = bench.runner.describe()
    for part in ("pandas 3.", "matplotlib 3.", "Python 3.11", "Node.js", "20 s", "2 GB of memory"):
        assert part in words


def test_the_examples_of_the_shipped_case_do_what_they_are_asked(bench: Bench) -> None:
    tables = {
        "orders.csv": b"id,date,customer,amount\n1,2025-01-03,Lena,19.9\n2,2025-02-03,Ann,120\n",
        "销售.csv": "日期,城市,金额\n2025-03-01,北京,120.5\n2025-03-01,上海,88\n".encode("gb18030"),
    }
    for name, content in tables.items():
        (bench.home / "inputs" / "shared" / name).write_bytes(content)
    case = Cases(ROOT / "label_config").get("code_analysis")
    for example in case.examples:
        (name,) = [name for name in tables if name in str(example.task.data["input_schema"])]
        file = InputFile(name, name, len(tables[name]), hashlib.sha256(tables[name]).hexdigest())
        script = case.labelling.script(example.value)
        assert script is not None
        run = bench.runner.rerun([script], [file], origin="draft")
        assert run.ok, run.last.stderr
        assert missing_outputs(run.last, outputs_of(example.task.data)) == ()
        assert run.last.stderr == ""


def test_a_sandbox_that_cannot_start_is_not_tried_for_every_task(tmp_path: Path) -> None:
    tried = []

    def start() -> SandboxProcess:
        tried.append(1)
        raise SetupError("This kernel has no Landlock.")

    sandbox = LastingSandbox(start)
    for _ in range(3):
        with pytest.raises(SetupError, match="Landlock"):
            _ = sandbox.report
    assert len(tried) == 1


def test_folders_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "sandbox-999999999-1-x").mkdir()
    (tmp_path / "sandbox-999999999-1-run-x").mkdir()
    (tmp_path / f"sandbox-{os.getpid()}-1-x").mkdir()  # of an earlier process, in a container that was killed
    mine, other = fresh_folder(tmp_path), fresh_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])
