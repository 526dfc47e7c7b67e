"""Open Interpreter's loop, the real one, with a model and a sandbox that the test plays."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from draftloop.errors import ServiceError, SetupError
from draftloop.execution.interpreter import Interpreter, InterpreterAnswer
from draftloop.prompting.prompt import Message
from draftloop.support.environments import ROOT, find_environment
from tests.conftest import installed

# What the library would change, refuse or run by itself if it saw it.
TRAPS = [
    "apt install cowsay\nprint(1)",
    'functions.execute({"language": "python", "code": "1"})',
    '{"language": "python", "code": "print(2)"}',
    "print('executeexecute')\nexecuteexecute",
    "`\nprint(3)",
    "import computer\ncomputer.display.view()",
    'x = """{{ __import__("os").getpid() }}"""\n\n# 中文 😀\n',
]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    with installed():
        python = find_environment("open-interpreter") / "bin" / "python"
    with Interpreter(python) as opened:
        yield opened


class Played:
    """A model that answers with given scripts, and a sandbox that gives given outputs."""

    def __init__(self, scripts: Sequence[str], outputs: Sequence[str] = ()) -> None:
        self.scripts = list(scripts)
        self.outputs = list(outputs)
        self.asked: list[list[Message]] = []
        self.ran: list[str] = []

    def ask(self, messages: Sequence[Message]) -> InterpreterAnswer:
        self.asked.append(list(messages))
        if not self.scripts:
            return InterpreterAnswer("That is all.", None)
        return InterpreterAnswer("", self.scripts.pop(0))

    def run(self, script: str) -> str:
        self.ran.append(script)
        return self.outputs.pop(0) if self.outputs else ""


def test_scripts_run_to_the_byte_and_their_output_is_what_the_model_reads_next(
    interpreter: Interpreter,
) -> None:
    played = Played(["print(1)", "print(2)"], ["Traceback: no column '城市'", "42"])
    conversation = interpreter.converse("Count {{ the }} rows", ask=played.ask, run=played.run, limit_s=60)
    assert played.ran == ["print(1)", "print(2)"]
    assert [(one.role, one.content) for one in conversation] == [
        ("user", "Count {{ the }} rows"),
        ("assistant", "print(1)"),
        ("user", "Traceback: no column '城市'"),
        ("assistant", "print(2)"),
        ("user", "42"),
        ("assistant", "That is all."),
    ]
    assert [len([one for one in asked if one.role != "system"]) for asked in played.asked] == [1, 3, 5]


def test_scripts_that_the_library_would_mend_are_left_alone(interpreter: Interpreter) -> None:
    played = Played(TRAPS)
    interpreter.converse("Go on", ask=played.ask, run=played.run, limit_s=60)
    assert played.ran == TRAPS


def test_conversations_know_nothing_of_one_another(interpreter: Interpreter) -> None:
    first, second = Played(["print('secret')"], ["secret"]), Played(["print(2)"])
    interpreter.converse("One", ask=first.ask, run=first.run, limit_s=60)
    conversation = interpreter.converse("Two", ask=second.ask, run=second.run, limit_s=60)
    assert "secret" not in str(conversation)
    assert "secret" not in str(second.asked)


def test_a_failure_of_ours_ends_the_conversation_and_the_next_one_works(interpreter: Interpreter) -> None:
    def broken(_: str) -> str:
        raise ServiceError("The sandbox is down.")

    with pytest.raises(ServiceError, match="sandbox is down"):
        interpreter.converse("One", ask=Played(["1"]).ask, run=broken, limit_s=60)
    played = Played(["print(2)"])
    interpreter.converse("Two", ask=played.ask, run=played.run, limit_s=60)
    assert played.ran == ["print(2)"]


def test_a_conversation_ends_at_its_limit_and_when_it_is_closed(interpreter: Interpreter) -> None:
    def slow(_: str) -> str:
        time.sleep(1.5)
        return ""

    with pytest.raises(ServiceError, match="took too long"):
        interpreter.converse("One", ask=Played(["1"] * 9).ask, run=slow, limit_s=1)
    closing = threading.Timer(0.5, interpreter.close)

    def closes(_: str) -> str:
        closing.start()
        closing.join()
        return ""

    with pytest.raises(ServiceError):
        interpreter.converse("Two", ask=Played(["1"]).ask, run=closes, limit_s=60)


def test_a_missing_environment_is_said(tmp_path: object) -> None:
    with (
        Interpreter(ROOT / "no" / "python") as missing,
        pytest.raises(SetupError, match="cannot be started"),
    ):
        missing.converse("One", ask=Played([]).ask, run=Played([]).run, limit_s=5)
