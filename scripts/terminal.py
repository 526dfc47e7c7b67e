"""What the Python verbs share in a terminal: options, errors in plain words, progress, the connection.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 not (all) done, 2 wrong usage.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import cleandoc
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
from typer.core import TyperCommand

from backend.errors import DraftloopError, SetupError
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.edge.labelstudio import LabelStudio

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_SAY_EVERY_S = 5.0  # where stderr is a file, progress is lines

ProjectOption = Annotated[int, typer.Option("--project", help="Number of the project in Label Studio.")]
UrlOption = Annotated[str, typer.Option("--url", help="Address of Label Studio instead of LABEL_STUDIO_URL.")]
ApiKeyOption = Annotated[
    str, typer.Option("--api-key", help="Token instead of LABEL_STUDIO_API_KEY (others can see it in `ps`).")
]


class Verb(TyperCommand):
    """A command whose help is printed as it is written, examples included."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the help without wrapping it anew."""
        lines = cleandoc(self.help or "").splitlines()
        formatter.write("\n" + "".join(f"  {line}".rstrip() + "\n" for line in lines))


def app() -> typer.Typer:
    """Make a verb's command line."""
    return _App(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class _App(typer.Typer):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Be a program: once it has failed it ends, also while threads of it wait for a server.

        Every verb survives even kill -9.
        """
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
            if end.code and not all(thread.daemon for thread in others):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else 1)
            raise


def connect(settings: Settings, url: str, api_key: str) -> "LabelStudio":
    """Connect to Label Studio and check the token, so that a wrong one is told before any work."""
    # Not above: the environment `train` has no SDK of Label Studio.
    from backend.edge.labelstudio import LabelStudio  # noqa: PLC0415

    chosen_key = api_key or settings.label_studio.api_key.get_secret_value()
    label_studio = LabelStudio(url or str(settings.label_studio.url), chosen_key)
    label_studio.check()
    return label_studio


@contextmanager
def plain_errors(again: str) -> Iterator[None]:
    """Say expected errors in a sentence or two and exit with 1.

    Args:
        again: What to do after an interruption.
    """
    # A service manager's stop is a Ctrl-C: what was started is stopped. What a shell runs in the background
    # ignores Ctrl-C, but has to end all the same when it is told to.
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

    def __init__(self, doing: str, total: int | None) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._started = self._said = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=err, disable=not err.is_terminal)
        self._task = self._bar.add_task(doing, total=total)

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
        """Seconds since the meter was made."""
        return time.monotonic() - self._started

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
    """Says what is being measured, and how far it is."""

    def __init__(self) -> None:
        self._done = 0

    def __call__(self, doing: str, count: int) -> None:
        """Take note of a part that is done; 0 begins something."""
        self._done = self._done + count if count else 0
        if not count:
            err.print(f"measuring {escape(doing)}")
        elif self._done % 100 == 0:
            err.print(f"  {self._done} samples")
