"""Real servers for the tests: each starts when the first test asks for it, once per session.

A server that is not installed fails the test in CI and skips it, with the reason, elsewhere. One that
is installed but does not start always fails.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from hypothesis import settings
from label_studio_sdk import LabelStudio
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from draftloop.cli import servers
from draftloop.labelling.labelling import Labelling, Task
from draftloop.support.environments import MODELS, ROOT, NotInstalledError
from scripts.templates import Template, labelled
from tests.adapters import peft_runs

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# A busy machine is not a wrong one. scripts/test --fast tries a third of the examples.
settings.register_profile("draftloop", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=35)
settings.load_profile("draftloop")

MODEL = MODELS / "tiny-qwen3"
LORA_RANK = 16


_personal_tokens: dict[str, str] = {}  # by server


class Restartable:
    """A server that tests take down and bring back at the same address, with the same data."""

    def __init__(self, start: Callable[[int | None], servers.ServerProcess]) -> None:
        self._start = start
        self._server = start(None)
        self.url = self._server.url

    @property
    def log(self) -> Path:
        return self._server.log

    def stop(self) -> None:
        """End it as an admin does; it may be standing still, or be gone already."""
        self.signal(signal.SIGCONT)
        self._server.stop()

    def kill(self) -> None:
        """End it as `kill -9` of all its processes does."""
        self.signal(signal.SIGKILL)
        self._server.process.wait()

    def start(self) -> None:
        """Bring it back."""
        port = int(self.url.rpartition(":")[2])
        ends = time.monotonic() + 30
        while servers.free_port(port) != port and time.monotonic() < ends:
            time.sleep(0.1)  # killed workers hold it a moment longer than their parent
        self._server = self._start(port)
        assert self._server.url == self.url

    def restart_if_down(self) -> None:
        """Leave it running, whatever a test did."""
        self.signal(signal.SIGCONT)
        if self._server.process.poll() is not None:
            self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        if self._server.process.poll() is None:
            os.killpg(self._server.pid, number)


@dataclass(frozen=True)
class LabelStudioServer:
    """A running Label Studio and the one user it has."""

    url: str
    username: str
    password: str = field(repr=False)
    token: str = field(repr=False)
    sdk: LabelStudio = field(repr=False)
    process: Restartable = field(repr=False)

    @contextmanager
    def session(self) -> Iterator[httpx.Client]:
        """Log in as a browser does; the client carries the cookies and the CSRF header."""
        with httpx.Client(base_url=self.url, follow_redirects=True, trust_env=False, timeout=30) as client:
            client.get("/user/login/").raise_for_status()
            form = {"email": self.username, "password": self.password}
            form["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
            client.post("/user/login/", data=form).raise_for_status()
            client.headers.update({"X-CSRFToken": client.cookies["csrftoken"], "Referer": self.url})
            yield client

    def personal_access_token(self) -> str:
        """Make the user's personal access token, as the account page does; a second one would be a 409."""
        if self.url not in _personal_tokens:
            with self.session() as client:
                answer = client.post("/api/token/").raise_for_status()
            _personal_tokens[self.url] = str(answer.json()["token"])
        return _personal_tokens[self.url]


@dataclass(frozen=True)
class ModelServer:
    """A running vLLM; `url` ends with /v1."""

    url: str
    name: str
    process: Restartable = field(repr=False)
    profile: str = "compact"


@dataclass(frozen=True)
class BackendServer:
    """A running backend, wired to the Label Studio and the model of this session."""

    url: str
    user: str
    password: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    ledger: Path
    log: Path

    @property
    def logins(self) -> dict[str, Any]:
        """What Label Studio is given to call it."""
        return {"user": self.user, "password": self.password, "webhook_secret": self.webhook_secret}


