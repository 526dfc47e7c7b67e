"""Label Studio's wire protocol: what `/setup` and `/predict` are answered.

Knows JSON bodies. Does not know HTTP (`web`) nor how a draft is made. What Label Studio does with each answer
decides its form: exactly N items for N tasks, an item without `result` is asked for again later, one version
string in `/setup` and in every prediction.

Source:
    Label Studio 1.23.2, measured: bodies, batching, what is stored and what is dropped.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from draftloop.drafting.drafter import Drafter
from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.execution.runner import describe_attempt
from draftloop.labelling.controls import Region
from draftloop.labelling.labelling import Task, Value
from draftloop.labelling.open_page import console_regions, overlay_regions
from draftloop.prompting.prompt import NO_OVERRIDES, Case, Overrides, Promoted, Refinement, parse_extra_params
from draftloop.serving.answers import Answers
from draftloop.serving.bodies import context_regions, current_value, is_task, project_id, read_task
from draftloop.serving.metrics import Metrics

_log = structlog.get_logger("backend")


class CaseFinder(Protocol):
    """Finds the case for a project."""

    def find(self, xml: str, wanted: str | None = None, overrides: Overrides = NO_OVERRIDES) -> Case:
        """Find by name, else by config, else make one from the config alone."""
        ...


class ProjectLedger(Protocol):
    """What is kept about projects: their set-up, promoted adapter, versions and webhooks."""

    def remember_setup(self, project: int, extra_params: dict[str, Any]) -> None:
        """Keep what `/setup` said about a project."""
        ...

    def setup_of(self, project: int) -> dict[str, Any]:
        """Return what `/setup` said about a project."""
        ...

    def promoted(self, project: int) -> Promoted | None:
        """Return the adapter that drafts for a project, if one was promoted."""
        ...

    def remember_version(self, project: int, version: str, manifest: dict[str, Any]) -> None:
        """Keep what a version stands for."""
        ...

    def versions(self, project: int | None = None) -> list[str]:
        """List versions."""
        ...

    def remember_webhook(self, project: int, *, with_main_login: bool) -> bool:
        """Store which login a project's webhook carries; return whether that is new."""
        ...

    def webhooks_with_main_login(self) -> list[int]:
        """List projects whose webhook carries the main login."""
        ...


