"""Composition root: settings -> edges -> flows -> WSGI. The one file that knows everything."""

import atexit
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask

from draftloop.dataset.reruns import Reruns, Work
from draftloop.drafting.cache import SqliteCache
from draftloop.drafting.draft_cache import Cache
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.escalation import Larger
from draftloop.drafting.near_duplicates import Neighbours
from draftloop.drafting.redis_cache import RedisCache
from draftloop.drafting.steps import Examples
from draftloop.drafting.versions import AskOptions
from draftloop.errors import DraftloopError, SetupError
from draftloop.execution.artifacts import Artifacts
from draftloop.execution.inputs import InputRoot
from draftloop.execution.interpreter import Interpreter, Interpreters
from draftloop.execution.publish import Publisher
from draftloop.execution.runner import Execution, Runner, Store
from draftloop.execution.sandbox import LastingSandbox, SandboxProcess, fresh_folder, installed_python
from draftloop.execution.uploads import Uploads
from draftloop.flywheel.adapters import Adapters
from draftloop.flywheel.jobs import Jobs, starter
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.labelstudio import LabelStudio, Sessions
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Model, Profile, preamble
from draftloop.runs.job import MIB, Limits
from draftloop.serving.answers import Answers
from draftloop.serving.metrics import Metrics
from draftloop.serving.protocol import Server
from draftloop.serving.readiness import ModelCheck, Prompts, check_ready
from draftloop.settings import (
    ExecutionSettings,
    LabelStudioSettings,
    ModelSettings,
    Settings,
    StoreSettings,
)
from draftloop.support.environments import MODELS, verb

if TYPE_CHECKING:
    from draftloop.serving.plugin import PerProcess

_log = structlog.get_logger("backend")
_WARM_S = 15.0
# Threads of their own: Label Studio waits 1 s for /health, however many drafts are made; and whoever reads
# files slowly holds up only those who read files.
_POOLS = (("/health", 2), ("/a/", 16), ("/runs/", 16))


def create_app(settings: Settings | None = None) -> Flask:
    """Make the WSGI application: `gunicorn 'draftloop.app:create_app()'`.

    Raises:
        SetupError: A setting or a case is wrong; nothing is served then.
    """
    # It brings gunicorn: for those who serve.
    from draftloop.serving import server as serving  # noqa: PLC0415

    settings = settings or Settings()
    server, ours = make_server(settings), settings.backend
    limits = serving.Limits(
        body_bytes=ours.max_body_mb * MIB,
        header_s=ours.header_s,
        body_s=ours.body_s,
        answer_s=ours.answer_s,
        connections=ours.connections,
    )
    app = server.wsgi()
    app.extensions[serving.KEY] = serving.Serving(limits, server.access, _POOLS)
    return app


def create_plugin_app() -> Flask:
    """Make label-studio-ml's own application with our flow in it, ready before the first `/setup`.

    Raises:
        SetupError: A setting or a case is wrong; nothing is served then.
    """
    # The package is installed only where somebody runs its server.
    from draftloop.serving.plugin import mount  # noqa: PLC0415

    return mount(_per_process())


def make_plugin() -> type:
    """Make the model class that label-studio-ml's generated `_wsgi.py` wants.

    Raises:
        SetupError: A setting or a case is wrong.
    """
    from draftloop.serving.plugin import model_class  # noqa: PLC0415

    return model_class(_per_process())


def _per_process() -> "PerProcess":
    from draftloop.serving.plugin import PerProcess  # noqa: PLC0415

    settings = Settings(is_guest=True)
    Cases(settings.store.cases_dir)  # what is wrong is said at the start, before anything is forked
    # Made at a request: those that need no sandbox do not wait for one.
    return PerProcess(partial(make_server, settings, warm_s=0), trusted=not settings.backend.logins().user)