@contextmanager
def sdk_client(url: str, api_key: str) -> Iterator[LabelStudio]:
    """Make an SDK client whose connections are closed at the end, as the SDK itself never does."""
    with httpx.Client(follow_redirects=True, timeout=60, trust_env=False) as client:
        yield LabelStudio(base_url=url, api_key=api_key, httpx_client=client)


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """Start a Label Studio with an empty database."""
    username, password, token = "admin@example.com", "draftloop-tests", "draftloop-tests-legacy-token"
    folder = tmp_path_factory.mktemp("label-studio")
    with installed(), ExitStack() as stack:
        server = Restartable(
            lambda port: servers.start_label_studio(
                folder, username=username, password=password, token=token, port=port
            )
        )
        stack.callback(server.stop)
        sdk = stack.enter_context(sdk_client(server.url, token))
        yield LabelStudioServer(server.url, username, password, token, sdk, server)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """Start a vLLM that serves the embedded model, and takes adapters."""
    if not (MODEL / "config.json").exists():
        missing(f"{MODEL} is missing. Run: demo/train_model")
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    with installed(), ExitStack() as stack:
        server = Restartable(
            lambda port: servers.start_vllm(
                MODEL, served_name=MODEL.name, log=log, port=port, lora_rank=LORA_RANK
            )
        )
        stack.callback(server.stop)
        yield ModelServer(f"{server.url}/v1", MODEL.name, server)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Have PEFT make adapters for the embedded model: `zero`, which drafts as it does, and `worse`."""
    with installed():
        return peft_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def backend(
    label_studio: LabelStudioServer, vllm: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackendServer]:
    """Start the backend under gunicorn, with basic auth and a ledger of its own."""
    folder = tmp_path_factory.mktemp("backend")
    settings = backend_settings(label_studio, vllm, folder)
    with installed(), servers.start_backend(settings, log=folder / "backend.log") as server:
        yield backend_server(server.url, settings, server.log)


def backend_settings(
    label_studio: LabelStudioServer, vllm: ModelServer, folder: Path, **more: str
) -> dict[str, str]:
    """Return the settings of a backend between the two, with its state in a folder of its own."""
    return {
        "BACKEND_DEADLINE_S": "60",
        "BACKEND_PASSWORD": "draftloop-tests",
        "BACKEND_USER": "drafts",
        "BACKEND_WEBHOOK_SECRET": "draftloop-tests-webhooks",
        "CACHE_URL": f"sqlite:///{folder / 'cache.sqlite3'}",
        "CASES_DIR": str(ROOT / "label_config"),
        "EXECUTION": "off",
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "LABEL_STUDIO_URL": label_studio.url,
        "LEDGER_URL": f"sqlite:///{folder / 'ledger.sqlite3'}",
        "MODEL_NAME": vllm.name,
        "MODEL_PROFILE": vllm.profile,
        "MODEL_TEMPERATURE": "0",
        "MODEL_URL": vllm.url,
        **more,
    }


def backend_server(url: str, settings: dict[str, str], log: Path) -> BackendServer:
    """Return the address and login of a backend with these settings, and the folder of its state."""
    ledger = Path(settings["LEDGER_URL"].removeprefix("sqlite:///"))
    user, password, secret = (settings[f"BACKEND_{name}"] for name in ("USER", "PASSWORD", "WEBHOOK_SECRET"))
    return BackendServer(url, user, password, secret, ledger, log)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium."""
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} is missing. Run: scripts/setup --browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, label_studio: LabelStudioServer) -> Iterator[Page]:
    """Open a page in a fresh profile, logged in to Label Studio."""
    with logged_in(browser, label_studio) as opened:
        yield opened


@contextmanager
def logged_in(browser: Browser, label_studio: LabelStudioServer) -> Iterator[Page]:
    """Open a page in a fresh profile and log in to Label Studio."""
    context = browser.new_context(
        base_url=label_studio.url, viewport={"width": 1440, "height": 900}, locale="en-US"
    )
    opened = context.new_page()
    opened.goto("/user/login/")
    opened.locator("input[name=email]").fill(label_studio.username)
    opened.locator("input[name=password]").fill(label_studio.password)
    opened.locator("form button[type=submit]").first.click()
    opened.wait_for_url(lambda url: "/user/login" not in url)
    yield opened
    context.close()


def rewrite(region: Locator, words: str) -> None:
    """Put words in the place of a region of a TextArea, as an annotator does.

    The page moves the caret to the end some time after the click, so keys that select all before that add
    the words to the old ones; `fill` selects and writes in one step.
    """
    region.get_by_test_id("htx-textbox-edit-button").click()
    box = region.get_by_test_id("htx-textbox-input")
    box.fill(words)
    box.press("Enter")
    expect(region).to_have_text(words)


def gallery(name: str) -> tuple[Template, Labelling, Task]:
    """Return a template of Label Studio's gallery, compiled, with its example task."""
    with installed():
        return labelled(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --scale: what is tried a thousand times in every run is tried at full scale."""
    parser.addoption("--scale", action="store_true", help="run at full scale what is sampled otherwise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder."""
    for item in items:
        kind = item.path.relative_to(Path(__file__).parent).parts[0]
        if kind in ("sandbox", "integration", "trainers", "ray", "flywheel", "browser", "containers"):
            item.add_marker(kind)


@contextmanager
def installed() -> Iterator[None]:
    """Skip, or fail in CI, when an environment of the code inside is missing."""
    try:
        yield
    except NotInstalledError as error:
        missing(str(error))


def missing(reason: str) -> NoReturn:
    """Fail in CI, skip elsewhere, with the reason."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
