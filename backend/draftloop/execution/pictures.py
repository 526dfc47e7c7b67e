"""Whether a picture of untrusted code decodes: Pillow reads it in a child process that may die.

Knows which formats are shown, and which limits reading one has. Does not know how a picture is read
(`picture_reader`, the child) or what other files are (`file_kinds`). This process never imports Pillow. Safe
to call from several threads.
"""

import hashlib
import threading
from collections import OrderedDict

import structlog

from draftloop.execution.bounded_process import ProcessLimits, run_bounded
from draftloop.execution.file_kinds import Kind

_log = structlog.get_logger("backend")

PIXELS = 50_000_000  # of a picture that is shown
# A progressive JPEG of four channels is held twice, 2 and 1 bytes a sample: 600 MB at 50 million pixels.
_LIMITS = ProcessLimits(memory_bytes=1 << 30, seconds=10)
_FORMATS: dict[Kind, str] = {"png": "PNG", "jpeg": "JPEG"}
_AT_ONCE = 4  # children of this process
_REMEMBERED = 4096  # answers, 150 bytes each
_READER = "draftloop.execution.picture_reader"


class PictureChecker:
    """Checks pictures, one child process each; remembers its answers by content."""

    def __init__(self) -> None:
        """Begin with nothing remembered."""
        self._children = threading.BoundedSemaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._reasons: OrderedDict[tuple[Kind, str], str] = OrderedDict()

    def __call__(self, kind: Kind, content: bytes) -> bool:
        """Check whether a picture can be shown; log the reason where it cannot."""
        reason = self.problem(kind, content)
        if reason:
            _log.info("picture not shown", kind=kind, size_bytes=len(content), reason=reason)
        return not reason

    def problem(self, kind: Kind, content: bytes) -> str:
        """Return why a picture is not readable, "" where it is.

        Args:
            kind: "png" or "jpeg"; any other format is refused.
            content: The whole file.
        """
        if kind not in _FORMATS:
            return "not a readable image: neither PNG nor JPEG"
        key = kind, hashlib.sha256(content).hexdigest()
        with self._lock:
            if key in self._reasons:
                self._reasons.move_to_end(key)
                return self._reasons[key]
        with self._children:
            ended = run_bounded(_READER, [_FORMATS[kind], str(PIXELS)], _LIMITS, content)
        if ended.status is None:  # a busy machine may be the reason, so the next call tries again
            return f"not a readable image: {ended.reason}"
        reason = _reason(ended.status, ended.output)
        with self._lock:
            self._reasons[key] = reason
            while len(self._reasons) > _REMEMBERED:
                self._reasons.popitem(last=False)
        return reason


def _reason(status: int, output: bytes) -> str:
    if status == 0:
        return ""
    if status < 0:
        return "not a readable image: it takes too much memory or time"
    return f"not a readable image: {output.decode('utf-8', 'replace') or 'its reader failed'}"


is_readable_picture = PictureChecker()
