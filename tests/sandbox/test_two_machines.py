"""Datasets made on two machines are equal: what failing code says names no folder of either."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftloop.dataset.formats import FORMATS
from draftloop.dataset.sample import canonical
from draftloop.execution.sandbox import SandboxProcess
from draftloop.runs.job import Script
from tests.sandbox.conftest import Field, fresh_home, python_of_sandbox
from tests.unit.test_reruns import Bench, bench

__all__ = ["bench"]

FAILING = """
import json, sys, traceback, warnings
import numpy as np, pandas as pd
print(pd.__file__, json.__file__, sys.prefix + "/bin")
warnings.warn_explicit("old", UserWarning, np.__file__, 3)
try:
    json.loads("{")
except ValueError:
    print(traceback.format_exc())
pd.DataFrame({"城市": ["北京"]}).apply(lambda row: pd.to_numeric(row))
"""
NODE = "const read = () => require('fs').readFileSync('nope.csv');\nread();"


def copied(environment: Path, target: Path) -> Path:
    """Copy an environment, without its content where the disk allows; give its Python."""

    def link(source: str, copy: str) -> str:
        try:
            os.link(source, copy, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, copy, follow_symlinks=False)
        return copy

    shutil.copytree(environment, target, symlinks=True, copy_function=link)
    return target / "bin" / "python"


def test_what_failing_code_prints_names_the_script_and_the_library_alone(place: Field) -> None:
    attempt = place.run(FAILING)
    printed = attempt.stdout + attempt.stderr
    assert attempt.stdout.splitlines()[0] == "pandas/__init__.py json/__init__.py bin"
    assert printed.count('File "script.py", line 10, in <module>') == 1
    # to_numeric was called by pandas, which the script called: of pandas the innermost frame alone is kept.
    assert [line for line in attempt.stderr.splitlines() if line.startswith('  File "pandas/')] == [
        line for line in attempt.stderr.splitlines() if line.startswith('  File "pandas/_libs/')
    ]
    assert attempt.stdout.count("  File") == 2
    assert "numpy/__init__.py:3: UserWarning: old" in attempt.stderr
    node = place.run(NODE, "javascript")
    assert [line.strip() for line in node.stderr.splitlines() if line.startswith("    at ")] == [
        line.strip() for line in node.stderr.splitlines() if "openSync" in line or "script.js" in line
    ]
    assert "internal" not in node.stderr
    for folder in ("site-packages", "/lib/python3", str(Path.home()), str(place.home)):
        assert folder not in printed + node.stderr, folder


def test_datasets_of_two_machines_are_equal(bench: Callable[..., Bench]) -> None:
    if os.getuid():
        pytest.skip("an environment is copied, which takes a machine of one's own")
    good = "print('done')\nopen('n.txt', 'w').write('1')"
    made: list[dict[str, Any]] = []
    for number in range(2):
        with fresh_home(None) as home:
            python = python_of_sandbox()
            if number:
                python = copied(python.parents[1], home / "ann" / ".cache" / "other-envs" / "sandbox")
            with SandboxProcess(python, home / "sandbox", inputs=[home / "inputs"]) as sandbox:
                assert ("other-envs" in str(python)) == bool(number)
                one = bench(good, FAILING, drafted=FAILING)
                one.sandbox = sandbox  # type: ignore[assignment]
                one.runner().draft("Count", [], [], Script(FAILING), lambda _: Script(good), limit_s=60)
                one.sync(f"d{number}", formats=[form.name for form in FORMATS])
        made.append({})
        for path in (one.folder / f"d{number}").iterdir():
            if path.name.startswith(("samples", "rejected")):
                lines = path.read_text(encoding="utf-8").splitlines()
                made[-1][path.name] = [canonical(timeless(json.loads(line))) for line in lines]
            elif path.suffix == ".jsonl":
                made[-1][path.name] = path.read_bytes()
    assert made[0] == made[1]
    text = str(made[0])
    assert "rejected" in str(sorted(made[0]))
    assert text.count("UserWarning: old") > 2, "the failing attempt is in the rows"
    assert "site-packages" not in text
    assert ".cache" not in text


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out the measured seconds of a sample's runs."""
    for attempt in line.get("attempts", ()):
        for step in attempt["steps"]:
            del step["wall_s"]
    return line
