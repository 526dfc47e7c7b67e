"""Where the files of this distribution are, and the Python environments that `draftloop setup` makes.

In a checkout the files are the checkout's; of an installed distribution they are data of the package.
"""

import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from draftloop.errors import SetupError

PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = PACKAGE.parents[1]
IN_CHECKOUT = PACKAGE.parent.name == "backend" and (_CHECKOUT / "label_config").is_dir()
# Default folders stand below it. An installed distribution has none: they are in the current folder.
ROOT = _CHECKOUT if IN_CHECKOUT else Path()
CASES = ROOT / "label_config" if IN_CHECKOUT else PACKAGE / "cases"
# A folder for each model by name. A checkout has those of the demo.
MODELS = ROOT / "demo" / "models" if IN_CHECKOUT else ROOT / "models"
SETUP = ROOT / "scripts" / "setup" if IN_CHECKOUT else PACKAGE / "environments" / "setup"


class NotInstalledError(SetupError):
    """An environment is not there."""


def find_environment(name: str) -> Path:
    """Return the folder of an environment that `draftloop setup` made.

    Raises:
        NotInstalledError: It is not there; the message says how to install it.
    """
    command = ["bash", str(SETUP), "--print", name]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our script
    except OSError as error:
        raise NotInstalledError(f"The environment '{name}' cannot be looked up: {error.strerror}.") from error
    if printed.returncode:
        raise NotInstalledError(printed.stderr.strip())
    return Path(printed.stdout.strip())


def verb(name: str) -> tuple[str, ...]:
    """Return the command line that runs a verb in this environment, whatever a server was started with."""
    imports = ("env", f"PYTHONPATH={PACKAGE.parent}:{ROOT}", "PYTHONNOUSERSITE=1") if IN_CHECKOUT else ()
    return (*imports, sys.executable, "-P", "-m", "draftloop.cli", name)


def home() -> Path:
    """Return the folder for what is installed, cached and logged; the same as in the setup script."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DRAFTLOOP_HOME") or Path(cache) / "draftloop")


def import_path() -> Path:
    """Return a folder from which other environments import this package, and nothing else.

    In a checkout that is its `backend`. An installed package lies among packages that another environment has
    in other versions, so a folder with a link to it is made.

    Raises:
        SetupError: The folder cannot be made.
    """
    if IN_CHECKOUT:
        return PACKAGE.parent
    folder = home() / "import" / hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:10]
    link = folder / PACKAGE.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(PACKAGE)
    except OSError as error:
        raise SetupError(
            f"{folder} cannot be made: {error.strerror}.", hint="Set DRAFTLOOP_HOME to a folder of your own."
        ) from error
    return folder
