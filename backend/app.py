"""Composition root: settings -> edges -> flows -> WSGI. The one file that knows everything."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import structlog
from flask import Flask

from backend.answers import Answers
from backend.core.labelling import Task, compile_labelling
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
    drafter, cases = make_drafter(settings.model), Cases(settings.store.cases_dir)
    ledger = Ledger(settings.store.ledger_url)
    token = settings.label_studio.api_key.get_secret_value()
    board = LabelStudioBoard(make_label_studio(settings.label_studio)) if token else None
    answers = Answers(drafter, ledger, cases.find, board, deadline_s=settings.backend.deadline_s)
    answers.start()
    return Server(
        drafter=drafter,
        cases=cases,
        memory=ledger,
        answers=answers,
        user=settings.backend.user,
        password=settings.backend.password.get_secret_value(),
    ).wsgi()


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
        self._label_studio.import_predictions(found, predictions, unjudged=unjudged)

    def read(self, project: int, tasks: Collection[int]) -> tuple[str, str | None, list[Task]]:
        """Give the labelling config, the name of the case, and those of the tasks that still exist."""
        found = self._label_studio.project(project)
        rows = self._label_studio.tasks_by_id(found, tasks)
        return found.label_config, found.case, [Task(row["id"], row["data"]) for row in rows]


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
