"""Composition root: makes every part from the settings, and the WSGI application from the parts."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import structlog
from flask import Flask

from draftloop.app.execution import make_execution
from draftloop.app.log import log_as_json
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
from draftloop.execution.publish import Publisher
from draftloop.execution.runner import Execution
from draftloop.execution.uploads import Uploads
from draftloop.flywheel.adapters import Adapters
from draftloop.flywheel.jobs import Jobs, starter
from draftloop.labelstudio import LabelStudio, Sessions
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Model, Profile, preamble
from draftloop.runs.job import MIB
from draftloop.serving.answers import Answers
from draftloop.serving.board import LabelStudioBoard
from draftloop.serving.metrics import Metrics
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.readiness import ModelCheck, Prompts, check_ready
from draftloop.serving.web import WebApp
from draftloop.settings import (
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
    # It imports gunicorn, which only the server needs.
    from draftloop.serving import server as serving  # noqa: PLC0415

    settings = settings or Settings()
    web_app, ours = make_web_app(settings), settings.backend
    limits = serving.HttpLimits(
        body_bytes=ours.max_body_mb * MIB,
        header_s=ours.header_s,
        body_s=ours.body_s,
        answer_s=ours.answer_s,
        connections=ours.connections,
    )
    app = web_app.wsgi()
    app.extensions[serving.KEY] = serving.Serving(limits, web_app.access, _POOLS)
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
    Cases(settings.store.cases_dir)  # report what is wrong at the start, before anything is forked
    # Without a wait for the sandbox: a request makes the flow, and most need no sandbox.
    return PerProcess(partial(make_web_app, settings, warm_s=0), trusted=not settings.backend.logins().user)


def make_web_app(settings: Settings, *, warm_s: float = _WARM_S) -> WebApp:
    """Make the web application; write to the log if its model cannot draft yet.

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
    protocol = ProtocolServer(
        drafter=drafter,
        cases=cases,
        ledger=ledger,
        answers=answers,
        metrics=metrics,
        check_served=model.check_served,
        check_schema=model.check_schema,
    )
    members = Sessions(str(settings.label_studio.url)) if settings.backend.members_view else None
    app = WebApp(
        protocol,
        logins,
        probe=partial(check_ready, checks, ledger, execution),
        artifacts=artifacts,
        is_member=members.is_member if members else None,
        jobs=make_jobs(settings, ledger, label_studio),
        body_bytes=settings.backend.max_body_mb * MIB,
    )
    # Behind the start: the model may come up later than we do, and health must answer meanwhile.
    first = partial(check_ready, checks, ledger)
    Thread(target=warn_unless_ready, args=[first, model.name], daemon=True, name="probe").start()
    if execution is not None and any(cases.get(name).labelling.program for name in cases.names()):
        # The version of a code case names what is installed in the sandbox, and Label Studio waits 3 s for
        # /setup: so the sandbox is started now.
        warming = Thread(target=execution.runner.describe, daemon=True, name="sandbox")
        warming.start()
        warming.join(warm_s)
    return app


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
    """Make the store that is searched for similar tasks, None where it is switched off.

    Raises:
        SetupError: It is switched on, and the cache is no SQLite file.
    """
    if settings.near_duplicates == "off":
        return None
    # It imports numpy and scipy: a second and 60 MB.
    from draftloop.drafting.neighbours import SqliteNeighbours  # noqa: PLC0415

    reuse = settings.near_duplicates == "reuse"
    return SqliteNeighbours(settings.cache_url, max_rows=settings.cache_rows, reuse=reuse)


def make_examples(settings: StoreSettings) -> Examples | None:
    """Read the snapshot of corrections that prompts show, None where none is set.

    Raises:
        SetupError: It is no snapshot, or was changed.
    """
    if not settings.examples:
        return None
    # It imports numpy and the index.
    from draftloop.drafting.examples import Snapshot  # noqa: PLC0415

    return Snapshot(Path(settings.examples), shown=settings.examples_shown)


def make_publisher(settings: Settings, artifacts: Artifacts, label_studio: LabelStudio | None) -> Publisher:
    """Make what shows runs in tasks.

    Args:
        settings: Where Label Studio is, and where the backend is for annotators.
        artifacts: Where files of runs are kept.
        label_studio: Takes pictures, if it may be written to.
    """
    uploads = Uploads(label_studio.send, str(settings.label_studio.url)) if label_studio else None
    return Publisher(artifacts, uploads, str(settings.backend.public_url))


def make_adapters(settings: StoreSettings) -> Adapters:
    """Make the registry of adapters; no folder is made yet."""
    return Adapters(settings.adapters_dir)


def make_jobs(settings: Settings, ledger: Ledger, label_studio: LabelStudio | None) -> Jobs:
    """Make what starts training jobs.

    Raises:
        SetupError: They start by themselves, and lack a model or a token.
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
    """Return the folder of the model that jobs train on.

    Raises:
        SetupError: There is no model, or no token for Label Studio.
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
        adapters: Loaded into a server that lacks them.
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
    """Make the cascade's larger step, None where there is no larger model.

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
