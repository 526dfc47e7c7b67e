"""Flow 1: task -> prompt -> value -> rules -> run -> prediction, for many tasks at once, within one deadline.

Knows the order of the steps and what is done when one fails. Does not know Label Studio's protocol or
vLLM's. Every task gets exactly one draft; a bad one never costs the others theirs.

The code of a code task is run besides, and goes back to the model with what came of it as long as it does
not end well: code that never does is `invalid`, with how it ended as the reason. So is code that could not
be run.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson
import structlog
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from backend.coding import Answered, Coding, run_reasons
from backend.core.drafts import Draft, escalated
from backend.core.duplicates import Neighbour, carried
from backend.core.labelling import Task, Value
from backend.core.prompting import (
    Case,
    Completion,
    Message,
    Model,
    Profile,
    Prompt,
    Refinement,
    Shown,
    preamble,
    render,
    render_retry,
    showing,
)
from backend.core.rules import Reason
from backend.core.runs import Run
from backend.core.scoring import score
from backend.errors import (
    DraftloopError,
    InvalidValue,
    ServiceError,
    SetupError,
    TaskError,
    Unreachable,
    where,
)
from backend.runner import Execution

_log = structlog.get_logger("backend")

# Raised when the flow itself changes what it would answer to the same case, model and task.
_FLOW = 2
_SEED = 0  # a draft is repeatable
BATCH_LIMIT_S = 600.0  # of one task drafted in bulk or late: its model server may restart meanwhile
_LARGER_SHARE = 0.9  # of the time left that a larger model gets: the small one's draft is still in time then


class Cache(Protocol):
    """Keeps answers by key; never fails, at worst it forgets."""

    def get(self, key: str) -> bytes | None:
        """Give what was put under a key, or None."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Keep a value under a key."""
        ...


class Neighbours(Protocol):
    """Finds earlier answers to similar questions; never fails, at worst it finds nothing."""

    reuse: bool

    def find(self, version: str, question: str) -> Neighbour | None:
        """Give the most alike of the earlier questions, if one is alike enough."""
        ...

    def put(self, version: str, question: str, answer: str, score: float) -> None:
        """Keep an answer under its question."""
        ...


