"""Who may ask for what: every route with every login, webhooks, guesses, hosts, and pages of other sites."""

import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.errors import ServiceError, SetupError
from draftloop.execution.artifacts import Artifacts
from draftloop.flywheel.jobs import Jobs
from draftloop.ledger.sqlite import JobRecord, Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.serving.access import _QUESTIONS, Access, Refusal, RequestOrigin
from draftloop.serving.answers import Answers
from draftloop.serving.metrics import Metrics
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.web import WebApp
from draftloop.support.environments import ROOT
from draftloop.support.logins import Logins, check_logins

SECRET = "a-webhook-secret-of-its-own"
LOGINS = Logins("ann", "páss", "看", "view", SECRET)
CONFIG = Cases(ROOT / "label_config").config("sentiment")
METHODS = ("GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE")
EVENT = {"action": "ANNOTATION_CREATED", "project": {"id": 7, "total_annotations_number": 3}}


def basic(user: str, password: str, encoding: str = "utf-8") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode(encoding)).decode()


MAIN, VIEWER, WEBHOOK = basic("ann", "páss"), basic("看", "view"), f"Bearer {SECRET}"
SESSION = "ey-member:1v:signed"
WRONG = (
    "",
    basic("ann", "wrong"),
    basic("ann", "view"),
    basic("看", "páss"),
    basic("", ""),
    basic("ann", SECRET),
    f"Basic {SECRET}",
    "Bearer páss".encode().decode("latin-1"),
    "Bearer ",
    "Bearer",
    f"Token {SECRET}",
    f"Bearer {SECRET}x",
    f"Bearer {SECRET[:-1]}",
    "Basic !!!",
    f"{MAIN}, {MAIN}",
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")


class Endless:
    def wait(self) -> int:
        return 0


@pytest.fixture
def server(ledger: Ledger, tmp_path: Path) -> Iterator[WebApp]:
    with VllmModel("http://127.0.0.1:9/v1", "the-model") as model:
        drafter = Drafter(model, AskOptions(profile="compact", temperature=0))
        cases = Cases(ROOT / "label_config")
        answers = Answers(drafter, ledger, cases.find, None, deadline_s=5, metrics=Metrics())
        logins = replace(LOGINS, wrong_logins=10**6)
        store, jobs = Artifacts(f"{tmp_path}/kept"), Jobs(ledger, lambda _: Endless())
        protocol = ProtocolServer(drafter, cases, ledger, answers)
        yield WebApp(protocol, logins, artifacts=store, jobs=jobs)
        drafter.close()


def client(server: WebApp, authorization: str = "", address: str = "127.0.0.1") -> FlaskClient:
    made = server.wsgi().test_client()
    made.environ_base["REMOTE_ADDR"] = address
    if authorization:
        made.environ_base["HTTP_AUTHORIZATION"] = authorization
    return made


def visitor(server: WebApp, session: str, address: str = "127.0.0.1") -> FlaskClient:
    """A browser that is logged in to Label Studio, or was."""
    made = client(server, address=address)
    made.set_cookie("sessionid", session)
    return made


def set_up(server: WebApp, project: int = 7) -> None:
    body = {"project": f"{project}.1", "schema": CONFIG}
    assert client(server, MAIN).post("/setup", json=body).status_code == 200


def test_every_route_opens_to_its_logins_and_to_no_other(server: WebApp) -> None:
    opened: dict[str, set[tuple[str, str]]] = {}
    asked = {
        "main": MAIN,
        "viewer": VIEWER,
        "webhook": WEBHOOK,
        **{f"wrong {n}": w for n, w in enumerate(WRONG)},
    }
    rules = [str(rule) for rule in server.wsgi().url_map.iter_rules()]
    paths = [rule.replace("<key>", "0" * 64).replace("<sha256>", "0" * 64) for rule in rules]
    assert len(paths) == 11
    clients = {name: client(server, authorization) for name, authorization in asked.items()}
    members = replace(server, is_member=SESSION.__eq__)
    clients |= {"member": visitor(members, SESSION), "stranger": visitor(members, f"{SESSION}x")}
    clients |= {"unasked": visitor(server, SESSION)}
    for name, made in clients.items():
        for path in (*paths, "/nowhere", "/static/x", "/metrics/", "//metrics", "/webhook/", "/webhook/x"):
            for method in METHODS:
                body: Any = {"json": EVENT} if method == "POST" else {}
                answer = made.open(path, method=method, **body)
                if answer.status_code != 401:
                    opened.setdefault(name, set()).add((method, path))
                else:
                    assert answer.headers["WWW-Authenticate"] == 'Basic realm="draftloop"'
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    free = {(method, path) for path in ("/", "/health", "/ready") for method in ("GET", "HEAD", "OPTIONS")}
    checked = {(method, "/ready") for method in ("GET", "HEAD", "OPTIONS")}
    for number, authorization in enumerate(WRONG):
        assert opened[f"wrong {number}"] == (free - checked if authorization else free), authorization
    seen = {
        (method, path)
        for path in paths
        if path[:3] in ("/a/", "/ru")
        for method in ("GET", "HEAD", "OPTIONS")
    }
    assert opened["viewer"] == (free - checked) | seen
    assert opened["member"] == free | seen
    assert opened["stranger"] == opened["unasked"] == free
    assert opened["webhook"] == (free - checked) | {(method, "/webhook") for method in ("POST", "OPTIONS")}
    assert {path for _, path in opened["main"]} > set(paths)


def test_a_login_is_taken_in_either_encoding(server: WebApp) -> None:
    for encoding in ("utf-8", "latin-1"):  # browsers and requests
        assert client(server, basic("ann", "páss", encoding)).get("/versions").status_code == 200


def test_the_webhooks_secret_says_that_something_changed_and_no_more(server: WebApp, ledger: Ledger) -> None:
    hook = client(server, WEBHOOK)
    unknown = hook.post("/webhook", json=EVENT)
    assert (unknown.status_code, "project 7" in unknown.get_json()["error"]) == (400, True)
    set_up(server)
    assert hook.post("/webhook", json=EVENT).get_json() == {"status": "noted"}
    for project in ({"id": 7}, "7.1"):
        pressed = hook.post("/webhook", json={"action": "START_TRAINING", "project": project})
        assert pressed.status_code == 400
        assert "starts no training" in pressed.get_json()["error"]
    assert ledger.jobs() == []
    pressed = client(server, MAIN).post("/webhook", json={"action": "START_TRAINING", "project": {"id": 7}})
    assert pressed.get_json()["status"] == "started"


def test_a_job_that_starts_by_itself_is_started_by_what_label_studio_counts(ledger: Ledger) -> None:
    started: list[JobRecord] = []

    def start(job: JobRecord) -> Endless:
        started.append(job)
        return Endless()

    counts = iter([3, 12])
    jobs = Jobs(ledger, start, after=10, count=lambda _: next(counts))
    jobs.note(7, 10**9)
    assert ledger.jobs() == []
    jobs.note(7, 11)
    assert [job.annotations for job in ledger.jobs()] == [12]

    def fails(_: int) -> int:
        raise ServiceError("Label Studio does not answer.")

    Jobs(ledger, start, after=10, count=fails).note(8, 10**9)
    assert [job.project for job in ledger.jobs()] == [7]


def test_ready_tells_of_webhooks_that_carry_the_main_login_until_they_are_moved(
    server: WebApp, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = replace(server, probe=tuple)
    admin, hook = client(ready, MAIN), client(ready, WEBHOOK)
    set_up(ready)
    assert admin.get("/ready").get_json()["warnings"] == []
    for _ in range(2):
        assert admin.post("/webhook", json=EVENT).get_json() == {"status": "noted"}  # nothing is lost
    assert capsys.readouterr().out.count("carries the backend's own login") == 1
    (warning,) = admin.get("/ready").get_json()["warnings"]
    assert "draftloop setup-project --project 7" in warning
    admin.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 8}})  # as the button does
    for project in range(100, 140):
        admin.post("/webhook", json={**EVENT, "project": {"id": project}})
    assert len(admin.get("/ready").get_json()["warnings"]) == 21
    assert hook.post("/webhook", json=EVENT).status_code == 200
    assert "project 7 " not in str(admin.get("/ready").get_json()["warnings"])
    without = client(replace(ready, logins=Logins("ann", "páss")), MAIN)
    assert "set BACKEND_WEBHOOK_SECRET" in without.get("/ready").get_json()["warnings"][0]


