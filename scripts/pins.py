"""Write the hashes of requirements/*.txt, or check offline that every pin has some.

pip installs these files with --require-hashes: a file whose SHA-256 is not recorded is refused. Of each pin,
the hashes of all files of the release are recorded (wheels of every platform and the source archive), so
that the same file installs on other machines.

    scripts/pins                     add the hashes that are missing, compare those that are there
    scripts/pins --renew NAME        look NAME's hashes up anew: after a change of its version (repeatable)
    scripts/pins --check             change nothing, ask nobody; exit 1 where a pin has no hash
    scripts/pins --images            write the digests of docker-compose.yml's images to .env

To change or add a package: write NAME==VERSION into the file, then `scripts/pins --renew NAME`. Recorded
hashes are never replaced without --renew: hashes that the index does not know end in an error.

It asks pip's index (PIP_INDEX_URL or pip's configuration, else PyPI) through uv, and resolves nothing: the
versions stay as they are. CPU builds (`==2.13.0+cpu`) are looked up at TORCH_CPU_INDEX; where that cannot be
reached, pip downloads this platform's wheel from its own sources, and its hash alone is added.
requirements/sandbox-extra.txt is left alone: it belongs to the administrator and needs no pins.

--images asks the images' registries, through docker (buildx), skopeo or podman, whichever this machine has. A
digest names one image, where a tag can be moved; run it again for newer ones.

Needs no more than Python's standard library and uv, which is in the environment `pins`. To change uv's own
version: `python3 -m scripts.pins --uv PATH --renew uv`, with a uv from elsewhere.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from draftloop.support.files import hash_file, write_atomically
from scripts.images import ImageError, write_digests

ROOT = Path(__file__).resolve().parent.parent
UNPINNED = "sandbox-extra.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # as in scripts/setup

_CHUNK = 50  # pins in one question to uv, so that progress is seen
_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.+!-]+)(?P<marker> *;[^\\#]+?)? *(?P<more>\\)?"
)
_HASH = re.compile(r" +--hash=sha256:(?P<hash>[0-9a-f]{64}) *(?P<more>\\)?")
# All that a file may say besides pins. No index and no host: where packages come from is the reader's affair.
_OPTION = re.compile(r"--only-binary :all:|--no-binary [A-Za-z0-9][\w.,-]*")
_BINARY_ONLY = "--only-binary :all:"

Release = tuple[str, str]  # normalized name, version


class PinError(Exception):
    """A pin file or the answer of a package index is invalid; the message says where and what to do."""


@dataclass
class Pin:
    """One requirement of a file, with the hashes recorded below it."""

    where: str
    text: str
    release: Release
    hashes: set[str] = field(default_factory=set)

    def render(self) -> str:
        """Return the requirement and its hashes as pip reads them."""
        return " \\\n".join([self.text, *(f"    --hash=sha256:{value}" for value in sorted(self.hashes))])


@dataclass
class PinFile:
    """A requirements file: its pins, and all other lines as they are."""

    path: Path
    parts: list[str | Pin]

    @property
    def pins(self) -> list[Pin]:
        """Return the pins, in the file's order."""
        return [part for part in self.parts if isinstance(part, Pin)]

    def render(self) -> str:
        """Return the file's text."""
        return "".join(f"{part.render() if isinstance(part, Pin) else part}\n" for part in self.parts)


def parse(path: Path, root: Path = ROOT) -> PinFile:
    """Parse a requirements file.

    Raises:
        PinError: A line is neither a comment, a pin `NAME==VERSION [; MARKER]`, a hash of the pin before it,
            nor one of the two options; or a package is pinned twice.
    """
    label = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    parts: list[str | Pin] = []
    pin: Pin | None = None  # the pin whose hashes may follow
    seen: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        where = f"{label}:{number}"
        if pin is not None:
            if not (match := _HASH.fullmatch(line)):
                raise PinError(
                    f"{where}: expected a line '    --hash=sha256:...' of {pin.text}, not {line!r}."
                )
            pin.hashes.add(match["hash"])
            pin = pin if match["more"] else None
        elif match := _PIN.fullmatch(line):
            name = normalize(match["name"])
            if name in seen:
                raise PinError(f"{where}: {name} is pinned a second time; the first is {seen[name]}.")
            seen[name] = where
            text = f"{match['name']}=={match['version']}{match['marker'] or ''}"
            current = Pin(where, text, (name, match["version"]))
            parts.append(current)
            pin = current if match["more"] else None
        elif not line.strip() or line.startswith("#") or _OPTION.fullmatch(line):
            parts.append(line)
        else:
            raise PinError(f"{where}: not a pin NAME==VERSION: {line!r}.")
    if pin is not None:
        raise PinError(f"{pin.where}: the file ends within the hashes of {pin.text}.")
    return PinFile(path, parts)


