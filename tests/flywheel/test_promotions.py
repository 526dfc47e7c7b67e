"""Failures while an adapter is promoted, on real servers: the old version drafts on, with a reason shown.

`zero` drafts as the base does, `worse` worse than it (tests/consumers/peft_adapters.py). Projects begin with
`worse`, so `zero` is promoted whenever it is measured.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from demo.corpus import generate
from draftloop.prompting.prompt import Promoted
from tests.adapters import peft_runs, pointed_at
from tests.conftest import LabelStudioServer, ModelServer, missing
from tests.faults import fill, until
from tests.promotions import COMPLAINT, TASKS, Stage, of_truths, staged
from tests.verbs import kill, run, start

BEGUN = 2  # tasks that somebody has begun
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def stage(
    label_studio: LabelStudioServer, vllm: ModelServer, runs: dict[str, Path], tmp_path: Path
) -> Iterator[Stage]:
    for name in served(vllm)[1:]:  # adapters of other tests
        httpx.post(f"{vllm.url}/unload_lora_adapter", json={"lora_name": name}, timeout=60, trust_env=False)
    with staged(label_studio, vllm, runs, tmp_path) as made:
        worse = made.adapters.register(runs["worse"], vllm.name)
        made.ledger.promote(made.project.id, Promoted(worse.name, "compact"))
        (made.base,) = made.drafted_by()
        assert made.base.startswith(worse.name)
        yield made
        vllm.process.restart_if_down()


@contextmanager
def asked_all_along(stage: Stage) -> Iterator[set[str]]:
    """Ask the backend for drafts without a pause; return the versions that it answered with."""
    seen: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            seen.update(stage.drafted_by())

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield seen
        finally:
            done.set()
            asking.result()


def killed_when(stage: Stage, true: Callable[[], bool], *arguments: object) -> None:
    """Start draftloop promote and kill it once something is true."""
    command = (*arguments, "--project", stage.project.id, "--out", stage.records)
    process = start(stage.env, "promote", *command)
    while not true():
        assert process.poll() is None, process.communicate()
    kill(process)


def served(vllm: ModelServer) -> list[str]:
    """List what a server serves: its model, then the adapters that it was handed."""
    cards = httpx.get(f"{vllm.url}/models", timeout=30, trust_env=False).json()["data"]
    return [card["id"] for card in cards]


def is_measuring(stage: Stage) -> Callable[[], bool]:
    """Return whether the server has loaded another adapter, the first step of a measurement."""
    before = served(stage.vllm)
    return lambda: served(stage.vllm) != before


def test_killed_before_and_after_the_switch_it_goes_on_and_drafts_every_task_once(
    stage: Stage, runs: dict[str, Path]
) -> None:
    with asked_all_along(stage) as seen:
        killed_when(stage, is_measuring(stage), runs["zero"])
    assert seen == {stage.base}
    assert [one.model for one in stage.ledger.all_promoted().values()] == [stage.base[:-11]]
    assert stage.adapters.journal() == []

    def switched() -> bool:
        promoted = stage.ledger.promoted(stage.project.id)
        return promoted is not None and not stage.base.startswith(promoted.model)

    with asked_all_along(stage) as seen:
        killed_when(stage, switched, runs["zero"])
    (zero,) = stage.drafted_by()
    assert seen <= {stage.base, zero}
    assert len(stage.adapters.journal()) == 1
    code, out, err = stage.promote(runs["zero"])
    assert code == 0, out + err
    assert "drafts this project already" in out
    drafted = [versions[-1:] for versions in stage.predictions()]
    assert drafted[BEGUN:] == [[zero]] * (TASKS - BEGUN)
    assert [versions.count(zero) for versions in stage.predictions()] == [0] * BEGUN + [1] * (TASKS - BEGUN)
    assert stage.shown() == zero

    killed_when(stage, lambda: not switched(), "--rollback")
    assert stage.drafted_by() == {stage.base}
    code, out, err = stage.promote("--rollback")
    assert code == 0, out + err
    assert stage.drafted_by() == {stage.base}
    assert stage.shown() == stage.base


def test_a_server_that_is_restarted_midway_or_later_gets_its_adapters_again(
    stage: Stage, runs: dict[str, Path]
) -> None:
    measuring = is_measuring(stage)
    command = ("promote", runs["zero"], "--project", stage.project.id, "--out", stage.records)
    process = start(stage.env, *command)
    until(measuring)
    stage.vllm.process.kill()
    stage.vllm.process.start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    (zero,) = stage.drafted_by()
    assert zero != stage.base

    stage.vllm.process.kill()
    stage.vllm.process.start()
    with ThreadPoolExecutor(8) as pool:  # both workers, and both adapters at once
        assert set.union(*pool.map(lambda _: stage.drafted_by(), range(8))) == {zero}
    with stage.asked() as client:
        assert client.get("/ready").status_code == 200


def test_a_server_that_stands_still_costs_patience_and_changes_nothing(
    stage: Stage, runs: dict[str, Path]
) -> None:
    measuring = is_measuring(stage)
    process = start(stage.env, "promote", runs["zero"], "--project", stage.project.id, "--out", stage.records)
    until(measuring)
    stage.vllm.process.signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    stage.vllm.process.signal(signal.SIGCONT)
    assert process.returncode == 130, out + err
    assert "Run the same command again" in err
    assert stage.drafted_by() == {stage.base}


def test_an_adapter_of_too_high_a_rank_is_refused_in_words(stage: Stage, tmp_path: Path) -> None:
    high = pointed_at(peft_runs(tmp_path / "high", rank=32)["zero"], stage.dataset)
    with asked_all_along(stage) as seen:
        code, out, err = stage.promote(high)
    assert (code, out) == (1, "")
    assert "LoRA rank 32 is greater than max_lora_rank" in err
    assert "--max-lora-rank" in err
    assert "Traceback" not in err
    assert seen == {stage.base}


def test_too_few_held_out_samples_are_refused_in_words(
    stage: Stage, runs: dict[str, Path], tmp_path: Path
) -> None:
    small = of_truths(tmp_path / "small", (COMPLAINT, generate("complaint", "held_out", 19, 1)))
    code, _, err = stage.promote(runs["zero"], "--dataset", small)
    assert code == 1
    assert "holds out 19 different texts of case 'complaint'; an interval needs 20" in err
    assert stage.drafted_by() == {stage.base}


def test_a_full_disk_under_the_registry_promotes_nothing_until_there_is_room(
    label_studio: LabelStudioServer, vllm: ModelServer, runs: dict[str, Path], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        missing("A full disk is tried on a small file system of its own, which only root may mount.")
    disk = tmp_path / "registry"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
    try:
        with staged(label_studio, vllm, runs, tmp_path) as stage:
            fill(disk / "filler")
            for left in ("the adapter", "the evidence"):
                command = ("promote", runs["worse"], "--project", stage.project.id, "--out", stage.records)
                with asked_all_along(stage) as seen:
                    # Not in this process: a verb that fails while its threads live ends the process.
                    code, out, err = run(stage.env, *command)
                assert (code, out) == (1, ""), left
                assert "No space left on device" in err
                assert "Make room" in err
                assert seen == {stage.base}
                assert stage.adapters.journal() == []
                (disk / "filler").unlink()
                stage.adapters.register(runs["worse"], vllm.name)
                fill(disk / "filler")
            (disk / "filler").unlink()
            assert stage.promote(runs["worse"])[0] == 3
    finally:
        subprocess.run(["umount", disk], check=True)