class Examples(Protocol):
    """Finds corrections like a task in a frozen snapshot: the same ones for the same task."""

    def told(self, case: Case) -> dict[str, Any]:
        """Give what decides which ones a case's tasks get; empty where they get none."""
        ...

    def find(self, case: Case, task: Task, question: str) -> tuple[Shown, ...]:
        """Give those most like a task, the most alike last.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        ...


@dataclass(frozen=True)
class Larger:
    """Who drafts again what a small model is not sure of.

    drafter     of the larger model, without a cache
    threshold   drafts that score below it are drafted again, 0..1
    """

    drafter: "Drafter"
    threshold: float


class Drafter:
    """Drafts tasks with one model; keeps a pool of threads, one per request in flight."""

    def __init__(  # noqa: PLR0913  one each of what a deployment may choose
        self,
        model: Model,
        *,
        profile: Profile = "full",
        bind_quotes: bool = True,
        temperature: float = 0.3,
        max_tokens: int = 8192,
        concurrency: int = 64,
        timeout_s: float = 60.0,
        cache: Cache | None = None,
        neighbours: Neighbours | None = None,
        execution: Execution | None = None,
        larger: Larger | None = None,
        examples: Examples | None = None,
        patient: bool = True,  # with a server that fails, as long as there is time
    ) -> None:
        self._model = model
        self._cache = cache
        self._neighbours = neighbours
        self._examples = examples
        self._profile: Profile = profile
        self._bind_quotes = bind_quotes
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._larger = larger
        self._patient = patient
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="draft")
        self._closed = threading.Event()
        self._coding = Coding(execution, self._closed)
        self._unreachable_since: float | None = None

    @property
    def model(self) -> str:
        """Name of the model that drafts."""
        return self._model.name

    def manifest(self, case: Case) -> dict[str, Any]:
        """Give everything that decides what a draft looks like; the version is its hash."""
        return {
            "flow": _FLOW,
            "model": self._model_of(case),
            "profile": self._profile_of(case),
            "case": case.name,
            "prompt": [
                [message.role, message.content]
                for message in preamble(case, self._profile_of(case), self._coding.environment(case))
            ],
            "decoding_schema": case.labelling.decoding_schema,
            "validating_schema": case.labelling.validating_schema,
            "config": case.labelling.config_hash,
            "sampling": {
                "temperature": self._temperature_of(case),
                "max_tokens": self._max_tokens,
                "seed": _SEED,
            },
            **self._otherwise(case),
        }

    def _otherwise(self, case: Case) -> dict[str, Any]:
        """Give what decides only some versions; the others keep theirs."""
        told: dict[str, Any] = {}
        if self._bind_quotes and case.rules.quoted:
            told["quotes"] = "bound"
        if self._neighbours is not None:
            told["near_duplicates"] = "reuse" if self._neighbours.reuse else "example"
        if self._examples is not None and (examples := self._examples.told(case)):
            told["examples"] = examples
        if case.overrides.told():
            told["overrides"] = case.overrides.told()
        if case.labelling.program is not None:
            told["execution"] = self._coding.parts()
        if self._larger is not None:
            theirs = self._larger.drafter.manifest(_elsewhere(case))
            told["cascade"] = {
                "threshold": self._larger.threshold,
                **{key: theirs[key] for key in ("model", "profile", "prompt", "examples") if key in theirs},
            }
        return told

    def version(self, case: Case) -> str:
        """Give the version of this case's drafts: `<model>-<hash10>`."""
        manifest = json.dumps(self.manifest(case), sort_keys=True, ensure_ascii=False)
        return f"{self._model_of(case)}-{hashlib.sha256(manifest.encode()).hexdigest()[:10]}"

    def _model_of(self, case: Case) -> str:
        return case.overrides.model or self._model.name

    def _profile_of(self, case: Case) -> Profile:
        return case.overrides.profile or self._profile

    def _temperature_of(self, case: Case) -> float:
        wanted = case.overrides.temperature
        return self._temperature if wanted is None else wanted

    def draft(self, case: Case, tasks: Sequence[Task], *, deadline_s: float = 90.0) -> list[Draft]:
        """Draft all tasks at once.

        Returns:
            One draft per task, in order. What is not ready at the deadline is `failed`.
        """
        futures = self.submit(case, tasks, limit_s=deadline_s)
        wait(futures, timeout=deadline_s)
        version = self.version(case)
        return [self.result(future, task, version) for future, task in zip(futures, tasks, strict=True)]

    def submit(
        self, case: Case, tasks: Sequence[Task], *, limit_s: float, refinement: Refinement | None = None
    ) -> list[Future[Draft]]:
        """Begin to draft tasks; each is tried for so long at most. Read the futures with `result`.

        Args:
            case: The tasks' case.
            tasks: What to draft.
            limit_s: Time for each, in seconds.
            refinement: What an annotator wants changed.
        """
        ends = time.monotonic() + limit_s
        version = self.version(case)
        return [self._pool.submit(self.draft_one, case, task, version, ends, refinement) for task in tasks]

    def result(self, future: Future[Draft], task: Task, version: str) -> Draft:
        """Give what came of a future; one that is not done is cancelled and `failed`."""
        if not future.done():
            future.cancel()
            return _failed(task, version, "No answer from the model within the deadline.")
        try:
            return future.result()
        except DraftloopError as error:
            return _failed(task, version, str(error))
        except Exception as error:  # noqa: BLE001  a mistake of ours in one task must not cost the others theirs
            _log.error("draft broke", task=task.id, error=type(error).__name__, where=where(error))
            return _failed(task, version, "The backend failed on this task; its log says where.")

    @property
    def unreachable_s(self) -> float:
        """Seconds since when nobody answers at the model server; 0 when somebody does."""
        since = self._unreachable_since
        return 0.0 if since is None else time.monotonic() - since

    def stream(self, case: Case, tasks: Iterable[Task]) -> Iterator[Draft]:
        """Draft tasks as they come, holding few of them: for bulk work.

        Returns:
            One draft per task, in the order in which they are ready.
        """
        version = self.version(case)
        running: dict[Future[Draft], Task] = {}
        for task in tasks:
            ends = time.monotonic() + BATCH_LIMIT_S
            running[self._pool.submit(self.draft_one, case, task, version, ends)] = task
            # A few more than run at once, so that no thread waits for this loop.
            while len(running) >= self._concurrency * 2:
                yield from self._finished(running, version)
        while running:
            yield from self._finished(running, version)

    def close(self) -> None:
        """Stop the threads: what is asked right now is waited for, nothing is tried again or begun."""
        self._closed.set()
        if self._larger is not None:
            self._larger.drafter.close()
        self._pool.shutdown(cancel_futures=True)

    def _finished(self, running: dict[Future[Draft], Task], version: str) -> Iterator[Draft]:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield self.result(future, running.pop(future), version)

    def draft_one(
        self, case: Case, task: Task, version: str, ends: float, refinement: Refinement | None = None
    ) -> Draft:
        """Draft a task in this thread.

        Args:
            case: The task's case.
            task: What to draft.
            version: Stands in the draft.
            ends: The deadline, on the monotonic clock.
            refinement: What an annotator wants changed.
        """
        started = time.monotonic()
        try:
            case = case.for_task(task)
            environment = self._coding.environment(case)
            messages = render(case, task, self._profile_of(case), refinement, environment=environment)
            shown = self._shown(case, task, messages) if refinement is None else ()
            key = _cache_key(version, showing(messages, shown), case)
            known = self._known(case, task, version, key, ends)
            if known is not None:
                return known
            # What a human asked for, options that only one task has, and code hold for nothing else.
            own = refinement or case.labelling.dynamic or case.labelling.program
            near = None if own else self._neighbours
            neighbour = near.find(version, messages[-1].content) if near else None
            if near and neighbour and near.reuse:
                value = carried(case, task, messages[-1].content, neighbour)
                if value is not None:
                    draft = _reused(case, task, version, value, neighbour, started)
                    return replace(draft, model=self._model_of(case))
            grammar = case.grammar(task) if self._bind_quotes else None
            if neighbour is not None:
                shown = (*shown, Shown(neighbour.question, neighbour.answer))
            found = self._answers(case, task, messages, grammar, ends, shown)
            found = self._coding.mended(
                case,
                task,
                found,
                lambda runs: self._answers(case, task, (*messages, *runs), grammar, ends),
                version=version,
                ends=ends,
            )
        except (ServiceError, SetupError) as error:
            return _failed(task, version, str(error), started)
        except TaskError as error:
            refused = Draft(
                task.id,
                "undecodable",
                version,
                reasons=(Reason("engine", "", str(error)),),
                ms=_ms(started),
                model=self._model_of(case),
            )
            return self._sure(refused, case, task, ends, refinement)
        value, reasons, answers = found.value, found.reasons, found.answers
        kept = answers[-1]
        total = score(kept.text, kept.tokens)
        draft = Draft(
            task_id=task.id,
            status="undecodable" if value is None else "invalid" if reasons else "ok",
            version=version,
            value=value,
            regions=[] if value is None else case.labelling.to_regions(value, task).regions,
            score=0.0 if reasons else total.total,
            field_scores=dict(total.fields),
            reasons=reasons,
            raw=kept.text,
            attempts=len(answers),
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
            cached_tokens=sum(answer.cached_tokens for answer in answers),
            ms=_ms(started),
            near_duplicate="example" if neighbour else "",
            run=found.run,
            model=self._model_of(case),
        )
        draft = self._sure(draft, case, task, ends, refinement)
        if draft.cascade != "failed":
            self._keep(key, draft)
            if near and draft.status == "ok":
                near.put(version, messages[-1].content, draft.raw, draft.score)
        return draft

    def _sure(
        self, draft: Draft, case: Case, task: Task, ends: float, refinement: Refinement | None
    ) -> Draft:
        """Have the larger model draft what this one is not sure of; its failure costs nothing but that."""
        if self._larger is None:
            return draft
        if draft.status == "ok" and draft.score >= self._larger.threshold:
            return replace(draft, cascade="kept")
        ends -= (1 - _LARGER_SHARE) * max(0.0, ends - time.monotonic())
        theirs = self._larger.drafter.draft_one(_elsewhere(case), task, draft.version, ends, refinement)
        if theirs.status == "failed":
            _log.warning("not escalated", task=task.id, error=str(theirs.reasons[0]))
        return escalated(draft, theirs)

    def _known(self, case: Case, task: Task, version: str, key: str, ends: float) -> Draft | None:
        """Give the draft of an equal task from the cache; its code has run, or is run again."""
        found = self._cache.get(key) if self._cache else None
        if found is None:
            return None
        started = time.monotonic()
        kept = orjson.loads(found)
        value = case.labelling.decode(kept["raw"])
        run = None
        if kept.get("run"):
            try:
                run = self._coding.rerun(case, task, value, ends, origin="draft")
            except DraftloopError:
                return None
            if run is None or run_reasons(case, task, run):
                return None
        return Draft(
            task_id=task.id,
            status="ok",
            version=version,
            value=value,
            regions=case.labelling.to_regions(value, task).regions,
            score=kept["score"],
            field_scores=kept["field_scores"],
            raw=kept["raw"],
            ms=_ms(started),
            from_cache=True,
            run=run,
            model=kept.get("model") or self._model_of(case),
        )

    def _keep(self, key: str, draft: Draft) -> None:
        """Cache what passed every rule; a failure is asked again, it may have been bad luck."""
        if self._cache and draft.status == "ok":
            kept = {"raw": draft.raw, "score": draft.score, "field_scores": draft.field_scores}
            if draft.run is not None:
                kept["run"] = draft.run.key
            if draft.cascade:
                kept["model"] = draft.model
            self._cache.put(key, orjson.dumps(kept))

    def _answers(
        self,
        case: Case,
        task: Task,
        messages: tuple[Message, ...],
        grammar: str | None,
        ends: float,
        shown: Sequence[Shown] = (),
    ) -> Answered:
        """Ask, and where the answer breaks its rules once more; the answer that is kept comes last."""
        messages, first = self._first(case, messages, grammar, ends, shown)
        value, reasons = self._read(case, task, first)
        if not reasons:
            return Answered(value, reasons, (first,))
        try:
            second = self._ask(case, render_retry(case, messages, first.text, reasons), grammar, ends)
        except TaskError:
            # Most often the retry is longer than the model's context.
            return Answered(value, reasons, (first,))
        second_value, second_reasons = self._read(case, task, second)
        # Keep the later answer only if it is better: a tuned model has never seen its own answer sent back.
        better = second_value is not None and (value is None or len(second_reasons) < len(reasons))
        if better or (value is None and second_value is None):
            return Answered(second_value, second_reasons, (first, second))
        return Answered(value, reasons, (second, first))

    def _shown(self, case: Case, task: Task, messages: Sequence[Message]) -> tuple[Shown, ...]:
        return self._examples.find(case, task, messages[-1].content) if self._examples else ()

    def _first(
        self,
        case: Case,
        messages: tuple[Message, ...],
        grammar: str | None,
        ends: float,
        shown: Sequence[Shown],
    ) -> tuple[tuple[Message, ...], Completion]:
        """Ask for the first time, showing as much as there is room for; the least alike is left out first."""
        for left_out in range(len(shown)):
            asked = showing(messages, shown[left_out:])
            try:
                answer = self._ask(case, asked, grammar, ends)
            except TaskError:
                continue  # most often it is longer than the model's context
            if answer.finish_reason != "length" or answer.completion_tokens >= self._max_tokens:
                return asked, answer
        return messages, self._ask(case, messages, grammar, ends)

    def rerun(self, case: Case, task: Task, value: Value, *, limit_s: float) -> Run | None:
        """Run exactly the code that a human has in the page; what ran already is not run again.

        Returns:
            The run; None where the value holds no code, or code is not run here.
        Raises:
            TaskError: The task's input files are not there, or not what they were.
            SetupError: Code cannot be contained here.
            ServiceError: The sandbox did not do its part.
        """
        return self._coding.rerun(case, task, value, time.monotonic() + limit_s, origin="human")

    def _ask(self, case: Case, messages: tuple[Message, ...], grammar: str | None, ends: float) -> Completion:
        prompt = Prompt(
            messages=messages,
            schema=case.labelling.decoding_schema,
            grammar=grammar,
            temperature=self._temperature_of(case),
            max_tokens=self._max_tokens,
            seed=_SEED,
            model=case.overrides.model,
        )
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise ServiceError("No time was left before the deadline.", hint="Send fewer tasks at once.")
        if not self._patient:
            left_s = min(left_s, self._timeout_s)
        for attempt in Retrying(
            retry=retry_if_exception(self._worth_again),
            stop=stop_before_delay(left_s) | stop_when_event_set(self._closed),
            sleep=sleep_using_event(self._closed),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            reraise=True,
        ):
            with attempt:
                timeout_s = max(0.1, min(self._timeout_s, ends - time.monotonic()))
                try:
                    answer = self._model.complete(prompt, timeout_s=timeout_s)
                except Unreachable:
                    self._unreachable_since = self._unreachable_since or time.monotonic()
                    raise
                self._unreachable_since = None
                return answer
        raise AssertionError("tenacity either returns or raises")

    def _worth_again(self, error: BaseException) -> bool:
        return isinstance(error, ServiceError) and (self._patient or not isinstance(error, Unreachable))

    def _read(self, case: Case, task: Task, answer: Completion) -> tuple[Value | None, tuple[Reason, ...]]:
        try:
            value = case.labelling.decode(answer.text)
        except InvalidValue as error:
            cut = answer.finish_reason == "length"
            words = f"The answer was cut at {answer.completion_tokens} tokens." if cut else str(error)
            return None, (Reason("decode", "", words),)
        return value, case.rules.check(value, task)


def _elsewhere(case: Case) -> Case:
    """Give a case for the larger model, whose server knows neither adapters nor models of this one."""
    return replace(case, overrides=case.overrides.elsewhere())


def _reused(
    case: Case, task: Task, version: str, value: Value, neighbour: Neighbour, started: float
) -> Draft:
    return Draft(
        task_id=task.id,
        status="ok",
        version=version,
        value=value,
        regions=case.labelling.to_regions(value, task).regions,
        score=neighbour.score * neighbour.similarity,
        raw=neighbour.answer,
        ms=_ms(started),
        near_duplicate="reused",
    )


def _cache_key(version: str, messages: Sequence[Message], case: Case) -> str:
    """Name an answer by everything that decides it: the version, the prompt, the options of the task."""
    parts: list[Any] = [version, *(part for message in messages for part in (message.role, message.content))]
    if case.labelling.dynamic:
        parts.append(case.labelling.decoding_schema)
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def _failed(task: Task, version: str, words: str, started: float | None = None) -> Draft:
    return Draft(
        task.id,
        "failed",
        version,
        reasons=(Reason("engine", "", words),),
        ms=0.0 if started is None else _ms(started),
    )


def _ms(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)
