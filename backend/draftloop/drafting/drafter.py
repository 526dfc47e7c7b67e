"""Flow 1: tasks -> drafts, many at once, within one deadline.

Knows threads and deadlines. Does not know how a task is drafted (`steps`), Label Studio's protocol or
vLLM's. Every task gets exactly one draft; an error in one costs no other its draft.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import structlog

from draftloop.drafting.asking import Asker, ValueAsker
from draftloop.drafting.draft_cache import Cache, DraftCache
from draftloop.drafting.drafts import Draft, failed
from draftloop.drafting.escalation import Larger
from draftloop.drafting.near_duplicates import NearDuplicates, Neighbours
from draftloop.drafting.steps import Examples, Steps
from draftloop.drafting.versions import AskOptions, Part, Version, Versions, overrides_of
from draftloop.errors import DraftloopError, where
from draftloop.execution.coding import Coding
from draftloop.execution.runner import Execution
from draftloop.labelling.labelling import Question, Task
from draftloop.prompting.prompt import Case, Model, Refinement

_log = structlog.get_logger("backend")

BATCH_LIMIT_S = 600.0  # for a task drafted in bulk or late: longer than a restart of the model server


class Drafter:
    """Drafts tasks side by side in a pool of threads, one for each request to the model in flight.

    coding   runs the code of drafts, and code that humans ask to run
    """

    def __init__(
        self,
        model: Model,
        options: AskOptions | None = None,
        *,
        concurrency: int = 64,
        cache: Cache | None = None,
        neighbours: Neighbours | None = None,
        execution: Execution | None = None,
        larger: Larger | None = None,
        examples: Examples | None = None,
    ) -> None:
        """Prepare.

        Args:
            model: The model.
            options: How it is asked.
            concurrency: Tasks that are drafted at once, at most.
            cache: Keeps drafts of equal tasks.
            neighbours: Keeps answers to similar tasks.
            execution: Runs code; None where it is switched off.
            larger: Drafts what this model is not sure of.
            examples: Corrections that prompts show.
        """
        options = options or AskOptions()
        self._model = model
        self._larger = larger
        self._concurrency = concurrency
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="draft")
        self._closed = threading.Event()
        self._asker = Asker(model, timeout_s=options.timeout_s, patient=options.patient, closed=self._closed)
        self.coding = Coding(execution, self._closed)
        near = NearDuplicates(neighbours)
        self._steps = Steps(
            options,
            ValueAsker(self._asker, options),
            self.coding,
            DraftCache(cache, self.coding),
            near,
            examples,
            larger,
        )
        parts: tuple[Part, ...] = (
            near.manifest,
            *([examples.manifest] if examples is not None else []),
            overrides_of,
            self.coding.manifest,
            *([larger.manifest] if larger is not None else []),
        )
        self._versions = Versions(model.name, options, self.coding.environment, parts)

    @property
    def model(self) -> str:
        """Name of the model that drafts."""
        return self._model.name

    @property
    def unreachable_s(self) -> float:
        """For how many seconds the model server could not be reached; 0 when it can."""
        return self._asker.unreachable_s

    def version(self, case: Case) -> Version:
        """Return the version of a case's drafts; it takes a hash of all that decides them."""
        return self._versions.of(case)

    def draft(self, case: Case, tasks: Sequence[Task], *, deadline_s: float = 90.0) -> list[Draft]:
        """Draft all tasks at once.

        Returns:
            One draft per task, in order. What is not ready at the deadline is `failed`.
        """
        version = self.version(case)
        futures = self.submit(case, tasks, version, limit_s=deadline_s)
        wait(futures, timeout=deadline_s)
        return [self.result(future, task, version.name) for future, task in zip(futures, tasks, strict=True)]

    def submit(
        self,
        case: Case,
        tasks: Sequence[Task],
        version: Version,
        *,
        limit_s: float,
        refinement: Refinement | None = None,
    ) -> list[Future[Draft]]:
        """Begin to draft tasks. Read the futures with `result`.

        Args:
            case: The tasks' case.
            tasks: What to draft.
            version: That of the case.
            limit_s: How long each task is tried at most.
            refinement: What an annotator wants changed.
        """
        ends = time.monotonic() + limit_s
        return [
            self._pool.submit(self.draft_one, case, task, version.name, ends, refinement) for task in tasks
        ]

    def draft_one(
        self,
        case: Case,
        task: Task | Question,
        version: str,
        ends: float,
        refinement: Refinement | None = None,
    ) -> Draft:
        """Draft a task in this thread.

        Args:
            case: The task's case.
            task: What to draft.
            version: Name of the version that stands in the draft.
            ends: The deadline, on the monotonic clock.
            refinement: What an annotator wants changed.
        """
        model = self._versions.model_of(case)
        return self._steps.draft(case, task, model=model, version=version, ends=ends, refinement=refinement)

    def result(self, future: Future[Draft], task: Task, version: str) -> Draft:
        """Return the draft of a future; one that is not done is cancelled, and its draft is `failed`."""
        if not future.done():
            future.cancel()
            return failed(task.id, version, "No answer from the model within the deadline.")
        try:
            return future.result()
        except DraftloopError as error:
            return failed(task.id, version, str(error))
        except Exception as error:  # noqa: BLE001  a mistake of ours in one task must not cost the others theirs
            _log.error("draft broke", task=task.id, error=type(error).__name__, where=where(error))
            return failed(task.id, version, "The backend failed on this task; its log says where.")

    def stream(self, case: Case, tasks: Iterable[Task], version: Version | None = None) -> Iterator[Draft]:
        """Draft tasks as they come, for bulk work; few of them are in memory at a time.

        Args:
            case: The tasks' case.
            tasks: What to draft.
            version: That of the case, where it is known already.
        Returns:
            One draft per task, in the order in which they are ready.
        """
        name = (version or self.version(case)).name
        running: dict[Future[Draft], Task] = {}
        for task in tasks:
            ends = time.monotonic() + BATCH_LIMIT_S
            running[self._pool.submit(self.draft_one, case, task, name, ends)] = task
            # A few more than run at once, so that no thread waits for this loop.
            while len(running) >= self._concurrency * 2:
                yield from self._next_results(running, name)
        while running:
            yield from self._next_results(running, name)

    def close(self) -> None:
        """Stop the threads: running requests are waited for; nothing is tried again or begun."""
        self._closed.set()
        if self._larger is not None:
            self._larger.drafter.close()
        self._pool.shutdown(cancel_futures=True)

    def _next_results(self, running: dict[Future[Draft], Task], version: str) -> Iterator[Draft]:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield self.result(future, running.pop(future), version)
