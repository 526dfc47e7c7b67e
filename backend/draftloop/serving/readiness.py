"""Whether drafts can be made now, and which flag or setting has to change where they cannot.

Knows what a server must do for drafts, and how each usual mistake shows in its answers. Does not know HTTP
(`model.vllm`) nor the route `/ready` (`web`). All checks take twenty small requests and under ten seconds.
While nothing is wrong they run once a minute; in between only the check that a server answers.

Source:
    vLLM 0.32, measured: refusals and their words, `reasoning`, `/tokenize`, `vllm:cache_config_info`
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.execution.runner import Execution
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import Reply, VllmModel
from draftloop.prompting.prompt import Message

Prompts = Mapping[str, Sequence[Message]]

_READY_S = 5.0  # how long an answer of the readiness probe is good for
_ALL_AGAIN_S = 60.0  # how long the results of all checks are reused
_BUDGET_S = 9.0  # for one server
_ADDRESS_ASKED = (
    8  # connections: of two servers behind one address that draws lots, one is missed in 1 of 128
)
_BINDING_ASKED = 2  # further connections: replicas may have been started with other flags
_CACHE_ASKED = 3  # times after the first: a balancer may lead to a server that has not seen the prompt

# Only schema-constrained decoding answers a greeting with this.
_ANSWER = '{"probe":"violet-otter-7"}'
_SCHEMA = {
    "type": "object",
    "properties": {"probe": {"enum": ["violet-otter-7"]}},
    "required": ["probe"],
    "additionalProperties": False,
}
_GREETING = "Hello! How are you?"
# Text that speculation by look-up would go on with, and the grammar forbids.
_TEMPTING = 'Say it again: {"probe":"violet-otter-8","and":"violet-otter-9"} {"probe":"violet-otter-8"}'
_CHOICE_SCHEMA = {
    **_SCHEMA,
    "properties": {
        "probe": {"enum": [f"{animal}-otter-{n}" for animal in ("violet", "vivid") for n in "123"]}
    },
}
_UNLIKELY = 0.05  # of a logarithm: the answer at temperature 0 must not be this much less likely
_FILLER = "One line of a text that is long enough to fill several blocks of a prefix cache. "
_FILLED_CHARS = 3_000
_ROOM = "a text to draft " * 15  # that a shared prompt has to leave beside it
_BUSY = f"The model server is so busy that it could not be checked within {_BUDGET_S:.0f} s."
_NEEDED = """--structured-outputs-config '{"backend":"guidance","disable_any_whitespace":true}'"""
_TOO_LONG = re.compile(r"maximum (context|model) length")
_CACHING = re.compile(r'^vllm:cache_config_info\{.*?enable_prefix_caching="(\w+)"', re.MULTILINE)
_SPECULATES = re.compile(r"^vllm:spec_decode_num_drafts", re.MULTILINE)


class ModelCheck:
    """Checks a model server. Safe to call from several threads."""

    def __init__(self, model: VllmModel, prompts: Callable[[], Prompts] = dict) -> None:
        """Prepare; nothing is asked yet.

        Args:
            model: The server.
            prompts: Returns the common beginning of each case's prompts, by the case's name.
        """
        self.model = model
        self._prompts = prompts
        self._checked_until = 0.0
        self._warnings: tuple[str, ...] = ()

    def check(self) -> tuple[str, ...]:
        """Check that the server serves the model and binds its answers as drafts need it.

        Returns:
            Warnings: what an admin should correct, though drafts are made.
        Raises:
            ServiceError: The server does not answer, or not in time.
            SetupError: It does not serve this model, refuses the key, or was started in a wrong way.
        """
        now, until = time.monotonic(), self._checked_until
        probe = _ServerProbe(self.model, now + _BUDGET_S)
        self._checked_until = 0.0  # after an error the next call runs every check again
        probe.check_name(_ADDRESS_ASKED if now >= until else 1)
        probe.check_binding()
        if now < until:
            self._checked_until = until
            return self._warnings
        try:
            for _ in range(_BINDING_ASKED):
                probe.check_binding()
            probe.check_grammar_backend()
            probe.check_no_thinking()
            probe.check_greedy_decoding()
            self._warnings = (*probe.check_context(self._prompts()), *probe.check_prefix_cache())
        except ServiceError:
            if not probe.out_of_time:
                raise
            return (*self._warnings, _BUSY)  # it drafts; the next call checks the rest
        self._checked_until = now + _ALL_AGAIN_S
        return self._warnings


class _ServerProbe:
    """The requests of one check; each method raises an error where something is wrong."""

    def __init__(self, model: VllmModel, until: float) -> None:
        self._model = model
        self._until = until
        self._prefix = model.settings

    def check_name(self, times: int) -> None:
        """Check key, address and name, and that one model stands behind the address."""
        seen: dict[tuple[str, ...], None] = {}
        for _ in range(times):
            reply = self._send("GET", "/models", fresh=times > 1)
            if reply.status != 200:
                raise self._model.refusal(reply, self._model.name)
            cards = reply.body.get("data")
            if not isinstance(cards, list):
                raise SetupError(
                    f"{self._model.url} answers with something that is no list of models.",
                    hint=f"Set {self._prefix}_URL to vLLM's address with /v1 at its end, and nothing after.",
                )
            # Adapters differ between replicas for a while: each loads one when it is first requested.
            own = [card for card in cards if isinstance(card, dict) and not card.get("parent")]
            # One model may lie in other folders on other machines.
            described = (
                f"{card.get('id')} ({str(card.get('root') or '?').rpartition('/')[2]}, "
                f"{card.get('max_model_len') or '?'} tokens)"
                for card in own
            )
            seen[tuple(sorted(described))] = None
        if len(seen) > 1:
            served = " or ".join(", ".join(models) or "nothing" for models in seen)
            raise SetupError(
                f"Several servers behind {self._model.url} serve different models: {served}.",
                hint="Start all of them with the same model, --served-model-name and --max-model-len, or set "
                f"{self._prefix}_URL to one.",
            )
        self._model.check_served(self._model.name, timeout_s=self._left_s())

    def check_binding(self) -> None:
        """Check that a schema binds the answer, without blanks, and that its tokens have probabilities."""
        choice = self._constrained(_SCHEMA, _GREETING, fresh=True)
        text = choice["message"].get("content") or ""
        reasoned = choice["message"].get("reasoning") or choice["message"].get("reasoning_content") or ""
        if reasoned and not text:
            if "".join(reasoned.split()).startswith(_ANSWER[:12]):
                raise SetupError(
                    "The model server hands the answer out as reasoning: its reasoning parser takes what was "
                    "not thought for a thought.",
                    hint="Start vLLM without --reasoning-parser, or with --reasoning-parser qwen3.",
                )
            raise self._thinks()
        if not text or not _ANSWER.startswith("".join(text.split())):
            raise SetupError(
                "The model server does not enforce JSON Schemas: it answered a schema with free text.",
                hint=f"Serve the model with vLLM and {_NEEDED}.",
            )
        entries = (choice.get("logprobs") or {}).get("content") or []
        if not any(entry.get("top_logprobs") for entry in entries):
            raise self._without_logprobs("it leaves them out")
        if text != _ANSWER or _allows_blanks(entries):
            raise SetupError(
                "The model server lets answers fill with blanks: disable_any_whitespace is missing.",
                hint=f"Start vLLM with {_NEEDED}.",
            )

    def check_grammar_backend(self) -> None:
        """Check the grammar backend: guidance refuses this schema, xgrammar takes it."""
        schema = _SCHEMA | {"dependentRequired": {"probe": ["probe"]}}
        reply = self._send("POST", "/chat/completions", self._body(_GREETING, 4, schema))
        if reply.status == 200:
            raise SetupError(
                "The model server's structured output is not pinned to the backend guidance.",
                hint=f"Start vLLM with {_NEEDED}.",
            )
        if reply.status not in (400, 422):
            raise self._model.refusal(reply, self._model.name)

    def check_no_thinking(self) -> None:
        """Check that the model does not think before it answers, though it is asked not to."""
        body = {
            "model": self._model.name,
            "messages": [{"role": "user", "content": _GREETING}],
            "chat_template_kwargs": {"enable_thinking": False},
            "return_token_strs": True,
        }
        reply = self._send("POST", "/tokenize", body, at_root=True)  # a gateway may not have it
        written = "".join(map(str, reply.body.get("token_strs") or ()))
        if written.rfind("<think>") > written.rfind("</think>"):
            raise self._thinks()
        message = self._choice(self._body(_GREETING, 8))["message"]
        if message.get("reasoning") or message.get("reasoning_content"):
            raise self._thinks()
        if (message.get("content") or "").lstrip().startswith("<think>"):
            raise self._thinks()

    def check_greedy_decoding(self) -> None:
        """Check that a constrained answer is the likeliest one, where speculation is tempted to another."""
        choice = self._constrained(_CHOICE_SCHEMA, _TEMPTING)
        text = choice["message"].get("content") or ""
        allowed = {
            json.dumps({"probe": one}, separators=(",", ":"))
            for one in _CHOICE_SCHEMA["properties"]["probe"]["enum"]  # type: ignore[index]
        }
        entries = (choice.get("logprobs") or {}).get("content") or []
        unlikely = any(
            other["logprob"] > entry["logprob"] + _UNLIKELY
            for entry in entries
            for other in entry.get("top_logprobs") or ()
        )
        if text in allowed and not unlikely:
            return
        what = "break their schema" if text not in allowed else "are not the likeliest ones"
        speculates = _SPECULATES.search(self._metrics())
        raise SetupError(
            f"The model server's constrained answers {what} where the prompt tempts to something else"
            + (", and it speculates." if speculates else "."),
            hint="Start vLLM without --speculative-config, or with a method that keeps constrained answers.",
        )

    def check_context(self, prompts: Prompts) -> list[str]:
        """Check that the prompts' common parts fit into the context; returns a warning where some do not."""
        ordered = sorted(prompts.items(), key=lambda item: _bytes(item[1]), reverse=True)
        missing: list[str] = []
        for name, messages in ordered:
            reply = self._send("POST", "/chat/completions", self._body(_ROOM, 1, before=messages))
            if reply.status == 200:
                break
            if not _TOO_LONG.search(reply.text):
                raise self._model.refusal(reply, self._model.name)
            missing.append(name)
        if not missing:
            return []
        tokens = self._model.context_tokens
        words = f"The model's context of {tokens} tokens is shorter than the prompt that every task of "
        cases = ", ".join(f"'{name}'" for name in sorted(missing))
        hint = f"Start vLLM with a larger --max-model-len, or set {self._prefix}_PROFILE to compact."
        if len(missing) == len(ordered):
            raise SetupError(f"{words}{cases} begins with.", hint=hint)
        return [f"{words}{cases} begins with: no task of these is drafted. {hint}"]

    def check_prefix_cache(self) -> list[str]:
        """Check that a prompt's beginning is not computed again for each task."""
        filler = _FILLER * (
            min(_FILLED_CHARS, 2 * self._model.context_tokens or _FILLED_CHARS) // len(_FILLER)
        )
        before = [Message("system", filler)]
        usage: dict[str, Any] = {}
        for _ in range(1 + _CACHE_ASKED):
            reply = self._send("POST", "/chat/completions", self._body(_GREETING, 1, before=before))
            usage = reply.body.get("usage") or {} if reply.status == 200 else {}
            if (usage.get("prompt_tokens_details") or {}).get("cached_tokens"):
                return []
        stated = _CACHING.search(self._metrics())
        if stated is None and not usage.get("prompt_tokens_details"):
            return []  # it shows neither what it cached nor its metrics
        if stated is not None and stated[1] == "True":
            return []
        what = "The model server computes what all prompts of a project have in common for each task anew."
        return [f"{what} Start vLLM with --enable-prefix-caching."]

    # ------------------------------------------------------------------------------ how it is asked

    @property
    def out_of_time(self) -> bool:
        """Whether nothing can be asked any more."""
        return time.monotonic() >= self._until

    def _left_s(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise ServiceError(
                f"The model server did not answer a check within {_BUDGET_S:.0f} s.",
                hint="Look at its load and its log.",
            )
        return left

    def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        at_root: bool = False,
        fresh: bool = False,
    ) -> Reply:
        return self._model.send(method, path, body, timeout_s=self._left_s(), at_root=at_root, fresh=fresh)

    def _metrics(self) -> str:
        reply = self._send("GET", "/metrics", at_root=True)
        return reply.text if reply.status == 200 else ""

    def _body(
        self,
        text: str,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
        before: Sequence[Message] = (),
    ) -> dict[str, Any]:
        messages = [*before, Message("user", text)]
        body: dict[str, Any] = {
            "model": self._model.name,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": 0,
            "seed": 0,
            "max_tokens": max_tokens,
            "repetition_penalty": 1.0,  # not that of the model's generation_config.json
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if schema is not None:
            body |= {
                "logprobs": True,
                "top_logprobs": 20,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "probe", "schema": schema},
                },
            }
        return body

    def _constrained(self, schema: Mapping[str, Any], text: str, *, fresh: bool = False) -> dict[str, Any]:
        return self._choice(self._body(text, 48, schema), fresh=fresh)

    def _choice(self, body: dict[str, Any], *, fresh: bool = False) -> dict[str, Any]:
        reply = self._send("POST", "/chat/completions", body, fresh=fresh)
        if reply.status == 400 and "logprob" in reply.text:
            raise self._without_logprobs(f"{reply.status}")
        if reply.status == 400 and _TOO_LONG.search(reply.text):
            raise SetupError(
                f"The model's context of {self._model.context_tokens} tokens is shorter than any prompt.",
                hint="Start vLLM with a larger --max-model-len.",
            )
        if reply.status != 200:
            raise self._model.refusal(reply, self._model.name)
        try:
            choice: dict[str, Any] = reply.body["choices"][0]
            choice["message"].get("content")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ServiceError(
                "The model server answered with something that is no chat completion.",
                hint=f"Check that {self._prefix}_URL points at vLLM's /v1.",
            ) from error
        return choice

    def _thinks(self) -> SetupError:
        return SetupError(
            "The model thinks before it answers: its chat template does not switch thinking off when it is "
            "asked to (enable_thinking false).",
            hint="Serve a model that does not think (an Instruct one), or start vLLM with a --chat-template "
            "that heeds enable_thinking.",
        )

    def _without_logprobs(self, how: str) -> SetupError:
        return SetupError(
            f"The model server refuses log-probabilities, which scores are made of ({how}).",
            hint="Start vLLM with --max-logprobs 20, its default.",
        )


