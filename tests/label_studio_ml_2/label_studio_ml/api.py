"""The server: one Flask application; tracebacks go to the caller; basic auth where it is set."""

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request

from label_studio_ml.model import LabelStudioMLBase

_server = Flask(__name__)
MODEL_CLASS: Any = LabelStudioMLBase
BASIC_AUTH: tuple[str, str] | None = None


def init_app(
    model_class: Any, basic_auth_user: str | None = None, basic_auth_pass: str | None = None
) -> Flask:
    global MODEL_CLASS, BASIC_AUTH  # noqa: PLW0603
    MODEL_CLASS = model_class
    user = basic_auth_user or os.environ.get("BASIC_AUTH_USER")
    password = basic_auth_pass or os.environ.get("BASIC_AUTH_PASS")
    if user and password:
        BASIC_AUTH = (user, password)
    return _server


def _with_traceback(function: Callable[[], Response]) -> Callable[[], Any]:
    @functools.wraps(function)
    def called() -> Any:
        try:
            return function()
        except Exception:  # noqa: BLE001
            return jsonify(status=500, result={"traceback": traceback.format_exc()}), 500

    return called


def _model(config: Any) -> Any:
    project = str((request.json or {}).get("project")).split(".", 1)[0]
    return MODEL_CLASS(project_id=project, label_config=config)


@_server.route("/predict", methods=["POST"])
@_with_traceback
def _predict() -> Response:
    body = request.json or {}
    params = body.get("params", {})
    context = params.pop("context", {})
    model = _model(body.get("label_config"))
    return jsonify(results=model.predict(body.get("tasks"), context=context, **params) or [])


@_server.route("/setup", methods=["POST"])
@_with_traceback
def _setup() -> Response:
    body = request.json or {}
    model = _model(body.get("schema"))
    if body.get("extra_params"):
        model.set("extra_params", body["extra_params"])
    return jsonify(model_version=model.get("model_version"))


@_server.route("/webhook", methods=["POST"])
def _webhook() -> Any:
    body = request.json or {}
    project = body["project"]
    model = MODEL_CLASS(str(project["id"]), label_config=project["label_config"])
    return jsonify(result=model.fit(body["action"], body), status="ok"), 201


@_server.route("/", methods=["GET"])
@_server.route("/health", methods=["GET"])
def _health() -> Response:
    return jsonify(status="UP", model_class=MODEL_CLASS.__name__)


@_server.route("/metrics", methods=["GET"])
def _metrics() -> Response:
    return jsonify({})


@_server.before_request
def _check_login() -> Response | None:
    given = request.authorization
    if BASIC_AUTH is None or (given is not None and (given.username, given.password) == BASIC_AUTH):
        return None
    return Response("Unauthorized", 401, {"WWW-Authenticate": 'Basic realm="Login required"'})


@_server.before_request
def _read_for_the_log() -> None:
    request.get_data()
