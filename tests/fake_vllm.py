"""An HTTP server that answers as vLLM does, without a model; passes tests/contract/test_model.py.

Every answer satisfies the schema of its request, with texts copied from the user's message, unless the
test says otherwise through `answer`, `fail` or `delay_s`.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Body = dict[str, Any]
_REFUSED = {"guidance": ("uniqueItems", "dependentRequired"), "xgrammar": ("uniqueItems", "multipleOf")}
_EXAMPLES = ("2026-01-02", "10:30", "2026-01-02T10:30")


@dataclass
class FakeVllm:
    """What the fake serves and what it was asked; change it while it runs."""

    name: str = "fake"
    adapters: list[str] = field(default_factory=list)  # other names that it serves
    max_lora_rank: int = 0  # of adapters that it takes while it runs; 0 for a server that takes none
    handed: int = 0  # adapters, while it ran
    api_key: str = ""
    context_tokens: int = 2048
    structured_outputs: str = "guidance"  # or "xgrammar", or "" for a server that ignores schemas
    any_whitespace: bool = False  # started without disable_any_whitespace
    url: str = ""
    answer: Callable[[Body], str] | None = None
    fail: Callable[[Body], int | None] = field(default=lambda _: None)
    delay_s: float = 0.0
    asked: list[Body] = field(default_factory=list)
    remembers: bool = True  # keeps what it was asked
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: Body) -> tuple[int, Body]:
        """Answer one chat completion as status and body."""
        with self._lock:
            if self.remembers:
                self.asked.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay_s)
            status = self.fail(body)
            if status is not None:
                return status, {"error": {"message": "as the test asked"}}
            return self._complete(body)
        finally:
            with self._lock:
                self._now -= 1

    def load(self, body: Body) -> tuple[int, Body | str]:
        """Take an adapter, or say why not, in vLLM's words."""
        name, folder = body["lora_name"], Path(body["lora_path"])
        if not self.max_lora_rank:
            return 404, {"detail": "Not Found"}
        with self._lock:
            if name in self.adapters:
                return 400, _error(f"The lora adapter '{name}' has already been loaded.")
            try:
                rank = json.loads((folder / "adapter_config.json").read_text())["r"]
            except FileNotFoundError:
                return 404, _error(f"Loading lora {name} failed: No adapter found for <path>")
            if rank > self.max_lora_rank:
                said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
                return 500, _error(
                    f"Call to add_lora method failed: Worker failed with error '{said}', please"
                )
            self.adapters.append(name)
            self.handed += 1
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def restart(self) -> None:
        """Forget the adapters, as a restarted server does."""
        self.adapters.clear()

    def _complete(self, body: Body) -> tuple[int, Body]:
        if body["model"] not in (self.name, *self.adapters):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        grammar = body.get("structured_outputs", {}).get("grammar")
        if not self.structured_outputs:
            schema = grammar = None
        refused = self.structured_outputs != "guidance" or "UNKNOWN" in (grammar or "")
        if grammar is not None and refused:
            return 400, {"error": {"message": "Failed to parse grammar."}}
        for keyword in _REFUSED.get(self.structured_outputs, ()):
            if keyword in json.dumps(schema):
                return 400, {"error": {"message": f"Unimplemented keys: {keyword}"}}
        prompt = "".join(message["content"] for message in body["messages"])
        limit = body.get("max_tokens")
        if limit is not None and len(prompt.encode()) // 4 + limit > self.context_tokens:
            return 400, {"error": {"message": "This model's maximum context length is exceeded."}}
        text = body["messages"][-1]["content"]
        if self.answer:
            answer = self.answer(body)
        elif grammar is not None:
            answer = written(grammar, text)
        else:
            answer = _json(satisfying(schema, text) if schema else text)
        finish = "stop"
        if limit is not None and len(answer) > limit:
            answer, finish = answer[:limit], "length"
        return 200, {
            "choices": [
                {
                    "message": {"role": "assistant", "content": answer},
                    "finish_reason": finish,
                    "logprobs": {
                        "content": [
                            {**entry, "top_logprobs": self._alternatives(entry, body)}
                            for c in answer
                            for entry in [{"token": c, "bytes": list(c.encode()), "logprob": -0.01}]
                        ]
                    },
                }
            ],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(answer)},
        }

    def _alternatives(self, entry: Body, body: Body) -> list[Body]:
        if not body.get("top_logprobs"):
            return []
        blank = {"token": "\n  ", "bytes": [10, 32, 32], "logprob": -5.0 if self.any_whitespace else -9999.0}
        return [entry, blank]


