"""Questions to a model: repeated while its server fails, and once more where an answer breaks its rules.

Knows prompts, deadlines and which of two answers is better. Does not know what an answer is used for.
"""

import threading
import time
from collections.abc import Sequence

from draftloop.drafting.drafts import Request
from draftloop.drafting.versions import SEED, AskOptions
from draftloop.errors import FailedRequest, InvalidValue, ServiceError, TaskError, Unreachable
from draftloop.execution.coding import Answered
from draftloop.labelling.labelling import Value
from draftloop.labelling.rules import Reason
from draftloop.prompting.prompt import Completion, Message, Model, Prompt, Shown, render_retry, with_examples
from draftloop.support.retry import retrying


class Asker:
    """Asks a model until it answers or the deadline has come. Safe to call from several threads."""

    def __init__(self, model: Model, *, timeout_s: float, patient: bool, closed: threading.Event) -> None:
        """Prepare.

        Args:
            model: The model.
            timeout_s: Limit of one request.
            patient: Whether a server that cannot be reached is asked again.
            closed: When it is set, nothing is tried again.
        """
        self._model = model
        self._timeout_s = timeout_s
        self._patient = patient
        self._closed = closed
        self._unreachable_since: float | None = None

    @property
    def unreachable_s(self) -> float:
        """For how many seconds the model server could not be reached; 0 when it can."""
        since = self._unreachable_since
        return 0.0 if since is None else time.monotonic() - since

    def ask(self, prompt: Prompt, ends: float) -> Completion:
        """Ask a prompt.

        Args:
            prompt: The prompt.
            ends: The deadline, on the monotonic clock.
        Raises:
            ServiceError: There was no answer before the deadline.
            TaskError: The server refuses this prompt, or failed on it twice and is well otherwise.
            SetupError: The server refuses every prompt.
        """
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise ServiceError("No time was left before the deadline.", hint="Send fewer tasks at once.")
        if not self._patient:
            left_s = min(left_s, self._timeout_s)
        has_failed = False  # on this very prompt
        for attempt in retrying(self._is_worth_another_try, limit_s=left_s, closed=self._closed):
            with attempt:
                timeout_s = max(0.1, min(self._timeout_s, ends - time.monotonic()))
                try:
                    answer = self._model.complete(prompt, timeout_s=timeout_s)
                except Unreachable:
                    self._unreachable_since = self._unreachable_since or time.monotonic()
                    raise
                except FailedRequest as error:
                    if has_failed:
                        raise TaskError(f"Twice: {error.message}", hint=error.hint) from error
                    has_failed = True
                    raise
                self._unreachable_since = None
                return answer
        raise AssertionError("retrying either returns or raises")

    def _is_worth_another_try(self, error: BaseException) -> bool:
        return isinstance(error, ServiceError) and (self._patient or not isinstance(error, Unreachable))


class ValueAsker:
    """Asks a model for values, and once more for those that break the rules of their case."""

    def __init__(self, asker: Asker, options: AskOptions) -> None:
        self._asker = asker
        self._options = options

    def grammar(self, request: Request) -> str | None:
        """Return the grammar of a request's answers; None where the schema alone constrains them.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        return request.case.grammar(request.question) if self._options.bind_quotes else None

    def ask(
        self,
        request: Request,
        messages: tuple[Message, ...],
        grammar: str | None,
        shown: Sequence[Shown] = (),
    ) -> Answered:
        """Ask, and once more where the answer breaks its rules; the answer that is kept comes last.

        Args:
            request: The draft to be made.
            messages: The question.
            grammar: Constrains the answer more than the schema does; None where there is none.
            shown: Texts and their answers to show first, the most similar one last.
        Raises:
            ServiceError: There was no answer before the deadline.
            TaskError: The server refuses this question.
            SetupError: The server refuses every question.
        """
        messages, first = self._ask_first(request, messages, grammar, shown)
        value, reasons = _read(request, first)
        if not reasons:
            return Answered(value, reasons, (first,))
        retry = render_retry(request.case, messages, first.text, reasons)
        try:
            second = self._ask(request, retry, grammar)
        except TaskError:
            # Most often the retry is longer than the model's context.
            return Answered(value, reasons, (first,))
        second_value, second_reasons = _read(request, second)
        # Keep the later answer only if it is better: a tuned model has never seen its own answer sent back.
        better = second_value is not None and (value is None or len(second_reasons) < len(reasons))
        if better or (value is None and second_value is None):
            return Answered(second_value, second_reasons, (first, second))
        return Answered(value, reasons, (second, first))

    def _ask_first(
        self, request: Request, messages: tuple[Message, ...], grammar: str | None, shown: Sequence[Shown]
    ) -> tuple[tuple[Message, ...], Completion]:
        """Ask for the first time, with as many examples as fit; the least similar is left out first."""
        for left_out in range(len(shown)):
            asked = with_examples(messages, shown[left_out:])
            try:
                answer = self._ask(request, asked, grammar)
            except TaskError:
                continue  # most often it is longer than the model's context
            if answer.finish_reason != "length" or answer.completion_tokens >= self._options.max_tokens:
                return asked, answer
        return messages, self._ask(request, messages, grammar)

    def _ask(self, request: Request, messages: tuple[Message, ...], grammar: str | None) -> Completion:
        case = request.case
        prompt = Prompt(
            messages=messages,
            schema=case.labelling.decoding_schema,
            grammar=grammar,
            temperature=self._options.temperature_of(case),
            max_tokens=self._options.max_tokens,
            seed=SEED,
            model=case.overrides.model,
        )
        return self._asker.ask(prompt, request.ends)


def _read(request: Request, answer: Completion) -> tuple[Value | None, tuple[Reason, ...]]:
    """Return the value of an answer, None where it cannot be read, and the rules that it breaks."""
    try:
        value = request.case.labelling.decode(answer.text)
    except InvalidValue as error:
        cut = answer.finish_reason == "length"
        words = f"The answer was cut at {answer.completion_tokens} tokens." if cut else str(error)
        return None, (Reason("decode", "", words),)
    return value, request.case.rules.check(value, request.question)
