"""What a member of Label Studio reads there, and what it opens at the backend."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from draftloop.cli import servers
from draftloop.errors import SetupError
from draftloop.labelstudio import LabelStudio
from draftloop.support.environments import ROOT
from tests.conftest import BackendServer, LabelStudioServer, backend_server, installed
from tests.fake_vllm import fake_vllm
from tests.integration.test_labelstudio_edge import recording_backend

PASSWORD = "the-backends-own-password"
SECRET = "the-secret-of-the-webhooks"


@pytest.fixture
def settings(label_studio: LabelStudioServer, tmp_path: Path) -> Iterator[dict[str, str]]:
    with fake_vllm(context_tokens=4096) as fake:
        yield {
            "BACKEND_PASSWORD": PASSWORD,
            "BACKEND_USER": "drafts",
            "BACKEND_WEBHOOK_SECRET": SECRET,
            "CACHE_URL": "",
            "EXECUTION": "off",
            "LABEL_STUDIO_API_KEY": label_studio.token,
            "LABEL_STUDIO_URL": label_studio.url,
            "LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite3'}",
            "ARTIFACTS_URL": str(tmp_path / "artifacts"),
            "MODEL_NAME": fake.name,
            "MODEL_URL": fake.url,
        }


@pytest.fixture
def backend(settings: dict[str, str], tmp_path: Path) -> Iterator[BackendServer]:
    with installed(), servers.start_backend(settings, log=tmp_path / "log") as server:
        yield backend_server(server.url, settings, server.log)


def setup_project(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "DRAFTLOOP_HOME") if name in os.environ}
    command = [str(ROOT / "scripts" / "setup_project"), *arguments]
    return subprocess.run(
        command, env={**kept, **settings}, capture_output=True, text=True, check=False, timeout=120
    )


class Member:
    """Somebody who was invited to Label Studio, and has no key of ours."""

    def __init__(self, label_studio: LabelStudioServer) -> None:
        with label_studio.session() as admin:
            invitation = admin.get("/api/invite").raise_for_status().json()["invite_url"]
        self._client = httpx.Client(
            base_url=label_studio.url, follow_redirects=True, trust_env=False, timeout=30
        )
        self._client.get(invitation).raise_for_status()
        form = {
            "email": f"member-{time.time_ns()}@example.com",
            "password": "a-members-password",
            "csrfmiddlewaretoken": self._client.cookies["csrftoken"],
            "allow_newsletters": "false",
        }
        self._client.post(invitation, data=form).raise_for_status()
        self._client.headers.update(
            {"X-CSRFToken": self._client.cookies["csrftoken"], "Referer": label_studio.url}
        )

    def api(self, method: str, path: str, **more: Any) -> Any:
        answer = self._client.request(method, path, **more)
        assert answer.is_success, answer.text[:500]
        return answer.json()

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def member(label_studio: LabelStudioServer) -> Iterator[Member]:
    made = Member(label_studio)
    yield made
    made.close()


def ready(backend: BackendServer) -> list[str]:
    login = (backend.user, backend.password)
    answer = httpx.get(f"{backend.url}/ready", auth=login, trust_env=False, timeout=30).raise_for_status()
    warnings: list[str] = answer.json()["warnings"]
    return warnings


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_what_a_member_reads_in_label_studio_opens_the_webhook_and_nothing_else(
    label_studio: LabelStudioServer, backend: BackendServer, settings: dict[str, str], member: Member
) -> None:
    title = f"Webhooks {time.time_ns()}"
    made = setup_project(settings, "--case", "sentiment", "--title", title, "--backend-url", backend.url)
    assert made.returncode == 0, made.stderr
    with LabelStudio(label_studio.url, label_studio.token) as studio:
        project = studio.find_project(title)
        assert project is not None
        ((task,),) = studio.import_tasks(project, [{"text": "好", "draft_status": ""}])
    (hook,) = member.api("GET", "/api/webhooks/", params={"project": project.id})
    seen = json.dumps([hook, member.api("GET", "/api/ml/", params={"project": project.id})])
    for secret in (PASSWORD, basic("drafts", PASSWORD), basic("drafts", PASSWORD).split()[1]):
        assert secret not in seen

    opened = {}
    for path in ("/versions", "/jobs", "/metrics", "/ready", "/runs/" + "0" * 64, "/a/" + "0" * 64):
        opened[path] = httpx.get(f"{backend.url}{path}", headers=hook["headers"], trust_env=False).status_code
    for path in ("/setup", "/predict"):
        answer = httpx.post(f"{backend.url}{path}", headers=hook["headers"], json={}, trust_env=False)
        opened[path] = answer.status_code
    assert set(opened.values()) == {401}, opened
    pressed = {"action": "START_TRAINING", "project": {"id": project.id}}
    answer = httpx.post(f"{backend.url}/webhook", headers=hook["headers"], json=pressed, trust_env=False)
    assert (answer.status_code, "starts no training" in answer.text) == (400, True)

    # What it is for: Label Studio says that somebody annotated.
    member.api("POST", f"/api/tasks/{task}/annotations/", json={"result": []})
    noted = [json.loads(line) for line in backend.log.read_text().split("\n") if '"webhook"' in line]
    assert [(line["action"], line["project"]) for line in noted][-1] == ("ANNOTATION_CREATED", project.id)
    assert ready(backend) == []


def test_an_older_project_is_reported_and_migrated(
    label_studio: LabelStudioServer, backend: BackendServer, settings: dict[str, str], member: Member
) -> None:
    title = f"Of before {time.time_ns()}"
    asked = ("--case", "sentiment", "--title", title, "--backend-url", backend.url)
    assert setup_project(settings, *asked).returncode == 0
    with LabelStudio(label_studio.url, label_studio.token) as studio:
        project = studio.find_project(title)
        assert project is not None
        (tasks,) = studio.import_tasks(project, [{"text": text, "draft_status": ""} for text in "好坏"])
        (hook,) = studio._sdk.webhooks.list(project=str(project.id))
        assert hook.id is not None
        old = {"Authorization": basic("drafts", PASSWORD)}
        studio._sdk.webhooks.update(
            hook.id,
            url=hook.url,
            headers=old,
            actions=["ANNOTATION_CREATED"],
            send_for_all_actions=False,
            send_payload=True,
        )

    member.api("POST", f"/api/tasks/{tasks[0]}/annotations/", json={"result": []})
    (warning,) = ready(backend)
    assert f"draftloop setup-project --project {project.id}" in warning
    assert "carries the backend's own login" in backend.log.read_text()

    without = {name: value for name, value in settings.items() if name != "BACKEND_WEBHOOK_SECRET"}
    refused = setup_project(without, "--project", str(project.id), "--backend-url", backend.url)
    assert (refused.returncode, "BACKEND_WEBHOOK_SECRET is not set" in refused.stderr) == (1, True)
    moved = setup_project(settings, "--project", str(project.id), "--backend-url", backend.url)
    assert "webhook   updated" in moved.stdout
    (hook,) = member.api("GET", "/api/webhooks/", params={"project": project.id})
    assert hook["headers"] == {"Authorization": f"Bearer {SECRET}"}
    member.api("POST", f"/api/tasks/{tasks[1]}/annotations/", json={"result": []})
    assert ready(backend) == []


def test_a_member_starts_no_training_with_a_number_of_their_own(
    label_studio: LabelStudioServer, settings: dict[str, str], member: Member, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    settings |= {"FLYWHEEL_AFTER": "2", "FLYWHEEL_BASE": str(tmp_path / "base")}
    settings |= {"FLYWHEEL_FOLDER": str(tmp_path / "flywheel")}
    with installed(), servers.start_backend(settings, log=tmp_path / "log") as backend:
        title = f"Counted {time.time_ns()}"
        asked = ("--case", "sentiment", "--title", title, "--backend-url", backend.url)
        assert setup_project(settings, *asked).returncode == 0
        with LabelStudio(label_studio.url, label_studio.token) as studio:
            project = studio.find_project(title)
            assert project is not None
            (tasks,) = studio.import_tasks(project, [{"text": text, "draft_status": ""} for text in "好坏"])

        def jobs() -> list[dict[str, Any]]:
            login = (settings["BACKEND_USER"], settings["BACKEND_PASSWORD"])
            listed: list[dict[str, Any]] = httpx.get(
                f"{backend.url}/jobs", auth=login, trust_env=False
            ).json()["jobs"]
            return listed

        (hook,) = member.api("GET", "/api/webhooks/", params={"project": project.id})
        claimed = {"id": project.id, "total_annotations_number": 10**9}
        event = {"action": "ANNOTATION_CREATED", "project": claimed}
        answer = httpx.post(hook["url"], headers=hook["headers"], json=event, trust_env=False, timeout=30)
        assert (answer.status_code, jobs()) == (200, [])
        for task in tasks:
            assert jobs() == []
            member.api("POST", f"/api/tasks/{task}/annotations/", json={"result": []})
        ends = time.monotonic() + 10
        while not jobs() and time.monotonic() < ends:
            time.sleep(0.2)
        (job,) = jobs()
        assert (job["project"], job["why"], job["annotations"]) == (project.id, "new annotations: 2", 2)


def test_without_webhooks_label_studio_may_refuse_private_addresses(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """As docker-compose.yml has it: what it leaves out is not needed to draft."""
    token, password = "a-token-of-this-label-studio", "a-password"
    with installed():
        label_studio = servers.start_label_studio(
            tmp_path / "label-studio", token=token, password=password, webhooks=False
        )
    settings |= {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": token}
    del settings["BACKEND_WEBHOOK_SECRET"]
    with label_studio, servers.start_backend(settings, log=tmp_path / "log") as backend:
        asked = ("--case", "sentiment", "--no-webhook", "--backend-url", backend.url)
        for outcome in ("made", "already there"):
            done = setup_project(settings, *asked)
            assert done.returncode == 0, done.stderr
            assert f"backend   {outcome}" in done.stdout
        with LabelStudio(label_studio.url, token) as studio:
            project = studio.find_project("sentiment")
            assert project is not None
            ((task,),) = studio.import_tasks(project, [{"text": "好", "draft_status": ""}])
            studio.retrieve_predictions(project, [task])
            (drafted,) = studio.tasks(project, full=True)
            assert len(drafted["predictions"]) == 1
            studio.submit_annotation(task, [])
            assert list(studio._sdk.webhooks.list(project=str(project.id))) == []
            with pytest.raises(SetupError, match="reserved network address"):
                studio.connect_backend(
                    project, backend.url, {}, user="drafts", password=PASSWORD, webhook_secret=SECRET
                )


def test_a_member_who_points_the_connection_elsewhere_is_sent_the_login(
    label_studio: LabelStudioServer, backend: BackendServer, settings: dict[str, str], member: Member
) -> None:
    """What is left, by docs/how-to/deploy.md: the Community edition has no roles, and keeps the password."""
    title = f"Elsewhere {time.time_ns()}"
    asked = ("--case", "sentiment", "--title", title, "--backend-url", backend.url)
    assert setup_project(settings, *asked).returncode == 0
    with LabelStudio(label_studio.url, label_studio.token) as studio:
        project = studio.find_project(title)
    assert project is not None
    (connection,) = member.api("GET", "/api/ml/", params={"project": project.id})
    with recording_backend() as (url, calls):
        member.api("PATCH", f"/api/ml/{connection['id']}", json={"project": project.id, "url": url})
    assert basic("drafts", PASSWORD) in {header for _, header, _ in calls}