def test_ready_says_up_or_down_to_everybody_and_why_to_whoever_logs_in(server: WebApp) -> None:
    def fail() -> tuple[str, ...]:
        raise ServiceError("http://10.0.0.7:8000 does not answer.", hint="Start vLLM.")

    down, up = replace(server, probe=fail), replace(server, probe=tuple)
    up = replace(up, _readiness=type(up._readiness)())
    for one, status, words in ((down, 503, "not ready"), (up, 200, "ready")):
        answer = client(one).get("/ready")
        assert (answer.status_code, answer.get_json()) == (status, {"status": words})
        assert client(one, basic("ann", "x")).get("/ready").status_code == 401
    assert client(down, MAIN).get("/ready").get_json() == {
        "error": "http://10.0.0.7:8000 does not answer.",
        "hint": "Start vLLM.",
    }
    assert client(up, MAIN).get("/ready").get_json()["model"] == "the-model"


def test_label_studio_is_asked_once_a_minute_and_its_silence_opens_nothing(server: WebApp) -> None:
    asked: list[str] = []

    def is_member(session: str) -> bool:
        asked.append(session)
        if session.endswith("down"):
            raise ServiceError("Label Studio does not answer.")
        return session.startswith("good")

    members = replace(server, is_member=is_member, logins=replace(LOGINS, wrong_logins=3))
    run = f"/runs/{'0' * 64}"
    good, gone, down = (visitor(members, name) for name in ("good", "gone", "down"))
    assert [good.get(run).status_code for _ in range(3)] == [404] * 3
    assert asked == ["good"]
    refused = gone.get(run)
    assert (refused.status_code, "Log in to Label Studio" in refused.get_json()["hint"]) == (401, True)
    # A session that has ended is no guess: its owner may still give the viewer's login.
    assert [gone.get(run).status_code for _ in range(9)] == [401] * 9
    assert gone.get(run, headers={"Authorization": VIEWER}).status_code == 404
    assert [down.get(run).status_code for _ in range(2)] == [401] * 2
    for path in ("/versions", "/jobs", "/metrics", "/predict", "/nowhere"):
        assert good.get(path).status_code == 401, path
    assert good.post(run, json={}).status_code in (401, 405)
    assert set(asked) == {"good", "gone", "down"}
    # Another site's page has no cookie of ours sent along, and what it has a browser send is refused.
    assert good.post("/webhook", json=EVENT, headers={"Sec-Fetch-Site": "same-site"}).status_code == 403
    # Without a login nothing is asked of anybody.
    free = replace(members, logins=Logins())
    assert visitor(free, "other").get(run).status_code == 404
    assert visitor(free, "other", "10.0.0.9").get(run).status_code == 403
    assert "other" not in asked


