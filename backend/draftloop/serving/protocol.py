"""Label Studio's wire protocol on Flask: health, setup, predict, webhook, versions, jobs, metrics.

Knows JSON bodies, status codes, and which role opens what, in `pages` too. Does not know how a draft is made.
What Label Studio does with each answer decides its form: exactly N items for N tasks, an item without
`result` is asked for again later, one version string in `/setup` and in every prediction.

Source:
    Label Studio 1.23.2, measured: bodies, batching, what is stored and what is dropped.
"""

import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import structlog
from flask import Flask, Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException

from draftloop.drafting.drafter import Drafter
from draftloop.errors import DraftloopError, ServiceError, SetupError, TaskError, where
from draftloop.execution.runner import told
from draftloop.flywheel.jobs import Jobs
from draftloop.labelling.controls import Region
from draftloop.labelling.labelling import Task, Value
from draftloop.prompting.prompt import NO_OVERRIDES, Case, Overrides, Promoted, Refinement, parse_extra_params
from draftloop.serving.access import Access, Asked, Refusal, Role
from draftloop.serving.answers import Answers
from draftloop.serving.metrics import Metrics
from draftloop.serving.pages import Artifacts, Pages
from draftloop.serving.readiness import Readiness
from draftloop.support.logins import Logins
from draftloop.support.strict_json import DEEPEST
from draftloop.support.text import replace_lone_surrogates

_log = structlog.get_logger("backend")
_OPEN = frozenset({"root", "health", "ready"})  # endpoints that an orchestrator asks without a password
# Who opens the others; the main login alone where an endpoint is not named, and where there is none.
_ROLES: dict[str | None, frozenset[Role]] = {
    "file": frozenset({"main", "viewer"}),
    "run": frozenset({"main", "viewer"}),
    "webhook": frozenset({"main", "webhook"}),
}
_TRUSTED = "TRUSTED"  # of Flask's config, see `Server.wsgi`
_MAIN: frozenset[Role] = frozenset({"main"})
_SESSION_COOKIE = "sessionid"  # Label Studio's
_MOST_WARNINGS = 20
_NESTING = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_MOST_LEVELS = 2 * DEEPEST


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

    def remember_webhook(self, project: int, *, with_main_login: bool) -> bool:
        """Keep with which login a project's webhook comes; returns whether that is new."""
        ...

    def webhooks_with_main_login(self) -> list[int]:
        """List projects whose webhook carries the main login."""
        ...


