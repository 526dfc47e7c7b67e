"""Drafters for the verbs, made from the settings; shared parts are made once."""

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from draftloop.app import (
    make_adapters,
    make_cache,
    make_drafter,
    make_examples,
    make_larger,
    make_larger_drafter,
    make_larger_model,
    make_model,
    make_neighbours,
    make_publisher,
)
from draftloop.app.execution import make_execution
from draftloop.cli.terminal import Meter, out
from draftloop.drafting.bulk import PredictionStore, Records, draft_project
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.steps import Examples
from draftloop.execution.artifacts import Artifacts
from draftloop.labelstudio import LabelStudio, Project
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case
from draftloop.settings import Settings


class Drafters:
    """Makes drafters, and closes them with the models' clients; a context manager.

    adapters  the registry
    model     the client of the model that drafts
    larger    that of a cascade's larger model; None where there is no cascade
    cases     all cases
    """

    def __init__(self, settings: Settings) -> None:
        """Make the shared parts; no request is sent yet.

        Raises:
            SetupError: A setting or a case is wrong.
        """
        self._settings = settings
        self._open = ExitStack()
        self._made: list[Drafter] = []
        self.adapters = make_adapters(settings.store)
        self.model = self._open.enter_context(make_model(settings.model, self.adapters))
        self.larger = make_larger_model(settings)
        if self.larger is not None:
            self._open.enter_context(self.larger)
        self.cases = Cases(settings.store.cases_dir)
        self._artifacts = Artifacts(settings.store.artifacts_url)
        self._execution = make_execution(settings.execution, self._artifacts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error nothing is waited for: the process ends.
        if kind is None:
            for drafter in self._made:
                drafter.close()
        self._open.close()

    @cached_property
    def _examples(self) -> Examples | None:
        return make_examples(self._settings.store)

    def full(self) -> Drafter:
        """Make the drafter that the backend has: with caches and the cascade.

        Raises:
            SetupError: A cache's address is wrong, or the cascade has no threshold.
        """
        settings = self._settings
        return self._keep(
            make_drafter(
                self.model,
                settings.model,
                make_cache(settings.store),
                make_neighbours(settings.store),
                self._execution,
                make_larger(self.larger, settings, self._execution, self._examples),
                self._examples,
            )
        )

    def uncached(self) -> Drafter:
        """Make one that asks the model for every draft."""
        return self.showing(self._examples)

    def showing(self, examples: Examples | None) -> Drafter:
        """Make one that asks the model for every draft, with these corrections in its prompts."""
        made = make_drafter(self.model, self._settings.model, execution=self._execution, examples=examples)
        return self._keep(made)

    def of_larger_model(self, model: VllmModel) -> Drafter:
        """Make one that asks the larger model for every draft."""
        return self._keep(make_larger_drafter(model, self._settings, self._execution, self._examples))

    def store(
        self, label_studio: LabelStudio, project: Project, case: Case, ledger: Ledger, records: Path | None
    ) -> PredictionStore:
        """Make the store of a project's drafts.

        Args:
            label_studio: Where the project is.
            project: The project.
            case: Its case.
            ledger: Where drafts are remembered.
            records: Record file; `prelabel-PROJECT.jsonl` if not given.
        Raises:
            ServiceError: The record file cannot be written.
        """
        lines = Records(records or Path(f"prelabel-{project.id}.jsonl"))
        publish = make_publisher(self._settings, self._artifacts, label_studio)
        return PredictionStore(label_studio, project, case, lines, ledger, publish)

    def _keep(self, drafter: Drafter) -> Drafter:
        self._made.append(drafter)
        return drafter


def draft_tasks(
    drafter: Drafter,
    case: Case,
    store: PredictionStore,
    *,
    limit: int = 0,
    unbegun: bool = False,
    again: bool = False,
) -> bool:
    """Draft a project's tasks and print what there is to do, its progress and the result.

    Args:
        drafter: Drafts.
        case: The project's case.
        store: Where the drafts go; it is closed in the end.
        limit: Tasks at most; 0 is all.
        unbegun: Leave tasks alone that a human has begun.
        again: Draft those too that have a draft of this version.
    Returns:
        Whether every task has its draft.
    Raises:
        ServiceError: Nothing is drafted any more, or cannot be stored.
    """
    with Meter() as meter:
        drafted = draft_project(
            drafter,
            case,
            store,
            limit=limit,
            unbegun=unbegun,
            again=again,
            announce=out.print,
            progress=meter,
        )
    for line in drafted.describe():
        out.print(line)
    return drafted.is_complete
