"""Training jobs: the verbs that they run, and what kills them.

The verbs here are shell scripts that end as the test wants; jobs on real servers are in tests/flywheel.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from draftloop.errors import ServiceError
from draftloop.flywheel.adapters import Adapters
from draftloop.flywheel.jobs import REFUSED, Training, VerbRunner
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.prompt import Promoted
from draftloop.support.environments import ROOT
from draftloop.support.progress import UNWATCHED
from tests.faults import until

GOOD = {
    "sync": 'mkdir -p "$4"; echo "{}" >"$4/manifest.json"; echo synced',
    "train": 'echo "trained $*"',
    "promote": 'echo "promoted $*"',
}
IN_A_PROCESS = """
import sys
from pathlib import Path
from draftloop.flywheel.adapters import Adapters
from draftloop.ledger.sqlite import Ledger
from tests.integration.test_retrain import training
from draftloop.cli.terminal import plain_errors
with plain_errors(""):
    training(Path(sys.argv[1]), Ledger(sys.argv[2])).run()
"""


def training(folder: Path, ledger: Ledger, **verbs: str) -> Training:
    """Begin a job whose verbs are shell scripts; those that are not given are there already, or good."""
    scripts, home = folder / "scripts", folder / "home"
    scripts.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    for name, body in {**GOOD, **verbs}.items():
        if name in verbs or not (scripts / name).exists():
            (scripts / name).write_text(f"#!/bin/bash\n{body}\n")
            (scripts / name).chmod(0o755)
    job, new = ledger.begin_job(7, "a test", 3, 60)
    assert new
    adapters = Adapters(folder / "registry")
    log = home / "log"
    runner = VerbRunner(ledger, job, lambda verb: [str(scripts / verb)], log, UNWATCHED)
    return Training(runner, home, Path("/base"), ["--set", "r=4"], adapters)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")


def last(ledger: Ledger) -> tuple[str, str, str]:
    job = ledger.jobs()[0]
    return job.state, job.step, job.told


def test_a_job_syncs_trains_and_promotes_and_the_same_samples_are_one_run(
    tmp_path: Path, ledger: Ledger
) -> None:
    ledger.promote(7, Promoted("an-adapter", "compact"))
    assert training(tmp_path, ledger).run() == "promoted"
    assert last(ledger) == ("promoted", "promote", "an-adapter drafts.")
    synced, trained, promoted = (tmp_path / "home" / "log").read_text().splitlines()
    assert synced == "synced"
    home = tmp_path / "home"
    assert trained.startswith(f"trained --dataset {home}/dataset --base /base --out {home}/runs/")
    assert trained.endswith(" --resume --set r=4")
    run_folder = trained.split()[6]
    assert promoted == f"promoted {run_folder} --project 7 --out {home}/drafts.jsonl"

    begun = [home / "runs" / name for name in (f"{Path(run_folder).name}.part", "other.part")]
    for folder in begun:
        folder.mkdir(parents=True)
    training(tmp_path, ledger).run()
    assert [folder.exists() for folder in begun] == [True, False]
    training(tmp_path, ledger, sync='echo "{ }" >"$4/manifest.json"').run()
    runs = [line.split()[6] for line in (home / "log").read_text().splitlines() if "trained" in line]
    assert [run == run_folder for run in runs] == [True, True, False]


def test_a_verb_that_fails_ends_the_job_in_its_words(tmp_path: Path, ledger: Ledger) -> None:
    failing = 'echo "12 rows"; echo "error: 12 rows are too few. Correct more." >&2; exit 1'
    with pytest.raises(ServiceError, match=r"draftloop train failed \(exit status 1\): 12 rows are too few"):
        training(tmp_path, ledger, train=failing).run()
    state, step, message = last(ledger)
    assert (state, step) == ("failed", "train")
    assert message == "draftloop train failed (exit status 1): 12 rows are too few. Correct more."
    assert "promoted" not in (tmp_path / "home" / "log").read_text()


def test_an_adapter_that_is_not_better_ends_the_job_with_the_reasons(tmp_path: Path, ledger: Ledger) -> None:
    job = training(tmp_path, ledger, promote=f"exit {REFUSED}")
    job.adapters.note({"project": 7, "action": "refuse", "adapter": "m-1", "reasons": ["It is worse."]})
    job.adapters.note({"project": 8, "action": "refuse", "adapter": "m-2", "reasons": ["Not this."]})
    assert job.run() == "refused"
    assert last(ledger) == ("refused", "promote", "m-1: It is worse.")


def test_a_job_that_was_given_up_by_others_stops_its_verb(tmp_path: Path, ledger: Ledger) -> None:
    job = training(tmp_path, ledger, sync="exec sleep 60")
    ledger.end_job(job.verbs.job.id, "killed", "")
    with pytest.raises(ServiceError, match="counts as killed"):
        job.run()


@pytest.mark.parametrize(
    ("number", "state", "message"),
    [
        (signal.SIGKILL, "killed", "Its process ended without a word."),
        (signal.SIGTERM, "stopped", "It was told to stop."),
    ],
)
def test_what_ends_a_job_ends_its_verb_too_and_the_next_job_begins(
    tmp_path: Path, ledger: Ledger, number: signal.Signals, state: str, message: str
) -> None:
    signals = tmp_path / "signals"
    waits = f"trap 'echo TERM >>{signals}; exit 1' TERM; echo $$ >{tmp_path}/pid; while :; do sleep 0.1; done"
    scripts = training(tmp_path, ledger, train=waits)
    ledger.end_job(scripts.verbs.job.id, "stopped", "Only its verbs were wanted.")
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    process = subprocess.Popen([sys.executable, "-c", IN_A_PROCESS, tmp_path, url], cwd=ROOT)
    until((tmp_path / "pid").exists)
    process.send_signal(number)
    process.wait(30)
    until(signals.exists)
    assert signals.read_text() == "TERM\n"
    assert last(ledger) == (state, "train", message)
    assert training(tmp_path, ledger, train=GOOD["train"]).run() == "promoted"