@dataclass(frozen=True)
class Server:
    """What the protocol is served from."""

    drafter: Drafter
    cases: CaseFinder
    memory: Memory
    answers: Answers
    logins: Logins = field(default_factory=Logins)
    # Raises while the model cannot draft, else returns what should be mended; None: nothing is asked.
    probe: Callable[[], Sequence[str]] | None = None
    metrics: Metrics = field(default_factory=Metrics, repr=False)
    # Raises where the model server does not serve a model of this name; None when there is nothing to ask.
    check_served: Callable[[str], None] | None = None
    # Raises where a model cannot write the texts of a schema; None when there is nothing to ask.
    check_schema: Callable[[Mapping[str, Any], str], None] | None = None
    # Runs and their files; None where there are none to open.
    artifacts: Artifacts | None = None
    # Asks Label Studio whether a session is a member's, who may open runs; None where sessions do not count.
    is_member: Callable[[str], bool] | None = None
    # What trains; None where nothing does.
    jobs: Jobs | None = None
    # Largest body of a request; a server may refuse it earlier, see `serving`.
    body_bytes: int = 32 << 20
    _readiness: Readiness = field(default_factory=Readiness, repr=False)

    @cached_property
    def access(self) -> Access:
        """Who may ask; one for all requests, because it counts wrong logins."""
        return Access(self.logins, self.is_member)

    def wsgi(self, *, trusted: bool = False) -> Flask:
        """Make the WSGI application.

        Args:
            trusted: Whether whoever asks for drafts was let in before, by the server around it.
        """
        self.metrics.late.set_function(self._late)
        app = Flask("draftloop", static_folder=None)
        app.config["MAX_CONTENT_LENGTH"] = self.body_bytes
        app.config[_TRUSTED] = trusted
        app.before_request(self._check_access)
        app.after_request(_add_headers)
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
        if self.check_schema is not None:
            try:
                self.check_schema(case.labelling.decoding_schema, case.overrides.model)
            except ServiceError as error:
                _log.warning("schema not checked", project=project, error=str(error))
        self.memory.remember_setup(
            project, {**({"case": wanted} if wanted else {}), **overrides.set_fields()}
        )
        version = self.drafter.version(case)
        self.memory.remember_version(project, version.name, version.manifest)
        return version.name

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

    def _check_access(self) -> Response | None:
        if request.endpoint in ("setup", "predict") and current_app.config[_TRUSTED]:
            g.role = "main"
            return None
        authorization = request.headers.get("Authorization", "")
        asked_openly = request.endpoint in _OPEN and request.method in ("GET", "HEAD", "OPTIONS")
        # A login that is sent along to /ready is checked, or guesses there would cost nothing.
        if asked_openly and (request.endpoint != "ready" or not authorization):
            g.role = None if self.logins.user else "main"
            return None
        asked = Asked(
            method=request.method,
            address=request.remote_addr or "",
            host=request.headers.get("Host", ""),
            authorization=authorization,
            origin=request.headers.get("Origin", ""),
            fetch_site=request.headers.get("Sec-Fetch-Site", ""),
            session=request.cookies.get(_SESSION_COOKIE, ""),
        )
        found = self.access.check(asked, _ROLES.get(request.endpoint, _MAIN))
        if isinstance(found, Refusal):
            answer = _error(found.error, found.hint, found.status)
            answer.headers.update(found.headers)
            return answer
        g.role = found
        # A page of elsewhere may have a browser send forms and plain text, but no JSON.
        if request.endpoint and request.method == "POST" and request.mimetype != "application/json":
            kind = request.mimetype or "nothing"
            return _error(
                f"The body's Content-Type is {kind[:80]}.",
                "Send application/json, as Label Studio does.",
                415,
            )
        return None

    def _health(self) -> Response:
        return jsonify(status="UP", model_class="draftloop")

    def _ready(self) -> Response:
        trouble, warnings = self._readiness.asked(self.probe or tuple)
        if g.role is None:  # whoever reaches us learns no address and no name
            answer = jsonify(status="ready" if trouble is None else "not ready")
            answer.status_code = 200 if trouble is None else 503
            return answer
        if trouble is None:
            return jsonify(status="ready", model=self.drafter.model, warnings=[*warnings, *self._warnings()])
        return _error(trouble.message, trouble.hint, 503)

    def _warnings(self) -> list[str]:
        """Return what an admin should do, though the backend drafts."""
        projects = self.memory.webhooks_with_main_login()
        first = "" if self.logins.webhook_secret else "set BACKEND_WEBHOOK_SECRET, "
        warnings = [
            f"The webhook of project {project} carries the backend's own login, which every member of Label "
            f"Studio can read: {first}run draftloop setup-project --project {project}, then change "
            "BACKEND_PASSWORD."
            for project in projects[:_MOST_WARNINGS]
        ]
        if len(projects) > _MOST_WARNINGS:
            warnings.append(f"So do the webhooks of {len(projects) - _MOST_WARNINGS} more projects.")
        return warnings

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
        if g.role == "webhook":
            self._check_webhook(action, project)
        if self.logins.user and project and action.startswith("ANNOTATION"):
            self._note_login(project)
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

    def _check_webhook(self, action: str, project: int) -> None:
        """Check that an event may come with the webhooks' secret, which is no secret inside Label Studio.

        Raises:
            SetupError: It starts a job, which Label Studio's button does with the main login, or it is of a
                project that this backend was never set up for.
        """
        if action == "START_TRAINING":
            raise SetupError(
                "The webhooks' secret starts no training.", hint="Label Studio's button uses the main login."
            )
        if not self.memory.versions(project):
            raise SetupError(
                f"No project {project} was set up with this backend.", hint="Run draftloop setup-project."
            )

    def _note_login(self, project: int) -> None:
        """Take note of the login that a project's webhook carries; /ready tells of what has to be moved."""
        with_main_login = g.role == "main"
        try:
            new = self.memory.remember_webhook(project, with_main_login=with_main_login)
        except ServiceError as error:
            _log.error("webhook's login not noted", project=project, error=error.message)
            return
        if new and with_main_login:
            _log.warning(
                "webhook carries the backend's own login",
                project=project,
                hint=f"Run draftloop setup-project --project {project}, then change BACKEND_PASSWORD.",
            )

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
        readable = [_task(task, project) for task in tasks if _is_task(task)]
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
        found = _task(task, project)
        program = case.labelling.program is not None
        if not (words or program):
            return {}
        current = _current(case, found, task, context)
        if program and (not words or self.answers.pages.has_answered(found, words)):
            return self._ran(project, case, found, current)
        draft = self.answers.pages.refine(project, case, found, Refinement(words, current))
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
        words = self.answers.pages.rerun(project, case, task, current)
        regions = case.labelling.console(words, uuid.uuid4().hex[:6]) if words else []
        if not regions:
            return {}
        return {"result": regions, "score": 0.0, "model_version": self.drafter.version(case).name}

    def _late(self) -> float:
        try:
            return self.answers.late()
        except DraftloopError:
            return float("nan")  # the ledger does not answer: unknown, which is not none


