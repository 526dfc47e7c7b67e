"""Composition root: settings -> edges -> flows -> WSGI. The one file that knows everything."""

import atexit
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import structlog
from flask import Flask

from backend.answers import Answers
from backend.core.execution import MIB, Limits
from backend.core.labelling import Task, compile_labelling
from backend.core.prompting import Model
from backend.edge.adapters import Adapters
from backend.edge.artifacts import Artifacts
from backend.edge.cache import SqliteCache
from backend.edge.cases import Cases
from backend.edge.interpreter import Interpreter, Interpreters
from backend.edge.labelstudio import LabelStudio
from backend.edge.ledger import Ledger
from backend.edge.metrics import Metrics
from backend.edge.rediscache import RedisCache
from backend.edge.sandbox import LastingSandbox, SandboxProcess, fresh_folder, installed_python
from backend.edge.uploads import Uploads
from backend.edge.vllm import VllmModel
from backend.errors import DraftloopError, SetupError
from backend.jobs import Jobs, starter
from backend.predict import Cache, Drafter, Examples, Larger, Neighbours
from backend.protocol import Server
from backend.publish import Publisher
from backend.reruns import Reruns, Work
from backend.runner import Execution, Runner, Store
from backend.settings import (
    ROOT,
    ExecutionSettings,
    LabelStudioSettings,
    ModelSettings,
    Settings,
    StoreSettings,
)

_log = structlog.get_logger("backend")
_WARM_S = 15.0


def create_app(settings: Settings | None = None) -> Flask:
    """Make the WSGI application: `gunicorn 'backend.app:create_app()'`.

    Raises:
        SetupError: A setting or a case is wrong; nothing is served then.
    """
    return make_server(settings or Settings()).wsgi()


def create_plugin_app() -> Flask:
    """Make label-studio-ml's own application with our flow in it, ready before the first `/setup`.

    Raises:
        SetupError: A setting or a case is wrong; nothing is served then.
    """
    # The package is installed only where somebody runs its server.
    from backend.plugin import mount  # noqa: PLC0415

    return mount(make_server(Settings()))


def make_plugin() -> type:
    """Make the model class that label-studio-ml's generated `_wsgi.py` wants.

    Raises:
        SetupError: A setting or a case is wrong.
    """
    from backend.plugin import model_class  # noqa: PLC0415

    return model_class(make_server(Settings()))


def make_server(settings: Settings) -> Server:
    """Make what is served, and say in the log if its model cannot draft yet.

    Raises:
        SetupError: A setting or a case is wrong.
    """
    if settings.backend.viewer_user and not settings.backend.viewer_password.get_secret_value():
        raise SetupError("BACKEND_VIEWER_USER has no password.", hint="Set BACKEND_VIEWER_PASSWORD.")
    log_as_json(settings.backend.log_level)
    model, metrics = make_model(settings.model, make_adapters(settings.store)), Metrics()
    larger = make_larger_model(settings)
    artifacts = Artifacts(settings.store.artifacts_url)
    execution = make_execution(settings.execution, artifacts)
    examples = make_examples(settings.store)
    drafter = make_drafter(
        metrics.metered(model),
        settings.model,
        make_cache(settings.store),
        make_neighbours(settings.store),
        execution,
        make_larger(larger and metrics.metered(larger), settings, execution, examples),
        examples,
    )
    cases = Cases(settings.store.cases_dir)
    ledger = Ledger(settings.store.ledger_url)
    token = settings.label_studio.api_key.get_secret_value()
    label_studio = make_label_studio(settings.label_studio) if token else None
    answers = Answers(
        drafter,
        ledger,
        cases.find,
        LabelStudioBoard(label_studio) if label_studio else None,
        deadline_s=settings.backend.deadline_s,
        metrics=metrics,
        publish=make_publisher(settings, artifacts, label_studio),
    )
    answers.start()
    server = Server(
        drafter=drafter,
        cases=cases,
        memory=ledger,
        answers=answers,
        user=settings.backend.user,
        password=settings.backend.password.get_secret_value(),
        probe=partial(check_ready, model, ledger, larger),
        metrics=metrics,
        check_served=model.check_served,
        artifacts=artifacts,
        jobs=make_jobs(settings, ledger),
        viewer_user=settings.backend.viewer_user,
        viewer_password=settings.backend.viewer_password.get_secret_value(),
    )
    # Behind the start: the model may come up later than we do, and health must answer meanwhile.
    Thread(target=_warn_unless_ready, args=[model, ledger, larger], daemon=True, name="probe").start()
    if execution is not None and any(cases.get(name).labelling.program for name in cases.names()):
        # The version of a code case says what is installed in the sandbox, and Label Studio gives /setup 3 s:
        # so it is started before anybody asks, unless that takes very long.
        warming = Thread(target=execution.runner.describe, daemon=True, name="sandbox")
        warming.start()
        warming.join(_WARM_S)
    return server


