"""Settings: one section per outside system, read from the environment in this one place.

Only `app` and the verbs import this module; everything below is passed its own section. A variable
that starts with one of our prefixes but is not known is an error: a typing mistake in a deployment
must not be silently ignored.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from draftloop.errors import SetupError
from draftloop.support.environments import CASES, ROOT
from draftloop.support.logins import Logins, check_logins

_Section = TypeVar("_Section", bound=BaseSettings)


class LabelStudioSettings(BaseSettings):
    """Where Label Studio is, and a token that may read and write the projects."""

    model_config = SettingsConfigDict(env_prefix="LABEL_STUDIO_", extra="ignore")

    url: AnyHttpUrl = Field(AnyHttpUrl("http://127.0.0.1:8080"), description="Address of Label Studio.")
    api_key: SecretStr = Field(
        SecretStr(""), description="Legacy token or personal access token (Account & Settings)."
    )


class ModelSettings(BaseSettings):
    """The OpenAI-compatible vLLM server that drafts."""

    model_config = SettingsConfigDict(env_prefix="MODEL_", extra="ignore", protected_namespaces=())

    url: AnyHttpUrl = Field(
        AnyHttpUrl("http://127.0.0.1:8000/v1"), description="Address of vLLM, with its /v1."
    )
    name: str = Field("tiny-qwen3", min_length=1, description="Name under which vLLM serves the model.")
    api_key: SecretStr = Field(SecretStr(""), description="vLLM's --api-key, if it has one.")
    profile: Literal["full", "compact"] = Field(
        "full",
        description="Prompt profile: `full` for general models, `compact` for models tuned on our rows.",
    )
    bind_quotes: bool = Field(
        default=True,
        description="Let what must be quoted from the text (`x-grounded`, spans) be written only as a piece "
        "of it; needs vLLM's guidance backend.",
    )
    temperature: float = Field(0.3, ge=0, le=2, description="Sampling temperature; 0 is greedy.")
    max_tokens: int = Field(8192, ge=1, description="Upper limit of answer tokens.")
    context_tokens: int = Field(
        0, ge=0, description="The model's context length; 0 asks the server (`max_model_len`)."
    )
    concurrency: int = Field(64, ge=1, le=4096, description="Requests to vLLM at once, per process.")
    timeout_s: float = Field(60, gt=0, description="Time limit of one request to vLLM, in seconds.")


class CascadeSettings(BaseSettings):
    """The larger model, which drafts again what the model is not sure of."""

    model_config = SettingsConfigDict(env_prefix="CASCADE_", extra="ignore")

    name: str = Field(
        "", description="Name of a larger model, which drafts what the first is not sure of; empty: none."
    )
    url: AnyHttpUrl | None = Field(
        None, description="Address of the vLLM that serves it, with its /v1; by default MODEL_URL."
    )
    api_key: SecretStr = Field(SecretStr(""), description="That vLLM's --api-key, if it has one.")
    profile: Literal["full", "compact"] = Field("full", description="The larger model's prompt profile.")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Score below which a draft goes to the larger model; `draftloop cascade` chooses it.",
    )


class BackendSettings(BaseSettings):
    """Our own server."""

    model_config = SettingsConfigDict(env_prefix="BACKEND_", extra="ignore")

    user: str = Field(
        "",
        description="User for basic auth; empty: no login, and only the backend's own machine is answered.",
    )
    password: SecretStr = Field(SecretStr(""), description="Password for basic auth.")
    viewer_user: str = Field(
        "", description="User of annotators, who may open runs and their files and nothing else; empty: none."
    )
    viewer_password: SecretStr = Field(SecretStr(""), description="Password of that user.")
    members_view: bool = Field(
        default=True,
        description="Let whoever is logged in to Label Studio open runs and their files: where both have one "
        "host name its cookie reaches the backend, which asks Label Studio whose it is.",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret of Label Studio's webhooks, which every member can read there; it opens /webhook "
        "alone. At least 16 characters.",
    )
    open: bool = Field(
        default=False,
        description="Answer every machine where there is no login; by default only the backend's own.",
    )
    allowed_hosts: str = Field(
        "",
        description="Names by which the backend may be called, with commas between them; empty allows any "
        "where there is a login.",
    )
    public_url: AnyHttpUrl = Field(
        AnyHttpUrl("http://127.0.0.1:9090"),
        description="Address at which annotators' browsers reach the backend, for links in tasks.",
    )
    deadline_s: float = Field(
        90, gt=0, description="Time within which /predict answers (Label Studio waits 100 s)."
    )
    max_body_mb: int = Field(32, ge=1, description="Largest body of a request, in MB.")
    header_s: float = Field(
        10, gt=0, description="Time for a client to send a request's headers, in seconds."
    )
    body_s: float = Field(60, gt=0, description="Time for a client to send a request's body, in seconds.")
    answer_s: float = Field(
        60, gt=0, description="Time for a client to read an answer, in seconds; longer at 64 KB/s and more."
    )
    connections: int = Field(
        600, ge=100, description="Connections at once; beyond them, the longest idle one is closed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least log level shown."
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_small_letters(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    def logins(self) -> Logins:
        """Return who may ask for what.

        Raises:
            SetupError: A login is incomplete, cannot be sent, or opens more than it should.
        """
        logins = Logins(
            user=self.user,
            password=self.password.get_secret_value(),
            viewer_user=self.viewer_user,
            viewer_password=self.viewer_password.get_secret_value(),
            webhook_secret=self.webhook_secret.get_secret_value(),
            is_open=self.open,
            hosts=tuple(filter(None, map(str.strip, self.allowed_hosts.split(",")))),
            public_url=str(self.public_url),
        )
        check_logins(logins)
        return logins


class StoreSettings(BaseSettings):
    """Where state lives that outlives a process."""

    model_config = SettingsConfigDict(extra="ignore")

    ledger_url: str = Field(
        "sqlite:///draftloop.sqlite3",
        description="The ledger: `sqlite:///relative` or `sqlite:////absolute`.",
    )
    cache_url: str = Field(
        "sqlite:///draftloop-cache.sqlite3",
        description="The exact cache of answers: `sqlite:///...`, `redis://host:port/db`, or empty for none.",
    )
    cache_rows: int = Field(
        100_000, ge=1, description="Answers that the SQLite cache keeps; the least recently used go."
    )
    near_duplicates: Literal["off", "example", "reuse"] = Field(
        "off",
        description="What a similar task's answer is for: `example` shows it to the model, `reuse` gives it "
        "again where it provably holds. Needs an SQLite cache.",
    )
    artifacts_url: str = Field(
        "draftloop-artifacts",
        description="Where runs of code and their files are kept: a folder, `file:///folder` or "
        "`s3://bucket/prefix`.",
    )
    artifacts_max_mb: int = Field(
        100_000,
        ge=0,
        description="What that store may hold, in MB; 0: no limit. At the limit a run's files are refused in "
        "words.",
    )
    cases_dir: Path = Field(CASES, description="Folder with one folder per case.")
    adapters_dir: Path = Field(
        Path("draftloop-adapters"),
        description="Registry of adapters, which draftloop promote makes; vLLM reads it at the same path.",
    )
    examples: str = Field(
        "",
        description="Corrections that prompts show: a folder that draftloop freeze-examples wrote; empty "
        "shows none.",
    )
    examples_shown: int = Field(
        3, ge=1, le=50, description="How many of them a task is shown, those most like it."
    )


class FlywheelSettings(BaseSettings):
    """Jobs that sync, train and promote: on what, and what sets one off."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_", extra="ignore")

    folder: Path = Field(
        Path("draftloop-flywheel"),
        description="Where training jobs keep the dataset and the runs of each project.",
    )
    after: int = Field(
        0,
        ge=0,
        description="New annotations of a project after which it is trained by itself; 0: only by Label "
        "Studio's button and draftloop retrain.",
    )
    base: Path | None = Field(
        None,
        description="Folder of the model that vLLM serves, to train on; by default `demo/models/MODEL_NAME` "
        "in a checkout, else `models/MODEL_NAME`.",
    )
    train: str = Field(
        "", description="More options of draftloop train for jobs, as on its command line: `--set epochs=2`."
    )


