"""Label Studio's wire protocol on Flask: health, setup, predict, webhook, versions, jobs, metrics.

Knows JSON bodies, status codes and basic auth, that of `pages` too. Does not know how a draft is made.
What Label Studio does with each answer decides its form: exactly N items for N tasks, an item without
`result` is asked for again later, one version string in `/setup` and in every prediction.

Source:
    Label Studio 1.23.2, measured: bodies, batching, what is stored and what is dropped.
"""

import hmac
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from flask import Flask, Response, jsonify, request
from werkzeug.datastructures import Authorization
from werkzeug.exceptions import HTTPException

from backend.answers import Answers
from backend.core.controls import Region
from backend.core.labelling import Task, Value
from backend.core.prompting import NO_OVERRIDES, Case, Overrides, Promoted, Refinement, parse_extra_params
from backend.edge.metrics import Metrics
from backend.errors import DraftloopError, ServiceError, SetupError, TaskError, where
from backend.jobs import Jobs
from backend.pages import Artifacts, Pages
from backend.predict import Drafter
from backend.runner import told

_log = structlog.get_logger("backend")
_READY_S = 5.0  # how long an answer of the readiness probe is good for
_OPEN = frozenset({"/", "/health", "/ready"})  # what an orchestrator asks without a password
_VIEWED = ("/a/", "/runs/")  # what annotators open


class CaseFinder(Protocol):
    """Finds the case for a project."""

    def find(self, xml: str, wanted: str | None = None, overrides: Overrides = NO_OVERRIDES) -> Case:
        """Find by name, else by config, else make one from the config alone."""
        ...


class Memory(Protocol):
    """What must outlive a request."""

    def remember_setup(self, project: int, extra_params: dict[str, Any]) -> None:
        """Keep what `/setup` said about a project."""
        ...

    def setup_of(self, project: int) -> dict[str, Any]:
        """Give what `/setup` said about a project."""
        ...

    def promoted(self, project: int) -> Promoted | None:
        """Give the adapter that drafts for a project, if one was promoted."""
        ...

    def remember_version(self, project: int, version: str, manifest: dict[str, Any]) -> None:
        """Keep what a version stands for."""
        ...

    def versions(self, project: int | None = None) -> list[str]:
        """List versions."""
        ...


