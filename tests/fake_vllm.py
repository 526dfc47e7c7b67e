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
from itertools import count
from pathlib import Path
from typing import Any

from draftloop.labelling.guidance import grammar_refusal, schema_refusal

Body = dict[str, Any]
_BLOCK_CHARS = 1_000  # of the prefix cache; a token is a character here
_NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat "
    "template if the tokenizer does not define one."
)
_XGRAMMAR_REFUSES = ("uniqueItems", "multipleOf")  # guidance is asked itself
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
    # Control tokens of its model: as text, guidance cannot write them.
    control_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "</think>")
    any_whitespace: bool = False  # started without disable_any_whitespace
    reasoning_parser: bool = False  # one that takes everything for thoughts, as deepseek_r1 does
    thinks: bool = False  # its chat template does not heed enable_thinking
    tokenizes: bool = True  # has /tokenize, which gateways do not
    chat_template: bool = True
    max_logprobs: int = 20
    prefix_caching: bool = True
    counts_cached: bool = True  # started with --enable-prompt-tokens-details
    metrics: bool = True
    speculation: str = ""  # "invalid" or "unlikely": what it does to constrained answers where it is tempted
    root: str = "/models/fake"
    beside: "FakeVllm | None" = None  # behind the same address; every second request goes there
    url: str = ""
    answer: Callable[[Body], str | None] | None = None  # None: as without it
    fail: Callable[[Body], int | None] = field(default=lambda _: None)
    is_well: bool = True  # its engine runs
    delay_s: float = 0.0
    asked: list[Body] = field(default_factory=list)
    remembers: bool = True  # keeps what it was asked
    most_at_once: int = 0
    _now: int = 0
    _seen: set[str] = field(default_factory=set)  # prompts, for the prefix cache
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, path: str, authorization: str) -> tuple[int, Body | str]:
        """Answer a GET as status and body."""
        if path == "/metrics" and self.metrics:
            return 200, self.page()
        if path != "/v1/models":
            return 404, {"detail": "Not Found"}
        if not self._may(authorization):
            return 401, {"error": "Unauthorized"}
        own = {"id": self.name, "root": self.root, "max_model_len": self.context_tokens, "parent": None}
        adapters = ({"id": name, "max_model_len": None, "parent": self.name} for name in self.adapters)
        return 200, {"data": [own, *adapters]}

    def post(self, path: str, body: Body, authorization: str) -> tuple[int, Body | str]:
        """Answer a POST as status and body; what is beside /v1 needs no key, as in vLLM."""
        if path == "/tokenize":
            return self.tokenize(body)
        if path not in ("/v1/chat/completions", "/v1/load_lora_adapter"):
            return 404, {"detail": "Not Found"}
        if not self._may(authorization):
            return 401, {"error": "Unauthorized"}
        return self.load(body) if path == "/v1/load_lora_adapter" else self.complete(body)

    def _may(self, authorization: str) -> bool:
        return not self.api_key or authorization == f"Bearer {self.api_key}"

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

    def _refusal(self, body: Body, schema: Body | None, grammar: str | None) -> tuple[int, Body] | None:
        """Return what vLLM answers to a body that it does not take."""
        if body["model"] not in (self.name, *self.adapters):
            return 404, _error(f"The model `{body['model']}` does not exist.")
        if not self.chat_template:
            return 400, _error(_NO_TEMPLATE)
        asked = body.get("top_logprobs") or 0
        if asked > self.max_logprobs:
            most = self.max_logprobs
            return 400, _error(
                f"Requested sample logprobs of {asked}, which is greater than max allowed: {most}"
            )
        if grammar is not None and (self.structured_outputs != "guidance" or grammar_refusal(grammar)):
            return 400, _error("Failed to parse grammar.")
        if schema is not None and (refusal := self._schema_refusal(schema)):
            return 400, _error(refusal)
        if any(token in json.dumps([schema, grammar]) for token in self.control_tokens):
            return 500, _error("Internal server error")
        prompt = "".join(message["content"] for message in body["messages"])
        if len(prompt.encode()) // 4 + (body.get("max_tokens") or 1) > self.context_tokens:
            return 400, _error(f"This model's maximum context length is {self.context_tokens} tokens.")
        return None

    def _complete(self, body: Body) -> tuple[int, Body]:
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        grammar = body.get("structured_outputs", {}).get("grammar")
        if not self.structured_outputs:
            schema = grammar = None
        refusal = self._refusal(body, schema, grammar)
        if refusal is not None:
            return refusal
        prompt = "".join(message["content"] for message in body["messages"])
        limit = body.get("max_tokens")
        text = body["messages"][-1]["content"]
        said = self.answer(body) if self.answer else None
        if said is not None:
            answer = said
        elif grammar is not None:
            answer = written(grammar, text)
        else:
            answer = _json(satisfying(schema, text) if schema else text)
        tempted = bool(schema) and self.speculation and '"}' in text
        if tempted and self.speculation == "invalid":
            answer = text.partition(": ")[2]
        finish = "stop"
        if limit is not None and len(answer) > limit:
            answer, finish = answer[:limit], "length"
        message: Body = {"role": "assistant", "content": answer, "reasoning": None}
        if self.reasoning_parser:
            thoughts = "Okay, the user says hello." if self.thinks else answer
            message |= {"content": None, "reasoning": thoughts}
        elif self.thinks and schema is None and grammar is None:
            message |= {"content": f"<think>\nWell.\n</think>\n\n{answer}"}
        sure = -3.0 if tempted and self.speculation == "unlikely" else -0.01
        usage: Body = {"prompt_tokens": len(prompt), "completion_tokens": len(answer)}
        if self.counts_cached:
            hit = self.prefix_caching and prompt in self._seen
            usage["prompt_tokens_details"] = {
                "cached_tokens": len(prompt) // _BLOCK_CHARS * _BLOCK_CHARS if hit else 0
            }
        with self._lock:
            self._seen.add(prompt)
        return 200, {
            "choices": [
                {
                    "message": message,
                    "finish_reason": finish,
                    "logprobs": {
                        "content": [
                            {
                                **entry,
                                "top_logprobs": self._alternatives(entry, body, tempted=bool(tempted)),
                            }
                            for c in answer
                            for entry in [{"token": c, "bytes": list(c.encode()), "logprob": sure}]
                        ]
                    },
                }
            ],
            "usage": usage,
        }

    def _schema_refusal(self, schema: Body) -> str:
        if self.structured_outputs == "guidance":
            return schema_refusal(schema)
        refused = (keyword for keyword in _XGRAMMAR_REFUSES if keyword in json.dumps(schema))
        return next((f"Unimplemented keys: {keyword}" for keyword in refused), "")

    def _alternatives(self, entry: Body, body: Body, *, tempted: bool) -> list[Body]:
        if not body.get("top_logprobs"):
            return []
        if tempted and self.speculation == "unlikely":
            return [entry, {"token": "v", "bytes": [118], "logprob": -0.1}]
        blank = {"token": "\n  ", "bytes": [10, 32, 32], "logprob": -5.0 if self.any_whitespace else -9999.0}
        return [entry, blank]

    def tokenize(self, body: Body) -> tuple[int, Body]:
        """Write the prompt as its chat template does; a piece for each part of it."""
        if not self.tokenizes:
            return 404, {"detail": "Not Found"}
        if not self.chat_template:
            return 400, _error(_NO_TEMPLATE)
        said = [message["content"] for message in body["messages"]]
        off = body.get("chat_template_kwargs", {}).get("enable_thinking") is False and not self.thinks
        pieces = [*said, "<|im_start|>", "assistant", "<think>", *(["</think>"] if off else [])]
        return 200, {"count": len(pieces), "max_model_len": self.context_tokens, "token_strs": pieces}

    def page(self) -> str:
        """Write the page of metrics."""
        caching = (
            f'vllm:cache_config_info{{block_size="16",enable_prefix_caching="{self.prefix_caching}"}} 1.0'
        )
        return "\n".join([caching, *(["vllm:spec_decode_num_drafts_total 3.0"] if self.speculation else [])])


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
    """Write a small text of a grammar as labelling/grammar.py makes it, with quotes from the text."""
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
    turns = count()

    def whose() -> FakeVllm:
        return fake.beside if fake.beside is not None and next(turns) % 2 else fake

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._send(200 if fake.is_well else 503, "")
                return
            self._send(*whose().get(self.path, self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*whose().post(self.path, body, self.headers.get("Authorization", "")))

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
