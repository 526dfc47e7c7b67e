"""A short training of the embedded model, and the tokens that vLLM reads; at length: tests/flywheel."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from draftloop.labelling.labelling import Task
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import render
from draftloop.support.environments import ROOT
from draftloop.support.files import hash_file
from draftloop.training.base import open_base
from draftloop.training.recipe import Recipe
from draftloop.training.rows import gather, open_dataset
from tests import datasets
from tests.conftest import MODEL, ModelServer
from tests.train_runs import finished, record, start, train

THINKING = {"chat_template_kwargs": {"enable_thinking": False}}  # as backend/draftloop/model/vllm.py asks


def test_a_run_has_its_adapter_and_all_that_it_takes_to_make_it_again(tmp_path: Path) -> None:
    dataset, out = datasets.corrected(tmp_path / "dataset", 20, case="sentiment"), tmp_path / "run"
    done = train(dataset, out, batch_rows=18, epochs=3)  # all rows in every step
    assert done.returncode == 0, done.stderr
    training_record = record(out)
    assert training_record["adapter_sha256"] == hash_file(out / "adapter" / "adapter_model.safetensors")
    assert (training_record["case"], training_record["profile"], training_record["base_model"]) == (
        "sentiment",
        "compact",
        str(MODEL),
    )
    manifest = hash_file(dataset / "manifest.json")
    assert training_record["dataset"] == {"path": str(dataset), "manifest_sha256": manifest}
    assert training_record["rows"]["own"] == 18
    assert training_record["arguments"]["epochs"] == 3
    assert {"torch", "trl", "peft", "transformers", "python"} <= training_record["versions"].keys()
    assert (training_record["seed"], training_record["hardware"]["processes"]) == (0, 1)
    assert [entry["step"] for entry in training_record["loss"]] == [1, 2, 3]
    assert training_record["held_out"]["rows"] == 2
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not out.with_name("run.part").exists()
    # PEFT loads it, and computes the same losses from the rows and the model's own chat template.
    checked = finished(start(["-P", "tests/consumers/peft_adapter.py", str(MODEL), str(out), str(dataset)]))
    assert checked.returncode == 0, checked.stderr


def test_the_tokens_of_a_thousand_rows_are_those_that_vllm_reads(tmp_path: Path, vllm: ModelServer) -> None:
    folders = [
        datasets.corrected(tmp_path / "complaint", 560),
        datasets.corrected(tmp_path / "flight_booking", 560, case="flight_booking"),
        datasets.write(tmp_path / "code", code=True),
    ]
    base = open_base(MODEL)
    rows: list[Any] = []
    lines: list[Any] = []
    for folder in folders:
        corpus = gather(open_dataset(folder), (), base, Recipe(min_rows=1, max_tokens=2048), dpo=False)
        assert corpus.counts()["too_long"] == 0
        rows += corpus.rows
        lines += [json.loads(line) for line in (folder / "messages.jsonl").read_bytes().splitlines()]
    assert len(rows) == len(lines) > 1000

    def tokens(line: Mapping[str, Any], *, answered: bool) -> list[int]:
        body: dict[str, Any] = {"model": vllm.name, "add_generation_prompt": not answered, **THINKING}
        system, user, *_, answer = line["messages"]  # a draft of code is asked for without programs
        body["messages"] = [system, user, answer] if answered else [system, user]
        ids: list[int] = client.post("/tokenize", json=body).raise_for_status().json()["tokens"]
        return ids

    def asked(line: Mapping[str, Any]) -> Any:
        body = {"model": vllm.name, "messages": line["messages"][:-1], "temperature": 0, **THINKING}
        body |= {"return_token_ids": True, "max_tokens": 300}
        return client.post("/v1/chat/completions", json=body).raise_for_status().json()

    with (
        httpx.Client(base_url=vllm.url.removesuffix("/v1"), trust_env=False, timeout=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        conversations = pool.map(lambda line: tokens(line, answered=True), lines)
        prompts = pool.map(lambda line: tokens(line, answered=False), lines)
        for row, conversation, prompt in zip(rows, conversations, prompts, strict=True):
            assert list(row.ids) == conversation
            assert list(row.ids[: row.start]) == prompt

        # What the backend asks for a task is what the row holds; the model writes an answer in its tokens.
        complaint = Cases(ROOT / "label_config").get("complaint")
        same = 0
        for row, line, answer in zip(rows[:40], lines[:40], pool.map(asked, lines[:40]), strict=True):
            text = line["messages"][-2]["content"]
            served = render(complaint, Task(1, {"text": text}), "compact")
            assert [(message.role, message.content) for message in served] == [
                (message["role"], message["content"]) for message in line["messages"][:-1]
            ]
            assert answer["prompt_token_ids"] == list(row.ids[: row.start])
            choice = answer["choices"][0]
            if choice["message"]["content"] == line["messages"][-1]["content"]:
                same += 1
                assert choice["token_ids"] == list(row.ids[row.start : row.end])
        assert same > 10
