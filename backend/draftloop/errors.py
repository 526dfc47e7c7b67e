"""The tree of errors; the class says how to react.

DraftloopError
    SetupError      stops the program or the set-up call: a human has to change something first
    TaskError       skips this one task, the others go on
        InvalidValue    a value that cannot be decoded, placed in the task, or read back from regions
    ServiceError    an outside system failed: tried again within the deadline
        Unreachable     nobody answers there at all: what a human waits for is given up early
        FailedRequest   it is well, and failed on this very request: once more, then it is final

Every error carries `hint`, one sentence on what to do. Foreign exceptions become ours once, at the
edge that uses the library. Failing generated code is a value, not an exception.
"""

import traceback


class DraftloopError(Exception):
    """Base of all errors that this project raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SetupError(DraftloopError):
    """Something is configured wrongly; nothing works until a human changes it."""


class TaskError(DraftloopError):
    """This one task cannot be processed; the others can."""


class InvalidValue(TaskError):
    """A value does not decode, does not stand in its task, or does not read back from its regions."""


class ServiceError(DraftloopError):
    """An outside system did not do its part; trying again may help."""


class Unreachable(ServiceError):
    """Nobody answers at an outside system's address."""


class FailedRequest(ServiceError):
    """A working outside system failed on this one request; a second failure is final."""


def where(error: BaseException) -> list[str]:
    """Return the last stack frames of an internal error, for the log: its message may quote a task."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