@dataclass(frozen=True)
class ProtocolServer:
    """Answers the bodies that Label Studio sends to `/setup` and `/predict`."""

    drafter: Drafter
    cases: CaseFinder
    ledger: ProjectLedger
    answers: Answers
    metrics: Metrics = field(default_factory=Metrics, repr=False)
    # Raises where the model server does not serve a model of this name; None when there is nothing to ask.
    check_served: Callable[[str], None] | None = None
    # Raises where a model cannot write the texts of a schema; None when there is nothing to ask.
    check_schema: Callable[[Mapping[str, Any], str], None] | None = None

    def setup(self, body: dict[str, Any]) -> str:
        """Store what `/setup` says of a project; return the version that its drafts will have.

        Raises:
            SetupError: The config is not supported, or Label Studio does not send such a body.
        """
        project = project_id(body)
        wanted, overrides = parse_extra_params(body.get("extra_params"))
        xml = body.get("schema")
        if not isinstance(xml, str):
            raise SetupError("/setup without a labelling config.", hint="Send it as `schema`.")
        case = self.cases.find(xml, wanted, overrides.served_by(self.ledger.promoted(project)))
        if overrides.model and self.check_served is not None:
            try:
                self.check_served(overrides.model)
            except ServiceError as error:
                _log.warning("model not checked", project=project, error=str(error))
        if self.check_schema is not None:
            try:
                self.check_schema(case.labelling.decoding_schema, case.overrides.model)
            except ServiceError as error:
                _log.warning("schema not checked", project=project, error=str(error))
        self.ledger.remember_setup(
            project, {**({"case": wanted} if wanted else {}), **overrides.set_fields()}
        )
        version = self.drafter.version(case)
        self.ledger.remember_version(project, version.name, version.manifest)
        return version.name

    def predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Draft the tasks of a `/predict` body: exactly one item per task, in order.

        Raises:
            SetupError: Label Studio does not send such a body.
        """
        tasks, xml = body.get("tasks"), body.get("label_config")
        if not isinstance(tasks, list):
            raise SetupError("/predict without a list of tasks.", hint="Send them as `tasks`.")
        if not isinstance(xml, str):
            raise SetupError("/predict without a labelling config.", hint="Send it as `label_config`.")
        with self.metrics.predicts_in_flight.track_inprogress(), self.metrics.predict_seconds.time():
            return self._results(project_id(body), tasks, xml, context_regions(body))

    def _results(
        self, project: int, tasks: list[Any], xml: str, context: list[Region]
    ) -> list[dict[str, Any]]:
        """Draft every task; exactly one item per task, in order, whatever fails inside."""
        started = time.monotonic()
        try:
            wanted, overrides = parse_extra_params(self.ledger.setup_of(project))
            case = self.cases.find(xml, wanted, overrides.served_by(self.ledger.promoted(project)))
        except DraftloopError as error:
            # Label Studio shows no error of /predict and stores nothing: the log is the place to say it.
            _log.error("cannot draft", project=project, tasks=len(tasks), error=str(error))
            return [{} for _ in tasks]
        if context:
            return [self._refined(project, case, task, context) if is_task(task) else {} for task in tasks]
        readable = [read_task(task, project) for task in tasks if is_task(task)]
        if len(readable) < len(tasks):
            _log.warning("not drafted: no task with data", project=project, tasks=len(tasks) - len(readable))
        version = self.drafter.version(case)
        drafts = self.answers.answer(project, case, readable, version)
        statuses = Counter(draft.status if draft else "elsewhere" for draft in drafts)
        _log.info(
            "predict",
            project=project,
            case=case.name,
            version=version.name,
            tasks=len(tasks),
            drafts=dict(statuses),
            ms=round((time.monotonic() - started) * 1000),
        )
        in_order = iter(drafts)
        items = [next(in_order) if is_task(task) else None for task in tasks]
        return [(draft.prediction() if draft else None) or {} for draft in items]

    def _refined(
        self, project: int, case: Case, task: Mapping[str, Any], context: list[Region]
    ) -> dict[str, Any]:
        """Draft a task anew in the words of its annotator, or run the code that they wrote; else nothing.

        With Auto-Annotation on, Label Studio asks after every region that a human touches, and lays the
        answer over what they did: so it must be none unless they asked for one.
        """
        words = case.labelling.words(context)
        asked = read_task(task, project)
        program = case.labelling.program is not None
        if not (words or program):
            return {}
        current = current_value(case, asked, task, context)
        if program and (not words or self.answers.pages.has_answered(asked, words)):
            return self._ran(project, case, asked, current)
        draft = self.answers.pages.refine(project, case, asked, Refinement(words, current))
        prediction = draft.prediction() or {}
        if prediction and draft.value is not None:
            labelling = case.for_task(asked).labelling
            mark = uuid.uuid4().hex[:6]
            prediction["result"] = overlay_regions(labelling, current or {}, draft.value, asked, mark)
            if draft.run is not None:
                prediction["result"] += console_regions(labelling, describe_attempt(draft.run.last), mark)
        return prediction

    def _ran(self, project: int, case: Case, task: Task, current: Value | None) -> dict[str, Any]:
        """Run the code in the page, unless exactly that ran before; what the human wrote stays as it is.

        The answer holds no field of the form: the human may have gone on writing meanwhile.
        """
        if current is None or case.labelling.script(current) is None:
            return {}
        words = self.answers.pages.rerun(project, case, task, current)
        regions = console_regions(case.labelling, words, uuid.uuid4().hex[:6]) if words else []
        if not regions:
            return {}
        return {"result": regions, "score": 0.0, "model_version": self.drafter.version(case).name}

    def count_late(self) -> float:
        """Count the drafts that are not written yet; NaN while the ledger does not answer."""
        try:
            return self.answers.late()
        except DraftloopError:
            return float("nan")