class _Readiness:
    """Asks the probe again after a few seconds, one caller at a time, however many ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._trouble: DraftloopError | None = None

    def trouble(self, probe: Callable[[], None]) -> DraftloopError | None:
        """Say what keeps the model from drafting; None when nothing does."""
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    probe()
                    self._trouble = None
                except DraftloopError as error:
                    self._trouble = error
                self._until = time.monotonic() + _READY_S
            return self._trouble


@dataclass(frozen=True)
class Server:
    """What the protocol is served from."""

    drafter: Drafter
    cases: CaseFinder
    memory: Memory
    answers: Answers
    user: str = ""
    password: str = ""
    # Raises while the model cannot draft; None when there is nothing to ask.
    probe: Callable[[], None] | None = None
    metrics: Metrics = field(default_factory=Metrics, repr=False)
    # Raises where the model server does not serve a model of this name; None when there is nothing to ask.
    check_served: Callable[[str], None] | None = None
    # Runs and their files; None where there are none to open.
    artifacts: Artifacts | None = None
    # What trains; None where nothing does.
    jobs: Jobs | None = None
    # A second login, for annotators: it opens runs and files alone.
    viewer_user: str = ""
    viewer_password: str = ""
    _readiness: _Readiness = field(default_factory=_Readiness, repr=False)

    def wsgi(self) -> Flask:
        """Make the WSGI application."""
        self.metrics.late.set_function(self._late)
        app = Flask("draftloop")
        app.before_request(self._check_auth)
        app.register_error_handler(DraftloopError, _told)
        app.register_error_handler(HTTPException, _refused)
        app.register_error_handler(Exception, _broken)
        app.add_url_rule("/", "root", self._health)
        app.add_url_rule("/health", "health", self._health)
        app.add_url_rule("/ready", "ready", self._ready)
        app.add_url_rule("/setup", "setup", self._setup, methods=["POST"])
        app.add_url_rule("/predict", "predict", self._predict, methods=["POST"])
        app.add_url_rule("/webhook", "webhook", self._webhook, methods=["POST"])
        app.add_url_rule("/versions", "versions", self._versions)
        app.add_url_rule("/jobs", "jobs", self._jobs)
        app.add_url_rule("/metrics", "metrics", self._metrics)
        if self.artifacts is not None:
            Pages(self.artifacts).add_to(app)
        return app

    def setup(self, body: dict[str, Any]) -> str:
        """Take in what `/setup` says of a project; give the version that its drafts will have.

        Raises:
            SetupError: The config is not supported, or the body is none that Label Studio sends.
        """
        project = _project(body)
        wanted, overrides = parse_extra_params(body.get("extra_params"))
        xml = body.get("schema")
        if not isinstance(xml, str):
            raise SetupError("/setup without a labelling config.", hint="Send it as `schema`.")
        case = self.cases.find(xml, wanted, overrides.served_by(self.memory.promoted(project)))
        if overrides.model and self.check_served is not None:
            try:
                self.check_served(overrides.model)
            except ServiceError as error:
                _log.warning("model not checked", project=project, error=str(error))
        self.memory.remember_setup(project, {**({"case": wanted} if wanted else {}), **overrides.told()})
        version = self.drafter.version(case)
        self.memory.remember_version(project, version, self.drafter.manifest(case))
        return version

    def predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Draft the tasks of a `/predict` body: exactly one item per task, in order.

        Raises:
            SetupError: The body is none that Label Studio sends.
        """
        tasks, xml = body.get("tasks"), body.get("label_config")
        if not isinstance(tasks, list):
            raise SetupError("/predict without a list of tasks.", hint="Send them as `tasks`.")
        if not isinstance(xml, str):
            raise SetupError("/predict without a labelling config.", hint="Send it as `label_config`.")
        with self.metrics.predicts_in_flight.track_inprogress(), self.metrics.predict_seconds.time():
            return self._results(_project(body), tasks, xml, _context(body))

    def _check_auth(self) -> Response | None:
        viewed = request.path.startswith(_VIEWED)
        logins = [(self.user, self.password)]
        if viewed:
            logins.append((self.viewer_user, self.viewer_password))
        logins = [login for login in logins if login[0]]
        if request.path in _OPEN or not logins:
            return None
        given = request.authorization
        if given is not None and given.type == "basic" and any(_is(given, *login) for login in logins):
            return None
        answer = _error("Wrong or missing user and password.", "Give the backend's basic auth.", 401)
        answer.headers["WWW-Authenticate"] = 'Basic realm="draftloop"'
        return answer

    def _health(self) -> Response:
        return jsonify(status="UP", model_class="draftloop")

    def _ready(self) -> Response:
        trouble = None if self.probe is None else self._readiness.trouble(self.probe)
        if trouble is None:
            return jsonify(status="ready", model=self.drafter.model)
        return _error(trouble.message, trouble.hint, 503)

    def _setup(self) -> Response:
        try:
            return jsonify(model_version=self.setup(_body()))
        except SetupError as error:
            # Label Studio shows the status alone, so the sentence must stand in the log.
            _log.error("set-up refused", error=error.message, hint=error.hint)
            raise

    def _predict(self) -> Response:
        return jsonify(results=self.predict(_body()))

    def _metrics(self) -> Response:
        return Response(self.metrics.page(), content_type=self.metrics.content_type)

    def _webhook(self) -> Response:
        body = _body()
        action, project, annotations = _event(body)
        # A hint only: what was corrected is read by sync, with `updated_at` as the truth.
        _log.info("webhook", action=action, project=project)
        if self.jobs is not None and action == "START_TRAINING":
            try:
                job, new = self.jobs.ask(project, annotations)
            except SetupError as error:
                _log.error("not trained", project=project, error=error.message, hint=error.hint)
                raise
            return jsonify(status="started" if new else "running", id=job.id)
        if self.jobs is not None and action.startswith("ANNOTATION"):
            self.jobs.note(project, annotations)
        return jsonify(status="noted")

    def _jobs(self) -> Response:
        jobs = self.jobs.listed(request.args.get("project", type=_id)) if self.jobs else []
        return jsonify(jobs=jobs)

    def _versions(self) -> Response:
        return jsonify(versions=self.memory.versions(request.args.get("project", type=_id)))

    def _results(
        self, project: int, tasks: list[Any], xml: str, context: list[Region]
    ) -> list[dict[str, Any]]:
        """Draft every task; exactly one item per task, in order, whatever fails inside."""
        started = time.monotonic()
        try:
            wanted, overrides = parse_extra_params(self.memory.setup_of(project))
            case = self.cases.find(xml, wanted, overrides.served_by(self.memory.promoted(project)))
        except DraftloopError as error:
            # Label Studio shows no error of /predict and stores nothing: the log is the place to say it.
            _log.error("cannot draft", project=project, tasks=len(tasks), error=str(error))
            return [{} for _ in tasks]
        if context:
            return [self._refined(project, case, task, context) if _is_task(task) else {} for task in tasks]
        readable = [Task(task["id"], task["data"]) for task in tasks if _is_task(task)]
        drafts = self.answers.answer(project, case, readable)
        statuses = Counter(draft.status if draft else "elsewhere" for draft in drafts)
        _log.info(
            "predict",
            project=project,
            case=case.name,
            version=self.drafter.version(case),
            tasks=len(tasks),
            drafts=dict(statuses),
            ms=round((time.monotonic() - started) * 1000),
        )
        in_order = iter(drafts)
        items = [next(in_order) if _is_task(task) else None for task in tasks]
        return [(draft.prediction() if draft else None) or {} for draft in items]

    def _refined(
        self, project: int, case: Case, task: Mapping[str, Any], context: list[Region]
    ) -> dict[str, Any]:
        """Draft a task anew in the words of its annotator, or run the code that they wrote; else nothing.

        With Auto-Annotation on, Label Studio asks after every region that a human touches, and lays the
        answer over what they did: so it must be none unless they asked for one.
        """
        words = case.labelling.words(context)
        found = Task(task["id"], task["data"])
        program = case.labelling.program is not None
        if not (words or program):
            return {}
        current = _current(case, found, task, context)
        if program and (not words or self.answers.has_answered(found, words)):
            return self._ran(project, case, found, current)
        draft = self.answers.refine(project, case, found, Refinement(words, current))
        prediction = draft.prediction() or {}
        if prediction and draft.value is not None:
            labelling = case.for_task(found).labelling
            mark = uuid.uuid4().hex[:6]
            prediction["result"] = labelling.relaid(current or {}, draft.value, found, mark)
            if draft.run is not None:
                prediction["result"] += labelling.console(told(draft.run.last), mark)
        return prediction

    def _ran(self, project: int, case: Case, task: Task, current: Value | None) -> dict[str, Any]:
        """Run the code in the page, unless exactly that ran before; what the human wrote stays as it is.

        The answer holds no field of the form: the human may have gone on writing meanwhile.
        """
        if current is None or case.labelling.script(current) is None:
            return {}
        words = self.answers.rerun(project, case, task, current)
        regions = case.labelling.console(words, uuid.uuid4().hex[:6]) if words else []
        if not regions:
            return {}
        return {"result": regions, "score": 0.0, "model_version": self.drafter.version(case)}

    def _late(self) -> float:
        try:
            return self.answers.late()
        except DraftloopError:
            return float("nan")  # the ledger does not answer: unknown, which is not none