class ExecutionSettings(BaseSettings):
    """Whether and within which limits code of code tasks is run, and where its inputs are."""

    model_config = SettingsConfigDict(extra="ignore")

    execution: Literal["auto", "ask", "off"] = Field(
        "auto",
        description="Code of code tasks: `auto` runs that of drafts and has the model mend it, `ask` runs "
        "only what a human asks for, `off` runs nothing.",
    )
    execution_turns: int = Field(3, ge=1, le=20, description="Scripts that are run for one draft, at most.")
    execution_total_s: float = Field(
        180, gt=0, description="Time for the code of one draft: all runs, and the questions between them."
    )
    execution_jobs: int = Field(0, ge=0, le=256, description="Runs at once; 0 is the number of cores.")
    execution_wall_s: float = Field(60, gt=0, description="Time limit of one run, in seconds.")
    execution_cpu_s: int = Field(60, gt=0, description="Processor time of one run, in seconds.")
    execution_memory_mb: int = Field(2048, gt=0, description="Memory of one run, in MB.")
    execution_disk_mb: int = Field(
        512, gt=0, description="What one run may write, in MB; half of it in one file."
    )
    execution_output_kb: int = Field(
        1024, gt=0, description="What is kept of what one script prints to each stream, in KB."
    )
    input_root: Path = Field(
        ROOT / "inputs",
        description="Input files of code tasks: folder `projects/ID` for one project, `shared` for all.",
    )
    sandbox_python: Path | None = Field(
        None, description="Python of the environment `sandbox`; by default the one that draftloop setup made."
    )
    interpreter_python: Path | None = Field(
        None, description="Python of the environment `open-interpreter`; by default that of draftloop setup."
    )
    sandbox_folder: Path = Field(
        Path("/var/tmp/draftloop"),  # noqa: S108  a sandbox has a folder of its own below it
        description="Where code runs and leaves its files until they are kept.",
    )