def normalize(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def problems(files: Iterable[PinFile]) -> Iterator[str]:
    """Yield what `--check` refuses: a pin without hashes, or with others than the same pin elsewhere."""
    first: dict[Release, Pin] = {}
    for file in files:
        if file.pins and _BINARY_ONLY not in file.parts:
            yield f"{file.pins[0].where}: no line '{_BINARY_ONLY}' above it; pip would build from source."
        for pin in file.pins:
            known = first.setdefault(pin.release, pin)
            if not pin.hashes:
                yield f"{pin.where}: {pin.text} has no hash."
            elif known.hashes != pin.hashes:
                yield f"{pin.where}: {pin.text} has other hashes than {known.where}."


class Index:
    """A package index that hashes are looked up in, through uv and pip."""

    def __init__(self, uv: Path) -> None:
        """Set the uv that asks the index."""
        self._uv = uv
        self._default = os.environ.get("PIP_INDEX_URL") or _pip_setting("global.index-url")

    def hashes(self, pins: list[Pin]) -> dict[Release, set[str]]:
        """Return the hashes of all files of each release.

        Raises:
            PinError: The index has no such release, or does not answer.
        """
        hashes: dict[Release, set[str]] = {}
        rounds: list[dict[str, Pin]] = []  # uv takes one version of a package at a time
        for pin in pins:
            name = pin.release[0]
            current = next((each for each in rounds if name not in each and len(each) < _CHUNK), None)
            if current is None:
                rounds.append(current := {})
            current[name] = pin
        done = 0
        for current in rounds:
            hashes |= self._ask(list(current.values()))
            done += len(current)
            say(f"{done} of {len(pins)} pins looked up")
        return hashes

    def cpu_hashes(self, pin: Pin) -> set[str]:
        """Return the hashes of a CPU build: of this platform alone where its index is not reached."""
        address = os.environ.get("TORCH_CPU_INDEX", TORCH_CPU_INDEX)
        say(f"{pin.text}: asking TORCH_CPU_INDEX")
        try:
            return self._ask([pin], address)[pin.release]
        except PinError as error:
            if pin.hashes:
                say(f"not compared, the recorded hashes stay: {error}")
                return pin.hashes
        say(f"{pin.text}: no answer; pip downloads this platform's wheel from its own sources")
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary=:all:", "--dest", folder, pin.text]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PinError(f"{pin.where}: no CPU build of {pin.text} found: {done.stderr.strip()[-500:]}")
            return {hash_file(path) for path in Path(folder).iterdir()}

    def _ask(self, pins: list[Pin], address: str | None = None) -> dict[Release, set[str]]:
        command = [
            str(self._uv),
            "pip",
            "compile",
            "-",
            "--quiet",
            "--no-deps",
            "--generate-hashes",
            "--universal",
        ]
        command += ["--python-version=3.11", "--prerelease=allow", "--no-annotate", "--no-header"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--refresh"]
        environment = dict(os.environ)
        if asked := address or self._default:
            environment["UV_DEFAULT_INDEX"] = asked  # not an argument: it may hold a password
        text = "".join("{}=={}\n".format(*pin.release) for pin in pins)
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode and len(pins) > 1:  # one of them; ask for each, to say which
            return {release: hashes for pin in pins for release, hashes in self._ask([pin], address).items()}
        if done.returncode:
            raise PinError(f"{pins[0].where}: {pins[0].text}: {' '.join(done.stderr.split())[-500:]}")
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.txt"
            answer.write_text(done.stdout, "utf-8")
            hashes = {pin.release: pin.hashes for pin in parse(answer).pins}
        for pin in pins:
            if not hashes.get(pin.release):
                raise PinError(f"{pin.where}: {pin.text}: the index gives no hashes for it.")
        return hashes


def update(files: list[PinFile], index: Index, renewed: set[str]) -> None:
    """Add missing hashes to all pins of the files, and compare those that are there.

    Raises:
        PinError: A name to renew is pinned nowhere; the index lacks a release or a recorded hash.
    """
    pins = [pin for file in files for pin in file.pins]
    if unknown := renewed - {pin.release[0] for pin in pins}:
        raise PinError(f"--renew: no file pins {', '.join(sorted(unknown))}.")
    recorded: dict[Release, Pin] = {}
    for pin in pins:
        if pin.release[0] in renewed:
            pin.hashes = set()
        unique = recorded.setdefault(pin.release, Pin(pin.where, pin.text, pin.release))
        unique.hashes |= pin.hashes
    cpu = [pin for pin in recorded.values() if "+" in pin.release[1]]
    known = index.hashes([pin for pin in recorded.values() if "+" not in pin.release[1]])
    known |= {pin.release: index.cpu_hashes(pin) for pin in cpu}
    filled: list[str] = []
    for release, pin in recorded.items():
        if foreign := pin.hashes - known[release]:
            raise PinError(
                f"{pin.where}: {len(foreign)} of the {len(pin.hashes)} hashes below {pin.text} belong to no "
                f"file of this release. After a change of the version: scripts/pins --renew {release[0]}. "
                f"Otherwise files of the release were replaced or deleted: find out why first."
            )
        if not pin.hashes:
            pin.hashes = known[release]
            filled.append(f"{pin.text} ({len(pin.hashes)})")
        elif added := known[release] - pin.hashes:
            say(f"{pin.where}: {len(added)} new files of {pin.text}; --renew {release[0]} takes them")
    for pin in pins:
        pin.hashes = recorded[pin.release].hashes
    if filled:
        more = f" and {len(filled) - 20} more" if len(filled) > 20 else ""
        say(f"hashes added for {', '.join(filled[:20])}{more}")


def main() -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="scripts/pins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing and ask nobody")
    parser.add_argument(
        "--images", action="store_true", help="write digests of images to .env, and no hashes"
    )
    parser.add_argument("--env-file", type=Path, default=ROOT / ".env", help="where --images writes")
    parser.add_argument(
        "--renew", action="append", default=[], metavar="NAME", help="look its hashes up anew"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "requirements", help="where the pin files are")
    parser.add_argument(
        "--uv", type=Path, default=Path(sys.executable).parent / "uv", help="the uv to ask with"
    )
    options = parser.parse_args()
    try:
        if options.images:
            return 0 if write_digests(ROOT / "docker-compose.yml", options.env_file, say) else 1
        paths = sorted(path for path in options.folder.glob("*.txt") if path.name != UNPINNED)
        if not paths:
            raise PinError(f"No pin files in {options.folder}.")
        files = [parse(path) for path in paths]
        if not options.check:
            if not options.uv.is_file():
                raise PinError(f"No uv at {options.uv}. Run: scripts/setup pins")
            update(files, Index(options.uv), {normalize(name) for name in options.renew})
            changed = [file for file in files if file.render() != file.path.read_text("utf-8")]
            for file in changed:
                write_atomically(file.path, file.render().encode())
            written = ", ".join(file.path.name for file in changed)
            say(f"written: {written}" if changed else "nothing to write, all hashes were there")
        refused = list(problems(files))
    except (ImageError, PinError) as error:
        say(str(error))
        return 1
    for problem in refused:
        say(problem)
    if refused:
        say(f"{len(refused)} problems. Hashes are written by: scripts/pins")
    return 1 if refused else 0


def say(words: str) -> None:
    """Write a line to stderr."""
    print(f"scripts/pins: {words}", file=sys.stderr)


def _pip_setting(name: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "get", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
