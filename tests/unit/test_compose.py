"""What Dockerfile and docker-compose.yml say, without building them: names, secrets, privileges.

tests/containers builds and runs them.
"""

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

import yaml

from backend.settings import variables
from scripts import servers

COMPOSE_TEXT = (servers.ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (servers.ROOT / ".env.example").read_text("utf-8")
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
    text = (servers.ROOT / "Dockerfile").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found: dict[str, Stage] = {}
    stage = Stage("")
    for line in lines.replace("\\\n", " ").splitlines():
        instruction, _, words = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = words.split()
            before = found.get(base, Stage(base))
            stage = found[name] = Stage(base, list(before.instructions), dict(before.environment))
        elif instruction == "ENV":
            pairs = (word.partition("=") for word in shlex.split(words))
            stage.environment.update((name, value) for name, _, value in pairs)
        elif instruction:
            stage.instructions.append((instruction, words.strip()))
    return found


STAGES = stages()
SERVED = ("backend", "label-studio", "vllm-cpu")


def test_every_image_starts_from_debian_alone() -> None:
    assert {stage.base for stage in STAGES.values()} <= {"debian:bookworm-slim", *STAGES}


def test_every_server_has_a_user_of_its_own_and_tells_its_health() -> None:
    users = [STAGES[name].last("USER") for name in SERVED]
    assert len(set(users)) == len(users)
    assert all(re.fullmatch(r"1000\d:1000\d", user) for user in users)
    for name in SERVED:
        assert "/health" in STAGES[name].last("HEALTHCHECK")


def test_every_target_that_compose_builds_is_there() -> None:
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


def test_every_service_tells_its_health() -> None:
    for name, service in SERVICES.items():
        assert "healthcheck" in service or service["build"]["target"] in SERVED, name


def test_nothing_phones_home() -> None:
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
