"""The same flow as a `LabelStudioMLBase` subclass, for whoever runs label-studio-ml's own server.

Knows the two generations of that package: 1.0.9 (PyPI) and 2.x (git). Does not know how a draft is
made. 1.0.9 hands neither project nor config to `predict` and keeps one model for all projects, so both
are read from the call itself, which has the same body under both; nothing is kept between calls. It
also states "INITIAL" as every version, and both answer an exception with its traceback: the answer to
`/setup` is therefore written here, and `predict` never raises one of our own errors.

Source:
    label-studio-ml 1.0.9, model.py and api.py; 2.0.1dev0, the same.
"""

from typing import Any, Protocol

import structlog
from flask import Flask, Response, after_this_request, has_request_context, jsonify, request
from label_studio_ml import api, model

from backend.errors import DraftloopError

_log = structlog.get_logger("backend")


class Flow(Protocol):
    """What answers Label Studio's bodies; our own server's, so that both answer alike."""

    def setup(self, body: dict[str, Any]) -> str:
        """Take in what `/setup` says; give the version of the project's drafts."""
        ...

    def predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Draft the tasks of a `/predict` body: one item per task, in order."""
        ...


def model_class(flow: Flow) -> type:
    """Make the class that label-studio-ml's `init_app` takes."""

    class Draftloop(model.LabelStudioMLBase):  # type: ignore[misc]  # untyped, and not always installed
        """Drafts through the flow; made anew by label-studio-ml for each `/setup` (2.x: each call)."""

        def __init__(
            self, project_id: str | None = None, label_config: str | None = None, **kwargs: Any
        ) -> None:
            # First, so that a config that the package itself cannot read is answered by us too.
            if has_request_context() and request.path == "/setup":
                after_this_request(_answer_setup)
            # 1.0.9 knows no project_id, and 2.x nothing else.
            known = kwargs if project_id is None else {"project_id": project_id}
            super().__init__(label_config=label_config, **known)

        def predict(
            self, tasks: list[dict[str, Any]], context: Any = None, **kwargs: Any
        ) -> list[dict[str, Any]]:
            """Draft the tasks of this call; what cannot be drafted is asked for again."""
            body = request.get_json()
            params = {**(body.get("params") or {}), "context": context}  # 2.x takes it out of the body
            try:
                return flow.predict({**body, "params": params, "tasks": tasks})
            except DraftloopError as error:
                _log.error("cannot draft", tasks=len(tasks or ()), error=error.message)
                return [{} for _ in tasks or ()]

        def fit(self, *_: Any, **__: Any) -> None:
            """Learn nothing here: `scripts/sync` reads the corrections."""

    def _answer_setup(_: Response) -> Response:
        try:
            return jsonify(model_version=flow.setup(request.get_json()))
        except DraftloopError as error:
            answer = jsonify(error=error.message, hint=error.hint)
            answer.status_code = 400
            return answer

    return Draftloop


def mount(flow: Flow, **options: Any) -> Flask:
    """Give label-studio-ml's application with the flow in it.

    Args:
        flow: What answers.
        options: What `init_app` takes besides: `model_dir` (1.0.9), `basic_auth_user` (2.x), ...
    """
    app: Flask = api.init_app(model_class=model_class(flow), **options)
    manager = getattr(api, "LabelStudioMLManager", None)
    if manager is not None:
        manager.fetch()  # 1.0.9 answers 500 to a /predict that comes before the first /setup
    return app
