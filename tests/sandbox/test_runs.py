"""What runs are good for: languages, chains, inputs, charts, and a sandbox that can be relied on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from draftloop.cli import servers
from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.execution.sandbox import SandboxProcess
from draftloop.runs.job import (
    Layer,
    Limits,
    SandboxJob,
    Script,
    attempt_from_json,
    attempt_to_json,
)
from draftloop.support.environments import ROOT
from tests.sandbox.conftest import Field, descendants, fresh_home, python_of_sandbox, started

PNG = b"\x89PNG\r\n\x1a\n"
CHART = """
import pandas as pd
import matplotlib.pyplot as plt
{setting}
frame = pd.DataFrame({{"城市": ["北京", "上海", "广州"], "销售额": [120, -30, 90]}})
figure, axes = plt.subplots(figsize=(5, 3))
frame.plot.bar(x="城市", y="销售额", ax=axes, title="各城市销售额（万元）")
axes.set_xlabel("城市：直辖市与省会")
plt.tight_layout()
plt.savefig("图表.png")
"""


# ---------------------------------------------------------------- languages


def test_python_javascript_and_shell_hand_files_on(place: Field) -> None:
    job = SandboxJob(
        (
            Script("import json; json.dump({'销售': [1, 2, 3]}, open('a.json', 'w')); print('python')"),
            Script(
                "const fs = require('fs'); const a = JSON.parse(fs.readFileSync('a.json'));"
                "fs.writeFileSync('b.json', JSON.stringify({sum: a['销售'].reduce((x, y) => x + y)}));"
                "console.log('node')",
                "javascript",
            ),
            Script("cat b.json > c.txt && gzip -k c.txt && echo shell", "shell"),
        )
    )
    attempt = place.run_job(job)
    assert attempt.outcome == "ok", attempt
    assert attempt.stdout == "python\nnode\nshell\n"
    assert [file.path for file in attempt.files] == ["a.json", "b.json", "c.txt", "c.txt.gz"]
    assert json.loads((place.outputs / "c.txt").read_text()) == {"sum": 6}


def test_a_chain_ends_at_its_first_failure(place: Field) -> None:
    job = SandboxJob((Script("exit 3", "shell"), Script("print('never')")))
    attempt = place.run_job(job)
    assert attempt.outcome == "failed"
    assert attempt.reason == "script.sh ended with exit status 3."
    assert len(attempt.steps) == 1


@pytest.mark.parametrize("cold", [False, True])
def test_a_traceback_shows_the_script_and_nothing_of_ours(place: Field, cold: bool) -> None:
    attempt = place.run("def divide(a):\n    return 1 / a\n\ndivide(0)", cold=cold)
    assert attempt.outcome == "failed"
    assert attempt.reason == "script.py ended with exit status 1."
    assert attempt.stderr.splitlines()[:4] == [
        "Traceback (most recent call last):",
        '  File "script.py", line 4, in <module>',
        "    divide(0)",
        '  File "script.py", line 2, in divide',
    ]
    attempt = place.run("print('a'\nx = 1", cold=cold)
    assert attempt.stderr.splitlines()[0] == '  File "script.py", line 1'


@pytest.mark.parametrize("cold", [False, True])
def test_python_ends_as_python_does(place: Field, cold: bool) -> None:
    code = """
