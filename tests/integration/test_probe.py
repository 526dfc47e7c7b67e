"""The probe meets real vLLM that was started without what we need: it names the missing flag."""

from pathlib import Path

import pytest

from backend.edge.vllm import VllmModel
from backend.errors import SetupError
from scripts import servers
from tests.conftest import MODEL, installed, missing

WRONG = {
    "blanks": ('{"backend":"guidance"}', "disable_any_whitespace is missing"),
    "xgrammar": (
        '{"backend":"xgrammar","disable_any_whitespace":true}',
        "not pinned to the backend guidance",
    ),
    "auto": ('{"backend":"auto","disable_any_whitespace":false}', "disable_any_whitespace is missing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_server_started_without_what_we_need_is_told_which_flag(wrong: str, tmp_path: Path) -> None:
    if not (MODEL / "config.json").exists():
        missing(f"{MODEL} is missing. Run: scripts/train_tiny_model")
    config, words = WRONG[wrong]
    extra = (f"--structured-outputs-config={config}",)
    with (
        installed(),
        servers.start_vllm(MODEL, served_name="tiny", extra=extra, log=tmp_path / "log") as server,
        VllmModel(f"{server.url}/v1", "tiny") as model,
        pytest.raises(SetupError, match=words) as refused,
    ):
        model.probe()
    assert "--structured-outputs-config" in refused.value.hint
