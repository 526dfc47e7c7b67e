"""Drafts that passed every rule, kept by a hash of everything that decided them.

Knows which parts of a draft are kept, and how to make a draft of them. Does not know where bytes are kept
(`cache`, `redis_cache`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from draftloop.drafting.drafts import Draft, Request
from draftloop.errors import DraftloopError
from draftloop.execution.coding import Coding, run_reasons
from draftloop.labelling.labelling import Value
from draftloop.prompting.prompt import Message
from draftloop.runs.run import Run


class Cache(Protocol):
    """Keeps answers by key; never fails, at worst it forgets."""

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Keep a value under a key."""
        ...


@dataclass(frozen=True)
class DraftCache:
    """Keeps drafts by everything that decided them.

    cache    where they are kept; None keeps nothing
    coding   runs the code of a kept draft again, where its run is gone
    """

    cache: Cache | None
    coding: Coding

    def get(self, request: Request, key: str) -> Draft | None:
        """Return the draft of an equal task; its code has run, or is run again.

        Args:
            request: The draft that is wanted.
            key: That of `cache_key`.
        """
        content = self.cache.get(key) if self.cache is not None else None
        if content is None:
            return None
        kept = orjson.loads(content)
        labelling = request.case.labelling
        value = labelling.decode(kept["raw"])
        run = None
        if kept.get("run"):
            run = self._run(request, value)
            if run is None:
                return None
        return Draft(
            task_id=request.task.id,
            status="ok",
            version=request.version,
            value=value,
            regions=labelling.to_regions(value, request.question).regions,
            score=kept["score"],
            field_scores=kept["field_scores"],
            raw=kept["raw"],
            from_cache=True,
            run=run,
            model=kept.get("model") or request.model,
        )

    def put(self, key: str, draft: Draft) -> None:
        """Keep what passed every rule; a failure is asked again, it may have been bad luck."""
        if self.cache is None or draft.status != "ok":
            return
        kept: dict[str, Any] = {"raw": draft.raw, "score": draft.score, "field_scores": draft.field_scores}
        if draft.run is not None:
            kept["run"] = draft.run.key
        if draft.cascade:
            kept["model"] = draft.model
        self.cache.put(key, orjson.dumps(kept))

    def _run(self, request: Request, value: Value) -> Run | None:
        """Return the run of a kept draft's code; None where it does not end well any more."""
        try:
            run = self.coding.rerun(request.case, request.task, value, request.ends, origin="draft")
        except DraftloopError:
            return None
        return None if run is None or run_reasons(request.case, request.task, run) else run


def cache_key(version: str, messages: Sequence[Message]) -> str:
    """Return the name of an answer: the hash of its version and its whole prompt."""
    parts = [version, *(part for message in messages for part in (message.role, message.content))]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()
