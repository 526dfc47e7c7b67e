"""Typer commands for the verbs: help is not rewrapped, and a failed program ends.

Imports nothing but Typer, so that `draftloop --help` starts at once.
"""

import os
import sys
import threading
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class Verb(TyperCommand):
    """A command whose help is printed as it is written, examples included."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the help without wrapping it anew."""
        write_help(self.help, formatter)


class Verbs(TyperGroup):
    """A group of commands whose help is printed as it is written."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the help without wrapping it anew."""
        write_help(self.help, formatter)


class App(typer.Typer):
    """A program."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; once it has failed it ends, also while threads of it wait for a server.

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


def app() -> typer.Typer:
    """Make a verb's command line."""
    return App(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def write_help(words: str | None, formatter: Any) -> None:
    """Write a help text as it is, indented."""
    lines = cleandoc(words or "").splitlines()
    formatter.write("\n" + "".join(f"  {line}".rstrip() + "\n" for line in lines))
