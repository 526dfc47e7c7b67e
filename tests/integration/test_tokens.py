"""The embedded model's tokens, held against the decoder that it is served with."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from demo.corpus import CASES, generate
from demo.corpus.code_failures import conversations
from draftloop.cli import servers
from draftloop.labelling.grammar import quoting_grammar
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.prompting.cases import Cases
from draftloop.support.environments import MODELS, ROOT, find_environment

SHIPPED = Cases(ROOT / "label_config")


def refused(
    rows: Sequence[Mapping[str, object]], model: Path = MODELS / "tiny-qwen3"
) -> list[dict[str, str]]:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    python = find_environment("vllm") / "bin" / "python"
    command = [str(python), "tests/guidance_tokens.py", str(model)]
    process = subprocess.run(command, cwd=ROOT, input=lines, text=True, stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in process.stdout.split("\n") if line]


def test_the_decoder_allows_every_token_of_every_training_target_where_it_stands() -> None:
    rows = []
    for name in CASES:
        labelling = SHIPPED.get(name).labelling
        for row in generate(name, "train", 60, seed=5):
            value = {key: part for key, part in row.value.items() if part is not None}
            target = labelling.encode(value)
            assert labelling.decode(target) == value
            rows.append({"schema": labelling.decoding_schema, "target": target})
            grammar = SHIPPED.get(name).grammar(Task(1, {"text": row.text}))
            if grammar:
                rows.append({"grammar": grammar, "target": target})
    assert len(rows) == 7 * 60
    assert refused(rows) == []


def test_a_target_that_the_schema_forbids_is_refused() -> None:
    config = '<View><Text name="t" value="$t"/><Rating name="r" toName="t" required="true"/></View>'
    schema = compile_labelling(config).decoding_schema
    assert refused([{"schema": schema, "target": '{"r": 3}'}]) == [{"written": '{"r":', "refused": " "}]


def test_a_quote_that_the_text_does_not_hold_is_refused_at_its_first_wrong_token() -> None:
    grammar = SHIPPED.get("complaint").grammar(Task(1, {"text": "我叫王小明,快递丢了"}))
    target = '{"name":"王大明","address":null,"email":null,"question":"快递丢了"}'
    refusals = refused([{"grammar": grammar, "target": target}])
    assert [(one["written"], one["refused"][0]) for one in refusals] == [('{"name":"王', "大")]


def test_the_decoder_allows_every_token_of_every_program(tmp_path: Path) -> None:
    python = find_environment("train") / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": servers.PYTHONPATH}
    command = [str(python), "tests/code_tokenizer.py", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    schema = SHIPPED.get("code_analysis").labelling.decoding_schema
    targets = [answer for _, answer in conversations("train", 150, 5)]
    assert refused([{"schema": schema, "target": target} for target in targets], tmp_path) == []


@pytest.mark.parametrize(
    ("least", "most", "quotes"), [(0, 1, 0), (0, 1, 1), (1, 1, 1), (0, 3, 3), (2, 3, 2), (3, 3, 3)]
)
def test_an_array_of_quotes_has_as_many_as_the_schema_says(least: int, most: int, quotes: int) -> None:
    item = {"type": "string", "minLength": 2, "maxLength": 5}
    array = {"type": "array", "items": item, "minItems": least, "maxItems": most}
    grammar = quoting_grammar({"type": "object", "properties": {"a": array}}, [("a",)], ["快递丢了"])
    target = json.dumps({"a": ["丢了"] * quotes}, ensure_ascii=False, separators=(",", ":"))
    short = target.replace("丢了", "丢", 1)
    refusals = refused([{"grammar": grammar, "target": target}, {"grammar": grammar, "target": short}])
    assert len(refusals) == (1 if quotes else 0)