def _is_task(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict)


def _task(task: Mapping[str, Any], project: int) -> Task:
    """Read a task; one without an id, as upstream's examples send them, has 0."""
    return Task(task["id"] if _is_id(task.get("id")) else 0, task["data"], project)


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63  # as in SQL


def _id(digits: str) -> int:
    number = int(digits)
    if not _is_id(number):
        raise ValueError(digits)
    return number


def _told(error: DraftloopError) -> Response:
    return _error(error.message, error.hint, 400)


def _add_headers(answer: Response) -> Response:
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    answer.headers.setdefault("Cache-Control", "no-store")
    return answer


def _refused(error: HTTPException) -> Response:
    if error.code == 413:
        # Label Studio shows the status alone, so the sentence must stand in the log.
        limit_mb = (request.max_content_length or 0) >> 20
        words, hint = (
            f"The body is larger than {limit_mb} MB.",
            "Send less at once, or set BACKEND_MAX_BODY_MB.",
        )
        _log.error("request refused", path=request.path, error=words, hint=hint)
        return _error(words, hint, 413)
    return _error(error.description or error.name, "", error.code or 500)


def _broken(error: Exception) -> Response:
    _log.error("request failed", path=request.path, error=type(error).__name__, where=where(error))
    return _error("The backend failed on this request.", "See its log.", 500)


def _body() -> dict[str, Any]:
    try:
        body = request.get_json(silent=True, force=True)
    except RecursionError:  # one task that is nested without end must not cost the others theirs
        try:
            body = json.loads(_cut(request.get_data(as_text=True)))
        except ValueError:
            body = None
    if not isinstance(body, dict):
        raise SetupError("The body is not a JSON object.", hint="Send one, as Label Studio does.")
    return body


def _cut(text: str) -> str:
    """Return JSON with null for what is nested deeper than any task that is drafted."""
    kept = []
    level, start = 0, 0
    for token in _NESTING.finditer(text):
        opens, closes = token[0] in "[{", token[0] in "]}"
        level += opens
        if level == _MOST_LEVELS + 1:
            if opens:
                kept += [text[start : token.start()], "null"]
            elif closes:
                start = token.end()
        level -= closes
    return "".join([*kept, text[start:]])


def _project(body: dict[str, Any]) -> int:
    """Read the project's id from "<id>.<created>"; 0 where there is none, as in a test call."""
    head = str(body.get("project") or "").split(".")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) < 15 else 0


def _event(body: dict[str, Any]) -> tuple[str, int, int]:
    """Read a webhook's action, the id of its project, and how many annotations that has; 0 where unsaid."""
    action, told = replace_lone_surrogates(str(body.get("action"))[:40]), body.get("project")
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
    except TaskError:
        return None  # made under an older config, or by hand: then the words alone must do


def _error(message: str, hint: str, status: int) -> Response:
    answer = jsonify(error=message, hint=hint)
    answer.status_code = status
    return answer
