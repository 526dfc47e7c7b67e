"""The client of Open Interpreter's conversation loop; the caller passes functions that ask and run.

Knows the loop's process and its JSON lines (sandbox/interpreter.py). Does not know models, sandboxes
or tasks, and keeps no state between conversations.
"""

import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

from draftloop.errors import ServiceError, SetupError
from draftloop.prompting.prompt import Message
from draftloop.support.environments import import_path

_START_S = 120.0  # its imports take 4 to 6 s on an idle machine
# Nothing of our own environment: no key, no address, no proxy.
_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "PATH": os.defpath,
    # No price list from the network, and no "are you still there" asked of a model after 15 s.
    "INTERPRETER_TERMINAL_INPUT_PATIENCE": "1000000000",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
_ROLES: Mapping[str, Literal["user", "assistant"]] = {
    "user": "user",
    "assistant": "assistant",
    "computer": "user",  # the user's message shows what a script printed
}


@dataclass(frozen=True)
class InterpreterAnswer:
    """What the model said, and the one complete script that it wants run; None ends the conversation."""

    say: str
    script: str | None


Ask = Callable[[Sequence[Message]], InterpreterAnswer]
Run = Callable[[str], str]


class Interpreter:
    """A process that leads conversations, one at a time; started with the first, and anew after a failure."""

    def __init__(self, python: Path, *, log: Path | None = None) -> None:
        """Prepare; the process starts at the first conversation.

        Args:
            python: The Python of the environment `open-interpreter`.
            log: What receives the process's own words; by default nothing does.
        """
        self._python = python
        self._log = log
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a conversation under way fails with `ServiceError`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._lock.acquire(blocking=False):  # else the conversation cleans up
            self._stop()
            self._lock.release()

    def converse(self, request: str, *, ask: Ask, run: Run, limit_s: float) -> list[Message]:
        """Lead a conversation: ask, run the script, ask again with its output, until an answer has none.

        Args:
            request: What the user wants.
            ask: Asks the model; gets the conversation so far, `request` first. How often it may be asked is
                its own business: an answer without a script ends the conversation.
            run: Runs a script, to the byte the one that `ask` gave, and tells what the model should read.
            limit_s: After so long the process is killed; `ask` and `run` have limits of their own.
        Returns:
            The whole conversation.
        Raises:
            SetupError: The environment of the loop is missing or broken.
            ServiceError: The loop ended or took too long; the next call starts a new one.
            Exception: Whatever `ask` or `run` raise.
        """
        with self._lock:
            process = self._started()
            late = threading.Timer(limit_s, process.kill)
            late.start()
            try:
                opening = {"role": "user", "type": "message", "content": request}
                self._send_line(process, {"begin": {"messages": [opening]}})
                while True:
                    words = self._get(process)
                    if "ask" in words:
                        answer = ask(_messages(words["ask"]))
                        self._send_line(process, {"say": answer.say, "script": answer.script})
                    elif "run" in words:
                        self._send_line(process, {"output": run(words["run"])})
                    else:
                        return _messages(words["end"])
            except BaseException:
                self._stop()  # it is in the middle of a conversation
                raise
            finally:
                late.cancel()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what it never read
                if pipe is not None:
                    pipe.close()

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        log = self._log.open("ab") if self._log else subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(  # noqa: S603  our own module, no word of a task
                [str(self._python), "-P", "-s", "-m", "draftloop.sandbox.interpreter"],
                env={**_ENVIRONMENT, "PYTHONPATH": str(import_path())},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        except OSError as error:
            raise SetupError(
                f"Open Interpreter cannot be started: {error.strerror}.",
                hint="Run draftloop setup open-interpreter.",
            ) from error
        finally:
            if not isinstance(log, int):
                log.close()
        late = threading.Timer(_START_S, self._process.kill)
        late.start()
        try:
            self._get(self._process)
        except ServiceError as error:
            self._stop()
            raise SetupError(
                "Open Interpreter does not start.",
                hint="Run draftloop setup open-interpreter; its log says why.",
            ) from error
        finally:
            late.cancel()
        return self._process

    def _send_line(self, process: "subprocess.Popen[str]", words: dict[str, Any]) -> None:
        try:
            _open(process.stdin).write(json.dumps(words) + "\n")
            _open(process.stdin).flush()
        except OSError as error:
            raise _gone() from error

    def _get(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        line = _open(process.stdout).readline()
        if not line:
            raise _gone()
        words: dict[str, Any] = json.loads(line)
        return words


class Interpreters:
    """Several loops for simultaneous conversations; each is made when it is first needed."""

    def __init__(self, make: Callable[[], Interpreter], count: int) -> None:
        """Prepare; loops are made when they are needed.

        Args:
            make: Makes a loop.
            count: How many there are at most; each takes about 230 MB.
        """
        self._make = make
        self._free: queue.LifoQueue[Interpreter | None] = queue.LifoQueue()  # warm ones first
        self._made: list[Interpreter] = []
        for _ in range(count):
            self._free.put(None)

    def converse(self, request: str, *, ask: Ask, run: Run, limit_s: float) -> list[Message]:
        """Lead a conversation as soon as a loop is free, as `Interpreter.converse` does.

        Raises:
            SetupError: The environment of the loop is missing or broken.
            ServiceError: No loop was free within `limit_s`, it ended or took too long.
            Exception: Whatever `ask` or `run` raise.
        """
        try:
            loop = self._free.get(timeout=limit_s)
        except queue.Empty as error:
            raise ServiceError("No conversation loop was free.", hint="Send fewer tasks at once.") from error
        try:
            if loop is None:
                loop = self._make()
                self._made.append(loop)
            return loop.converse(request, ask=ask, run=run, limit_s=limit_s)
        finally:
            self._free.put(loop)

    def close(self) -> None:
        """End all of them; conversations under way fail with `ServiceError`."""
        for loop in self._made:
            loop.close()


def _open(pipe: IO[str] | None) -> IO[str]:
    if pipe is None or pipe.closed:
        raise _gone()
    return pipe


def _gone() -> ServiceError:
    return ServiceError(
        "The conversation loop ended in the middle, or took too long.",
        hint="Ask again; a new one is started.",
    )


def _messages(rows: Sequence[dict[str, Any]]) -> list[Message]:
    return [Message(_ROLES[one["role"]], one["content"]) for one in rows if one["role"] in _ROLES]
