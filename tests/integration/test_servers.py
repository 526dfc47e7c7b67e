"""The servers that everything else stands on, as `scripts/servers.py` starts them."""

import json
import os
from pathlib import Path

import httpx
import pytest

from draftloop.cli import servers
from tests.conftest import LabelStudioServer, ModelServer, sdk_client

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["delivery", "refund"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["name", "kind", "tags"],
    "additionalProperties": False,
}


def test_the_legacy_token_works(label_studio: LabelStudioServer) -> None:
    assert label_studio.sdk.users.whoami().email == label_studio.username


def test_a_personal_access_token_works(label_studio: LabelStudioServer) -> None:
    token = label_studio.personal_access_token()
    assert token != label_studio.token
    with sdk_client(label_studio.url, token) as sdk:
        assert sdk.users.whoami().email == label_studio.username


def test_a_wrong_token_is_refused(label_studio: LabelStudioServer) -> None:
    answer = httpx.get(f"{label_studio.url}/api/projects/", headers={"Authorization": "Token nobodys"})
    assert answer.status_code == 401


def test_no_page_of_label_studio_names_an_outside_collector(label_studio: LabelStudioServer) -> None:
    with label_studio.session() as client:
        page = client.get("/projects/").raise_for_status().text
    assert "sentry" not in page.lower().replace("sentry_dsn", "").replace("sentry_", "")
    assert "collect_analytics: false" in page


def test_vllm_answers_a_schema_with_compact_json(vllm: ModelServer) -> None:
    request = {
        "model": vllm.name,
        "messages": [{"role": "user", "content": "我叫张三,快递还没到。"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "value", "schema": _SCHEMA}},
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": 200,
        "logprobs": True,
        "temperature": 0.3,
        "seed": 1,
    }
    answer = httpx.post(f"{vllm.url}/chat/completions", json=request, timeout=60).raise_for_status().json()
    text = answer["choices"][0]["message"]["content"]
    value = json.loads(text)
    assert set(value) == {"name", "kind", "tags"}
    assert text == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_a_folder_without_a_model_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(servers.ServerError, match="There is no model in"):
        servers.start_vllm(tmp_path, served_name="nothing")


def test_a_server_that_dies_tells_how_its_log_ends(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(servers.ServerError, match=r"(?s)vLLM ended with exit status .*The end of .*config"):
        servers.start_vllm(tmp_path, served_name="nothing", log=tmp_path / "vllm.log")


def test_a_folder_made_with_another_token_is_refused(tmp_path: Path) -> None:
    with servers.start_label_studio(tmp_path, token="first-token", password="draftloop"):
        pass
    with pytest.raises(servers.ServerError, match="does not know this token"):
        servers.start_label_studio(tmp_path, token="second-token", password="draftloop")


def test_a_stopped_server_leaves_no_process(tmp_path: Path) -> None:
    with servers.start_label_studio(tmp_path, token="first-token", password="draftloop") as server:
        pass
    with pytest.raises(ProcessLookupError):
        os.killpg(server.pid, 0)