class LabelStudioBoard:
    """Label Studio as `Answers` wants it."""

    def __init__(self, label_studio: LabelStudio) -> None:
        self._label_studio = label_studio
        self.has_prediction = label_studio.has_prediction
        self.set_task_data = label_studio.set_task_data

    def write(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Store predictions where a task has none of their version yet."""
        found = self._label_studio.project(project)
        unjudged = compile_labelling(found.label_config).unjudged
        refused = self._label_studio.import_predictions(found, predictions, unjudged=unjudged)
        if refused:
            _log.error("Label Studio refused drafts", project=project, tasks=refused)

    def read(self, project: int, tasks: Collection[int]) -> tuple[str, str | None, list[Task]]:
        """Give the labelling config, the name of the case, and those of the tasks that still exist."""
        found = self._label_studio.project(project)
        rows = self._label_studio.tasks_by_id(found, tasks)
        return found.label_config, found.case, [Task(row["id"], row["data"]) for row in rows]


def make_cache(settings: StoreSettings) -> Cache | None:
    """Make the configured cache of answers.

    Raises:
        SetupError: Its address is wrong.
    """
    if not settings.cache_url:
        return None
    if settings.cache_url.startswith(("redis://", "rediss://", "unix://")):
        return RedisCache(settings.cache_url)
    return SqliteCache(settings.cache_url, max_rows=settings.cache_rows)


def make_neighbours(settings: StoreSettings) -> Neighbours | None:
    """Make the store in which similar tasks are found, if it is wanted.

    Raises:
        SetupError: It is wanted, and the cache is no SQLite file.
    """
    if settings.near_duplicates == "off":
        return None
    # It brings numpy and scipy, a second and 60 MB: for those who want it.
    from backend.edge.neighbours import SqliteNeighbours  # noqa: PLC0415

    reuse = settings.near_duplicates == "reuse"
    return SqliteNeighbours(settings.cache_url, max_rows=settings.cache_rows, reuse=reuse)


def make_examples(settings: StoreSettings) -> Examples | None:
    """Read the snapshot of corrections that prompts show, if one is wanted.

    Raises:
        SetupError: It is no snapshot, or not what it was.
    """
    if not settings.examples:
        return None
    # It brings numpy and the index: for those who want it.
    from backend.edge.examples import Snapshot  # noqa: PLC0415

    return Snapshot(Path(settings.examples), shown=settings.examples_shown)


def make_execution(settings: ExecutionSettings, store: Store) -> Execution | None:
    """Make what runs code, None where it is switched off; sandbox and loop are started when they are needed.

    Args:
        settings: Whether, where and within which limits.
        store: Keeps runs and their files.
    """
    if settings.execution == "off":
        return None
    jobs = _at_once(settings)

    def start() -> SandboxProcess:
        python = settings.sandbox_python or installed_python("sandbox")
        folder = fresh_folder(settings.sandbox_folder)
        inputs = [settings.input_root.absolute()] if settings.input_root.is_dir() else []
        return SandboxProcess(python, folder, inputs=inputs, jobs=jobs, log=folder / "log")

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
        elsewhere: Have it run in other processes first. They share the store of artifacts and the folder of
            inputs, and have the sandbox's Python at the same path.
    Raises:
        SetupError: The address of the artifacts is wrong.
    """
    url, execution = settings.store.artifacts_url, settings.execution
    there = RunsThere(url, execution) if elsewhere and execution.execution != "off" else None
    return _reruns(url, execution, _at_once(execution), there)


class RunsThere:
    """Passes programs through their gates in the process that it is pickled to, one at a time.

    What it needs is made there, once. What it finds is in the store: whoever asks next finds it there.
    """

    def __init__(self, artifacts_url: str, execution: ExecutionSettings) -> None:
        """Take what is the same everywhere: absolute paths."""
        self._url = artifacts_url if "://" in artifacts_url else str(Path(artifacts_url).absolute())
        paths = {
            name: getattr(execution, name) for name in ("input_root", "sandbox_folder", "sandbox_python")
        }
        absolute = {name: path.absolute() for name, path in paths.items() if path is not None}
        self._execution = execution.model_copy(update=absolute)
        self._made: Reruns | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave behind what was made here; name the Python of here, where none was chosen."""
        python = self._execution.sandbox_python or installed_python("sandbox")
        return RunsThere, (self._url, self._execution.model_copy(update={"sandbox_python": python}))

    def __call__(self, work: Work) -> int:
        """Run what has to be run for a sample; gives how many programs that were."""
        if self._made is None:
            self._made = _reruns(self._url, self._execution, 1)
        return self._made.fill(work)


def _reruns(
    artifacts_url: str, execution: ExecutionSettings, jobs: int, there: RunsThere | None = None
) -> Reruns:
    artifacts = Artifacts(artifacts_url)
    execution = execution.model_copy(update={"execution_jobs": jobs})
    made = make_execution(execution, artifacts)
    return Reruns(artifacts, made.runner if made else None, jobs, there)


def make_publisher(settings: Settings, artifacts: Artifacts, label_studio: LabelStudio | None) -> Publisher:
    """Make what shows runs in tasks.

    Args:
        settings: Where Label Studio is, and where the backend is for annotators.
        artifacts: Where files of runs are kept.
        label_studio: Takes pictures, if it may be written to.
    """
    uploads = Uploads(label_studio.send, str(settings.label_studio.url)) if label_studio else None
    return Publisher(artifacts, uploads, str(settings.backend.public_url))


def _at_once(settings: ExecutionSettings) -> int:
    return settings.execution_jobs or os.cpu_count() or 1


def make_adapters(settings: StoreSettings) -> Adapters:
    """Give the registry of adapters; nothing is made yet."""
    return Adapters(settings.adapters_dir)


def make_jobs(settings: Settings, ledger: Ledger) -> Jobs:
    """Make what starts training jobs.

    Raises:
        SetupError: They are to start by themselves, and cannot go well.
    """
    if settings.flywheel.after:
        trained_model(settings)
    return Jobs(
        ledger,
        starter([str(ROOT / "scripts" / "retrain")]),
        after=settings.flywheel.after,
        check=partial(trained_model, settings),
    )


def trained_model(settings: Settings) -> Path:
    """Give the folder of the model that jobs train on.

    Raises:
        SetupError: It is not there, or jobs may not read Label Studio.
    """
    base = settings.flywheel.base or ROOT / "models" / settings.model.name
    if not (base / "config.json").is_file():
        raise SetupError(
            f"There is no model to train on in {base}.",
            hint="Set FLYWHEEL_BASE to the folder of the model that vLLM serves.",
        )
    if not settings.label_studio.api_key.get_secret_value():
        raise SetupError("LABEL_STUDIO_API_KEY is not set.", hint="Training reads what humans submitted.")
    return base


def make_model(settings: ModelSettings, adapters: Adapters) -> VllmModel:
    """Make the client of the configured model; nothing is sent yet.

    Args:
        settings: Where and what it is.
        adapters: Those that a server without them is handed.
    """
    return VllmModel(
        str(settings.url),
        settings.name,
        api_key=settings.api_key.get_secret_value(),
        connections=settings.concurrency,
        context_tokens=settings.context_tokens,
        find_adapter=adapters.find,
    )


def make_larger_model(settings: Settings) -> VllmModel | None:
    """Make the client of a cascade's larger model, None where there is no cascade; nothing is sent yet."""
    if not settings.cascade.name:
        return None
    return VllmModel(
        str(settings.cascade.url or settings.model.url),
        settings.cascade.name,
        api_key=settings.cascade.api_key.get_secret_value(),
        connections=settings.model.concurrency,
        settings="CASCADE",
    )


def make_larger_drafter(
    model: Model,
    settings: Settings,
    execution: Execution | None = None,
    examples: Examples | None = None,
) -> Drafter:
    """Make the drafter that asks a cascade's larger model."""
    theirs = settings.model.model_copy(update={"profile": settings.cascade.profile})
    return make_drafter(model, theirs, execution=execution, examples=examples, patient=False)


def make_larger(
    model: Model | None,
    settings: Settings,
    execution: Execution | None = None,
    examples: Examples | None = None,
) -> Larger | None:
    """Say what the larger model drafts, where there is one.

    Raises:
        SetupError: The threshold is missing.
    """
    if model is None:
        return None
    if settings.cascade.threshold is None:
        raise SetupError(
            f"CASCADE_NAME names '{model.name}', and CASCADE_THRESHOLD is not set.",
            hint="scripts/cascade chooses it for an error budget.",
        )
    return Larger(make_larger_drafter(model, settings, execution, examples), settings.cascade.threshold)


def make_drafter(
    model: Model,
    settings: ModelSettings,
    cache: Cache | None = None,
    neighbours: Neighbours | None = None,
    execution: Execution | None = None,
    larger: Larger | None = None,
    examples: Examples | None = None,
    *,
    patient: bool = True,
) -> Drafter:
    """Make the drafter that asks a model as the settings say."""
    return Drafter(
        model,
        profile=settings.profile,
        bind_quotes=settings.bind_quotes,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
        cache=cache,
        neighbours=neighbours,
        execution=execution,
        larger=larger,
        examples=examples,
        patient=patient,
    )


def check_ready(model: VllmModel, ledger: Ledger, larger: VllmModel | None = None) -> None:
    """Check that the models can draft, and hand a server that was restarted its adapters again.

    Raises:
        ServiceError: A server or the ledger does not answer.
        SetupError: One cannot draft, or does not take an adapter.
    """
    model.probe()
    if larger is not None:
        larger.probe()
    for name in {promoted.model for promoted in ledger.all_promoted().values()}:
        model.check_served(name)


def _warn_unless_ready(model: VllmModel, ledger: Ledger, larger: VllmModel | None) -> None:
    try:
        check_ready(model, ledger, larger)
    except DraftloopError as error:
        _log.warning("the model cannot draft yet", model=model.name, error=error.message, hint=error.hint)


def make_label_studio(settings: LabelStudioSettings) -> LabelStudio:
    """Make the client of the configured Label Studio."""
    return LabelStudio(str(settings.url), settings.api_key.get_secret_value())


def log_as_json(level: str) -> None:
    """Write one JSON object per line, without task text, prompts or keys."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
    )
