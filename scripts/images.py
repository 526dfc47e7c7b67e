"""Find the digests of images that come from a registry, for `scripts/pins --images`.

docker-compose.yml names these images by variables, `${POSTGRES_IMAGE:-postgres:15-bookworm}`; `.env` may give
each a value with a digest: the SHA-256 of the image's manifest, or of the list of manifests where the image
exists for several platforms.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from draftloop.support.files import write_atomically

Ask = Callable[[str], str]

_VARIABLE = re.compile(r"\$\{(\w+_IMAGE):-([^}]+)\}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIMEOUT_S = 300  # podman fetches the image


class ImageError(Exception):
    """A digest could not be looked up; the message names the image and the answer of each tool."""


def images(compose: str, environment: str) -> dict[str, str]:
    """Return the image of each variable, without digest: from the text of .env, else the default."""
    chosen = dict(re.findall(r"^(\w+_IMAGE)=['\"]?([^'\"\s]+)", environment, re.MULTILINE))
    return {name: chosen.get(name, default).partition("@")[0] for name, default in _VARIABLE.findall(compose)}


def digest(image: str) -> str:
    """Return the digest of an image, asking the tools that this machine has one after the other.

    Raises:
        ImageError: None of them is installed, or none finds the image.
    """
    refusals = []
    for tool, ask in TOOLS.items():
        if shutil.which(tool) is None:
            refusals.append(f"{tool} is not installed")
            continue
        try:
            answer = ask(image)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or b""
            words = said.decode(errors="replace").strip() or str(error)
            refusals.append(f"{tool}: {' '.join(words.split())[-300:]}")
            continue
        if _DIGEST.fullmatch(answer):
            return answer
        refusals.append(f"{tool} answered {answer[:100]!r}")
    raise ImageError(f"{image}: no digest found. {'; '.join(refusals)}.")


def with_digests(environment: str, pinned: dict[str, str]) -> str:
    """Return the text of .env with these values; all other lines stay as they are."""
    lines = environment.splitlines()
    for name, value in pinned.items():
        places = [number for number, line in enumerate(lines) if line.startswith(f"{name}=")]
        if not places:
            places = [number for number, line in enumerate(lines) if line.startswith(f"# {name}=")]
        if places:
            lines[places[-1]] = f"{name}={value}"  # the last one is in force
        else:
            lines.append(f"{name}={value}")
    return "\n".join(lines) + "\n"


def write_digests(compose: Path, environment: Path, say: Callable[[str], None]) -> bool:
    """Look up all images of a compose file and write them to .env; return whether all have a digest.

    Raises:
        ImageError: There is no .env.
    """
    if not environment.is_file():
        raise ImageError(f"There is no {environment}. First: cp .env.example .env, and fill it in.")
    text = environment.read_text("utf-8")
    pinned = {}
    wanted = images(compose.read_text("utf-8"), text)
    for name, image in wanted.items():
        if ":" not in image.rpartition("/")[2]:
            say(f"{name} stays as it is: {image} has no tag, so there is nothing to ask for.")
            continue
        say(f"{name}: asking for {image}")
        try:
            pinned[name] = f"{image}@{digest(image)}"
        except ImageError as error:
            say(f"{name} stays as it is: {error}")
            continue
        say(f"{name}={pinned[name]}")
    changed = with_digests(text, pinned)
    if changed != text:
        write_atomically(environment, changed.encode(), keep_access=True)  # it holds secrets
        say(f"written to {environment}")
    return pinned.keys() == wanted.keys()


def _output(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=True).stdout


def _manifest_digest(*command: str) -> str:
    """Return the hash of a manifest, whose bytes a command prints."""
    return f"sha256:{hashlib.sha256(_output(*command)).hexdigest()}"


def _docker(image: str) -> str:
    return _manifest_digest("docker", "buildx", "imagetools", "inspect", "--raw", image)


def _skopeo(image: str) -> str:
    return _manifest_digest("skopeo", "inspect", "--raw", f"docker://{image}")


def _podman(image: str) -> str:
    """Fetch the image; podman knows only the digests of images that it has."""
    name = _output("podman", "pull", "--quiet", image).decode().split()[-1]
    return _output("podman", "image", "inspect", "--format", "{{.Digest}}", name).decode().strip()


TOOLS: dict[str, Ask] = {"docker": _docker, "skopeo": _skopeo, "podman": _podman}
