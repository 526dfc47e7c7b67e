"""Adapters that a running vLLM server is handed, and handed again after it was restarted.

A restarted server has lost the adapters that it was handed while it ran. It answers 404 to their names, gets
them again, and is asked again, before any caller sees an error.

Source:
    vLLM 0.32: `/v1/load_lora_adapter`; error codes and messages measured.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.model.server import ModelServer, Reply

# Behind a failed load, in vLLM's "Worker failed with error '...', please check the stack trace".
_WORKER_ERROR = re.compile(r"failed with error '(.+?)'", re.DOTALL)
_LOAD_S = 60.0  # one of 0.9 MB takes 10 ms
_HAND_AGAIN = 8  # where a balancer stands before several servers, each hand-over reaches one of them
_FLAGS = "--enable-lora --max-lora-rank 16, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"


class AdapterLoader:
    """Loads adapters into a server, and repeats requests that failed because one was not loaded."""

    def __init__(self, server: ModelServer, find_adapter: Callable[[str], Path | None] | None) -> None:
        """Prepare.

        Args:
            server: The server.
            find_adapter: Returns the folder of an adapter by its name; None where there is none of this name.
        """
        self._server = server
        self._find_adapter = find_adapter
        self._loading = threading.Lock()

    def call(
        self, method: str, path: str, body: dict[str, Any] | None, *, name: str, timeout_s: float
    ) -> dict[str, Any]:
        """Send a request about a model, loading it first where it is a known adapter that was lost.

        Raises:
            ServiceError: The server did not answer in time, or failed.
            FailedRequest: It failed on this request, and its engine still runs.
            TaskError: It refuses this request.
            SetupError: It refuses every request.
        """
        reply = self._server.send(method, path, body, timeout_s=timeout_s)
        for _ in range(_HAND_AGAIN):
            if reply.status != 404 or not self.load_known(name):
                break
            reply = self._server.send(method, path, body, timeout_s=timeout_s)
        return self._server.answer(reply, name)

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter; nothing happens where the server has one of this name.

        Args:
            name: Its name for good: under the same one vLLM may answer from the cache of other weights.
            folder: Where it is, for the server too.
        Raises:
            ServiceError: The server does not answer, or failed.
            SetupError: It takes no adapters, not this one, or does not find it.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        reply = self._server.send("POST", "/load_lora_adapter", body, timeout_s=_LOAD_S)
        if reply.status != 200 and "already been loaded" not in reply.message:
            raise self._load_error(reply, name, folder)

    def load_known(self, name: str) -> bool:
        """Load an adapter by its name; returns False where `find_adapter` knows none of this name."""
        folder = None if self._find_adapter is None else self._find_adapter(name)
        if folder is None:
            return False
        with self._loading:  # of several threads that ask for it, the first one loads it
            self.load(name, folder)
        return True

    def _load_error(self, reply: Reply, name: str, folder: Path) -> ServiceError | SetupError:
        code = reply.status
        worker_error = _WORKER_ERROR.search(reply.message)
        message = (worker_error[1] if worker_error else reply.message).rstrip(".")
        if code == 404 and "adapter" in message.lower():
            return SetupError(
                f"The model server finds no adapter at {folder}.",
                hint="ADAPTERS_DIR must be a folder that vLLM can read at the same path.",
            )
        if code in (404, 405) or "enable-lora" in message:
            return SetupError(
                "The model server takes no adapters while it runs.", hint=f"Start vLLM with {_FLAGS}."
            )
        if "rank" in message.lower():
            return SetupError(
                f"The model server does not take '{name}': {message}.",
                hint="Start vLLM with a --max-lora-rank that is as high, or train with a lower rank.",
            )
        refused = self._server.refusal(reply, name)
        if code != 500 and not isinstance(refused, TaskError):
            return refused
        return SetupError(
            f"The model server does not take '{name}' ({code}): {message}.",
            hint="Was it trained on the model that is served?",
        )
