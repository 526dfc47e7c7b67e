"""Composition root: settings -> edges -> flows -> WSGI. The one file that knows everything."""

import logging
from typing import Any

import structlog
from flask import Flask

from backend.edge.cases import Cases
from backend.edge.labelstudio import LabelStudio
from backend.edge.ledger import Ledger
from backend.edge.vllm import VllmModel
from backend.predict import Drafter
from backend.protocol import Server
from backend.settings import LabelStudioSettings, ModelSettings, Settings


def create_app(settings: Settings | None = None) -> Flask:
    """Make the WSGI application: `gunicorn 'backend.app:create_app()'`.

    Raises:
        SetupError: A setting or a case is wrong; nothing is served then.
    """
    settings = settings or Settings()
    _log_as_json(settings.backend.log_level)
    label_studio = make_label_studio(settings.label_studio) if settings.label_studio.api_key else None
    return Server(
        drafter=make_drafter(settings.model),
        cases=Cases(settings.store.cases_dir),
        memory=Ledger(settings.store.ledger_url),
        patch_task=label_studio.set_task_data if label_studio else None,
        user=settings.backend.user,
        password=settings.backend.password.get_secret_value(),
        deadline_s=settings.backend.deadline_s,
    ).wsgi()


def make_drafter(settings: ModelSettings) -> Drafter:
    """Make the drafter that talks to the configured model."""
    model = VllmModel(
        str(settings.url),
        settings.name,
        api_key=settings.api_key.get_secret_value(),
        connections=settings.concurrency,
        context_tokens=settings.context_tokens,
    )
    return Drafter(
        model,
        profile=settings.profile,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
    )


def make_label_studio(settings: LabelStudioSettings) -> LabelStudio:
    """Make the client of the configured Label Studio."""
    return LabelStudio(str(settings.url), settings.api_key.get_secret_value())


def _log_as_json(level: str) -> None:
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
