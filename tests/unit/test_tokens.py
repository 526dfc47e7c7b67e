"""The length of a conversation, as the embedded model's own tokenizer and chat template give it."""

from pathlib import Path

import pytest

from draftloop.dataset.sample import conversation, tools
from draftloop.errors import SetupError, TaskError
from draftloop.model.tokens import Tokens
from draftloop.support.environments import MODELS
from tests.samples import written_out

MODEL = MODELS / "tiny-qwen3"


def test_every_character_counts_and_so_do_tools() -> None:
    counter = Tokens(MODEL)
    plain, code = written_out(code=False)[0], written_out(code=True)[0]
    short = counter.count(conversation(plain), [])
    # One character is one token for this model, and the answer stands in the conversation once.
    assert counter.count(conversation(plain, plain.target + "张张"), []) == short + 2
    assert counter.count(conversation(code), tools(code)) > counter.count(conversation(code), []) > short


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="holds no tokenizer"):
        Tokens(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    with pytest.raises(SetupError, match="holds no tokenizer"):
        Tokens(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system, please') }}")
    with pytest.raises(TaskError, match="no system, please"):
        Tokens(tmp_path).count([], [])