def test_strangers_with_sessions_hold_no_more_threads_than_there_are_questions() -> None:
    release, asking = threading.Event(), threading.Semaphore(0)

    def is_member(_: str) -> bool:
        asking.release()
        return not release.wait(30)

    access, answers = Access(LOGINS, is_member), list[object]()

    def ask(session: str) -> None:
        asked = RequestOrigin("GET", "10.0.0.9", "localhost", session=session)
        answers.append(access.check(asked, frozenset({"main", "viewer"})))

    threads = [threading.Thread(target=ask, args=[f"made-up {number}"]) for number in range(40)]
    for thread in threads:
        thread.start()
    for _ in range(_QUESTIONS):
        assert asking.acquire(timeout=20)
    hanging = time.monotonic() + 30
    while len(answers) < len(threads) - _QUESTIONS and time.monotonic() < hanging:
        time.sleep(0.05)
    answered = len(answers)  # while Label Studio is still silent
    release.set()
    for thread in threads:
        thread.join(30)
    assert answered == len(threads) - _QUESTIONS
    assert not asking.acquire(timeout=0)
    assert {answer.status for answer in answers if isinstance(answer, Refusal)} == {401}
    assert len(answers) == len(threads)


def test_guesses_are_braked_by_address_and_label_studio_is_not(server: WebApp) -> None:
    braked = replace(server, logins=replace(LOGINS, wrong_logins=3))
    app = braked.wsgi()

    def ask(authorization: str, address: str, path: str = "/versions") -> int:
        headers = {"Authorization": authorization} if authorization else {}
        return app.test_client().get(path, headers=headers, environ_base={"REMOTE_ADDR": address}).status_code

    label_studio, guesser, other = "10.0.0.5", "10.0.0.9", "2001:db8::1"
    assert ask(MAIN, label_studio) == 200
    assert [ask("", guesser) for _ in range(9)] == [401] * 9  # a browser that asks is no guess
    assert [ask(WRONG[1], guesser, path) for path in ("/ready", "/a/x", "/versions")] == [401] * 3
    assert [ask(WRONG[1], guesser), ask(MAIN, guesser), ask(MAIN, guesser, "/ready")] == [429] * 3
    assert ask("", guesser, "/health") == 200
    # A wrong login that comes through Label Studio locks nobody out.
    assert [ask(WRONG[1], label_studio) for _ in range(5)] == [401] * 3 + [429] * 2
    assert ask(MAIN, label_studio) == 200
    assert ask(WEBHOOK, label_studio) == 401
    # What every member has is no proof, and a whole network of IPv6 is one client.
    assert ask(VIEWER, other) == 401
    assert [ask(WRONG[1], f"2001:db8::{number}") for number in range(2, 6)] == [401] * 3 + [429]
    assert ask(MAIN, other) == 429
    assert ask(MAIN, "2001:db8:0:1::1") == 200


