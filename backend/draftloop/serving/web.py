"""The backend's WSGI application on Flask: routes, logins, status codes, pages of runs.

Knows which role may request which path, and how an error becomes an answer. Does not know what Label Studio's
bodies mean (`protocol`, `bodies`), nor how requests are read from sockets (`server`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import structlog
from flask import Flask, Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException

from draftloop.errors import DraftloopError, ServiceError, SetupError, where
from draftloop.flywheel.jobs import Jobs
from draftloop.serving.access import Access, Refusal, RequestOrigin, Role
from draftloop.serving.bodies import parse_id, read_body, read_event
from draftloop.serving.pages import ArtifactReader, Pages
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.readiness import Readiness
from draftloop.support.logins import Logins

_log = structlog.get_logger("backend")
_OPEN = frozenset({"root", "health", "ready"})  # endpoints that an orchestrator asks without a password
# Roles that may request the other endpoints; an endpoint that is not listed takes the main login only.
_ROLES: dict[str | None, frozenset[Role]] = {
    "file": frozenset({"main", "viewer"}),
    "run": frozenset({"main", "viewer"}),
    "webhook": frozenset({"main", "webhook"}),
}
_TRUSTED = "TRUSTED"  # of Flask's config, see `WebApp.wsgi`
_MAIN: frozenset[Role] = frozenset({"main"})
_SESSION_COOKIE = "sessionid"  # Label Studio's
_MOST_WARNINGS = 20


@dataclass(frozen=True)
class WebApp:
    """Answers HTTP requests from the protocol, the readiness check, the training jobs and the runs.

    protocol    answers Label Studio's bodies
    logins      who may ask
    probe       raises while the model cannot draft, else returns warnings; None: nothing is checked
    artifacts   runs and their files; None where there are none to open
    is_member   asks Label Studio whether a session is a member's; None: sessions open nothing
    jobs        starts trainings; None where nothing does
    body_bytes  largest body of a request; a server may refuse it earlier, see `server`
    """

    protocol: ProtocolServer
    logins: Logins = field(default_factory=Logins)
    probe: Callable[[], Sequence[str]] | None = None
    artifacts: ArtifactReader | None = None
    is_member: Callable[[str], bool] | None = None
    jobs: Jobs | None = None
    body_bytes: int = 32 << 20
    _readiness: Readiness = field(default_factory=Readiness, repr=False)

    @cached_property
    def access(self) -> Access:
        """Who may ask; one for all requests, because it counts wrong logins."""
        return Access(self.logins, self.is_member)

    def wsgi(self, *, trusted: bool = False) -> Flask:
        """Make the WSGI application.

        Args:
            trusted: Whether a server around this one has checked the login of those who ask for drafts.
        """
        self.protocol.metrics.late.set_function(self.protocol.count_late)
        app = Flask("draftloop", static_folder=None)
        app.config["MAX_CONTENT_LENGTH"] = self.body_bytes
        app.config[_TRUSTED] = trusted
        app.before_request(self._check_access)
        app.after_request(_add_headers)
        app.register_error_handler(DraftloopError, _refuse_request)
        app.register_error_handler(HTTPException, _http_error)
        app.register_error_handler(Exception, _internal_error)
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

    def predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Draft the tasks of a `/predict` body, without HTTP.

        Raises:
            SetupError: Label Studio does not send such a body.
        """
        return self.protocol.predict(body)

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
        asked = RequestOrigin(
            method=request.method,
            address=request.remote_addr or "",
            host=request.headers.get("Host", ""),
            authorization=authorization,
            origin=request.headers.get("Origin", ""),
            fetch_site=request.headers.get("Sec-Fetch-Site", ""),
            session=request.cookies.get(_SESSION_COOKIE, ""),
        )
        role = self.access.check(asked, _ROLES.get(request.endpoint, _MAIN))
        if isinstance(role, Refusal):
            answer = _error_response(role.error, role.hint, role.status)
            answer.headers.update(role.headers)
            return answer
        g.role = role
        # A page of another site can have a browser send forms and plain text, but no JSON.
        if request.endpoint and request.method == "POST" and request.mimetype != "application/json":
            kind = request.mimetype or "nothing"
            return _error_response(
                f"The body's Content-Type is {kind[:80]}.",
                "Send application/json, as Label Studio does.",
                415,
            )
        return None

    def _health(self) -> Response:
        return jsonify(status="UP", model_class="draftloop")

    def _ready(self) -> Response:
        trouble, warnings = self._readiness.state(self.probe or tuple)
        if g.role is None:  # whoever reaches us learns no address and no name
            answer = jsonify(status="ready" if trouble is None else "not ready")
            answer.status_code = 200 if trouble is None else 503
            return answer
        if trouble is None:
            return jsonify(
                status="ready", model=self.protocol.drafter.model, warnings=[*warnings, *self._warnings()]
            )
        return _error_response(trouble.message, trouble.hint, 503)

    def _warnings(self) -> list[str]:
        """Return what an admin should do, though the backend drafts."""
        projects = self.protocol.ledger.webhooks_with_main_login()
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
            return jsonify(model_version=self.protocol.setup(read_body()))
        except SetupError as error:
            # Label Studio shows the status alone, so the sentence must stand in the log.
            _log.error("set-up refused", error=error.message, hint=error.hint)
            raise

    def _predict(self) -> Response:
        return jsonify(results=self.protocol.predict(read_body()))

    def _metrics(self) -> Response:
        return Response(self.protocol.metrics.page(), content_type=self.protocol.metrics.content_type)

    def _webhook(self) -> Response:
        body = read_body()
        action, project, annotations = read_event(body)
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
        """Check that an event may come with the webhooks' secret, which members of Label Studio can read.

        Raises:
            SetupError: It starts a job, which Label Studio's button does with the main login, or it is of a
                project that this backend was never set up for.
        """
        if action == "START_TRAINING":
            raise SetupError(
                "The webhooks' secret starts no training.", hint="Label Studio's button uses the main login."
            )
        if not self.protocol.ledger.versions(project):
            raise SetupError(
                f"No project {project} was set up with this backend.", hint="Run draftloop setup-project."
            )

    def _note_login(self, project: int) -> None:
        """Store which login a project's webhook carries; /ready lists those that carry the main one."""
        with_main_login = g.role == "main"
        try:
            new = self.protocol.ledger.remember_webhook(project, with_main_login=with_main_login)
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
        jobs = self.jobs.listed(request.args.get("project", type=parse_id)) if self.jobs else []
        return jsonify(jobs=jobs)

    def _versions(self) -> Response:
        return jsonify(versions=self.protocol.ledger.versions(request.args.get("project", type=parse_id)))


def _refuse_request(error: DraftloopError) -> Response:
    return _error_response(error.message, error.hint, 400)


def _add_headers(answer: Response) -> Response:
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    answer.headers.setdefault("Cache-Control", "no-store")
    return answer


def _http_error(error: HTTPException) -> Response:
    if error.code == 413:
        # Label Studio shows the status alone, so the sentence must stand in the log.
        limit_mb = (request.max_content_length or 0) >> 20
        words, hint = (
            f"The body is larger than {limit_mb} MB.",
            "Send less at once, or set BACKEND_MAX_BODY_MB.",
        )
        _log.error("request refused", path=request.path, error=words, hint=hint)
        return _error_response(words, hint, 413)
    return _error_response(error.description or error.name, "", error.code or 500)


def _internal_error(error: Exception) -> Response:
    _log.error("request failed", path=request.path, error=type(error).__name__, where=where(error))
    return _error_response("The backend failed on this request.", "See its log.", 500)


def _error_response(message: str, hint: str, status: int) -> Response:
    answer = jsonify(error=message, hint=hint)
    answer.status_code = status
    return answer
