"""What the verbs share: a program that has failed ends, one that has not waits for its threads."""

import subprocess
import sys

import pytest

VERB = """
import sys, threading
from draftloop.errors import SetupError
from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import plain_errors

cli = app()

@cli.command(cls=Verb)
def main(fails: bool = False) -> None:
    with plain_errors("Again."):
        begun = threading.Event()
        threading.Thread(target=lambda: (begun.wait(), %s)).start()
        begun.set()
        if fails:
            raise SetupError("It is not there.")

cli()
"""


def run(waits: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", VERB % waits, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_verb_that_failed_waits_for_no_thread() -> None:
    ended = run("threading.Event().wait()", "--fails")
    assert ended.returncode == 1
    assert ended.stderr == "error: It is not there.\n"


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--nonsense",), 2)])
def test_others_end_as_programs_do(arguments: tuple[str, ...], code: int) -> None:
    ended = run("print('done')", *arguments)
    assert ended.returncode == code
    assert ended.stdout == ("" if code else "done\n")
