"""Open Interpreter's conversation loop, alone in a process: it asks no model and runs no code itself.

The only file that imports `interpreter`, which is AGPL-3.0 and has pins of its own: it runs in the
environment `open-interpreter` and talks to execution/interpreter.py in JSON lines over stdin and stdout.

    in    {"begin": {"messages": [...]}}      one conversation after the other
    out   {"ask": [...]}      what the model is to be asked      in    {"say": text, "script": code or null}
    out   {"run": code}       what is to be run                  in    {"output": text}
    out   {"end": [...]}      the conversation, when the model's last answer held no script

Both of Open Interpreter's seams are taken: `llm` is an object that asks us, and its only language hands the
script to us. The library itself sees a ticket instead of each script, because it mends what it takes for
mistakes in code. There is no way out besides: an audit hook refuses connections and child processes, because
the library calls models and installs packages by itself when left to.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

# Any other name would make the library treat the code specially: "shell" code that begins with
# "apt install" is run on the host, "text" is never run.
_SCRIPT = "script"
_FORBIDDEN = frozenset(
    {
        *("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "socket.sendmsg"),
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"),
    }
)


def main() -> None:
    """Serve conversations until stdin ends."""
    # What the library prints must not fall between our lines.
    wire_out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    from interpreter import OpenInterpreter  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    sys.addaudithook(_refuse)
    _send_line(wire_out, {"ready": True})
    for line in sys.stdin:
        begin = json.loads(line)["begin"]
        _send_line(wire_out, {"end": _converse(OpenInterpreter, begin, wire_out)})


def _refuse(event: str, _: object) -> None:
    if event in _FORBIDDEN:
        raise PermissionError(f"The conversation loop may not use {event}.")


class _Conversation:
    """One conversation: the scripts behind the library's tickets, and the wire to the backend."""

    def __init__(self, wire_out: Any) -> None:
        self._wire_out = wire_out
        self.scripts: dict[str, str] = {}

    def call(self, words: dict[str, Any]) -> dict[str, Any]:
        """Send a line and wait for its answer."""
        _send_line(self._wire_out, words)
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)  # nobody waits any more
        answer: dict[str, Any] = json.loads(line)
        return answer

    def with_scripts(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with scripts in place of their tickets."""
        return [
            {**one, "content": self.scripts[one["content"]]} if one["type"] == "code" else one
            for one in messages
        ]


class _Model:
    """Stands where the library calls its model."""

    supports_vision = False
    supports_functions = False

    def __init__(self, conversation: _Conversation) -> None:
        self._conversation = conversation

    def run(self, messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Ask the backend; yield its text, and a ticket for its script."""
        conversation = self._conversation
        answer = conversation.call({"ask": conversation.with_scripts(messages)})
        if answer["say"]:
            yield {"type": "message", "content": answer["say"]}
        if answer["script"] is not None:
            ticket = f"{_SCRIPT} {len(conversation.scripts) + 1}"
            conversation.scripts[ticket] = answer["script"]
            yield {"type": "code", "format": _SCRIPT, "content": ticket}


def _language(conversation: _Conversation) -> type:
    """Make the class that stands where the library runs code."""

    class BackendLanguage:
        """Has the backend run the script of a ticket."""

        name = _SCRIPT
        file_extension = "txt"

        def __init__(self, computer: Any = None) -> None:
            del computer

        def run(self, code: str) -> Iterator[dict[str, Any]]:
            output = conversation.call({"run": conversation.scripts[code]})["output"]
            yield {"type": "console", "format": "output", "content": output}

        def stop(self) -> None:
            pass

        def terminate(self) -> None:
            pass

    return BackendLanguage


def _converse(library: Any, begin: dict[str, Any], wire_out: Any) -> list[dict[str, Any]]:
    conversation = _Conversation(wire_out)
    talk = library(
        llm=_Model(conversation),
        auto_run=True,
        offline=True,
        loop=False,
        disable_telemetry=True,
        conversation_history=False,
        max_output=1 << 30,
        import_computer_api=False,
        sync_computer=False,
    )
    # Rendered by the library as a template that can run Python: it gets none of the task's words.
    talk.system_message = "system"
    talk.custom_instructions = ""
    talk.computer.languages = [_language(conversation)]
    talk.messages = list(begin["messages"][:-1])
    for _ in talk.chat(begin["messages"][-1], display=False, stream=True):
        pass
    return conversation.with_scripts(talk.messages)


def _send_line(wire_out: Any, words: dict[str, Any]) -> None:
    wire_out.write(json.dumps(words, ensure_ascii=False) + "\n")
    wire_out.flush()


if __name__ == "__main__":
    main()