def test_a_braked_address_learns_nothing_from_how_its_body_is_taken(server: WebApp) -> None:
    access = Access(replace(LOGINS, wrong_logins=1))
    assert access.takes_body("POST", "/predict", MAIN, "10.0.0.9")
    assert access.takes_body("POST", "//webhook", WEBHOOK, "10.0.0.9")
    assert not access.takes_body("POST", "/predict", WEBHOOK, "10.0.0.9")
    assert not access.takes_body("POST", "/predict", VIEWER, "10.0.0.9")
    refused = access.check(RequestOrigin("GET", "10.0.0.9", authorization=WRONG[1]), frozenset({"main"}))
    assert isinstance(refused, Refusal)
    assert not access.takes_body("POST", "/predict", MAIN, "10.0.0.9")


def test_the_brake_takes_no_more_memory_however_many_guess() -> None:
    access = Access(LOGINS)
    for number in range(5000):
        access.check(
            RequestOrigin("GET", f"10.1.{number >> 8}.{number & 255}", authorization="Basic x"),
            frozenset({"main"}),
        )
        access.check(
            RequestOrigin("GET", f"10.2.{number >> 8}.{number & 255}", authorization=MAIN),
            frozenset({"main"}),
        )
    assert len(access._brake._wrong) <= 1024
    assert len(access._brake._proven) <= 1024


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
def test_only_json_is_taken(server: WebApp, path: str) -> None:
    admin = client(server, MAIN)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", None):
        answer = admin.post(path, data="{}", content_type=kind)
        assert answer.status_code == 415
        assert "application/json" in answer.get_json()["hint"]
    assert admin.post(path, data="{}", content_type="application/json; charset=utf-8").status_code != 415


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({}, True),  # a program
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "https://drafts.example"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "Cross-Site"}, False),
        ({"Origin": "https://elsewhere.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://localhost:8080"}, False),
        ({"Origin": "http://localhost.elsewhere.example"}, False),
    ],
)
def test_pages_of_other_sites_change_nothing(server: WebApp, headers: dict[str, str], taken: bool) -> None:
    named = replace(server, logins=replace(server.logins, public_url="https://drafts.example/x"))
    answer = client(named, MAIN).post("/webhook", json={"action": "x"}, headers=headers)
    assert answer.status_code == (200 if taken else 403)
    assert client(named, MAIN).get("/versions", headers=headers).status_code == 200


ANY = (
    "localhost",
    "127.0.0.1:9090",
    "[::1]:9090",
    "drafts.example",
    "backend.internal:9090",
    "rebound.example",
)
PUBLIC = Logins(public_url="https://drafts.example/x")


