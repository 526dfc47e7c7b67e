"""The wheel, installed beside the backend's environment: it needs no checkout."""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from draftloop.cli.servers import free_port
from draftloop.support.environments import ROOT, NotInstalledError, find_environment
from tests.conftest import missing

BUILDERS = ("train", "label-studio", "vllm")  # environments that may have a setuptools as new as we need
NEW_ENOUGH = "import setuptools, sys; sys.exit(int(setuptools.__version__.split('.')[0]) < 77)"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SHOW = """
import json
from draftloop.prompting.cases import Cases
from draftloop.settings import Settings
from draftloop.support.environments import import_path
settings = Settings()
cases, folder = settings.store.cases_dir, import_path()
print(json.dumps({
    "cases": [str(cases), Cases(cases).names()],
    "inputs": str(settings.execution.input_root),
    "importable": [entry.name for entry in folder.iterdir()],
    "package": str((folder / "draftloop").resolve()),
}))
"""

RUN_CODE = """
import sys
from pathlib import Path
from draftloop.execution.interpreter import InterpreterAnswer, Interpreter
from draftloop.execution.sandbox import SandboxProcess, fresh_folder, installed_python
from draftloop.runs.job import SandboxJob, Script

folder, outputs = fresh_folder(Path(sys.argv[1])), Path(sys.argv[2])
scripts = ["import pandas; print(6 * 7)"]
with (
    SandboxProcess(installed_python("sandbox"), folder, jobs=1) as sandbox,
    Interpreter(installed_python("open-interpreter")) as loop,
):
    loop.converse(
        "Count",
        ask=lambda _: InterpreterAnswer("", scripts.pop() if scripts else None),
        run=lambda script: print(sandbox.run(SandboxJob((Script(script),)), str(outputs)).stdout) or "",
        limit_s=120,
    )
"""


def builders() -> Iterator[Path]:
    for name in BUILDERS:
        with suppress(NotInstalledError):
            python = find_environment(name) / "bin" / "python"
            checked = subprocess.run([python, "-c", NEW_ENOUGH], capture_output=True, check=False)
            if checked.returncode == 0:
                yield python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of: building writes beside its sources."""
    python, sources = next(builders(), None), tmp_path_factory.mktemp("sources")
    if python is None:
        missing(f"Nothing here has setuptools 77. Run: scripts/setup {BUILDERS[0]}")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("backend", "label_config", "requirements", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    command = [str(python), "-c", BUILD, str(out)]
    built = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("draftloop-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the distribution alone."""
    target = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run([*command, "--target", target, wheel], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def env(installed: Path, tmp_path: Path) -> dict[str, str]:
    """The environment variables of somebody who has the distribution and no checkout."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(installed), "PYTHONNOUSERSITE": "1"}


def draftloop(
    installed: Path, env: dict[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [str(installed / "bin" / "draftloop"), *arguments]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_module_the_cases_and_the_pins(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "backend" / "draftloop"
    code = {
        f"draftloop/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    cases = ROOT / "label_config"
    shipped = {f"draftloop/cases/{path.relative_to(cases)}" for path in cases.rglob("*") if path.is_file()}
    pins = {f"draftloop/environments/{path.name}" for path in (ROOT / "requirements").iterdir()}
    assert held == code | shipped | pins


def test_the_command_and_its_verbs_show_their_help(
    installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    for arguments in ((), ("serve",), ("setup",), ("setup-project",), ("prelabel",)):
        shown = draftloop(installed, env, tmp_path, *arguments, "--help")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"draftloop {arguments[0] if arguments else ''}".strip() in shown.stdout
    assert draftloop(installed, env, tmp_path, "--version").stdout == f"draftloop {VERSION}\n"


def test_its_files_are_those_of_the_package_and_other_environments_see_it_alone(
    installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    env |= {"DRAFTLOOP_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-P", "-c", SHOW]
    shown = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    names = sorted(path.name for path in (ROOT / "label_config").iterdir())
    assert json.loads(shown.stdout) == {
        "cases": [str(installed / "draftloop" / "cases"), names],
        "inputs": "inputs",
        "importable": ["draftloop"],
        "package": str(installed / "draftloop"),
    }


def test_its_setup_makes_the_environments_of_the_checkout(
    installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    shown = draftloop(installed, env, tmp_path, "setup", "--print", "backend")
    assert shown.stdout.strip() == str(find_environment("backend")), shown.stderr
    refused = draftloop(
        installed, {**env, "DRAFTLOOP_HOME": str(tmp_path)}, tmp_path, "setup", "--print", "sandbox"
    )
    assert "Run: draftloop setup sandbox" in refused.stderr


def test_it_runs_code_in_the_environments_that_setup_makes(
    installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    for name in ("sandbox", "open-interpreter"):
        try:
            find_environment(name)
        except NotInstalledError as error:
            missing(str(error))
    (tmp_path / "outputs").mkdir()
    with TemporaryDirectory(dir="/var/tmp") as folder:  # others than root reach it
        command = [sys.executable, "-P", "-c", RUN_CODE, folder, str(tmp_path / "outputs")]
        ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "42", ran.stderr


@pytest.fixture
def served(installed: Path, env: dict[str, str], tmp_path: Path) -> Iterator[str]:
    port = free_port()
    env |= {"PORT": str(port), "LOG_LEVEL": "WARNING", "EXECUTION": "off"}
    command = [str(installed / "bin" / "draftloop"), "serve"]
    with subprocess.Popen(command, env=env, cwd=tmp_path) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(30) == 0


def test_it_serves_from_any_folder_and_keeps_its_state_there(served: str, tmp_path: Path) -> None:
    for _ in range(120):
        try:
            answer = httpx.get(f"{served}/health", trust_env=False)
            break
        except httpx.HTTPError:
            time.sleep(0.5)
    else:
        pytest.fail("It does not answer.")
    assert answer.status_code == 200
    assert (tmp_path / "draftloop.sqlite3").exists()
