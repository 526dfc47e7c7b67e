"""Run the command line where it is not installed: `python -m draftloop.cli`."""

from draftloop.cli.main import run

run()
