"""Trainings of the embedded model at length: stopped, killed, in two processes, learning."""

import signal
from pathlib import Path

import pytest

from scripts.training import train as train_to_end
from tests import datasets
from tests.train_runs import checkpoint_after, command, finished, record, start, train


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.corrected(tmp_path_factory.mktemp("dataset") / "sentiment", 40, case="sentiment")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sentiment: Path) -> Path:
    """A run of 18 steps that nobody stopped."""
    out = tmp_path_factory.mktemp("run") / "whole"
    done = train(sentiment, out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_few_hundred_corrections_of_a_shifted_kind_are_learned(tmp_path: Path) -> None:
    dataset = datasets.corrected(tmp_path / "dataset", 330, case="flight_booking", split="held_out")
    log = tmp_path / "log"
    result = train_to_end(dataset, tmp_path / "run", log=log)
    assert result == record(tmp_path / "run")
    assert result["rows"]["own"] == 297
    assert result["held_out"]["rows"] == 33
    assert result["held_out"]["loss"] < 0.5 * result["held_out"]["base_loss"]
    assert " s left" in log.read_text()
    assert train_to_end(dataset, tmp_path / "run") == result  # it is there already


def test_a_second_stage_learns_from_pairs_and_replayed_rows_take_part(
    tmp_path: Path, sentiment: Path
) -> None:
    flights = datasets.corrected(tmp_path / "flights", 10, case="flight_booking")
    out = tmp_path / "run"
    changes = {"dpo_epochs": 2, "dpo_learning_rate": 1e-3, "tracking": "tensorboard"}
    done = train(sentiment, out, "--replay", f"{flights}:0.25", "--dpo", **changes)
    assert done.returncode == 0, done.stderr
    result = record(out)
    assert (result["rows"]["own"], result["rows"]["replayed"]) == (36, 9)
    assert result["arguments"]["replay"][0]["path"] == str(flights)
    steps = [(entry["stage"], entry["step"]) for entry in result["loss"]]
    of_pairs = 2 * ((result["rows"]["pairs"] + 1) // 2)
    assert steps == [
        *(("sft", step + 1) for step in range(23)),
        *(("dpo", step + 1) for step in range(of_pairs)),
    ]
    # The loss of pairs begins where the adapter is its own reference: -log(1/2).
    losses = [entry["loss"] for entry in result["loss"] if entry["stage"] == "dpo"]
    assert abs(losses[0] - 0.6931) < 1e-3
    assert sum(losses[-5:]) < sum(losses[:5])
    assert list((out / "tracking" / "sft").glob("events.out.tfevents.*"))
    assert list((out / "tracking" / "dpo").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_killed_and_gone_on_with_is_the_same_as_never_stopped(
    tmp_path: Path, sentiment: Path, whole: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = start(command(sentiment, out))
    checkpoint_after(out, 0, process)
    process.send_signal(number)
    stopped = finished(process)
    assert stopped.returncode == 130, stopped.stderr
    assert "Stopped. --resume goes on" in stopped.stderr
    assert "Traceback" not in stopped.stderr
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
    assert record(out) == mine


@pytest.mark.parametrize(
    ("program", "launch"),
    [
        ("torchrun", ("--standalone", "--nproc-per-node", "2")),
        ("accelerate", ("launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")),
    ],
)
def test_two_processes_train_together_on_the_rows_of_one(
    tmp_path: Path, sentiment: Path, whole: Path, program: str, launch: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    done = finished(start([*launch, *command(sentiment, out, batch_rows=1)], program))
    assert done.returncode == 0, done.stderr
    result = record(out)
    assert result["hardware"]["processes"] == 2
    ours, theirs = ([entry["loss"] for entry in record(run)["loss"]] for run in (out, whole))
    assert len(ours) == len(theirs) == 18
    # A new adapter changes nothing, so the first step's loss is that of the same two rows.
    assert ours[0] == pytest.approx(theirs[0], rel=1e-2)
    assert done.stderr.count("rows of the dataset") == 1  # one of them speaks


def test_swanlab_draws_curves_without_a_login(tmp_path: Path, sentiment: Path) -> None:
    done = train(sentiment, tmp_path / "run", batch_rows=36, tracking="swanlab")
    assert done.returncode == 0, done.stderr
    assert any(path.is_file() for path in (tmp_path / "run" / "tracking" / "sft").rglob("*"))


def test_a_full_disk_costs_nothing_but_time(tmp_path: Path, sentiment: Path, whole: Path) -> None:
    out = tmp_path / "run"
    done = finished(start(command(sentiment, out), below=("prlimit", "--fsize=100000")))
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    resumed = train(sentiment, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert record(out)["adapter_sha256"] == record(whole)["adapter_sha256"]
