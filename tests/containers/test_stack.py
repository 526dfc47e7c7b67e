"""docker-compose.yml, really built and run: the profile `cpu`, from importing tasks to the dataset.

Needs root, podman and the network (Debian, PyPI) the first time: scripts/test --containers.
"""

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
import yaml
from jsonschema import Draft7Validator

from demo.corpus import generate
from draftloop.cli import servers
from draftloop.labelstudio import LabelStudio
from draftloop.runs.run import RUN_CHARTS_KEY, RUN_KEY
from draftloop.support.environments import ROOT, find_environment
from tests.conftest import installed, missing
from tests.containers.podman import Podman, open_podman
from tests.containers.podman import missing as missing_tools

HERE = Path(__file__).parent
NAME = "draftloop-test"
SERVICES = ("database", "label-studio", "vllm-cpu", "backend-cpu")
TASKS = 12
BACKEND = ("--no-webhook", "--backend-url", "http://backend.internal:9090")
TABLE = "城市,金额\n北京,120\n上海,30\n"
CHART = """
import matplotlib.pyplot as plt
import pandas as pd

sales = pd.read_csv("input/sales.csv")
print("sum:", sales["金额"].sum())
sales.plot.bar(x="城市", y="金额", title="各城市销售额")
plt.savefig("chart.png")
"""
# The backend has keys in its environment, its ledger in /data, and Label Studio within reach; so has whatever
# runs beside it uncontained, as the same user.
ATTACK = """
import os, socket

def reach(host, port):
    socket.create_connection((host, port), 5)

for words, attempt in {
    "read the environment": lambda: open("/proc/1/environ", "rb").read(),
    "read the ledger": lambda: open("/data/draftloop.sqlite3", "rb").read(),
    "write to the ledger": lambda: open("/data/draftloop.sqlite3", "ab").close(),
    "list the data": lambda: os.listdir("/data"),
    "read the program": lambda: open("/srv/backend/draftloop/settings.py").read(),
    "list the cases": lambda: os.listdir("/cases"),
    "list other inputs": lambda: os.listdir("/inputs"),
    "signal the backend": lambda: os.kill(1, 0),
    "reach Label Studio": lambda: reach("label-studio", 8080),
    "reach the backend": lambda: reach("127.0.0.1", 9090),
}.items():
    try:
        attempt()
        print("possible to", words)
    except OSError:
        print("denied to", words)
"""
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
READY = (
    "import urllib.request as u;print(u.urlopen('http://127.0.0.1:9090/ready', timeout=30).read().decode())"
)


@dataclass(frozen=True)
class Stack:
    """The running services."""

    podman: Podman
    url: str
    token: str = field(repr=False)

    def container(self, service: str) -> str:
        return f"{NAME}_{service}_1"

    def verb(self, name: str, *arguments: str) -> str:
        """Run a verb inside the backend's container, as docker-compose.yml says."""
        command = ("draftloop", name, *arguments)
        return self.podman.execute(self.container("backend-cpu"), *command, limit_s=300)

    def api(self, method: str, path: str, **more: Any) -> Any:
        """Call Label Studio's API as its page does."""
        headers = {"Authorization": f"Token {self.token}"}
        answer = httpx.request(
            method, f"{self.url}{path}", headers=headers, trust_env=False, timeout=120, **more
        )
        assert answer.is_success, answer.text[:2000]
        return answer.json()

    def run_code(self, project_id: int, task_id: int, code: str) -> str:
        """Press Shift+Enter in the box of the code; return what the box below it then says."""
        (connected,) = self.api("GET", "/api/ml", params={"project": project_id})
        written = {
            "from_name": "code",
            "to_name": "instruction",
            "type": "textarea",
            "value": {"text": [code]},
        }
        asked = {"task": task_id, "context": {"result": [written]}}
        answer = self.api("POST", f"/api/ml/{connected['id']}/interactive-annotating", json=asked)
        (region,) = answer["data"]["result"]
        assert region["from_name"] == "console"
        return "".join(region["value"]["text"])


@pytest.fixture(scope="module")
def podman() -> Podman:
    if reason := missing_tools():
        missing(reason)
    return open_podman()


@pytest.fixture(scope="module")
def images(podman: Podman) -> None:
    podman.base_image()
    for target in ("backend", "label-studio", "vllm-cpu"):
        podman.build(f"draftloop/{target}", "--target", target)
    podman.build("draftloop/postgres-test", "--file", str(HERE / "postgres.Dockerfile"), context=HERE)


