"""Run the verbs as an admin would, against the Label Studio of the tests."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NoReturn

from typer.testing import CliRunner

from draftloop.cli.servers import PYTHONPATH
from tests.conftest import LabelStudioServer


def environment(server: LabelStudioServer, folder: Path, **more: str) -> dict[str, str]:
    """Return the variables that a verb reads, without those that the caller's shell sets."""
    ours = (
        "LABEL_STUDIO_",
        "MODEL_",
        "CASCADE_",
        "BACKEND_",
        "LEDGER_",
        "CASES_",
        "ARTIFACTS_",
        "EXAMPLES",
        "EXECUTION",
        "SANDBOX_",
        "ADAPTERS_",
        "FLYWHEEL_",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **kept,
        "PYTHONPATH": PYTHONPATH,
        "LABEL_STUDIO_URL": server.url,
        "LABEL_STUDIO_API_KEY": server.token,
        "CACHE_URL": "",
        "LEDGER_URL": f"sqlite:///{folder / 'ledger.sqlite3'}",
        **more,
    }


def start(env: dict[str, str], verb: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a verb without waiting for it."""
    command = [sys.executable, "-P", "-m", "draftloop.cli", verb.replace("_", "-"), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(env: dict[str, str], verb: str, *arguments: object) -> tuple[int, str, str]:
    """Run a verb to its end; return exit code, stdout and stderr."""
    with start(env, verb, *arguments) as process:
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err


def run_here(env: Mapping[str, str], verb: str, *arguments: object) -> tuple[int, str, str]:
    """Run a verb like `run`, but in this process: a Python of its own takes a second to import it all."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        result = CliRunner().invoke(
            import_module(f"draftloop.cli.{verb}").cli, [str(one) for one in arguments]
        )
    finally:
        os.environ.clear()
        os.environ.update(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


# Its children have all of this imported already: what is killed within moments should be at work by then.
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["tests.verbs", "draftloop.cli.sync"])


def start_warm(env: Mapping[str, str], verb: str, *arguments: object) -> ForkServerProcess:
    """Start a verb in a process that need not import it; its exit code is that of the verb."""
    process = _WARM.Process(target=_warm, args=(dict(env), verb, *arguments))
    process.start()
    return process


def _warm(env: dict[str, str], verb: str, *arguments: object) -> NoReturn:
    code, _, err = run_here(env, verb, *arguments)
    sys.stderr.write(err)
    sys.exit(code)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill as `kill -9` does, and take leave of the pipes."""
    process.kill()
    process.communicate()
