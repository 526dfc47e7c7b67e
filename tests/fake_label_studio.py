"""An HTTP server that answers prelabel and sync as Label Studio does, for projects of any size.

It holds nothing per task but whether it is drafted, and what was imported;
tests/contract/test_label_studio.py holds both to it.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlsplit

Body = Any
_PROJECT = 1
_MOMENT = "2026-01-01T00:00:00.000000Z"


@dataclass
class FakeLabelStudio:
    """One project with tasks 1 to `tasks`, whose data `data` makes; one model version at a time.

    `annotations` and `predictions` make those of a task as Label Studio lists them; `changed` is when each
    task last changed.
    """

    config: str
    tasks: int
    data: Callable[[int], Mapping[str, Any]]
    annotations: Callable[[int], Sequence[Mapping[str, Any]]] = lambda _: ()
    predictions: Callable[[int], Sequence[Mapping[str, Any]]] = lambda _: ()
    changed: Callable[[int], str] = lambda _: _MOMENT
    refuses: Callable[[Mapping[str, Any]], bool] = lambda _: False  # of what is imported
    url: str = ""
    version: str = ""
    sessions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # members by their cookie
    drafted: bytearray = field(default_factory=bytearray)
    patched: int = 0
    imported: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    brought: dict[int, list[Body]] = field(default_factory=dict)  # annotations that came with them
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Begin without a draft."""
        self.drafted = bytearray(self.tasks + 1)

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Body) -> tuple[int, Body]:
        """Answer a request as status and body."""
        project = f"/api/projects/{_PROJECT}/"
        if path == "/api/version/":
            return 200, {"release": "1.23.2", "edition": "Community"}
        if path == "/api/current-user/whoami":
            return 200, {"id": 1, "email": "fake@example.com", "username": "fake"}
        if path == project and method in ("GET", "PATCH"):
            return 200, self._project()
        if path == "/api/ml/":
            return 200, []
        if path == "/api/tasks/" and method == "GET":
            return 200, self._listed(query)
        if path == "/api/predictions/" and method == "GET":
            return 200, self._all_predictions()
        if path.startswith("/api/tasks/") and method == "PATCH":
            self.patched += 1
            return 200, {"id": int(path.split("/")[3])}
        if path == f"{project}import/predictions":
            return self._imported(body)
        if path == f"{project}import":
            return self._added(body)
        return 404, {"detail": "Not found."}

    def _project(self) -> Body:
        return {
            "id": _PROJECT,
            "title": "Fake",
            "created_at": _MOMENT,
            "label_config": self.config,
            "model_version": "",
            "total_annotations_number": sum(len(self.annotations(number)) for number in self._numbers()),
            "total_predictions_number": len(self._all_predictions()),
        }

    def _numbers(self) -> range:
        return range(1, self.tasks + 1)

    def _all_predictions(self) -> list[Body]:
        return [{"task": number, **one} for number in self._numbers() for one in self.predictions(number)]

    def _imported(self, body: Body) -> tuple[int, Body]:
        if any(not 1 <= row["task"] <= self.tasks for row in body):
            return 400, {"detail": "a task is not in the project"}
        with self._lock:
            for row in body:
                if row["model_version"] != self.version:
                    self.version, self.drafted = row["model_version"], bytearray(self.tasks + 1)
                self.drafted[row["task"]] = 1
        return 201, {"created": len(body)}

    def _added(self, body: Body) -> tuple[int, Body]:
        if any(self.refuses(row["data"]) for row in body):
            return 400, {"detail": "a task is not as the config wants it"}
        with self._lock:
            ids = list(range(self.tasks + 1, self.tasks + 1 + len(body)))
            self.imported.update(zip(ids, (row["data"] for row in body), strict=True))
            self.brought.update(zip(ids, (row.get("annotations", []) for row in body), strict=True))
            self.drafted.extend(bytes(len(body)))
            self.tasks += len(body)
        return 201, {"task_count": len(body), "task_ids": ids}

    def _listed(self, query: Mapping[str, str]) -> Body:
        asked = json.loads(query["query"])
        low, high, tests = 1, self.tasks, list[Callable[[int], bool]]()
        for item in asked["filters"]["items"]:
            name, value = item["filter"].removeprefix("filter:tasks:"), item["value"]
            if (name, item["operator"]) == ("id", "greater"):
                low = max(low, int(value) + 1)
            elif (name, item["operator"]) == ("id", "in"):
                low, high = max(low, int(value["min"])), min(high, int(value["max"]))
            else:
                tests.append(self._test(name, item["operator"], value))
        join = any if asked["filters"]["conjunction"] == "or" else all

        def wanted(first: int) -> Iterator[int]:
            return (
                number
                for number in range(first, high + 1)
                if not tests or join(test(number) for test in tests)
            )

        keys = query["include"].split(",")
        if asked["ordering"] == ["-tasks:updated_at"]:
            newest = max(range(1, self.tasks + 1), key=self.changed, default=None)
            return {"tasks": [] if newest is None else [self._task(newest, keys)], "total": self.tasks}
        assert asked["ordering"] == ["tasks:id"]
        page_size = int(query["page_size"])
        numbers = list(islice(wanted(low), page_size))
        total = sum(1 for _ in wanted(low)) if page_size == 1 else len(numbers)
        return {"tasks": [self._task(number, keys) for number in numbers], "total": total}

    def _test(self, name: str, operator: str, value: Any) -> Callable[[int], bool]:
        if (name, operator) == ("predictions_model_versions", "not_contains"):
            return lambda number: value[0] != self.version or not self.drafted[number]
        if (name, operator) == ("updated_at", "greater"):
            return lambda number: self.changed(number) > value
        if (name, operator) == ("draft_exists", "equal"):
            return lambda _: value is False  # nobody saves drafts of annotations here
        count = {
            "total_annotations": lambda one: not one["was_cancelled"],
            "cancelled_annotations": lambda one: one["was_cancelled"],
        }[name]
        compare = {"greater": int.__gt__, "equal": int.__eq__}[operator]
        return lambda number: compare(sum(map(count, self.annotations(number))), value)

    def _task(self, number: int, keys: list[str]) -> Body:
        parts: dict[str, Callable[[], Any]] = {
            "id": lambda: number,
            "created_at": lambda: _MOMENT,
            "updated_at": lambda: self.changed(number),
            "data": lambda: dict(self.imported.get(number) or self.data(number)),
            "annotations": lambda: list(self.annotations(number)),
            "predictions": lambda: list(self.predictions(number)),
        }
        return {key: parts[key]() for key in keys if key in parts}  # the others are keys of annotations


@contextmanager
def fake_label_studio(
    config: str, tasks: int, data: Callable[[int], Mapping[str, Any]]
) -> Iterator[FakeLabelStudio]:
    """Serve a fake on a free port of the loopback."""
    fake = FakeLabelStudio(config, tasks, data)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if parts.path == "/api/current-user/whoami" and not self.headers.get("Authorization"):
                session = self.headers.get("Cookie", "").removeprefix("sessionid=")
                member = fake.sessions.get(session)
                status, answer = (200, member) if member else (401, {"detail": "not provided"})
            else:
                status, answer = fake.answer(self.command, parts.path, query, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PATCH(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
