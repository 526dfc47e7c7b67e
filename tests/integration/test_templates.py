"""Label Studio's own templates, each with its example task, drafted by real vLLM."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from draftloop.cli import servers
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.model.vllm import VllmModel
from draftloop.prompting.prompt import Profile, generic_case
from tests.conftest import MODEL, gallery
from tests.supported import SUPPORTED, short

# The embedded model was made for 2048 tokens; some templates bring more text than that, and here it is
# the form of the answer that counts.
LONG = ("--max-model-len", "8192", "--hf-overrides", json.dumps({"max_position_embeddings": 8192}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmModel]:
    log: Path = tmp_path_factory.mktemp("vllm") / "vllm.log"
    with (
        servers.start_vllm(MODEL, served_name=MODEL.name, extra=LONG, log=log) as server,
        VllmModel(f"{server.url}/v1", MODEL.name) as client,
    ):
        yield client


@pytest.mark.parametrize("profile", ["compact", "full"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_template_is_drafted(model: VllmModel, name: str, profile: Profile) -> None:
    drafter = Drafter(model, AskOptions(profile=profile, temperature=0.3), concurrency=1)
    template, _, task = gallery(name)
    labelling = short(template.config)
    draft = drafter.draft(generic_case(labelling), [task], deadline_s=120)[0]
    drafter.close()
    assert draft.status in ("ok", "invalid"), draft.reasons
    assert draft.value is not None
    bound = labelling.for_task(task)
    said = json.loads(bound.encode(draft.value))
    assert Draft202012Validator(bound.decoding_schema).is_valid(said)
    # Put into reading order, what the model said reads back from its regions.
    value = labelling.from_regions(draft.regions, task)
    assert labelling.from_regions(labelling.to_regions(value, task).regions, task) == value
