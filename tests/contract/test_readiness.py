"""Each usual mistake in how vLLM was started, or the backend set up for it, is named where people look."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from draftloop.app import make_adapters, make_drafter, make_model, make_model_checks, warn_unless_ready
from draftloop.app.log import log_as_json
from draftloop.cli.serve import cli
from draftloop.errors import ServiceError, SetupError
from draftloop.flywheel.adapters import Adapters
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Message, Promoted
from draftloop.serving.answers import Answers
from draftloop.serving.protocol import ProtocolServer
from draftloop.serving.readiness import ModelCheck, check_ready
from draftloop.serving.web import WebApp
from draftloop.settings import Settings, variables
from tests.adapters import run_of
from tests.fake_vllm import FakeVllm, fake_vllm


@dataclass(frozen=True)
class Mistake:
    """What the server and the backend are started with, and what has to be named."""

    named: str
    fix: str
    server: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    drafts: bool = False  # all the same: a warning


GUIDANCE = "--structured-outputs-config"
MISTAKES = {
    "wrong model name": Mistake("does not serve 'other'", "MODEL_NAME", settings={"MODEL_NAME": "other"}),
    "wrong key": Mistake(
        "refused the key", "MODEL_API_KEY", {"api_key": "right"}, {"MODEL_API_KEY": "wrong"}
    ),
    "no key": Mistake("refused the key", "MODEL_API_KEY", {"api_key": "right"}),
    "/v1 missing": Mistake("no OpenAI API", "with /v1 at its end", settings={"MODEL_URL": "{root}"}),
    "too much behind /v1": Mistake(
        "no OpenAI API", "MODEL_URL", settings={"MODEL_URL": "{url}/chat/completions"}
    ),
    "no structured output": Mistake("does not enforce JSON Schemas", GUIDANCE, {"structured_outputs": ""}),
    "whitespace not disabled": Mistake(
        "disable_any_whitespace is missing", GUIDANCE, {"any_whitespace": True}
    ),
    "another grammar backend": Mistake("not pinned to", GUIDANCE, {"structured_outputs": "xgrammar"}),
    "reasoning parser": Mistake("reasoning parser", "--reasoning-parser", {"reasoning_parser": True}),
    "thinking": Mistake("thinks before it answers", "--chat-template", {"thinks": True}),
    "thinking, behind a gateway": Mistake(
        "thinks before it answers", "--chat-template", {"thinks": True, "tokenizes": False}
    ),
    "thinking, with a reasoning parser": Mistake(
        "thinks before it answers", "--chat-template", {"thinks": True, "reasoning_parser": True}
    ),
    "context shorter than a greeting": Mistake(
        "context of 50 tokens is shorter", "--max-model-len", {"context_tokens": 50}
    ),
    "context shorter than every prompt": Mistake(
        "context of 100 tokens is shorter than the prompt", "--max-model-len", {"context_tokens": 100}
    ),
    "context shorter than some prompts": Mistake(
        "every task of 'code_analysis'", "--max-model-len", {"context_tokens": 700}, drafts=True
    ),
    "no prefix caching": Mistake(
        "for each task anew", "--enable-prefix-caching", {"prefix_caching": False}, drafts=True
    ),
    "no prefix caching, and no count of it": Mistake(
        "for each task anew",
        "--enable-prefix-caching",
        {"prefix_caching": False, "counts_cached": False},
        drafts=True,
    ),
    "no prefix caching, and no metrics": Mistake(
        "for each task anew",
        "--enable-prefix-caching",
        {"prefix_caching": False, "metrics": False},
        drafts=True,
    ),
    "no LoRA": Mistake(
        "takes no adapters while it runs", "--enable-lora", settings={"ADAPTERS_DIR": "{runs}"}
    ),
    "speculation that breaks schemas": Mistake(
        "break their schema", "--speculative-config", {"speculation": "invalid"}
    ),
    "speculation that changes answers": Mistake(
        "not the likeliest", "--speculative-config", {"speculation": "unlikely"}
    ),
    "no log-probabilities": Mistake("refuses log-probabilities", "--max-logprobs", {"max_logprobs": 0}),
    "no chat template": Mistake("no chat template", "--chat-template", {"chat_template": False}),
    "two models behind one address": Mistake(
        "serve different models", "--served-model-name", {"beside": FakeVllm(name="another")}
    ),
    "one of two servers lets blanks in": Mistake(
        "disable_any_whitespace is missing", GUIDANCE, {"beside": FakeVllm(any_whitespace=True)}
    ),
    "one of two servers ignores schemas": Mistake(
        "does not enforce JSON Schemas", GUIDANCE, {"beside": FakeVllm(structured_outputs="")}
    ),
    "one of two servers has another key": Mistake(
        "refused the key", "MODEL_API_KEY", {"beside": FakeVllm(api_key="right")}
    ),
    "two models under one name": Mistake(
        "serve different models", "MODEL_URL", {"beside": FakeVllm(root="/models/another")}
    ),
}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name, _, _ in variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "CACHE_URL": "",
        "EXECUTION": "off",
        "ARTIFACTS_URL": str(tmp_path / "artifacts"),
        "LEDGER_URL": f"sqlite:///{tmp_path}/ledger.sqlite3",
        "ADAPTERS_DIR": str(tmp_path / "adapters"),
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def started(request: pytest.FixtureRequest, env: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeVllm]:
    """A fake server with the mistake, and the environment of a backend that is to use it."""
    mistake: Mistake = request.param
    with fake_vllm(**mistake.server) as fake:
        known = {"url": fake.url, "root": fake.url.removesuffix("/v1"), "runs": str(tmp_path / "registry")}
        named = {"MODEL_URL": "{url}", "MODEL_NAME": fake.name, **mistake.settings}
        for name, value in named.items():
            env.setenv(name, value.format(**known))
        if "ADAPTERS_DIR" in mistake.settings:
            adapter = Adapters(tmp_path / "registry").register(run_of(tmp_path / "run"), fake.name)
            Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3").promote(7, Promoted(adapter.name, "compact"))
        yield fake


each = pytest.mark.parametrize(
    ("mistake", "started"), [(one, one) for one in MISTAKES.values()], ids=MISTAKES, indirect=["started"]
)


@each
def test_ready_and_the_log_name_it(
    mistake: Mistake, started: FakeVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings()
    log_as_json("info")
    cases, ledger = Cases(settings.store.cases_dir), Ledger(settings.store.ledger_url)
    with make_model(settings.model, make_adapters(settings.store)) as model:
        probe = partial(check_ready, make_model_checks(settings, cases, model, None), ledger)
        drafter = make_drafter(model, settings.model)
        client = (
            WebApp(ProtocolServer(drafter, cases, ledger, Answers(drafter, ledger, cases.find)), probe=probe)
            .wsgi()
            .test_client()
        )
        answer, health = client.get("/ready"), client.get("/health")
        warn_unless_ready(probe, model.name)  # as the backend does when it starts
        drafter.close()
    body = answer.get_json()
    assert health.status_code == 200
    if mistake.drafts:
        assert (answer.status_code, body["status"]) == (200, "ready")
        (words,) = body["warnings"]
    else:
        assert answer.status_code == 503
        words = f"{body['error']} {body['hint']}"
    assert mistake.named in words
    assert mistake.fix in words
    (line,) = [one for one in capsys.readouterr().out.splitlines() if mistake.named in one]
    assert mistake.fix in line
    assert "wrong" not in f"{body}" + line or mistake.settings.get("MODEL_API_KEY") != "wrong"  # the key


@each
def test_the_check_of_a_server_names_it(mistake: Mistake, started: FakeVllm) -> None:
    result = CliRunner().invoke(cli, ["vllm", "--check"])
    assert result.exit_code == 1
    assert mistake.named in result.output
    assert mistake.fix in result.output


def test_the_check_of_a_server_without_a_mistake_says_so(env: pytest.MonkeyPatch) -> None:
    with fake_vllm(context_tokens=4096) as fake:
        env.setenv("MODEL_URL", fake.url)
        env.setenv("MODEL_NAME", fake.name)
        result = CliRunner().invoke(cli, ["vllm", "--check"])
    assert (result.exit_code, "as drafts need it" in result.output) == (0, True), result.output


def test_the_larger_model_is_checked_as_well(env: pytest.MonkeyPatch) -> None:
    with fake_vllm(context_tokens=4096) as small, fake_vllm(chat_template=False, name="large") as large:
        for name, value in {
            "MODEL_URL": small.url,
            "MODEL_NAME": small.name,
            "CASCADE_URL": large.url,
            "CASCADE_NAME": "large",
        }.items():
            env.setenv(name, value)
        result = CliRunner().invoke(cli, ["vllm", "--check"])
    assert "no chat template for 'large'" in result.output


def test_nothing_is_wrong_with_replicas_of_one_model_in_other_folders_and_with_other_adapters() -> None:
    other = FakeVllm(root="/mnt/7/fake", adapters=["complaint-1"])
    with fake_vllm(beside=other) as fake, VllmModel(fake.url, fake.name) as model:
        assert ModelCheck(model).check() == ()


def test_what_cannot_be_seen_is_no_mistake() -> None:
    with (
        fake_vllm(prefix_caching=False, counts_cached=False, metrics=False, tokenizes=False) as fake,
        VllmModel(fake.url, fake.name) as model,
    ):
        assert ModelCheck(model).check() == ()


def test_all_is_looked_at_again_once_something_was_wrong() -> None:
    with fake_vllm() as fake, VllmModel(fake.url, fake.name) as model:
        check = ModelCheck(model)
        check.check()
        everything = len(fake.asked)
        check.check()
        check.check()
        assert len(fake.asked) == everything + 2  # whether it still answers, and as it did
        fake.any_whitespace = True
        with pytest.raises(SetupError, match="disable_any_whitespace"):
            check.check()
        fake.any_whitespace, fake.speculation = False, "invalid"
        with pytest.raises(SetupError, match="break their schema"):
            check.check()


def test_a_slow_server_is_a_service_error_in_time() -> None:
    with fake_vllm(delay_s=30) as fake, VllmModel(fake.url, fake.name) as model:
        began = time.monotonic()
        with pytest.raises(ServiceError, match="did not answer"):
            ModelCheck(model).check()
        assert time.monotonic() - began < 60  # and not for ever


def test_a_server_that_is_busy_drafts_and_is_checked_later() -> None:
    with fake_vllm(delay_s=2.5) as fake, VllmModel(fake.url, fake.name) as model:
        check = ModelCheck(model)
        (said,) = check.check()
        assert "so busy that it could not be checked" in said
        fake.delay_s, fake.speculation = 0, "invalid"
        with pytest.raises(SetupError, match="break their schema"):
            check.check()


@pytest.mark.parametrize("name", ["a", "Found", "detail"])
def test_a_name_that_stands_in_the_words_of_a_404_is_not_taken_for_served(name: str) -> None:
    with fake_vllm(name=name) as fake:
        root = fake.url.removesuffix("/v1")
        with VllmModel(root, name) as model, pytest.raises(SetupError, match="no OpenAI API"):
            ModelCheck(model).check()


def test_a_failing_server_is_a_service_error() -> None:
    with (
        fake_vllm(fail=lambda _: 502) as fake,
        VllmModel(fake.url, fake.name) as model,
        pytest.raises(ServiceError, match="failed"),
    ):
        ModelCheck(model, lambda: {"a": [Message("system", "x")]}).check()


def test_adapters_of_ours_that_nobody_promoted_are_not_handed_over(env: pytest.MonkeyPatch) -> None:
    with fake_vllm(max_lora_rank=16, context_tokens=4096) as fake:
        env.setenv("MODEL_URL", fake.url)
        env.setenv("MODEL_NAME", fake.name)
        assert CliRunner().invoke(cli, ["vllm", "--check"]).exit_code == 0
        assert fake.handed == 0
