"""Label Studio's wire protocol on Flask: health, setup, predict, webhook, versions, metrics.

Knows JSON bodies, status codes and basic auth. Does not know how a draft is made. What Label Studio
does with each answer decides its form: exactly N items for N tasks, an item without `result` is asked
for again later, one version string in `/setup` and in every prediction.

Source:
    Label Studio 1.23.2, measured: bodies, batching, what is stored and what is dropped.
"""

import hmac
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from flask import Flask, Response, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from werkzeug.exceptions import HTTPException

from backend.core.labelling import STATUS_KEY, Task
from backend.core.prompting import Case
from backend.errors import DraftloopError, SetupError
from backend.predict import Draft, Drafter, draft_status_html

_log = structlog.get_logger("backend")


class CaseFinder(Protocol):
    """Finds the case for a project."""

    def find(self, xml: str, wanted: str | None = None) -> Case:
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

    def remember_version(self, project: int, version: str, manifest: dict[str, Any]) -> None:
        """Keep what a version stands for."""
        ...

    def versions(self, project: int | None = None) -> list[str]:
        """List versions."""
        ...

    def remember_reasons(self, rows: Sequence[tuple[int, int, str, str, list[str], str]]) -> None:
        """Keep why drafts needed a human."""
        ...


@dataclass(frozen=True)
class Server:
    """What the protocol is served from."""

    drafter: Drafter
    cases: CaseFinder
    memory: Memory
    # Writes changed task data back to Label Studio; None when the backend has no token for it.
    patch_task: Callable[[int, dict[str, Any]], None] | None = None
    user: str = ""
    password: str = ""
    deadline_s: float = 90.0
    # A patch takes Label Studio 60-90 ms: some at a time, and behind the answer where time is up.
    _patchers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "patch"), repr=False)

    def wsgi(self) -> Flask:
        """Make the WSGI application."""
        app = Flask("draftloop")
        app.json.ensure_ascii = False  # type: ignore[attr-defined]
        registry = CollectorRegistry()
        drafted = Counter("draftloop_drafts", "Drafts by outcome.", ["case", "status"], registry=registry)
        seconds = Histogram("draftloop_predict_seconds", "Time of a /predict call.", registry=registry)

        @app.before_request
        def check_auth() -> Response | None:
            if request.path in ("/", "/health") or not self.user:
                return None
            given = request.authorization
            user, password = (given.username or "", given.password or "") if given and given.type == "basic" else ("", "")
            same_user = hmac.compare_digest(user.encode(), self.user.encode())
            if same_user & hmac.compare_digest(password.encode(), self.password.encode()):
                return None
            answer = _error("Wrong or missing user and password.", "Give the backend's basic auth.", 401)
            answer.headers["WWW-Authenticate"] = 'Basic realm="draftloop"'
            return answer

        @app.errorhandler(DraftloopError)
        def told(error: DraftloopError) -> Response:
            return _error(error.message, error.hint, 400)

        @app.errorhandler(HTTPException)
        def refused(error: HTTPException) -> Response:
            return _error(error.description or error.name, "", error.code or 500)

        @app.errorhandler(Exception)
        def broken(error: Exception) -> Response:
            _log.error("request failed", path=request.path, error=type(error).__name__, exc_info=error)
            return _error("The backend failed on this request.", "See its log.", 500)

        @app.get("/")
        @app.get("/health")
        def health() -> Response:
            return jsonify(status="UP", model_class="draftloop")

        @app.post("/setup")
        def setup() -> Response:
            body = _body()
            project = _project(body)
            extra = _extra_params(body.get("extra_params"))
            xml = body.get("schema")
            if not isinstance(xml, str):
                raise SetupError("/setup without a labelling config.", hint="Send it as `schema`.")
            wanted = extra.get("case")
            case = self.cases.find(xml, str(wanted) if wanted else None)
            self.memory.remember_setup(project, extra)
            version = self.drafter.version(case)
            self.memory.remember_version(project, version, self.drafter.manifest(case))
            return jsonify(model_version=version)

        @app.post("/predict")
        def predict() -> Response:
            started = time.monotonic()
            body = _body()
            tasks = _tasks(body.get("tasks"))
            project = _project(body)
            results = self._predict(project, tasks, body.get("label_config"), drafted)
            seconds.observe(time.monotonic() - started)
            return jsonify(results=results)

        @app.post("/webhook")
        def webhook() -> Response:
            body = _body()
            # A hint only: what was corrected is read by sync, with `updated_at` as the truth.
            _log.info("webhook", action=str(body.get("action"))[:40])
            return jsonify(status="noted")

        @app.get("/versions")
        def versions() -> Response:
            project = request.args.get("project", type=int)
            return jsonify(versions=self.memory.versions(project))

        @app.get("/metrics")
        def metrics() -> Response:
            return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

        return app

    def _predict(self, project: int, tasks: list[dict[str, Any]], xml: Any, drafted: Counter) -> list[dict[str, Any]]:
        """Draft every task; exactly one item per task, in order, whatever fails inside."""
        if not isinstance(xml, str):
            raise SetupError("/predict without a labelling config.", hint="Send it as `label_config`.")
        started = time.monotonic()
        try:
            wanted = self.memory.setup_of(project).get("case")
            case = self.cases.find(xml, str(wanted) if wanted else None)
        except DraftloopError as error:
            # Label Studio shows no error of /predict and stores nothing: the log is the place to say it.
            _log.error("cannot draft", project=project, tasks=len(tasks), error=str(error))
            return [{} for _ in tasks]
        readable = [Task(int(task["id"]), task["data"]) for task in tasks if _is_task(task)]
        drafts = {
            draft.task_id: draft for draft in self.drafter.draft(case, readable, deadline_s=self.deadline_s)
        }
        left_s = self.deadline_s - (time.monotonic() - started)
        self._tell(project, case, tasks, list(drafts.values()), max(1.0, left_s))
        for draft in drafts.values():
            drafted.labels(case.name, draft.status).inc()
        _log.info(
            "predict",
            project=project,
            case=case.name,
            version=self.drafter.version(case),
            tasks=len(tasks),
            ok=sum(draft.status == "ok" for draft in drafts.values()),
            failed=sum(draft.status == "failed" for draft in drafts.values()),
            ms=round((time.monotonic() - started) * 1000),
        )
        return [(drafts[int(task["id"])].prediction() or {}) if _is_task(task) else {} for task in tasks]

    def _tell(
        self, project: int, case: Case, tasks: list[Any], drafts: list[Draft], within_s: float
    ) -> None:
        """Keep the reasons in the ledger and show them in the page; a draft is not lost when that fails."""
        try:
            self.memory.remember_version(project, self.drafter.version(case), self.drafter.manifest(case))
            self.memory.remember_reasons(
                [
                    (project, draft.task_id, draft.version, draft.status, [str(r) for r in draft.reasons], draft.raw)
                    for draft in drafts
                    if draft.reasons
                ]
            )
        except DraftloopError as error:
            _log.error("reasons not kept", project=project, error=str(error))
        if self.patch_task is None or not case.labelling.shows_status:
            return
        data = {int(task["id"]): task["data"] for task in tasks if _is_task(task)}
        changed = [
            (draft.task_id, {**data[draft.task_id], STATUS_KEY: draft_status_html(draft)})
            for draft in drafts
            if draft.status != "failed" and str(data[draft.task_id].get(STATUS_KEY, "")) != draft_status_html(draft)
        ]
        wait([self._patchers.submit(self._patch, task_id, patched) for task_id, patched in changed], timeout=within_s)

    def _patch(self, task_id: int, data: dict[str, Any]) -> None:
        try:
            if self.patch_task is not None:
                self.patch_task(task_id, data)
        except DraftloopError as error:
            _log.error("reasons not shown", task=task_id, error=str(error))


