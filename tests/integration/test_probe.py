"""The probe meets real vLLM that was started without what we need: it names the missing flag."""

from pathlib import Path

import pytest

from draftloop.cli import servers
from draftloop.errors import SetupError
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import preamble
from draftloop.serving.readiness import ModelCheck
from draftloop.support.environments import ROOT
from tests.conftest import MODEL, installed, missing

GUIDANCE = "--structured-outputs-config"
# A template that thinks, whatever it is asked.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n<think>\n"
)
WRONG = {
    "blanks": (
        ['--structured-outputs-config={"backend":"guidance"}'],
        "disable_any_whitespace is missing",
        GUIDANCE,
    ),
    "xgrammar": (
        ['--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}'],
        "not pinned to the backend guidance",
        GUIDANCE,
    ),
    "auto": (
        ['--structured-outputs-config={"backend":"auto","disable_any_whitespace":false}'],
        "disable_any_whitespace is missing",
        GUIDANCE,
    ),
    "no log-probabilities": (["--max-logprobs=0"], "refuses log-probabilities", "--max-logprobs"),
    "a reasoning parser": (["--reasoning-parser=deepseek_r1"], "reasoning parser", "--reasoning-parser"),
    "thinking": (["--chat-template={thinking}"], "thinks before it answers", "--chat-template"),
    "a short context": (["--max-model-len=64"], "context of 64 tokens is shorter", "--max-model-len"),
    "no prefix caching": (["--no-enable-prefix-caching"], "for each task anew", "--enable-prefix-caching"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_names_the_flag_that_a_server_lacks(wrong: str, tmp_path: Path) -> None:
    if not (MODEL / "config.json").exists():
        missing(f"{MODEL} is missing. Run: demo/train_model")
    extra, words, fix = WRONG[wrong]
    (tmp_path / "thinking.jinja").write_text(THINKING)
    extra = [one.replace("{thinking}", str(tmp_path / "thinking.jinja")) for one in extra]
    with (
        installed(),
        servers.start_vllm(MODEL, served_name="tiny", extra=extra, log=tmp_path / "log") as server,
        VllmModel(f"{server.url}/v1", "tiny") as model,
    ):
        assert all(part in named(model) for part in (words, fix))


def named(model: VllmModel) -> str:
    """Return what a check says: the error, or what should be mended."""
    cases = Cases(ROOT / "label_config")
    prompts = {name: preamble(cases.get(name), "compact") for name in cases.names()}
    try:
        return " ".join(ModelCheck(model, lambda: prompts).check())
    except SetupError as error:
        return str(error)