def _is(given: Authorization, user: str, password: str) -> bool:
    """Compare a login, in the same time whatever is wrong with it."""
    same_user = hmac.compare_digest((given.username or "").encode(), user.encode())
    same_password = hmac.compare_digest((given.password or "").encode(), password.encode())
    return same_user and same_password


def _is_task(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict) and _is_id(task.get("id"))


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63  # as in SQL


def _id(digits: str) -> int:
    number = int(digits)
    if not _is_id(number):
        raise ValueError(digits)
    return number


def _told(error: DraftloopError) -> Response:
    return _error(error.message, error.hint, 400)


def _refused(error: HTTPException) -> Response:
    return _error(error.description or error.name, "", error.code or 500)


def _broken(error: Exception) -> Response:
    _log.error("request failed", path=request.path, error=type(error).__name__, where=where(error))
    return _error("The backend failed on this request.", "See its log.", 500)


def _body() -> dict[str, Any]:
    try:
        body = request.get_json(silent=True, force=True)
    except RecursionError:
        body = None  # nested without end: not what Label Studio sends
    if not isinstance(body, dict):
        raise SetupError("The body is not a JSON object.", hint="Send one, as Label Studio does.")
    return body


def _project(body: dict[str, Any]) -> int:
    """Read the project's id from "<id>.<created>"; 0 where there is none, as in a test call."""
    head = str(body.get("project") or "").split(".")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) < 15 else 0


def _event(body: dict[str, Any]) -> tuple[str, int, int]:
    """Read a webhook's action, the id of its project, and how many annotations that has; 0 where unsaid."""
    action, told = str(body.get("action"))[:40], body.get("project")
    if not isinstance(told, dict):
        return action, _project(body), 0
    numbers: list[Any] = [told.get("id"), told.get("total_annotations_number")]
    project, annotations = (int(number) if _is_id(number) else 0 for number in numbers)
    return action, project, annotations


def _context(body: dict[str, Any]) -> list[Region]:
    """Read the regions of an interactive call; none in every other call."""
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    return _regions(context)


def _regions(holder: Any) -> list[Region]:
    found = holder.get("result") if isinstance(holder, dict) else None
    entries = found if isinstance(found, list) else []
    return [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and (isinstance(entry.get("value"), dict) or entry.get("type") == "relation")
    ]


def _current(case: Case, task: Task, row: Mapping[str, Any], context: list[Region]) -> Value | None:
    """Give the value that an annotator sees while they ask.

    The context holds the regions of the touched control's kind; the others are those of whatever was saved
    last for the task: the page's own draft, an annotation, or our prediction.
    """
    kinds = [row.get(kind) for kind in ("predictions", "annotations", "drafts")]
    saved = [entry for kind in kinds if isinstance(kind, list) for entry in kind if isinstance(entry, dict)]
    saved.sort(key=lambda entry: str(entry.get("updated_at") or entry.get("created_at") or ""))
    touched = [region.get("from_name") for region in context]
    before = _regions(saved[-1] if saved else None)
    kept = [region for region in before if region.get("from_name") not in touched]
    try:
        return case.for_task(task).labelling.from_regions([*kept, *context], task) or None
    except (TaskError, TypeError, ValueError, LookupError, AttributeError):
        return None  # made under an older config, or by hand: then the words alone must do


def _error(message: str, hint: str, status: int) -> Response:
    answer = jsonify(error=message, hint=hint)
    answer.status_code = status
    return answer
