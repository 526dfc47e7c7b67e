"""The full profile meets models: Qwen2.5 and Qwen3 shapes with their real chat templates, on real vLLM."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from draftloop.cli import servers
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.labelling.labelling import Task
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT, find_environment

CASES = Cases(ROOT / "label_config")
TEXTS = [f"我想预订2026年5月{day}日从昆明到哈尔滨的经济舱,一共3人。" for day in range(1, 13)]


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmModel]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    python = find_environment("train") / "bin" / "python"
    subprocess.run([python, "tests/random_qwen.py", request.param, folder], cwd=ROOT, check=True)
    extra = ("--max-model-len", "4096")
    with (
        servers.start_vllm(folder, served_name=request.param, extra=extra, log=folder / "vllm.log") as server,
        VllmModel(f"{server.url}/v1", request.param) as opened,
    ):
        yield opened


def test_every_draft_has_the_shape_that_the_schema_says_and_the_preamble_is_cached(model: VllmModel) -> None:
    drafter = Drafter(model, AskOptions(profile="full", temperature=0.3), concurrency=4)
    case = CASES.get("flight_booking")
    tasks = [Task(number, {"text": text}) for number, text in enumerate(TEXTS)]
    drafts = drafter.draft(case, tasks, deadline_s=120)
    drafter.close()
    assert [draft.task_id for draft in drafts] == list(range(len(TEXTS)))
    for draft in drafts:
        # Random weights know no rule, but cities that are no quotes of the text cannot even be written.
        assert draft.value is not None, draft.reasons
        assert {reason.kind for reason in draft.reasons} <= {"rule"}, draft.reasons
        assert draft.attempts == (2 if draft.reasons else 1) or draft.status == "ok"
        nulled = {key: draft.value.get(key) for key in case.labelling.decoding_schema["properties"]}
        assert Draft202012Validator(case.labelling.decoding_schema).is_valid(nulled)
    # The later tasks find role, task, schema, rules and examples in the prefix cache.
    late = drafts[-4:]
    assert sum(draft.cached_tokens for draft in late) > 0.8 * sum(draft.prompt_tokens for draft in late)
