"""The command line of the sandbox's server."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from draftloop.errors import SetupError
from draftloop.runs.job import Layer, Limits
from draftloop.sandbox.users import MOST_USERS

_OWN_MEMORY_BYTES = 1 << 30  # of the sandbox itself, its keepers and what is cached of files
LAYERS: tuple[Layer, ...] = get_args(Layer)


@dataclass(frozen=True)
class ServerOptions:
    """What the command line says."""

    folder: str
    inputs: tuple[str, ...]
    jobs: int
    browser: bool
    without: frozenset[Layer]
    memory_bytes: int  # of all jobs and the sandbox together; 0 is no limit


def read_options(description: str | None) -> ServerOptions:
    """Read the command line; `description` is the text of its help."""
    parser = argparse.ArgumentParser(prog="python -m draftloop.sandbox", description=description)
    parser.add_argument("--folder", required=True, help="where jobs run and the socket is; made if missing")
    parser.add_argument("--inputs", action="append", default=[], help="a folder whose files jobs may read")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="jobs at once")
    parser.add_argument(
        "--job-memory",
        type=int,
        default=Limits().memory_bytes >> 20,
        help="MB that one job may have at most; the kernel limits all together, where it can; 0: no limit",
    )
    parser.add_argument("--browser", action="store_true", help="let jobs ask for the profile browser")
    parser.add_argument("--without", action="append", default=[], choices=LAYERS, help="leave a layer out")
    given = parser.parse_args()
    without: frozenset[Layer] = frozenset(given.without)
    jobs = min(max(1, given.jobs), MOST_USERS)
    return ServerOptions(
        folder=os.path.realpath(given.folder),
        inputs=_input_roots(given.inputs),
        jobs=jobs,
        browser=given.browser,
        without=without,
        memory_bytes=(given.job_memory * jobs << 20) + _OWN_MEMORY_BYTES if given.job_memory else 0,
    )


def _input_roots(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the input folders that exist, without links and without those that lie in another one."""
    roots = sorted({os.path.realpath(path) for path in paths if os.path.isdir(path)})
    return tuple(
        root
        for root in roots
        if not any(root != other and Path(root).is_relative_to(other) for other in roots)
    )


def check_apart(folder: str, inputs: Sequence[str]) -> None:
    """Check that the sandbox's folder and the input folders do not contain each other.

    Raises:
        SetupError: They do.
    """
    for root in inputs:
        if Path(folder).is_relative_to(root) or Path(root).is_relative_to(folder):
            raise SetupError(
                f"The sandbox's folder {folder} and the input folder {root} lie in each other.",
                hint="Set SANDBOX_FOLDER or INPUT_ROOT to another folder.",
            )
