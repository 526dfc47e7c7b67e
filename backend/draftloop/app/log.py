"""The log of the backend and of every verb: one JSON object per line."""

import logging
from typing import Any

import structlog


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
