"""What came of tasks, recorded: counted, logged, kept in the ledger.

Logs numbers and names of a draft, never the task's text or the model's.
"""

from collections.abc import Sequence

import structlog

from draftloop.drafting.drafts import Draft
from draftloop.errors import DraftloopError
from draftloop.prompting.prompt import Case
from draftloop.serving.metrics import Metrics
from draftloop.serving.seams import DraftLedger

_log = structlog.get_logger("backend")


class DraftLog:
    """Records drafts."""

    def __init__(self, memory: DraftLedger, metrics: Metrics) -> None:
        self._memory = memory
        self._metrics = metrics

    def note(self, project: int, case: Case, draft: Draft) -> None:
        """Count a draft and log it: numbers and names, never the task's text or the model's."""
        self._metrics.drafts.labels(case.name, draft.status).inc()
        if draft.near_duplicate:
            self._metrics.near_duplicates.labels(case.name, draft.near_duplicate).inc()
        if draft.cascade:
            self._metrics.cascade.labels(case.name, draft.cascade).inc()
        for reason in draft.reasons:
            self._metrics.reasons.labels(case.name, reason.kind).inc()
        _log.info(
            "draft",
            project=project,
            task=draft.task_id,
            case=case.name,
            version=draft.version,
            status=draft.status,
            reasons=[reason.kind for reason in draft.reasons],
            **({"model": draft.model, "cascade": draft.cascade} if draft.cascade else {}),
            attempts=draft.attempts,
            ms=draft.ms,
            prompt_tokens=draft.prompt_tokens,
            cached_tokens=draft.cached_tokens,
            completion_tokens=draft.completion_tokens,
        )

    def keep(self, project: int, case: Case, drafts: Sequence[Draft]) -> None:
        """Note drafts that Label Studio stores, and keep them in the ledger; none is lost if that fails."""
        for draft in drafts:
            self.note(project, case, draft)
        rows = [
            (project, draft.task_id, draft.version, draft.status, [*map(str, draft.reasons)], draft.raw)
            for draft in drafts
        ]
        try:
            self._memory.remember_drafts(rows)
        except DraftloopError as error:
            _log.error("drafts not kept", project=project, error=str(error))
