"""The sandbox in a container of its own: the attack suite again, as a user without capabilities and as root.

The container is started as scripts/sandbox_container does it, so what holds here holds there.
"""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from draftloop.execution.sandbox import SandboxProcess
from draftloop.runs.job import SandboxJob, Script, report_from_json
from draftloop.support.environments import ROOT
from tests.conftest import missing
from tests.containers.podman import Podman, open_podman
from tests.containers.podman import missing as missing_tools
from tests.sandbox.conftest import CANARY, USERS, Field, fresh_home, look
from tests.sandbox.test_attacks import *  # noqa: F403  # every attack, on the `place` below
from tests.sandbox.test_harm import *  # noqa: F403  # and every program that means harm

OWNERS = {"container-user": 10001, "container-root": 0}
START = """#!/bin/sh
{settings}
export CONTAINER_ENGINE=podman CONTAINER_OPTIONS="--name {name} --volume {secret}:{secret}:ro"
exec {script} "$@"
"""


class InContainer(SandboxProcess):
    """A sandbox whose processes descend from the container's first one, not from the engine's command."""

    root = 0

    @property
    def pid(self) -> int:
        return self.root


@pytest.fixture(scope="module")
def podman() -> Podman:
    if reason := missing_tools():
        missing(reason)
    opened = open_podman()
    opened.base_image()
    opened.build("draftloop/sandbox", "--target", "sandbox")
    return opened


@pytest.fixture(scope="module", params=OWNERS)
def place(request: pytest.FixtureRequest, podman: Podman) -> Iterator[Field]:
    mode, owner = request.param, OWNERS[request.param]
    name = f"draftloop-{mode}-{os.getpid()}"
    os.environ[CANARY] = "sings"
    USERS.add(10001)
    with fresh_home(owner) as home:
        python = home / "python"
        settings = "\n".join(
            f"export {key}={shlex.quote(value)}" for key, value in podman.environment.items()
        )
        script = ROOT / "scripts" / "sandbox_container"
        python.write_text(START.format(settings=settings, name=name, secret=home / "secret", script=script))
        python.chmod(0o755)
        with InContainer(python, home / "sandbox", inputs=[home / "inputs"], log=home / "log") as sandbox:
            sandbox.root = int(podman.inspect(name)["State"]["Pid"])
            before = look(sandbox, home)
            yield Field(mode, sandbox, home, home / "inputs", before, secret=home / "secret")
    assert podman.run("podman", "ps", "--all", "--quiet", "--filter", f"name={name}") == ""


def test_it_holds_the_layers_that_a_container_leaves(place: Field) -> None:
    users = ("pool-uid",) if place.mode == "container-root" else ()
    assert place.sandbox.report.layers == (*users, "landlock", "seccomp", "rlimits")


def test_the_container_itself_is_unprivileged(place: Field) -> None:
    status = Path(f"/proc/{place.sandbox.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    kept = int(fields["CapEff"], 16).bit_count()
    assert kept == (6 if place.mode == "container-root" else 0)
    assert int(fields["Uid"].split()[0]) == OWNERS[place.mode]


def first_words(podman: Podman, options: str, folder: str) -> dict[str, Any]:
    """Start a sandbox in a container that is an engine's default but for the options; it ends at once."""
    command = ["podman", "run", "--rm", "--interactive", "--network", "none", *options.split()]
    command += ["draftloop/sandbox", "python", "-P", "-s", "-m", "draftloop.sandbox", "--folder", folder]
    said: dict[str, Any] = json.loads(podman.run(*command, check=False))
    return said


@pytest.mark.parametrize("user", OWNERS.values())
def test_an_engines_default_container_will_do(podman: Podman, user: int) -> None:
    report = report_from_json(first_words(podman, f"--user {user}", "/tmp/sandbox")["report"])
    assert {"landlock", "seccomp", "rlimits"} <= set(report.layers)
    assert ("pool-uid" in report.layers) == (user == 0)


@pytest.mark.parametrize(
    ("options", "folder", "words"),
    [
        (
            "--user 0 --cap-drop ALL --cap-add CHOWN --cap-add SETUID",
            "/tmp/sandbox",
            "cannot give runs to other users: it lacks the capabilities DAC_OVERRIDE, FOWNER, KILL, SETGID.",
        ),
        ("--security-opt seccomp={profile}", "/tmp/sandbox", "This kernel has no Landlock"),
        ("--read-only", "/data/sandbox", "folder /data/sandbox cannot be used: Read-only file system."),
    ],
)
def test_what_is_missing_is_named_and_nothing_runs(
    podman: Podman, tmp_path: Path, options: str, folder: str, words: str
) -> None:
    profile = tmp_path / "no-landlock.json"
    calls = ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"]
    denied = {"names": calls, "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    said = first_words(podman, options.format(profile=profile), folder)
    assert words in said["refused"]
    assert said["hint"] or "folder" in words


def test_all_three_languages_and_charts_run_in_it(place: Field) -> None:
    chart = "import pandas as pd, matplotlib.pyplot as plt\npd.DataFrame({'值': [1, 2]}).plot(title='图表')\n"
    scripts = (
        Script(chart + "plt.savefig('a.png')"),
        Script("console.log('node')", "javascript"),
        Script("ffmpeg -version | head -c 6", "shell"),
    )
    attempt = place.run_job(SandboxJob(scripts))
    assert (attempt.outcome, attempt.stdout, attempt.stderr) == ("ok", "node\nffmpeg", ""), attempt
    assert [file.path for file in attempt.files] == ["a.png"]