@pytest.fixture(scope="module")
def stack(podman: Podman, images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    token = secrets.token_hex(20)
    port = servers.free_port()
    settings = {
        "LABEL_STUDIO_USERNAME": "admin@example.com",
        "LABEL_STUDIO_PASSWORD": secrets.token_urlsafe(16),
        "LABEL_STUDIO_USER_TOKEN": token,
        "LABEL_STUDIO_HOST": f"http://127.0.0.1:{port}",
        "LABEL_STUDIO_PUBLISHED_PORT": str(port),
        "POSTGRES_PASSWORD": secrets.token_urlsafe(16),
        "BACKEND_PASSWORD": secrets.token_urlsafe(16),
        "MODEL_API_KEY": secrets.token_urlsafe(16),
    }
    with installed():
        verb = find_environment("containers") / "bin" / "podman-compose"
    inputs = tmp_path_factory.mktemp("inputs")
    (inputs / "shared").mkdir()
    (inputs / "shared" / "sales.csv").write_text(TABLE, "utf-8")
    inputs.chmod(0o755)
    settings["INPUT_FOLDER"] = str(inputs)
    environment = tmp_path_factory.mktemp("compose") / "env"
    environment.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    compose = [str(verb), "--project-name", NAME, "--env-file", str(environment), "--profile", "cpu"]
    compose += ["--in-pod", "false"]
    for file in (ROOT / "docker-compose.yml", HERE / "compose.override.yml"):
        compose += ["--file", str(file)]
    podman.run(*compose, "down", "--volumes", check=False)  # what a killed run left
    stack = Stack(podman, f"http://127.0.0.1:{port}", token)
    try:
        # One after the other: podman 4.3 does not wait for a dependency's health by itself.
        for service, limit_s in (
            ("database", 60),
            ("label-studio", 300),
            ("vllm-cpu", 300),
            ("backend-cpu", 60),
        ):
            podman.run(*compose, "up", "--detach", "--no-build", "--no-deps", service)
            podman.wait_until_healthy(stack.container(service), limit_s)
        yield stack
    finally:
        podman.run(*compose, "down", "--volumes", "--timeout", "15", limit_s=300)
    assert podman.run("podman", "ps", "--all", "--quiet") == ""
    assert podman.run("podman", "volume", "ls", "--quiet") == ""


def test_compose_is_what_its_published_schema_allows(podman: Podman) -> None:
    """Two copies of the schema: the JSON Schema of 2021, and today's as the models made from it."""
    with installed():
        environment = find_environment("containers")
    (schema,) = environment.glob("lib/*/site-packages/compose/config/compose_spec.json")
    services = {key: value for key, value in COMPOSE.items() if not key.startswith("x-")}
    read = "import json, sys; from compose_viz.spec import compose_spec as c"
    read += "; c.ComposeSpecification.model_validate(json.load(sys.stdin))"
    reader = [str(environment / "bin" / "python"), "-c", read]
    done = subprocess.run(reader, input=json.dumps(services), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compose = {**COMPOSE}
    del compose["name"]  # younger than the older copy
    errors = Draft7Validator(json.loads(schema.read_text())).iter_errors(compose)
    assert [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors] == []


def test_each_service_is_healthy_and_the_backend_is_ready(stack: Stack) -> None:
    answer = json.loads(stack.podman.execute(stack.container("backend-cpu"), "python", "-c", READY))
    assert answer == {"status": "ready"}  # no name for whoever has no login


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_is_an_unprivileged_user_on_a_root_that_it_cannot_write(
    stack: Stack, service: str
) -> None:
    container = stack.container(service)
    assert stack.podman.execute(container, "id", "-u").strip() != "0"
    status = stack.podman.execute(container, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    tried = stack.podman.execute(container, "sh", "-c", "touch /etc/x /opt/x /srv/x 2>&1 || true")
    assert tried.count("Read-only file system") == 3, tried


def test_no_two_services_are_one_user(stack: Stack) -> None:
    """The kernel would count the processes of one against the limit of code in the other."""
    users = {stack.podman.execute(stack.container(service), "id", "-u") for service in SERVICES}
    assert len(users) == len(SERVICES)


def test_only_label_studio_is_published(stack: Stack) -> None:
    for service in SERVICES:
        ports = stack.podman.inspect(stack.container(service))["NetworkSettings"]["Ports"] or {}
        assert any(ports.values()) == (service == "label-studio"), (service, ports)
    ask = "import socket; socket.create_connection(('example.com', 80), 5)"
    reached = stack.podman.run(
        *("podman", "exec", stack.container("backend-cpu"), "sh", "-c"),
        f'python -c "{ask}" >/dev/null 2>&1 && echo reached || echo none',
    )
    assert reached.strip() == "none"


def test_label_studio_keeps_its_tables_in_postgresql(stack: Stack) -> None:
    database = stack.container("database")
    query = "SELECT count(*) FROM django_migrations"
    counted = stack.podman.execute(
        database, "psql", "-h", "/tmp", "-U", "labelstudio", "-d", "labelstudio", "-Atc", query
    )
    assert int(counted) > 100


def test_a_project_is_drafted_corrected_and_synced_through_the_containers(stack: Stack) -> None:
    said = stack.verb("setup-project", "--case", "complaint", *BACKEND)
    project_id = int(said.split("project   ")[1].split()[0])
    rows = [
        {"text": row.text, "draft_status": ""} for row in generate("complaint", "held_out", TASKS, seed=7)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    backend = stack.container("backend-cpu")
    stack.podman.execute(backend, "sh", "-c", "cat > /data/tasks.jsonl", stdin=lines)
    stack.verb("import-tasks", "--project", str(project_id), "/data/tasks.jsonl")

    with LabelStudio(stack.url, stack.token) as label_studio:
        project = label_studio.project(project_id)
        ids = sorted(task["id"] for task in label_studio.tasks(project))
        label_studio.retrieve_predictions(project, ids[:3])  # Label Studio asks the backend by itself
        output = stack.verb("prelabel", "--project", str(project_id), "--out", "/data/prelabel.jsonl")
        assert f"{TASKS} tasks, 3 drafted already" in output
        tasks = {task["id"]: task for task in label_studio.tasks(project, full=True)}
        assert [len(tasks[number]["predictions"]) for number in ids] == [1] * TASKS
        for number in ids[:6]:
            label_studio.submit_annotation(number, tasks[number]["predictions"][0]["result"])

    stack.verb("sync", "--project", str(project_id), "--out", "/data/dataset")
    manifest: dict[str, Any] = json.loads(stack.podman.execute(backend, "cat", "/data/dataset/manifest.json"))
    kept = stack.podman.execute(
        backend, "sh", "-c", "cat /data/dataset/samples*.jsonl /data/dataset/rejected.jsonl"
    )
    assert len(kept.splitlines()) == 6, manifest
    logs = stack.podman.logs(backend)
    assert '"event": "draft"' in logs
    assert not any(row["text"][:12] in logs for row in rows)


def test_code_runs_contained_in_the_backends_container_when_an_annotator_asks(stack: Stack) -> None:
    said = stack.verb("setup-project", "--case", "code_analysis", *BACKEND)
    project_id = int(said.split("project   ")[1].split()[0])
    backend = stack.container("backend-cpu")
    row = {"instruction": "画出各城市的销售额", "inputs": ["sales.csv"], "output_files": ["chart.png"]}
    stack.podman.execute(backend, "sh", "-c", "cat > /data/code.jsonl", stdin=json.dumps(row))
    stack.verb("import-tasks", "--project", str(project_id), "/data/code.jsonl")
    with LabelStudio(stack.url, stack.token) as label_studio:
        project = label_studio.project(project_id)
        (task,) = label_studio.tasks(project)

        output = stack.run_code(project_id, task["id"], CHART)
        assert "exit status 0" in output
        assert "sum: 150" in output
        (shown,) = label_studio.tasks(project, full=True)
        (chart,) = shown["data"][RUN_CHARTS_KEY]
        key = shown["data"][RUN_KEY]
    headers = {"Authorization": f"Token {stack.token}"}
    picture = httpx.get(urljoin(stack.url, chart), headers=headers, trust_env=False, timeout=30)
    assert picture.content.startswith(b"\x89PNG")
    assert key in stack.verb("artifacts", "show", key)

    uncontained = stack.podman.execute(backend, "python", "-c", ATTACK)
    assert (uncontained.count("possible to"), uncontained.count("denied to")) == (10, 0), uncontained
    output = stack.run_code(project_id, task["id"], ATTACK)
    assert "exit status 0" in output
    assert (output.count("possible to"), output.count("denied to")) == (0, 10), output
    folders = stack.podman.execute(backend, "ls", "/data/sandbox").split()
    assert len(folders) == 1, folders
    assert stack.podman.execute(backend, "ls", f"/data/sandbox/{folders[0]}/jobs") == ""


def test_the_page_is_served(stack: Stack) -> None:
    page = httpx.get(f"{stack.url}/user/login/", trust_env=False, timeout=30)
    assert page.status_code == 200
    link = re.search(r"""["']([^"']*/static/[^"']+[.]css[^"']*)["']""", page.text)
    assert link is not None, page.text[:2000]
    style = httpx.get(urljoin(stack.url, link[1]), trust_env=False, timeout=30)
    assert (style.status_code, style.headers["Content-Type"].split(";")[0]) == (200, "text/css")
