"""Training adapters of the embedded model: real TRL and PEFT, few steps; and the tokens that vLLM sees."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.edge.folder import sha256_of
from backend.training.base import open_base
from backend.training.recipe import Recipe
from backend.training.rows import gather, open_dataset
from backend.training.runs import marked
from scripts import servers
from tests import datasets
from tests.conftest import ModelServer, installed

MODEL = servers.ROOT / "models" / "tiny-qwen3"
# Two rows a step, 18 steps, a checkpoint after each.
FEW = ("batch_rows=2", "accumulation=1", "epochs=1", "min_rows=8", "checkpoint_steps=1", "learning_rate=1e-3")


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.corrected(tmp_path_factory.mktemp("dataset") / "sentiment", 40, case="sentiment")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sentiment: Path) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("run") / "whole"
    done = train(sentiment, out)
    assert done.returncode == 0, done.stderr
    return out


def command(dataset: Path, out: Path, *more: str, few: Sequence[str] = FEW) -> list[str]:
    sets = [word for change in few for word in ("--set", change)]
    return ["-m", "scripts.train", "--dataset", str(dataset), "--out", str(out), *sets, *more]


def start(
    arguments: Sequence[str], program: str = "python", below: Sequence[str] = ()
) -> subprocess.Popen[str]:
    with installed():
        binary = servers.environment("train") / "bin" / program
    return subprocess.Popen(
        [*below, str(binary), *arguments],
        cwd=servers.ROOT,
        env={**os.environ, "PYTHONPATH": str(servers.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(dataset: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return finished(start(command(dataset, out, *more)))


def checkpoint_after(out: Path, step: int, process: subprocess.Popen[str]) -> int:
    """Wait for a whole checkpoint after that step, and give its own."""
    stage = out.with_name(f"{out.name}.part") / "sft"
    while process.poll() is None:
        found = [
            int(folder.name.rpartition("-")[2]) for folder in stage.glob("checkpoint-*") if marked(folder)
        ]
        if found and max(found) > step:
            return max(found)
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_bytes())
    return found


def test_a_run_has_its_adapter_and_all_that_it_takes_to_make_it_again(
    tmp_path: Path, sentiment: Path
) -> None:
    flights = datasets.corrected(tmp_path / "flights", 10, case="flight_booking")
    out = tmp_path / "run"
    done = train(
        sentiment,
        out,
        "--replay",
        f"{flights}:0.25",
        "--dpo",
        "--set",
        "dpo_epochs=2",
        "--set",
        "dpo_learning_rate=1e-3",
        "--set",
        "tracking=tensorboard",
    )
    assert done.returncode == 0, done.stderr
    told = record(out)
    weights = sha256_of(out / "adapter" / "adapter_model.safetensors")
    assert told["adapter_sha256"] == weights
    assert told["served_name"] == f"tiny-qwen3-sentiment-{weights[:10]}"
    assert (told["case"], told["profile"], told["base_model"]) == ("sentiment", "compact", str(MODEL))
    assert told["dataset"] == {
        "path": str(sentiment),
        "manifest_sha256": sha256_of(sentiment / "manifest.json"),
    }
    assert (told["rows"]["own"], told["rows"]["replayed"]) == (36, 9)
    assert told["arguments"]["replay"][0]["path"] == str(flights)
    assert {"torch", "trl", "peft", "transformers", "python"} <= told["versions"].keys()
    assert told["hardware"]["processes"] == 1
    pairs = told["rows"]["pairs"]
    steps = [(entry["stage"], entry["step"]) for entry in told["loss"]]
    assert steps == [("sft", step + 1) for step in range(23)] + [
        ("dpo", step + 1) for step in range(2 * ((pairs + 1) // 2))
    ]
    # Of pairs, the loss begins where the adapter is its own reference: -log(1/2).
    first, last = ([entry["loss"] for entry in told["loss"] if entry["stage"] == "dpo"][at] for at in (0, -1))
    assert abs(first - 0.6931) < 1e-3
    assert last != first
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tracking" / "sft").glob("events.out.tfevents.*"))
    assert not out.with_name("run.part").exists()
    checked = finished(start(["-P", "tests/consumers/peft_adapter.py", str(MODEL), str(out / "adapter")]))
    assert checked.returncode == 0, checked.stderr


def test_stopped_and_killed_and_gone_on_with_is_the_same_as_never_stopped(
    tmp_path: Path, sentiment: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    process = start(command(sentiment, out))
    checkpoint_after(out, 0, process)
    process.send_signal(signal.SIGTERM)
    stopped = finished(process)
    assert stopped.returncode == 130, stopped.stderr
    assert "Stopped. --resume goes on" in stopped.stderr
    assert not out.exists()

    refused = train(sentiment, out)
    assert refused.returncode == 1
    assert "--resume goes on" in refused.stderr

    process = start(command(sentiment, out, "--resume"))
    step = checkpoint_after(out, 0, process)
    checkpoint_after(out, step, process)
    process.kill()
    finished(process)

    resumed = train(sentiment, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step" in resumed.stderr
    mine, theirs = record(out), record(whole)
    assert mine["loss"] == theirs["loss"]
    assert mine["adapter_sha256"] == theirs["adapter_sha256"]
    again = train(sentiment, out, "--resume")
    assert again.returncode == 0
    assert mine["served_name"] in again.stdout


def test_two_processes_train_together_on_the_rows_of_one(
    tmp_path: Path, sentiment: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    launch = ["--standalone", "--nproc-per-node", "2"]
    done = finished(start([*launch, *command(sentiment, out, few=("batch_rows=1", *FEW[1:]))], "torchrun"))
    assert done.returncode == 0, done.stderr
    told = record(out)
    assert told["hardware"]["processes"] == 2
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    ours, theirs = ([entry["loss"] for entry in record(run)["loss"]] for run in (out, whole))
    assert len(ours) == len(theirs) == 18
    # A new adapter changes nothing, so the first step's loss is that of the same two rows.
    assert ours[0] == pytest.approx(theirs[0], rel=1e-2)
    assert "rows of the dataset" in done.stderr
    assert done.stderr.count("rows of the dataset") == 1  # one of them speaks


def test_what_cannot_be_trained_is_refused_in_a_sentence(tmp_path: Path, sentiment: Path) -> None:
    for arguments, words in (
        (command(tmp_path, tmp_path / "run"), "is no dataset: it has no manifest.json"),
        (command(sentiment, tmp_path / "run", "--base", str(tmp_path)), "There is no base model in"),
        (command(sentiment, tmp_path / "run", "--set", "r=64"), "vLLM is told to take ranks up to 16"),
        (
            command(sentiment, tmp_path / "run", "--set", "min_rows=100"),
            "36 rows to train on; 100 are needed",
        ),
    ):
        done = finished(start(arguments))
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_nothing_but_time(
    tmp_path: Path, sentiment: Path, whole: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--scale"):
        pytest.skip("with --scale")
    out = tmp_path / "run"
    done = finished(start(command(sentiment, out), below=("prlimit", "--fsize=100000")))
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    resumed = train(sentiment, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert record(out)["adapter_sha256"] == record(whole)["adapter_sha256"]


def test_the_tokens_of_a_thousand_rows_are_those_that_vllm_reads(tmp_path: Path, vllm: ModelServer) -> None:
    folders = [
        datasets.corrected(tmp_path / "complaint", 560),
        datasets.corrected(tmp_path / "flight_booking", 560, case="flight_booking"),
        datasets.write(tmp_path / "code", code=True),
    ]
    base = open_base(MODEL)
    rows, told = [], []
    for folder in folders:
        corpus = gather(open_dataset(folder), (), base, Recipe(min_rows=1, max_tokens=2048), dpo=False)
        assert corpus.counts()["too_long"] == 0
        rows += corpus.rows
        told += [json.loads(line) for line in (folder / "messages.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == len(told) > 1000

    with httpx.Client(base_url=vllm.url.removesuffix("/v1"), trust_env=False, timeout=60) as client:

        def tokens(line: Mapping[str, Any], *, answered: bool) -> list[int]:
            body: dict[str, Any] = {
                "model": vllm.name,
                "messages": line["messages"] if answered else line["messages"][:-1],
                "add_generation_prompt": not answered,
                "chat_template_kwargs": {"enable_thinking": False},
            }
            if "tools" in line:
                body["tools"] = line["tools"]
            found: list[int] = client.post("/tokenize", json=body).raise_for_status().json()["tokens"]
            return found

        def pairs() -> Iterator[tuple[list[int], list[int]]]:
            with ThreadPoolExecutor(8) as pool:
                yield from zip(
                    pool.map(lambda line: tokens(line, answered=True), told),
                    pool.map(lambda line: tokens(line, answered=False), told),
                    strict=True,
                )

        for row, (conversation, prompt) in zip(rows, pairs(), strict=True):
            assert list(row.ids) == conversation
            assert list(row.ids[: row.start]) == prompt