@pytest.mark.parametrize(
    ("logins", "hosts"),
    [
        (LOGINS, {*ANY, "10.0.0.7:9090", "backend:9090", ""}),
        (replace(LOGINS, hosts=("Backend.internal",)), {*ANY[:3], "backend.internal:9090"}),
        (PUBLIC, {*ANY[:4]}),
        (replace(PUBLIC, is_open=True), {*ANY[:4], "10.0.0.7:9090", "backend:9090"}),
        (replace(PUBLIC, is_open=True, hosts=("backend.internal",)), {*ANY[:5]}),
    ],
)
def test_the_backend_answers_to_its_own_names(logins: Logins, hosts: set[str]) -> None:
    access, asked = Access(logins), {*ANY, "10.0.0.7:9090", "backend:9090", "", "rebound.example."}
    answered = set()
    for host in asked:
        answer = access.check(
            RequestOrigin("GET", "127.0.0.1", host=host, authorization=MAIN), frozenset({"main"})
        )
        if answer == "main":
            answered.add(host)
        else:
            assert isinstance(answer, Refusal)
            assert (answer.status, "BACKEND_ALLOWED_HOSTS" in answer.hint) == (421, True)
    assert answered - {"rebound.example."} == hosts


def test_without_a_login_only_the_own_machine_is_answered(server: WebApp) -> None:
    free = replace(server, logins=Logins())
    for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost"):
        assert client(free, address=address).get("/versions").status_code == 200
        assert free.access.takes_body("POST", "/predict", "", address)
    for address in ("10.0.0.9", "2001:db8::1", "", "0.0.0.0"):
        answer = client(free, address=address).get("/versions")
        assert (answer.status_code, "BACKEND_OPEN=true" in answer.get_json()["hint"]) == (403, True)
        assert client(free, address=address).get("/health").status_code == 200
        assert not free.access.takes_body("POST", "/predict", "", address)
        assert free.access.refusal_to_listen(address)
    assert (
        client(replace(server, logins=Logins(is_open=True)), address="10.0.0.9").get("/versions").status_code
        == 200
    )


@pytest.mark.parametrize(
    ("logins", "words"),
    [
        (Logins("ann"), "BACKEND_USER is set without BACKEND_PASSWORD"),
        (Logins(password="páss"), "BACKEND_PASSWORD is set without BACKEND_USER"),
        (Logins("ann", "p", "view"), "BACKEND_VIEWER_USER is set without BACKEND_VIEWER_PASSWORD"),
        (
            Logins("ann", "p", viewer_password="v"),
            "BACKEND_VIEWER_PASSWORD is set without BACKEND_VIEWER",
        ),
        (Logins("", "", "view", "v"), "BACKEND_VIEWER_USER is set without BACKEND_USER"),
        (Logins(webhook_secret=SECRET), "BACKEND_WEBHOOK_SECRET is set without BACKEND_USER"),
        (Logins("ann", "p", "ann", "v"), "the same name"),
        (Logins("ann", "p", "view", "p"), "annotators would know both"),
        (Logins("an:n", "p"), "colon"),
        (Logins("ann", "p", "vi:ew", "v"), "colon"),
        (Logins("ann", "p\n"), "BACKEND_PASSWORD begins or ends with white space"),
        (Logins(" ann", "p"), "BACKEND_USER begins or ends with white space"),
        (Logins("ann", " "), "white space"),
        (Logins("ann", "a\x00b"), "control character"),
        (Logins("安", "p"), "Label Studio cannot send"),
        (Logins("ann", "密码"), "Label Studio cannot send"),
        (Logins("ann", "p", webhook_secret="short"), "under 16 characters"),
        (Logins("ann", "p", webhook_secret="sixteen characters"), "a blank"),
        (Logins("ann", "p", webhook_secret="十六个字符十六个字符十六个字符十"), "others than ASCII"),
        (Logins("ann", "p" * 20, webhook_secret="p" * 20), "one of the passwords"),
    ],
)
def test_logins_that_do_not_mean_what_they_seem_to_stop_the_start(logins: Logins, words: str) -> None:
    with pytest.raises(SetupError, match=words) as refused:
        check_logins(logins)
    assert refused.value.hint
    for secret in (logins.password, logins.viewer_password, logins.webhook_secret):
        assert len(secret) < 5 or secret not in str(refused.value)


def test_logins_that_are_whole_are_taken() -> None:
    for logins in (Logins(), LOGINS, Logins("ann", "p:ä ß"), Logins("ann", "p", "看", "密码")):
        check_logins(logins)
