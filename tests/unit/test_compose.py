"""What Dockerfile and docker-compose.yml say, without building them: names, secrets, privileges.

tests/containers builds and runs them.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from draftloop.cli import servers
from draftloop.serving.server import Worker
from draftloop.settings import variables
from draftloop.support.environments import ROOT
from scripts.images import images

COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
SECRET = re.compile("PASSWORD|TOKEN|KEY|SECRET")


@dataclass
class Stage:
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def last(self, name: str) -> str:
        return [words for instruction, words in self.instructions if instruction == name][-1]


def stages() -> dict[str, Stage]:
    """Read the Dockerfile's stages; each begins with what its base said."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    stages_by_name: dict[str, Stage] = {}
    arguments: dict[str, str] = {}  # before the first FROM
    stage = Stage("")
    for line in lines.replace("\\\n", " ").splitlines():
        instruction, _, words = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], words).split()
            before = stages_by_name.get(base, Stage(base))
            stage = stages_by_name[name] = Stage(base, list(before.instructions), dict(before.environment))
        elif instruction == "ENV":
            pairs = (word.partition("=") for word in shlex.split(words))
            stage.environment.update((name, value) for name, _, value in pairs)
        elif instruction == "ARG" and not stages_by_name:
            name, _, default = words.partition("=")
            arguments[name] = default
        elif instruction:
            stage.instructions.append((instruction, words.strip()))
    return stages_by_name


STAGES = stages()
SERVED = ("backend", "label-studio", "vllm-cpu")


def test_every_image_starts_from_debian_alone() -> None:
    assert {stage.base for stage in STAGES.values()} <= {"debian:bookworm-slim", *STAGES}


def test_every_image_of_a_registry_can_be_named_by_digest() -> None:
    variables = images(COMPOSE_TEXT, "")
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["args"] == {"BASE_IMAGE": "${BASE_IMAGE:-debian:bookworm-slim}"}, name
        else:
            assert re.fullmatch(r"\$\{\w+_IMAGE:-[^}]+\}", service["image"]), name
    assert variables["BASE_IMAGE"] in {stage.base for stage in STAGES.values()}  # the Dockerfile's default
    for variable, image in variables.items():
        assert f"# {variable}={image}\n" in EXAMPLE
        assert ":" in image, variable  # without a tag there is nothing to look up


def test_every_server_has_its_own_user_and_a_health_check() -> None:
    users = [STAGES[name].last("USER") for name in SERVED]
    assert len(set(users)) == len(users)
    assert all(re.fullmatch(r"1000\d:1000\d", user) for user in users)
    for name in SERVED:
        assert "/health" in STAGES[name].last("HEALTHCHECK")


def test_every_target_that_compose_builds_exists() -> None:
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == set(SERVED)


def test_every_environment_name_of_the_backend_is_a_setting() -> None:
    known = {name for name, _, _ in variables()}
    for name in ("backend", "backend-cpu"):
        assert SERVICES[name]["environment"]
        assert set(SERVICES[name]["environment"]) <= known
    prefixes = ("LABEL_STUDIO_", "MODEL_", "BACKEND_", "LEDGER_", "CASES_")
    assert {key for key in STAGES["backend"].environment if key.startswith(prefixes)} <= known


def test_no_secret_has_a_default_and_each_is_explained() -> None:
    used = dict(re.findall(r"\$\{(\w+)(:[^}]*)?\}", COMPOSE_TEXT))
    for name, rest in used.items():
        if (SECRET.search(name) or "USERNAME" in name) and rest != ":-":
            assert rest.startswith(":?"), name
            assert f"\n{name}=\n" in EXAMPLE, name
        else:
            assert rest.startswith(":-"), name
    assert set(re.findall(r"^(?:# )?(\w+)=", EXAMPLE, re.MULTILINE)) == set(used)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert value.startswith("${"), name


def test_only_label_studio_is_published_and_the_others_have_no_way_out() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["label-studio"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("database", "backend", "backend-cpu", "vllm-cpu"):
        assert set(SERVICES[name]["networks"]) == {"inside"}


def test_every_service_drops_what_it_does_not_need() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges"], name
        assert service.get("read_only") is True or name == "vllm", name  # the maker's image writes all over


def test_every_service_has_a_health_check() -> None:
    for name, service in SERVICES.items():
        assert "healthcheck" in service or service["build"]["target"] in SERVED, name


def test_the_sandbox_image_has_what_it_imports(tmp_path: Path) -> None:
    for instruction, words in STAGES["sandbox"].instructions:
        if instruction == "COPY":
            *sources, target = shlex.split(words)
            copy(sources, tmp_path / target, is_folder=target.endswith("/"))
    # -S: of installed packages it needs none to start; what code may import is asked for later.
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'backend')!r})\n"
        "import draftloop.sandbox.server, draftloop.sandbox.keeper\n"
        "print(draftloop.sandbox.server.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path), "the copy is imported, not this checkout"


def copy(sources: list[str], target: Path, *, is_folder: bool) -> None:
    """Copy as Docker does: a folder's content, or files into a folder."""
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            to = target / path.name if is_folder else target
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def test_telemetry_is_off() -> None:
    assert servers.LABEL_STUDIO_PRIVATE.items() <= STAGES["label-studio"].environment.items()
    assert servers.VLLM_PRIVATE.items() <= STAGES["vllm-cpu"].environment.items()
    fetching = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}  # the GPU's model comes from Hugging Face
    wanted = {name: value for name, value in servers.VLLM_PRIVATE.items() if name not in fetching}
    assert wanted.items() <= SERVICES["vllm"]["environment"].items()


def test_vllm_runs_with_the_flags_that_were_measured() -> None:
    assert set(servers.VLLM_FLAGS) <= set(SERVICES["vllm-cpu"]["command"])
    assert STAGES["vllm-cpu"].environment["TORCH_COMPILE_DISABLE"] == "1"  # the image has no compiler
    structured = next(flag for flag in servers.VLLM_FLAGS if flag.startswith("--structured-outputs-config"))
    assert {structured, "--max-num-seqs=256", "--enable-prefix-caching"} <= set(SERVICES["vllm"]["command"])


def test_a_backend_asks_for_the_model_that_its_vllm_serves() -> None:
    for backend, vllm in (("backend", "vllm"), ("backend-cpu", "vllm-cpu")):
        assert SERVICES[backend]["profiles"] == SERVICES[vllm]["profiles"]
        name = SERVICES[backend]["environment"]["MODEL_NAME"]
        assert f"--served-model-name={name}" in SERVICES[vllm]["command"]


def test_label_studio_calls_no_private_address_but_that_of_a_backend() -> None:
    environment = SERVICES["label-studio"]["environment"]
    assert environment["SSRF_PROTECTION_ENABLED"] == "${LABEL_STUDIO_SSRF_PROTECTION:-true}"
    assert "--no-webhook" in COMPOSE_TEXT


def test_the_image_serves_with_the_worker_that_the_scripts_use() -> None:
    command = STAGES["backend"].last("CMD")
    assert f"{Worker.__module__}.{Worker.__qualname__}" in command
    assert "--no-control-socket" in command
