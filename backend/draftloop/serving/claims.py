"""Claims on tasks: in all processes together, one caller drafts a task in a version.

Knows leases. Does not know drafts.
"""

from collections.abc import Collection

import structlog

from draftloop.errors import DraftloopError
from draftloop.serving.seams import Assignment, DraftLedger

_log = structlog.get_logger("backend")


class Claims:
    """Claims tasks in a ledger, whose failure costs the sharing of work, not the drafts."""

    def __init__(self, memory: DraftLedger, lease_s: float) -> None:
        """Prepare.

        Args:
            memory: The ledger.
            lease_s: When a claim ends that nobody gave back.
        """
        self._memory = memory
        self._lease_s = lease_s

    def begin(self, assignment: Assignment, tasks: Collection[int]) -> set[int]:
        """Take the tasks that nobody drafts, and keep what their version stands for."""
        version = assignment.version
        try:
            self._memory.remember_version(assignment.project, version.name, version.manifest)
            return self._memory.claim(assignment.project, tasks, version.name, self._lease_s)
        except DraftloopError as error:
            return _unshared(assignment, tasks, error)

    def take(self, assignment: Assignment, tasks: Collection[int]) -> set[int]:
        """Claim those of somebody else's tasks that were released meanwhile."""
        try:
            return self._memory.claim(assignment.project, tasks, assignment.version.name, self._lease_s)
        except DraftloopError as error:
            return _unshared(assignment, tasks, error)

    def extend(self, tasks: Collection[int], version: str, lease_s: float, *, late: bool) -> None:
        """Keep claims for longer; `late` ones outlive this process."""
        try:
            self._memory.extend(tasks, version, lease_s, late=late)
        except DraftloopError as error:
            _log.error("claims not extended", tasks=len(tasks), error=str(error))

    def give_back(self, tasks: Collection[int], version: str) -> None:
        """Release claims."""
        try:
            self._memory.release(tasks, version)
        except DraftloopError as error:
            _log.error("claims not released", tasks=len(tasks), error=str(error))  # their lease ends them


def _unshared(assignment: Assignment, tasks: Collection[int], error: DraftloopError) -> set[int]:
    """Return all of the tasks: what nobody can claim everybody drafts."""
    _log.error("nothing claimed", project=assignment.project, tasks=len(tasks), error=str(error))
    return set(tasks)
