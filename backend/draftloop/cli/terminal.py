"""What the Python verbs share in a terminal: options, errors in plain words, progress, the connection.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 not (all) done, 2 wrong usage.
"""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from draftloop.errors import DraftloopError, SetupError

if TYPE_CHECKING:
    from draftloop.labelstudio import LabelStudio
    from draftloop.settings import Settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_SAY_EVERY_S = 5.0  # where stderr is a file, progress is lines

ProjectOption = Annotated[int, typer.Option("--project", help="Number of the project in Label Studio.")]
UrlOption = Annotated[str, typer.Option("--url", help="Address of Label Studio instead of LABEL_STUDIO_URL.")]
ApiKeyOption = Annotated[
    str, typer.Option("--api-key", help="Token instead of LABEL_STUDIO_API_KEY (others can see it in `ps`).")
]


def connect(settings: "Settings", url: str, api_key: str) -> "LabelStudio":
    """Connect to Label Studio and check the token, so that a wrong one is reported before any work."""
    # Not above: the environment `train` has no SDK of Label Studio.
    from draftloop.labelstudio import LabelStudio  # noqa: PLC0415

    chosen_key = api_key or settings.label_studio.api_key.get_secret_value()
    label_studio = LabelStudio(url or str(settings.label_studio.url), chosen_key)
    label_studio.check()
    return label_studio


@contextmanager
def plain_errors(again: str) -> Iterator[None]:
    """Print expected errors in a sentence or two and exit with 1.

    Args:
        again: What to do after an interruption.
    """
    # Treat SIGTERM, a service manager's stop, as Ctrl-C, so that servers we started are stopped. A command in
    # a shell's background ignores Ctrl-C, but not SIGTERM.
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, handler if callable(handler) else signal.default_int_handler)
    try:
        yield
    except DraftloopError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}")
        if not isinstance(error, SetupError):
            err.print(escape(again))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print(escape(f"Stopped. {again}"))
        raise typer.Exit(130) from None


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f}/s")


class Meter:
    """Progress with rate and time left on stderr: a bar in a terminal, a line now and then in a file."""

    def __init__(self, doing: str = "", total: int | None = None) -> None:
        """Prepare; without words nothing is shown until a part begins."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=err, disable=not err.is_terminal)
        self._reset(doing, total)
        self._task = self._bar.add_task(doing, total=total, visible=bool(doing))

    def __enter__(self) -> Self:
        """Begin to show."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the current part began."""
        return time.monotonic() - self._started

    def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
        """Show that another part of the work begins."""
        self._reset(doing, None if total is None else total - done)
        self._bar.stop_task(self._task)
        self._task = self._bar.add_task(doing, total=self._total)

    def _reset(self, doing: str, total: int | None) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._started = self._said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count what is done."""
        self._done += count
        self._bar.advance(self._task, count)
        if err.is_terminal or time.monotonic() - self._said < _SAY_EVERY_S:
            return
        self._said = time.monotonic()
        rate = self._done / self.seconds
        left = f", {(self._total - self._done) / rate:.0f} s left" if self._total and rate else ""
        err.print(f"{self._doing}: {self._done} of {self._total or '?'}, {rate:.1f}/s{left}")


class Measuring:
    """Prints what is measured, with its progress."""

    def __init__(self) -> None:
        self._done = 0

    def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
        """Print what is measured."""
        self._done = done
        err.print(f"measuring {escape(doing)}")

    def advance(self, count: int = 1) -> None:
        """Count samples."""
        self._done += count
        if self._done % 100 == 0:
            err.print(f"  {self._done} samples")


_SHARES = {
    "quality": "fields right",
    "accepted": "accepted as they are",
    "schema_valid": "fit the schema",
    "rule_valid": "obey the rules",
    "ran": "code ended well",
}


def side_by_side(
    before: Mapping[str, Any], after: Mapping[str, Any], gain: Mapping[str, float]
) -> Iterator[str]:
    """Describe the figures of two versions beside each other, and by how much the second is better."""
    for field, shares in before["fields"].items():
        then = after["fields"][field]
        yield (
            f"  {field:<24} exact match {_points(shares['exact_match'], then['exact_match'])}   "
            f"F1 {_points(shares['f1'], then['f1'])}"
        )
    for figure, words in _SHARES.items():
        if figure in before:
            yield f"  {words:<24} {_points(before[figure], after[figure])}"
    for figure in ("prompt_tokens", "completion_tokens"):
        yield f"  {figure.replace('_', ' '):<24} {before[figure]:.1f} -> {after[figure]:.1f}"
    times = [f"{part['ms']['mean']:.0f} (p95 {part['ms']['p95']:.0f})" for part in (before, after)]
    yield f"  {'ms a draft':<24} {' -> '.join(times)}"
    low, mean, high = (100 * gain[key] for key in ("low", "mean", "high"))
    yield f"  gain {mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"


def _points(before: float, after: float) -> str:
    return f"{100 * before:5.1f} -> {100 * after:5.1f}"
