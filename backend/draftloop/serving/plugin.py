"""The same backend inside label-studio-ml's own server, as a subclass of its `LabelStudioMLBase`.

Knows the two generations of that package: 1.0.9 (PyPI) and 2.x (git). Does not know how a draft is made.

`/setup` and `/predict` are answered by our application once the package's own login has let them pass:
1.0.9 keeps one model for all projects and states "INITIAL" as every version, and both answer an exception,
such as that of a labelling config that is no XML, with a traceback. Paths that the package does not have
(`/ready`, `/jobs`, pages of runs) and those where ours do more (`/metrics`, `/webhook`, `/versions`) go to
our application with its own logins.

Source:
    label-studio-ml 1.0.9 and 2.0.1.dev0: model.py, api.py, default_configs/Dockerfile.
"""

import io
import os
import time
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import Any, Protocol

import structlog
from flask import Flask, request
from label_studio_ml import api, model
from werkzeug.wrappers import Response

from draftloop.errors import DraftloopError

_log = structlog.get_logger("backend")
_DRAFTING = ("/setup", "/predict")
_THEIRS = ("/", "/health")  # answered before the flow is made
_QUIET_S = 2.0
_ATTACHED = "draftloop"  # of `Flask.extensions`

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Flow(Protocol):
    """What answers Label Studio's bodies."""

    def predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Draft the tasks of a `/predict` body: one item per task, in order."""
        ...

    def wsgi(self, *, trusted: bool = False) -> Flask:
        """Make our application; `trusted`: whoever asks for drafts was let in by another server."""
        ...


class PerProcess:
    """A flow that is made once in each process, because none of its threads and files survive a fork.

    `gunicorn --preload`, the way of label-studio-ml's container file, imports the model in a process that
    answers nothing and forks the ones that do. So the flow is made at the first request, or before it: soon
    after a fork; and in the process that imported it, if that has not forked within two seconds.
    """

    def __init__(self, make: Callable[[], Flow], *, trusted: bool) -> None:
        """Begin to watch for forks.

        Args:
            make: Makes the flow.
            trusted: Whether the server around it says who may ask for drafts.
        """
        self._make, self.trusted = make, trusted
        self._lock = Lock()
        self._made: tuple[Flow, Flask] | None = None
        self._of_parent: Any = None  # kept: what it holds is the parent's, and must not be closed here
        self._has_forked = False
        os.register_at_fork(before=self._before_fork, after_in_child=self._after_fork)
        self._make_soon()

    @property
    def flow(self) -> Flow:
        """This process's flow.

        Raises:
            SetupError: A setting or a case is wrong.
        """
        return self._get()[0]

    @property
    def application(self) -> Flask:
        """This process's application.

        Raises:
            SetupError: A setting or a case is wrong.
        """
        return self._get()[1]

    def _get(self) -> tuple[Flow, Flask]:
        with self._lock:
            if self._made is None:
                flow = self._make()
                self._made = flow, flow.wsgi(trusted=self.trusted)
            return self._made

    def _before_fork(self) -> None:
        self._has_forked = True

    def _after_fork(self) -> None:
        is_server = self._made is None
        self._lock, self._has_forked = Lock(), False
        self._of_parent, self._made = self._made, None
        if is_server:  # else a helper of a process that answers already
            self._make_soon()

    def _make_soon(self) -> None:
        Thread(target=self._make_unless_forked, name="make", daemon=True).start()

    def _make_unless_forked(self) -> None:
        until = time.monotonic() + _QUIET_S
        while time.monotonic() < until:
            if self._has_forked:
                return
            time.sleep(0.05)
        try:
            self._get()
        except DraftloopError as error:
            _log.error("cannot start", error=error.message, hint=error.hint)


def model_class(flow: PerProcess) -> type:
    """Make the class that label-studio-ml's `init_app` takes, and give its application our paths."""
    _attach(api._server, flow)  # noqa: SLF001  the only way to it from a generated _wsgi.py

    class Draftloop(model.LabelStudioMLBase):  # type: ignore[misc]  # untyped, and not always installed
        """Drafts through the flow; requests to the package's server do not come here."""

        def predict(self, tasks: list[dict[str, Any]], context: Any = None, **_: Any) -> list[dict[str, Any]]:
            """Draft tasks for whoever calls it in Python; what cannot be drafted is an empty item."""
            body = {
                "project": getattr(self, "project_id", ""),
                "label_config": self.label_config,
                "tasks": tasks,
                "params": {"context": context},
            }
            return flow.flow.predict(body)

        def fit(self, *_: Any, **__: Any) -> dict[str, Any]:
            """Learn nothing here: `draftloop sync` reads the corrections."""
            return {}

    return Draftloop


def mount(flow: PerProcess, **options: Any) -> Flask:
    """Return label-studio-ml's application with the flow in it.

    Args:
        flow: What answers.
        options: What `init_app` takes besides: `model_dir` (1.0.9), `basic_auth_user` (2.x), ...
    """
    app: Flask = api.init_app(model_class=model_class(flow), **options)
    return app


def _attach(theirs: Flask, flow: PerProcess) -> None:
    if _ATTACHED in theirs.extensions:
        theirs.extensions[_ATTACHED] = flow  # the class was made again: the last one answers
        return
    theirs.extensions[_ATTACHED] = flow
    inner: Wsgi = theirs.wsgi_app

    def current() -> PerProcess:
        attached: PerProcess = theirs.extensions[_ATTACHED]
        return attached

    def answer_drafting() -> Response | None:
        if request.path not in _DRAFTING or request.method != "POST":
            return None
        # Their log has read the body by now.
        environ = {**request.environ, "wsgi.input": io.BytesIO(request.get_data())}
        return Response.from_app(current().application.wsgi_app, environ)

    def dispatch(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, flow = environ.get("PATH_INFO", ""), current()
        if path in _THEIRS or (path in _DRAFTING and flow.trusted):
            return inner(environ, start_response)
        ours = flow.application
        if not _takes(ours, environ) and _takes(theirs, environ):
            return inner(environ, start_response)
        return ours.wsgi_app(environ, start_response)

    theirs.before_request(answer_drafting)
    theirs.wsgi_app = dispatch  # type: ignore[method-assign]  # as Flask's documentation does it


def _takes(app: Flask, environ: dict[str, Any]) -> bool:
    """Return whether an application has the path of a request, with its method."""
    return app.url_map.bind_to_environ(environ).test()
