"""Podman and buildah as docker-compose.yml needs them here: own storage, runc, images from Debian and PyPI.

Knows no service of ours. Everything lies in one folder below `home()`; images stay there and
make the next run short, containers and networks do not outlive a run.

Source:
    Debian 12: podman 4.3.1, buildah 1.28.2. crun refuses hybrid cgroups, so runc; without lower limits
    a container fails with "setrlimit: Operation not permitted"; podman before 4.6 knows no
    `wait --condition=healthy` and leaves health checks to systemd, so they are run from here.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftloop.support.environments import ROOT, find_environment, home

BASE = "docker.io/library/debian:bookworm-slim"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")  # this machine's, for pip inside a build
TOOLS = ("podman", "buildah", "runc", "skopeo", "debootstrap")

_INSIDE = "/etc/pip-certificates.crt"

CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{root}/networks"
"""
STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{root}/storage"
runroot = "{root}/run"
"""


def missing() -> str:
    """Return what keeps this machine from running containers; empty when nothing does."""
    if os.geteuid() != 0:
        return "Containers are built and run as root."
    absent = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    return f"Missing: {', '.join(absent)}. Run: scripts/setup --containers containers" if absent else ""


@dataclass(frozen=True)
class Podman:
    """Podman with a storage of its own."""

    root: Path
    environment: dict[str, str]

    def run(self, *command: str, limit_s: float = 120, check: bool = True, stdin: str = "") -> str:
        """Run a command with this storage; its output goes into the error when it fails."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if check and done.returncode:
            words = f"{done.stderr[-4000:]}\n{done.stdout[-4000:]}"
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{words}")
        return done.stdout

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what podman knows of a container."""
        containers: list[dict[str, Any]] = json.loads(self.run("podman", "inspect", container))
        return containers[0]

    def execute(self, container: str, *command: str, stdin: str = "", limit_s: float = 120) -> str:
        """Run a command inside a container."""
        return self.run("podman", "exec", "-i", container, *command, stdin=stdin, limit_s=limit_s)

    def wait_until_healthy(self, container: str, limit_s: float) -> None:
        """Run the container's own health check until it passes."""
        end = time.monotonic() + limit_s
        while self._is_ill(container):
            if time.monotonic() > end or self.inspect(container)["State"]["Status"] in ("created", "exited"):
                raise AssertionError(f"{container} is not healthy.\n{self.logs(container)}")
            time.sleep(1)

    def logs(self, container: str) -> str:
        """Return the end of a container's log, both streams."""
        done = subprocess.run(
            ["podman", "logs", "--tail", "60", container],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def base_image(self) -> None:
        """Make Debian's base image from its packages, unless it is there."""
        if not self.run("podman", "images", "--quiet", BASE):
            with tempfile.TemporaryDirectory(dir=self.root) as scratch:
                folder, archive = Path(scratch) / "debian", Path(scratch) / "debian.tar"
                include = "--include=ca-certificates"
                command = ["debootstrap", "--variant=minbase", include, "bookworm", str(folder), _mirror()]
                self.run(*command, limit_s=600)
                self.run("tar", "-C", str(folder), "-cf", str(archive), ".", limit_s=300)
                self.run("podman", "import", str(archive), BASE, limit_s=300)

    def build(self, tag: str, *options: str, context: Path = ROOT) -> None:
        """Build an image; layers of earlier builds are used again."""
        mounts = [f"{CERTIFICATES}:{_INSIDE}:ro"]
        with tempfile.NamedTemporaryFile("w", dir=self.root, suffix=".conf") as pip_conf:
            config, folders = _pip()
            pip_conf.write(config)
            pip_conf.flush()
            mounts += [f"{pip_conf.name}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in folders)]
            command = ["buildah", "bud", "--layers", "--isolation", "chroot", "--network", "host"]
            command += ["--format", "docker", "--tag", tag, *(f"--volume={mount}" for mount in mounts)]
            self.run(*command, *options, str(context), limit_s=1500)

    def _is_ill(self, container: str) -> bool:
        command = ["podman", "healthcheck", "run", container]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode != 0


def open_podman() -> Podman:
    """Set podman up in a folder of its own."""
    root = home() / "containers"
    (root / "networks").mkdir(parents=True, exist_ok=True)
    for name, text in {"containers.conf": CONTAINERS_CONF, "storage.conf": STORAGE_CONF}.items():
        (root / name).write_text(text.format(root=root))
    environment = {
        "CONTAINERS_CONF": str(root / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(root / "storage.conf"),
        "DISABLE_HC_SYSTEMD": "true",
        "HOME": str(root),
        "PATH": _path(),
        "TMPDIR": tempfile.gettempdir(),
    }
    return Podman(root, environment)


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _mirror() -> str:
    """Return the Debian mirror that this machine uses itself."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(LABEL)"]
    targets = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = (line.split() for line in targets)
    return next(words[0] for words in wanted if words[1:] == ["bookworm", "Debian"])


def _pip() -> tuple[str, list[Path]]:
    """Return this machine's pip settings as a file for a build, and the local folders that they name."""
    pip = [str(find_environment("backend") / "bin" / "python"), "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    wanted = ("index-url", "extra-index-url", "find-links", "trusted-host")
    settings: dict[str, str] = {}
    for name, _, quoted in (line.partition("=") for line in listed.splitlines()):
        key = name.rpartition(".")[2]
        if key in wanted:  # the environment stands first in the list, and wins
            settings.setdefault(key, " ".join(quoted.strip("'\"").replace("\\n", " ").split()))
    folders = set()
    for word in " ".join(settings.values()).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.is_dir():
            folders.add(
                path.parent if word.startswith("file://") else path
            )  # an index links to its neighbours
    settings["cert"] = _INSIDE
    lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items())]
    return "\n".join(lines) + "\n", sorted(folders)