def satisfying(schema: Body, text: str) -> Any:
    """Make a small value that satisfies a schema, with strings copied from the text."""
    if "anyOf" in schema:
        return satisfying(schema["anyOf"][0], text)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema["type"]
    if kind == "object":
        return {key: satisfying(inner, text) for key, inner in schema["properties"].items()}
    if kind == "array":
        return [satisfying(schema["items"], text) for _ in range(max(1, schema.get("minItems", 0)))]
    if kind == "string":
        if "pattern" in schema:
            fitting = (example for example in _EXAMPLES if re.search(schema["pattern"], example))
            return next(fitting)
        return text[: min(4, schema["maxLength"])]
    return schema.get("minimum", 0)


def written(grammar: str, text: str) -> str:
    """Write a small text of a grammar as backend/core/grammar.py makes it, with quotes from the text."""
    start = grammar.splitlines()[0].removeprefix("start: ")
    return _expression(start, 0, text)[0]


def _expression(rule: str, at: int, text: str) -> tuple[str, int]:
    """Write the first of some alternatives up to a closing bracket; give it and the place after it."""
    alternatives = [""]
    while at < len(rule) and rule[at] != ")":
        if rule[at] == "|":
            alternatives.append("")
            at += 1
        elif rule[at] == " ":
            at += 1
        else:
            said, at = _atom(rule, at, text)
            repeated = re.compile(r"\{(\d+),\d+\}").match(rule, at)
            alternatives[-1] += said * int(repeated[1]) if repeated else said
            at = repeated.end() if repeated else at + rule.startswith("?", at)
    return alternatives[0], at


def _atom(rule: str, at: int, text: str) -> tuple[str, int]:
    if rule[at] == "(":
        said, end = _expression(rule, at + 1, text)
        return said, end + 1
    if rule.startswith("%json ", at):
        schema, end = json.JSONDecoder().raw_decode(rule, at + len("%json "))
        return _json(satisfying(schema, text)), end
    if rule[at] == '"':
        literal, end = json.JSONDecoder().raw_decode(rule, at)
        return literal, end
    quote = re.compile(r"QUOTE_\d+_(\d+)").match(rule, at)
    if quote is None:
        raise AssertionError(f"no grammar of ours at {at}: {rule}")
    return _json(text[: min(4, int(quote[1]))])[1:-1], quote.end()


def _error(message: str) -> Body:
    return {"error": {"message": message}}


def _json(part: Any) -> str:
    return json.dumps(part, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def fake_vllm(**settings: Any) -> Iterator[FakeVllm]:
    """Serve a fake on a free port of the loopback."""
    fake = FakeVllm(**settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served = [
                {"id": fake.name, "max_model_len": fake.context_tokens, "parent": None},
                *({"id": name, "max_model_len": None, "parent": fake.name} for name in fake.adapters),
            ]
            self._send(200, {"data": served})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if fake.api_key and self.headers.get("Authorization") != f"Bearer {fake.api_key}":
                self._send(401, {"error": "Unauthorized"})
                return
            answer = fake.load if self.path == "/v1/load_lora_adapter" else fake.complete
            self._send(*answer(body))

        def _send(self, status: int, body: Body | str) -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away is part of some tests

    server = Server(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