import atexit, sys, threading, time
atexit.register(lambda: print("at exit"))
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print(__name__, sys.argv, end=" ")
sys.exit("words")
"""
    attempt = place.run(code, cold=cold)
    assert attempt.stdout.startswith("__main__ ")
    assert attempt.stdout.endswith("thread\nat exit\n")
    assert (attempt.stderr, attempt.exit_status) == ("words\n", 1)


def test_what_was_printed_before_the_end_is_kept(place: Field) -> None:
    attempt = place.run("print('so far')\nwhile True:\n    pass", wall_s=1)
    assert attempt.outcome == "timeout"
    assert attempt.stdout == "so far\n"


def test_programs_start_programs(place: Field) -> None:
    code = "import subprocess, sys\ndef start(*command):\n"
    code += "    print(subprocess.run(command, capture_output=True, text=True))\n"
    code += "start('node', '-p', '1 + 1')\nstart(sys.executable, '-c', 'import pandas; print(3)')"
    attempt = place.run(code)
    assert "stdout='2\\n'" in attempt.stdout
    assert "stdout='3\\n'" in attempt.stdout
    code = "const {execSync} = require('child_process');"
    code += "console.log(execSync('python -c \"print(4)\"').toString())"
    assert place.run(code, "javascript").stdout.strip() == "4"


def test_random_numbers_differ_from_run_to_run(one_place: Field) -> None:
    code = "import numpy, random; print(numpy.random.rand(), random.random())"
    numbers = {number for _ in range(3) for number in one_place.run(code).stdout.split()}
    assert len(numbers) == 6


# ---------------------------------------------------------------- inputs


def test_a_large_input_costs_no_copy(place: Field) -> None:
    large = place.inputs / "大文件.csv"
    with large.open("wb") as file:
        file.write(b"a,b\n1,2\n" * 1_000_000)  # on the disk, the rest is not
        file.truncate(1_800_000_000)
    code = "import os; status = os.stat('input/大文件.csv'); print(status.st_size, status.st_ino)\n"
    code += "print(open('input/大文件.csv', 'rb').read(7))"
    attempt = place.run(code, inputs={"大文件.csv": str(large)}, disk_bytes=1 << 20)
    assert attempt.outcome == "ok", attempt
    status = large.stat()
    assert attempt.stdout == f"{status.st_size} {status.st_ino}\nb'a,b\\n1,2'\n"
    assert attempt.peak_memory_bytes < 1 << 30


def test_inputs_are_plain_files_where_the_machine_can_mount(one_place: Field) -> None:
    (one_place.inputs / "a.log").write_text("x\n")
    attempt = one_place.run(
        "find input -type f -name '*.log' | xargs tar czf logs.tgz && tar tzf logs.tgz",
        "shell",
        inputs={"a.log": str(one_place.inputs / "a.log")},
    )
    assert attempt.stdout == "input/a.log\n"


def test_an_input_that_cannot_be_had_is_an_error_and_no_failure_of_the_code(place: Field) -> None:
    closed = place.inputs / "closed"
    closed.write_text("x")
    closed.chmod(0)
    (place.inputs / "link").unlink(missing_ok=True)
    (place.inputs / "link").symlink_to(place.secret)
    for path, words in (
        (place.inputs / "missing", "No such file"),
        (place.secret, "not under an input folder"),
        (place.inputs / "link", "not under an input folder"),
        (place.inputs / ".." / "secret", "not under an input folder"),
        (place.inputs, "not a regular file"),
        (closed, "cannot be read"),
    ):
        with pytest.raises(TaskError, match=words):
            place.run("print(1)", inputs={"a": str(path)})
        place.demand_nothing_left()


@pytest.mark.parametrize("name", ["../a", "a/b", "", "..", "a\nb"])
def test_an_input_has_a_plain_name(name: str) -> None:
    with pytest.raises(TaskError, match="no plain file name"):
        SandboxJob((Script("1"),), {name: "/a"})


# ---------------------------------------------------------------- charts


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "plt.rcParams['font.sans-serif'] = ['SimHei']; plt.rcParams['axes.unicode_minus'] = False",
        "plt.rcParams['font.family'] = 'Microsoft YaHei'",
        "import seaborn; seaborn.set_theme(style='whitegrid')",
        "plt.style.use('ggplot')",
    ],
    ids=["as is", "SimHei", "YaHei", "seaborn", "ggplot"],
)
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_chinese_labels_show_no_boxes(one_place: Field, setting: str, cold: bool) -> None:
    attempt = one_place.run(CHART.format(setting=setting), cold=cold)
    assert attempt.outcome == "ok", attempt
    assert attempt.stderr == "", "matplotlib names the glyphs and fonts that it does not find"
    assert [file.path for file in attempt.files] == ["图表.png"]
    assert (one_place.outputs / "图表.png").read_bytes().startswith(PNG)


def test_the_usual_files_are_written(one_place: Field) -> None:
    code = """
