"""The command `draftloop`: its verbs, and the environment that each runs in.

A verb's module is imported when the verb runs: what it brings along takes seconds.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from draftloop.cli.commands import App, Verb, Verbs

_HELP = """\
Drafts of annotations for Label Studio from a language model, and training data from their corrections.

`draftloop COMMAND --help` shows a command's options, with examples. Settings are environment variables.
"""


class Command(NamedTuple):
    """A verb: its name, and what it does in a few words."""

    name: str
    words: str


# By what one wants to do.
PANELS: dict[str, tuple[Command, ...]] = {
    "Set up": (
        Command("setup", "Make the Python environments of servers, sandbox and training"),
        Command("serve", "Run the backend, or Label Studio, or vLLM on the CPU"),
        Command("setup-project", "Make a project in Label Studio, or attach to one"),
        Command("import-tasks", "Import CSV, JSON and JSONL files as tasks"),
    ),
    "Draft and review": (
        Command("prelabel", "Draft all tasks of a project"),
        Command("next-tasks", "Put the tasks in order that are worth labelling next"),
        Command("spot-check", "Have a second human check a share of a dataset"),
        Command("requeue", "Send what gates stopped back to its annotators"),
    ),
    "Export and train": (
        Command("sync", "Export what humans submitted as training data"),
        Command("train", "Train an adapter on a dataset"),
        Command("promote", "Have an adapter draft, if it is surely better"),
        Command("retrain", "Sync, train and promote in one job"),
    ),
    "Make drafts better": (
        Command("freeze-examples", "Freeze corrections that prompts show"),
        Command("cascade", "Choose when a larger model drafts instead"),
    ),
    "Look up and clean up": (
        Command("versions", "Show what a prediction was made with"),
        Command("artifacts", "Show runs of code, or remove those that nobody needs"),
    ),
}
COMMANDS = {command.name: command for commands in PANELS.values() for command in commands}


class DraftloopGroup(Verbs):
    """All verbs, each imported when it is called."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """List the verbs in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a verb; where names are completed, its name and words are enough."""
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return Verb(cmd_name, help=COMMANDS[cmd_name].words)
        command = typer.main.get_command(import_module(f"draftloop.cli.{cmd_name.replace('-', '_')}").cli)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs in panels."""
        width = max(map(len, COMMANDS))
        for panel, commands in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(command.name.ljust(width), command.words) for command in commands])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete the name of a verb, and import none."""
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False


cli = App(cls=DraftloopGroup, help=_HELP, rich_markup_mode=None, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            print(f"draftloop {version('draftloop')}")
        except PackageNotFoundError:
            print("draftloop, from a checkout")
        raise typer.Exit


@cli.callback(cls=DraftloopGroup, help=_HELP, no_args_is_help=True)
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run a verb."""


def run() -> None:
    """Run the command line, in the environment that the verb needs."""
    environment = needed_environment(sys.argv[1:])
    if environment is not None:
        _enter(environment, sys.argv[1:])
    cli(prog_name="draftloop")


def needed_environment(arguments: Sequence[str]) -> str | None:
    """Return the environment that a command line needs and this process is not in."""
    verb, *options = arguments or [""]
    if "--help" in options:
        return None
    words = " ".join(options).replace("=", " ")
    if verb == "train" and options and find_spec("torch") is None:
        return "train"
    return "ray" if verb == "sync" and "--engine ray" in words and find_spec("ray") is None else None


def _enter(name: str, arguments: Sequence[str]) -> None:
    """Replace this process by one in another environment, which is installed first where it is missing."""
    from draftloop.support.environments import (  # noqa: PLC0415
        SETUP,
        NotInstalledError,
        find_environment,
        import_path,
    )

    try:
        environment = find_environment(name)
    except NotInstalledError:
        code = subprocess.run(["bash", str(SETUP), name], check=False).returncode
        if code:
            sys.exit(code)
        environment = find_environment(name)
    if environment == Path(sys.prefix):
        return  # it lacks what it should have: the verb says so
    python = str(environment / "bin" / "python")
    surroundings = {**os.environ, "PYTHONPATH": str(import_path()), "PYTHONNOUSERSITE": "1"}
    os.execve(python, [python, "-P", "-m", "draftloop.cli", *arguments], surroundings)