def check_ready(
    checks: Sequence[ModelCheck],
    ledger: Ledger | None,
    execution: Execution | None = None,
) -> tuple[str, ...]:
    """Check that the models can draft; load the adapters into a server that was restarted.

    A sandbox is checked where it ran code: one that never could is no fault, texts are drafted all the same.

    Args:
        checks: Those of the model's server, and of a cascade's larger one where there is one.
        ledger: Where promoted adapters are; None where nothing was promoted yet.
        execution: What runs code, if anything does.
    Returns:
        Warnings: what an admin should correct, though drafts are made.
    Raises:
        ServiceError: A server, the ledger or the sandbox does not answer.
        SetupError: One cannot draft, or does not take an adapter; the sandbox does not contain code any more.
    """
    if execution is not None:
        execution.runner.check()
    warnings = dict.fromkeys(warning for check in checks for warning in check.check())
    promoted = ledger.all_promoted().values() if ledger else ()
    for name in {one.model for one in promoted}:
        checks[0].model.check_served(name)
    return tuple(warnings)


class Readiness:
    """Reuses the result of a check for a few seconds; one caller at a time repeats it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._trouble: DraftloopError | None = None
        self._warnings: tuple[str, ...] = ()

    def state(self, check: Callable[[], Sequence[str]]) -> tuple[DraftloopError | None, tuple[str, ...]]:
        """Return the error that keeps drafts from being made, None where there is none, and warnings."""
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    self._trouble, self._warnings = None, tuple(check())
                except DraftloopError as error:
                    self._trouble, self._warnings = error, ()
                self._until = time.monotonic() + _READY_S
            return self._trouble, self._warnings


def _allows_blanks(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a blank was among what the grammar allowed; vLLM shows a masked token at -9999."""
    return any(
        any(character.isspace() for character in other["token"]) and other["logprob"] > -9000
        for entry in entries
        for other in entry.get("top_logprobs") or []
    )


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message.content.encode()) for message in messages)