import pandas as pd, plotly.express as px, seaborn, PIL.Image
from reportlab.pdfgen import canvas
frame = pd.DataFrame({"城市": ["北京"], "值": [1]})
frame.to_excel("a.xlsx"); frame.to_csv("a.csv"); frame.to_json("a.json")
open("a.md", "w").write(frame.to_markdown())
px.bar(frame, x="城市", y="值").write_html("a.html", include_plotlyjs=False)
page = canvas.Canvas("a.pdf"); page.drawString(9, 9, "x"); page.save()
PIL.Image.new("RGB", (4, 4)).save("a.jpg")
print(pd.read_excel("a.xlsx").iloc[0, 1])
"""
    attempt = one_place.run(code)
    assert attempt.stderr == ""
    assert attempt.outcome == "ok"
    assert attempt.stdout == "北京\n"
    assert {Path(file.path).suffix for file in attempt.files} == set(
        ".csv .html .jpg .json .md .pdf .xlsx".split()
    )


# ---------------------------------------------------------------- the sandbox itself


def test_it_says_what_it_is(place: Field) -> None:
    report = place.sandbox.report
    assert {"landlock", "seccomp", "rlimits"} <= set(report.layers)
    assert ("pool-uid" in report.layers) == place.mode.startswith("root")
    assert ("namespaces" in report.layers) == (not place.mode.endswith("bare"))
    assert report.languages == ("python", "javascript", "shell")
    tools = ["ffmpeg"] if shutil.which("ffmpeg") else []
    assert [program.name for program in report.programs] == ["Python", "Node.js", "Bash", *tools]
    assert report.covers
    assert report.gaps


def test_the_list_of_packages_comes_from_the_environment(one_place: Field) -> None:
    listed = {package.name.lower(): package.version for package in one_place.sandbox.report.packages}
    pinned = (ROOT / "requirements" / "sandbox.txt").read_text().lower().splitlines()
    for line in pinned:
        if "==" in line:
            name, version = line.removesuffix(" \\").split("==")
            assert listed[name] == version
    code = "from importlib.metadata import distributions\n"
    code += "print(*sorted({d.metadata['Name'].lower() for d in distributions()}), sep='\\n')"
    assert sorted(listed) == one_place.run(code, cold=True).stdout.split()


@pytest.mark.timeout(900)
def test_an_admin_adds_a_package_in_one_file(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("scale"):
        pytest.skip("makes an environment: --scale")
    with fresh_home(None) as home:
        for name in ("scripts/setup", "requirements/sandbox.txt", "requirements/sandbox-extra.txt"):
            (home / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, home / name)
        with (home / "requirements" / "sandbox-extra.txt").open("a") as extra:
            extra.write("humanize\n")
        environment = {**os.environ, "DRAFTLOOP_HOME": str(home / "made")}
        setup = [str(home / "scripts" / "setup")]
        subprocess.run([*setup, "sandbox"], env=environment, check=True)
        done = subprocess.run(
            [*setup, "--print", "sandbox"], env=environment, check=True, capture_output=True, text=True
        )
        python = Path(done.stdout.strip(), "bin", "python")
        with SandboxProcess(python, home / "sandbox", log=home / "log") as sandbox:
            assert "humanize" in {package.name for package in sandbox.report.packages}
            job = SandboxJob((Script("import humanize; print(humanize.intcomma(1234567))"),))
            assert sandbox.run(job, str(home)).stdout == "1,234,567\n"


@pytest.mark.parametrize("layer", ["landlock", "seccomp", "rlimits", "pool-uid"])
def test_it_runs_nothing_where_it_cannot_contain_it(layer: Layer) -> None:
    words = {
        "landlock": "code could read the sandbox's program",
        "seccomp": "open a unix socket",
        "rlimits": "exceed resource limit",
        "pool-uid": "cannot give runs to other users: the layer was left out",
    }
    with pytest.raises(SetupError, match=words[layer]), started("root", without=[layer]):
        pass


def test_a_failed_start_names_the_systems_error() -> None:
    python = python_of_sandbox()
    with fresh_home(None) as home, pytest.raises(SetupError, match="could not start: AF_UNIX path too long"):
        SandboxProcess(python, home / ("d" * 120))


def test_an_environment_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="draftloop setup sandbox"):
        SandboxProcess(tmp_path / "python", tmp_path / "folder")


def test_a_job_can_be_cancelled(one_place: Field) -> None:
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    began = time.monotonic()
    attempt = one_place.sandbox.run(
        SandboxJob((Script("import time; print('begun'); time.sleep(50)"),)),
        str(one_place.home),
        cancelled=cancelled,
    )
    assert (attempt.outcome, attempt.reason) == ("killed", "Cancelled.")
    assert time.monotonic() - began < 20
    one_place.demand_nothing_left()


def test_jobs_run_side_by_side(one_place: Field) -> None:
    code = "import time; print(time.time()); time.sleep(2); print(time.time())"
    spans: list[list[float]] = []

    def run() -> None:
        attempt = one_place.sandbox.run(SandboxJob((Script(code),)), str(one_place.home))
        spans.append([float(line) for line in attempt.stdout.split()])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)
    one_place.demand_nothing_left()


def test_more_jobs_than_there_is_room_for_wait_their_turn(one_place: Field) -> None:
    outcomes = []

    def run() -> None:
        outcomes.append(one_place.sandbox.run(SandboxJob((Script("print(1)"),)), str(one_place.home)).outcome)

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["ok"] * 12
    one_place.demand_nothing_left()


def test_many_runs_in_a_row_leave_nothing(one_place: Field, pytestconfig: pytest.Config) -> None:
    runs = 200 if pytestconfig.getoption("scale") else 60

    def resident_bytes() -> int:
        pages = [
            int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for pid in descendants(one_place.sandbox.pid)
        ]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def run(number: int) -> None:
        job = SandboxJob((Script(f"open('a', 'w').write('x' * 1000); print({number})"),))
        attempt = one_place.sandbox.run(job, str(one_place.home))
        assert attempt.stdout == f"{number}\n"

    for number in range(10):
        run(number)
    one_place.demand_nothing_left()
    before = resident_bytes()
    for number in range(runs):
        run(number)
    one_place.demand_nothing_left()
    assert resident_bytes() < before + (2 << 20)
    (one_place.home / "a").unlink()


def test_a_keeper_that_is_killed_leaves_nothing(place: Field) -> None:
    def kill_keeper() -> None:
        base = place.before.processes
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for job in (place.home / "sandbox" / "jobs").glob("*/work/begun"):
                assert job.exists()
                keeper = min(descendants(place.sandbox.pid) - base)
                os.kill(keeper, signal.SIGKILL)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_keeper)
    killer.start()
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\nopen('begun', 'w')\ntime.sleep(60)"
    with pytest.raises(ServiceError):
        place.run(code)
    killer.join()
    place.demand_nothing_left()
    assert place.run("print(1)").stdout == "1\n"


def test_a_backend_that_is_killed_takes_its_sandbox_along() -> None:
    with started("root" if os.getuid() == 0 else "user") as (_, home):
        pass  # only its home is wanted: find one that is gone afterwards
    code = f"""