def make_server(settings: Settings, *, warm_s: float = _WARM_S) -> Server:
    """Make what is served, and say in the log if its model cannot draft yet.

    Args:
        settings: All of them.
        warm_s: How long to wait for the sandbox, where a case has code; then it starts beside the requests.
    Raises:
        SetupError: A setting or a case is wrong.
    """
    logins = settings.backend.logins()
    log_as_json(settings.backend.log_level)
    model, metrics = make_model(settings.model, make_adapters(settings.store)), Metrics()
    larger = make_larger_model(settings)
    artifacts = Artifacts(settings.store.artifacts_url, max_bytes=settings.store.artifacts_max_mb * MIB)
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
    checks = make_model_checks(settings, cases, model, larger)
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
        logins=logins,
        probe=partial(check_ready, checks, ledger, execution),
        metrics=metrics,
        check_served=model.check_served,
        check_schema=model.check_schema,
        artifacts=artifacts,
        is_member=Sessions(str(settings.label_studio.url)).is_member
        if settings.backend.members_view
        else None,
        jobs=make_jobs(settings, ledger, label_studio),
        body_bytes=settings.backend.max_body_mb * MIB,
    )
    # Behind the start: the model may come up later than we do, and health must answer meanwhile.
    first = partial(check_ready, checks, ledger)
    Thread(target=warn_unless_ready, args=[first, model.name], daemon=True, name="probe").start()
    if execution is not None and any(cases.get(name).labelling.program for name in cases.names()):
        # The version of a code case says what is installed in the sandbox, and Label Studio gives /setup 3 s:
        # so it is started before anybody asks, unless that takes very long.
        warming = Thread(target=execution.runner.describe, daemon=True, name="sandbox")
        warming.start()
        warming.join(warm_s)
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
        return found.label_config, found.case, [Task(row["id"], row["data"], project) for row in rows]


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
    from draftloop.drafting.neighbours import SqliteNeighbours  # noqa: PLC0415

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
    from draftloop.drafting.examples import Snapshot  # noqa: PLC0415

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
        elsewhere: Have it run in other processes first. They share the store of artifacts and the folder of
            inputs, and have the sandbox's Python at the same path.
    Raises:
        SetupError: The address of the artifacts is wrong.
    """
    url, execution = settings.store.artifacts_url, settings.execution
    max_bytes = settings.store.artifacts_max_mb * MIB
    there = RunsThere(url, execution, max_bytes) if elsewhere and execution.execution != "off" else None
    return _reruns(url, execution, _at_once(execution), there, max_bytes)


class RunsThere:
    """Passes programs through their gates in the process that it is pickled to, one at a time.

    What it needs is made there, once. What it finds is in the store: whoever asks next finds it there.
    """

    def __init__(self, artifacts_url: str, execution: ExecutionSettings, max_bytes: int = 0) -> None:
        """Take what is the same everywhere: absolute paths."""
        self._url = artifacts_url if "://" in artifacts_url else str(Path(artifacts_url).absolute())
        paths = {
            name: getattr(execution, name) for name in ("input_root", "sandbox_folder", "sandbox_python")
        }
        absolute = {name: path.absolute() for name, path in paths.items() if path is not None}
        self._execution = execution.model_copy(update=absolute)
        self._max_bytes = max_bytes
        self._made: Reruns | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave behind what was made here; name the Python of here, where none was chosen."""
        python = self._execution.sandbox_python or installed_python("sandbox")
        execution = self._execution.model_copy(update={"sandbox_python": python})
        return RunsThere, (self._url, execution, self._max_bytes)

    def __call__(self, work: Work) -> int:
        """Run what has to be run for a sample; gives how many programs that were."""
        if self._made is None:
            self._made = _reruns(self._url, self._execution, 1, max_bytes=self._max_bytes)
        return self._made.fill(work)


def _reruns(
    artifacts_url: str,
    execution: ExecutionSettings,
    jobs: int,
    there: RunsThere | None = None,
    max_bytes: int = 0,
) -> Reruns:
    artifacts = Artifacts(artifacts_url, max_bytes=max_bytes)
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


def make_jobs(settings: Settings, ledger: Ledger, label_studio: LabelStudio | None) -> Jobs:
    """Make what starts training jobs.

    Raises:
        SetupError: They are to start by themselves, and cannot go well.
    """
    if settings.flywheel.after:
        trained_model(settings)
    return Jobs(
        ledger,
        starter(verb("retrain")),
        after=settings.flywheel.after,
        check=partial(trained_model, settings),
        count=label_studio.count_annotations if label_studio else None,
    )


def trained_model(settings: Settings) -> Path:
    """Give the folder of the model that jobs train on.

    Raises:
        SetupError: It is not there, or jobs may not read Label Studio.
    """
    base = settings.flywheel.base or MODELS / settings.model.name
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
            hint="draftloop cascade chooses it for an error budget.",
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
        AskOptions(
            profile=settings.profile,
            bind_quotes=settings.bind_quotes,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            timeout_s=settings.timeout_s,
            patient=patient,
        ),
        concurrency=settings.concurrency,
        cache=cache,
        neighbours=neighbours,
        execution=execution,
        larger=larger,
        examples=examples,
    )


def make_model_checks(
    settings: Settings, cases: Cases, model: VllmModel, larger: VllmModel | None
) -> tuple[ModelCheck, ...]:
    """Make what checks the model servers, with the prompts of all cases in their profiles."""

    def prompts(profile: Profile) -> Prompts:
        return {name: preamble(cases.get(name), profile) for name in cases.names()}

    checks = [ModelCheck(model, partial(prompts, settings.model.profile))]
    checks += [ModelCheck(larger, partial(prompts, settings.cascade.profile))] if larger else []
    return tuple(checks)


def check_model_servers(settings: Settings) -> tuple[str, ...]:
    """Check the model servers that the settings name, as the backend does.

    Returns:
        What an admin should mend though drafts are made.
    Raises:
        ServiceError: A server does not answer.
        SetupError: One cannot draft, or does not take an adapter that was promoted.
    """
    with ExitStack() as stack:
        model = stack.enter_context(make_model(settings.model, make_adapters(settings.store)))
        larger = make_larger_model(settings)
        if larger is not None:
            stack.enter_context(larger)
        ledger: Ledger | None = None
        with suppress(SetupError):  # nobody has served yet, so nothing was promoted
            ledger = Ledger(settings.store.ledger_url, existing=True)
        checks = make_model_checks(settings, Cases(settings.store.cases_dir), model, larger)
        return check_ready(checks, ledger)


def warn_unless_ready(probe: Callable[[], Sequence[str]], model: str) -> None:
    """Write into the log what is wrong with a model server, if anything is."""
    try:
        for warning in probe():
            _log.warning("the model drafts, and should be served otherwise", model=model, warning=warning)
    except DraftloopError as error:
        _log.warning("the model cannot draft yet", model=model, error=error.message, hint=error.hint)


def make_label_studio(settings: LabelStudioSettings) -> LabelStudio:
    """Make the client of the configured Label Studio."""
    return LabelStudio(str(settings.url), settings.api_key.get_secret_value())


def _escape_surrogates(_: Any, __: str, line: str) -> str:
    """Return a line of JSON that every stream takes: a lone surrogate becomes JSON's own escape of it."""
    return line.encode(errors="backslashreplace").decode()


def log_as_json(level: str) -> None:
    """Write one JSON object per line, without task text, prompts or keys."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(ensure_ascii=False),
        _escape_surrogates,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
    )
