"""Progress of long work."""

from typing import Protocol


class Progress(Protocol):
    """Shows the progress of long work."""

    def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
        """Show that a part of the work begins, which ends the one before it.

        Args:
            doing: What is done, in words.
            total: How many steps it has, where that is known.
            done: How many of them were done before.
        """
        ...

    def advance(self, count: int = 1) -> None:
        """Count steps that are done."""
        ...


class _Unwatched:
    """Progress that nobody watches."""

    def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
        """Show nothing."""

    def advance(self, count: int = 1) -> None:
        """Count nothing."""


UNWATCHED: Progress = _Unwatched()