def _is_task(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict) and isinstance(task.get("id"), int)


def _tasks(tasks: Any) -> list[Any]:
    if not isinstance(tasks, list):
        raise SetupError("/predict without a list of tasks.", hint="Send them as `tasks`.")
    return tasks


def _body() -> dict[str, Any]:
    body = request.get_json(silent=True, force=True)
    if not isinstance(body, dict):
        raise SetupError("The body is not a JSON object.", hint="Send one, as Label Studio does.")
    return body


def _project(body: dict[str, Any]) -> int:
    """Read the project's id from "<id>.<created>"; 0 where there is none, as in a test call."""
    head = str(body.get("project") or "").split(".")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) < 15 else 0


def _extra_params(extra: Any) -> dict[str, Any]:
    """Take an object or a JSON string of one; Label Studio sends either."""
    if isinstance(extra, str) and extra.strip():
        try:
            extra = json.loads(extra)
        except ValueError as error:
            raise SetupError(f"extra_params is not JSON: {error}.", hint='Write {"case": "complaint"}.') from error
    if extra is None or extra == "":
        return {}
    if not isinstance(extra, dict):
        raise SetupError("extra_params is not a JSON object.", hint='Write {"case": "complaint"}.')
    return extra


def _error(message: str, hint: str, status: int) -> Response:
    answer = jsonify(error=message, hint=hint)
    answer.status_code = status
    return answer
