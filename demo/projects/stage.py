"""What the parts of the demo share: the folder, the settings, and steps that are printed and timed."""

import json
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from draftloop.cli.terminal import err
from draftloop.errors import ServiceError
from draftloop.labelstudio import LabelStudio, Project
from draftloop.support.environments import ROOT

USER = "admin@example.com"
SEED = 20_260_101  # of the generated tasks: every run shows the same ones
CORRECTED_SHARE = 0.4


@dataclass
class Demo:
    """The folder and the settings of a demo, and the seconds that its steps took."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print a step's name, time it, and add up steps of the same name."""
        started = time.monotonic()
        err.print(f"[bold]{name}[/bold]")
        yield
        took = time.monotonic() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 1)
        err.print(f"  {took:.1f} s")

    def within(self, environment: Mapping[str, str]) -> Self:
        """Return the same demo with other settings for its verbs."""
        return replace(self, environment=dict(environment))

    def verb(self, name: str, *arguments: str | Path | int, code: int = 0) -> None:
        """Run one of the scripts as a user would.

        Args:
            name: Name of the script.
            arguments: Its arguments.
            code: The exit code that is expected.
        Raises:
            ServiceError: It ended with another one.
        """
        shown = " ".join(str(argument) for argument in arguments)
        err.print(f"  $ scripts/{name} {shown}", markup=False)
        command = [str(ROOT / "scripts" / name), *map(str, arguments)]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != code:
            raise ServiceError(
                f"scripts/{name} {shown} ended with {done.returncode}.", hint="Its words are above."
            )

    def settings_file(self, name: str = "settings.sh") -> Path:
        """Write this demo's settings for a shell, readable by its owner alone; return the file.

        Without all of them a verb would work for another model, ledger or profile than the backend's.
        """
        path = self.folder / name
        path.touch(mode=0o600)
        lines = (f"export {key}={shlex.quote(value)}\n" for key, value in sorted(self.environment.items()))
        path.write_text("".join(lines), encoding="utf-8")
        return path

    def login(self) -> dict[str, str]:
        """Make a password and a token for this demo once, readable by its owner alone."""
        path = self.folder / "login.json"
        if not path.exists():
            made = {"user": USER, "password": secrets.token_urlsafe(12), "token": secrets.token_hex(20)}
            path.touch(mode=0o600)
            path.write_text(json.dumps(made))
        login: dict[str, str] = json.loads(path.read_text())
        return login

    def set_up(self, label_studio: LabelStudio, title: str, case: str, backend_url: str) -> Project:
        """Make a project as an admin does, or find the one that an earlier run made.

        Raises:
            ServiceError: The project was not made.
        """
        with self.step("set up projects"):
            self.verb("setup_project", "--case", case, "--title", title, "--backend-url", backend_url)
            project = label_studio.find_project(title)
        if project is None:
            raise ServiceError(f"The project '{title}' is not there.", hint="Look at label-studio.log.")
        return project
