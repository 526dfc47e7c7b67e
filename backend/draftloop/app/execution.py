"""What runs code, made from the settings: sandbox, conversation loop, and runs of submitted code.

Called by the backend for drafts, and by the verbs that judge submitted code.
"""

import atexit
import os
from pathlib import Path
from typing import Any

import structlog

from draftloop.dataset.reruns import Reruns, Work
from draftloop.execution.artifacts import Artifacts
from draftloop.execution.inputs import InputRoot
from draftloop.execution.interpreter import Interpreter, Interpreters
from draftloop.execution.runner import Execution, Runner, RunStore
from draftloop.execution.sandbox import LastingSandbox, SandboxProcess, fresh_folder, installed_python
from draftloop.runs.job import MIB, Limits
from draftloop.settings import ExecutionSettings, Settings

_log = structlog.get_logger("backend")


def make_execution(settings: ExecutionSettings, store: RunStore) -> Execution | None:
    """Make what runs code, None where it is switched off; sandbox and loop start at the first use.

    Args:
        settings: Whether, where and within which limits.
        store: Keeps runs and their files.
    """
    if settings.execution == "off":
        return None
    jobs = _at_once(settings)
    if misplaced := InputRoot(settings.input_root).misplaced():
        _log.warning(
            "input files that belong to no project are not read",
            below=str(settings.input_root),
            some=misplaced,
            hint="Move them to projects/ID or to shared, below INPUT_ROOT; the tasks stay as they are.",
        )

    def start() -> SandboxProcess:
        python = settings.sandbox_python or installed_python("sandbox")
        folder = fresh_folder(settings.sandbox_folder)
        inputs = [settings.input_root.absolute()] if settings.input_root.is_dir() else []
        memory_bytes = settings.execution_memory_mb * MIB
        return SandboxProcess(
            python, folder, inputs=inputs, jobs=jobs, job_memory_bytes=memory_bytes, log=folder / "log"
        )

    sandbox = LastingSandbox(start)
    loops = Interpreters(
        lambda: Interpreter(settings.interpreter_python or installed_python("open-interpreter")), jobs
    )
    atexit.register(sandbox.close)
    atexit.register(loops.close)
    runner = Runner(
        sandbox,
        loops,
        store,
        inputs_root=settings.input_root,
        limits=Limits(
            wall_s=settings.execution_wall_s,
            cpu_s=settings.execution_cpu_s,
            memory_bytes=settings.execution_memory_mb * MIB,
            file_bytes=settings.execution_disk_mb * MIB // 2,
            disk_bytes=settings.execution_disk_mb * MIB,
            output_bytes=settings.execution_output_kb << 10,
        ),
        turns=settings.execution_turns,
        total_s=settings.execution_total_s,
        folder=settings.sandbox_folder,
    )
    return Execution(runner, settings.execution)


def make_reruns(settings: Settings, *, elsewhere: bool = False) -> Reruns:
    """Make what runs submitted code again; the sandbox is started when there is some.

    Args:
        settings: Where runs are kept, and how code is run.
        elsewhere: Run it in other processes first. They share the store of artifacts and the folder of
            inputs, and have the sandbox's Python at the same path.
    Raises:
        SetupError: The address of the artifacts is wrong.
    """
    url, execution = settings.store.artifacts_url, settings.execution
    max_bytes = settings.store.artifacts_max_mb * MIB
    remote_runner = None
    if elsewhere and execution.execution != "off":
        remote_runner = RemoteReruns(url, execution, max_bytes)
    return _reruns(url, execution, _at_once(execution), remote_runner, max_bytes)


class RemoteReruns:
    """Runs the programs of samples in the process that it is pickled to, one at a time.

    The runner is made there, at the first call. Runs are kept in the store, which all processes share.
    """

    def __init__(self, artifacts_url: str, execution: ExecutionSettings, max_bytes: int = 0) -> None:
        """Make the paths absolute, so that they mean the same in every process."""
        self._url = artifacts_url if "://" in artifacts_url else str(Path(artifacts_url).absolute())
        paths = {
            name: getattr(execution, name) for name in ("input_root", "sandbox_folder", "sandbox_python")
        }
        absolute = {name: path.absolute() for name, path in paths.items() if path is not None}
        self._execution = execution.model_copy(update=absolute)
        self._max_bytes = max_bytes
        self._made: Reruns | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone, with the path of this process's Python where none was set."""
        python = self._execution.sandbox_python or installed_python("sandbox")
        execution = self._execution.model_copy(update={"sandbox_python": python})
        return RemoteReruns, (self._url, execution, self._max_bytes)

    def __call__(self, work: Work) -> int:
        """Run the programs of a sample that have no stored run; return how many were run."""
        if self._made is None:
            self._made = _reruns(self._url, self._execution, 1, max_bytes=self._max_bytes)
        return self._made.fill(work)


def _reruns(
    artifacts_url: str,
    execution: ExecutionSettings,
    jobs: int,
    remote_runner: RemoteReruns | None = None,
    max_bytes: int = 0,
) -> Reruns:
    artifacts = Artifacts(artifacts_url, max_bytes=max_bytes)
    execution = execution.model_copy(update={"execution_jobs": jobs})
    made = make_execution(execution, artifacts)
    return Reruns(artifacts, made.runner if made else None, jobs, remote_runner)


def _at_once(settings: ExecutionSettings) -> int:
    return settings.execution_jobs or os.cpu_count() or 1
