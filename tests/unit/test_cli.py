"""The command itself: its verbs, how fast it starts, and the environment that a verb runs in."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from draftloop.cli.main import COMMANDS, needed_environment
from draftloop.support.environments import ROOT

# What verbs bring along; Typer needs none of it for a help text.
HEAVY = (
    "draftloop.app",
    "draftloop.settings",
    "httpx",
    "jinja2",
    "label_studio_sdk",
    "pydantic",
    "rich",
    "structlog",
)
WITHOUT = f"""
import sys
from draftloop.cli.main import cli
try:
    cli(sys.argv[1:], prog_name="draftloop")
finally:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, heavy
"""


def draftloop(*arguments: str, program: str = WITHOUT, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", program, *arguments]
    return subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=False)


def test_the_help_lists_every_verb_in_panels_and_imports_none() -> None:
    shown = draftloop("--help")
    assert shown.returncode == 0, shown.stderr
    for name, command in COMMANDS.items():
        line = next(line for line in shown.stdout.splitlines() if line.startswith(f"  {name} "))
        assert command.words.startswith(line.removeprefix(f"  {name}").strip())
    assert "\nDraft and review:\n" in shown.stdout


def test_names_of_verbs_are_completed_and_none_is_imported() -> None:
    shown = draftloop(_DRAFTLOOP_COMPLETE="complete_bash", COMP_WORDS="draftloop se", COMP_CWORD="1")
    assert shown.stdout.split() == ["setup", "serve", "setup-project"], shown.stderr


def test_every_verb_has_a_module_and_a_link() -> None:
    for name in COMMANDS:
        module = name.replace("-", "_")
        assert find_spec(f"draftloop.cli.{module}"), name
        assert (ROOT / "scripts" / module).exists(), name


def test_what_is_no_verb_is_refused() -> None:
    shown = draftloop("nonsense", program="from draftloop.cli.main import run; run()")
    assert (shown.returncode, "No such command 'nonsense'" in shown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ("train --dataset d", "train"),
        ("train --help", None),
        ("train", None),
        ("sync --engine ray", "ray"),
        ("sync --project 7 --engine=ray", "ray"),
        ("sync --engine local", None),
        ("prelabel --project 7", None),
        ("", None),
    ],
)
def test_a_verb_goes_to_the_environment_that_it_needs(arguments: str, environment: str | None) -> None:
    assert needed_environment(arguments.split()) == (
        None if environment and find_spec({"train": "torch", "ray": "ray"}[environment]) else environment
    )
