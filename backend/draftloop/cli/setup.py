"""Make the Python environments that servers, the sandbox and trainings run in.

The work is that of a shell script, which also runs where nothing is installed yet.
"""

import os

import typer

from draftloop.cli.commands import app
from draftloop.support.environments import SETUP

cli = app()


@cli.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def main(context: typer.Context) -> None:
    """Hand everything over to the script."""
    os.execvp("bash", ["bash", str(SETUP), *context.args])