import sys, threading, time
from pathlib import Path
from draftloop.runs.job import SandboxJob, Script
from draftloop.execution.sandbox import SandboxProcess
home = Path({str(home)!r})
sandbox = SandboxProcess(Path({str(python_of_sandbox())!r}), home / "sandbox")
job = SandboxJob((Script("import time; time.sleep(60)"),))
threading.Thread(target=sandbox.run, args=(job, "/tmp"), daemon=True).start()
time.sleep(1)
print("running", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={"PYTHONPATH": servers.PYTHONPATH}
    ) as backend:
        assert backend.stdout
        assert backend.stdout.readline() == b"running\n"
        tree = descendants(backend.pid)
        assert len(tree) > 3
        backend.kill()
    deadline = time.monotonic() + 20
    while (alive := {pid for pid in tree if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive
    assert list((home / "sandbox" / "jobs").iterdir()) == []
    subprocess.run(["rm", "-r", str(home)], check=True)


def test_an_attempt_survives_json(one_place: Field) -> None:
    attempt = one_place.run("import os; print('值'); open('a', 'w').write('x'); os.symlink('a', 'b')")
    assert attempt.files
    assert attempt.refused
    assert attempt_from_json(json.loads(json.dumps(attempt_to_json(attempt)))) == attempt


def test_limits_are_described_in_words() -> None:
    words = Limits(wall_s=30, memory_bytes=2 << 30, processes=64).describe()
    for part in (
        "30 s",
        "2 GB of memory",
        "64 processes",
        "There is no network",
        "input/<name>",
        "read-only",
    ):
        assert part in words