class Settings:
    """All sections. Each is read once, when this object is made."""

    def __init__(self, *, is_guest: bool = False) -> None:
        """Read them.

        Args:
            is_guest: Whether another program's server runs us, whose variables may begin with MODEL_, too.
        Raises:
            SetupError: One is wrong, or begins with our prefix and is unknown.
        """
        also_read = {} if is_guest else ALSO_READ
        self.label_studio = _read(LabelStudioSettings, also_read)
        self.model = _read(ModelSettings)
        self.cascade = _read(CascadeSettings)
        self.backend = _read(BackendSettings, also_read)
        self.store = _read(StoreSettings)
        self.flywheel = _read(FlywheelSettings)
        self.execution = _read(ExecutionSettings)
        if not is_guest:
            _refuse_foreign()
        _refuse_unknown(_GUEST_PREFIXES if is_guest else _OWN_PREFIXES)


SECTIONS: tuple[type[BaseSettings], ...] = (
    LabelStudioSettings,
    ModelSettings,
    CascadeSettings,
    BackendSettings,
    StoreSettings,
    FlywheelSettings,
    ExecutionSettings,
)

# What label-studio-ml reads under another name, by our name for it. Ours wins.
ALSO_READ = {
    "BACKEND_LOG_LEVEL": "LOG_LEVEL",
    "BACKEND_PASSWORD": "BASIC_AUTH_PASS",
    "BACKEND_USER": "BASIC_AUTH_USER",
    "LABEL_STUDIO_API_KEY": "LABEL_STUDIO_ACCESS_TOKEN",
    "LABEL_STUDIO_URL": "LABEL_STUDIO_HOST",
}
# Variables of label-studio-ml that mean something else than any of our settings.
REFUSED = {
    "CACHE_TYPE": "The cache of answers is what CACHE_URL names: sqlite:///... or redis://...",
    "MODEL_DIR": "The model is served by vLLM, at MODEL_URL and under MODEL_NAME; what the backend keeps is "
    "at LEDGER_URL, CACHE_URL, ARTIFACTS_URL and ADAPTERS_DIR.",
}

# Prefixes that are ours alone. LABEL_STUDIO_ is shared with Label Studio's own variables.
_OWN_PREFIXES = ("MODEL_", "CASCADE_", "BACKEND_", "EXECUTION_", "FLYWHEEL_", "EXAMPLES_")
_GUEST_PREFIXES = tuple(prefix for prefix in _OWN_PREFIXES if prefix != "MODEL_")


def variables() -> list[tuple[str, str, str]]:
    """List every environment variable as (name, default, description); the docs are made from it."""
    rows = []
    for section in SECTIONS:
        prefix = section.model_config.get("env_prefix") or ""
        for name, field in section.model_fields.items():
            default: Any = field.default
            if isinstance(default, SecretStr):
                default = ""
            elif isinstance(default, Path):
                default = default.relative_to(ROOT) if default.is_relative_to(ROOT) else default
            shown = "" if default is None else str(default)
            rows.append((f"{prefix}{name}".upper(), shown, field.description or ""))
    return rows


def _read(section: type[_Section], also_read: Mapping[str, str] = MappingProxyType({})) -> _Section:
    prefix = section.model_config.get("env_prefix") or ""
    given: dict[str, Any] = {}
    ours = {name.upper() for name, value in os.environ.items() if value}
    for field in section.model_fields:
        name = f"{prefix}{field}".upper()
        value = os.environ.get(also_read.get(name, ""))
        if value and name not in ours:
            given[field] = value
    try:
        return section(**given)
    except ValidationError as error:
        wrong = "; ".join(
            f"{prefix}{'.'.join(str(part) for part in item['loc'])}".upper() + f": {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise SetupError(
            f"Settings are wrong: {wrong}.", hint="docs/reference/settings.md lists all settings."
        ) from None  # the original may quote a secret


def _refuse_foreign() -> None:
    for name, hint in REFUSED.items():
        if os.environ.get(name):
            raise SetupError(f"{name} is a setting of label-studio-ml and none of ours.", hint=hint)


def _refuse_unknown(prefixes: tuple[str, ...]) -> None:
    known = {name for name, _, _ in variables()}
    unknown = sorted(name for name in os.environ if name.startswith(prefixes) and name.upper() not in known)
    if unknown:
        raise SetupError(
            f"Unknown settings: {', '.join(unknown)}.",
            hint="Correct or remove them; docs/reference/settings.md lists all names.",
        )
