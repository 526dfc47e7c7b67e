"""scripts/pins and pip against a package index on this machine: what is written, and what is then refused."""

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from draftloop.cli import servers
from draftloop.support.environments import ROOT, NotInstalledError, find_environment
from tests.conftest import missing

OPTION = "--only-binary :all:\n"
PLATFORMS = ("py3-none-any", "cp311-cp311-macosx_11_0_arm64", "cp314-cp314-manylinux_2_28_aarch64")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Index:
    """A package index: a folder of pages and wheels, served over HTTP."""

    root: Path
    url: str

    def release(self, name: str, version: str, *tags: str) -> set[str]:
        """Publish a wheel for each platform tag; return their hashes."""
        page = self.root / "simple" / name.replace("_", "-")
        page.mkdir(parents=True, exist_ok=True)
        hashes = set()
        for tag in tags or ("py3-none-any",):
            path = page / f"{name}-{version}-{tag}.whl"
            info = f"{name}-{version}.dist-info"
            with zipfile.ZipFile(path, "w") as wheel:
                wheel.writestr(f"{name}.py", f"tag = {tag!r}\n")
                wheel.writestr(
                    f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
                )
                wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
                wheel.writestr(f"{info}/RECORD", "")
                program = zipfile.ZipInfo(f"{name}-{version}.data/scripts/{page.name}")
                program.external_attr = 0o100755 << 16
                wheel.writestr(program, "#!python\nprint('1')\n")
            hashes.add(sha256(path))
        links = [
            f'<a href="{path.name.replace("+", "%2B")}#sha256={sha256(path)}">{path.name}</a>'
            for path in sorted(page.glob("*.whl"))
        ]
        (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
        return hashes


@contextmanager
def served(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve requests on this machine; yield the address."""
    server = http.server.ThreadingHTTPServer((servers.LOCALHOST, 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{servers.LOCALHOST}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    root = tmp_path / "index"
    (root / "simple").mkdir(parents=True)
    with served(functools.partial(Quiet, directory=str(root))) as url:
        yield Index(root, f"{url}/simple")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "requirements"
    made.mkdir()
    return made


def pins(folder: Path, index: Index | None, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the verb on a folder, as scripts/launch does."""
    try:
        bin_folder = find_environment("pins") / "bin"
    except NotInstalledError as error:
        missing(str(error))
    address = index.url if index else "http://127.0.0.1:9/nobody"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))},
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": address,
        "TORCH_CPU_INDEX": address,
        "UV_CACHE_DIR": str(folder.parent / "cache"),
        "UV_HTTP_RETRIES": "0",
    }
    command = [str(bin_folder / "python"), "-P", "-m", "scripts.pins", "--folder", str(folder), *options]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def install(folder: Path, index: Index, file: str) -> subprocess.CompletedProcess[str]:
    """Install a file as scripts/setup does, into a folder of its own."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--no-cache-dir"]
    command += [
        "--index-url",
        index.url,
        "--target",
        str(folder.parent / "installed"),
        "-r",
        str(folder / file),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def setup(folder: Path, index: Index) -> subprocess.CompletedProcess[str]:
    """Run a copy of scripts/setup for the environment `pins`, with the pin files of a folder."""
    copy = folder.parent / "scripts" / "setup"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "scripts" / "setup", copy)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.url,
        "DRAFTLOOP_HOME": str(folder.parent / "home"),
        "DRAFTLOOP_PYTHON": sys.executable,
    }
    return subprocess.run(
        [str(copy), "pins"], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def lines(hashes: set[str]) -> str:
    return " \\\n".join(f"    --hash=sha256:{value}" for value in sorted(hashes)) + "\n"


def test_all_files_of_a_release_are_recorded_and_nothing_else_changes(index: Index, folder: Path) -> None:
    hashes = index.release("some_name", "1.0", *PLATFORMS)
    other = index.release("other", "2.0+cpu")
    index.release("some_name", "1.1")
    text = f'# Why.\n{OPTION}\nSome.Name==1.0; python_version < "4"\n# And this.\nother==2.0+cpu\n'
    (folder / "a.txt").write_text(text)

    done = pins(folder, index)

    assert done.returncode == 0, done.stderr
    written = f'# Why.\n{OPTION}\nSome.Name==1.0; python_version < "4" \\\n{lines(hashes)}# And this.\n'
    assert (folder / "a.txt").read_text() == f"{written}other==2.0+cpu \\\n{lines(other)}"
    assert "http" not in (folder / "a.txt").read_text()
    installed = install(folder, index, "a.txt")
    assert installed.returncode == 0, installed.stderr
    again = pins(folder, index)
    assert "nothing to write" in again.stderr
    assert pins(folder, None, "--check").returncode == 0  # asks nobody


def test_two_files_may_pin_two_versions(index: Index, folder: Path) -> None:
    first, second = index.release("thing", "1"), index.release("thing", "2")
    (folder / "a.txt").write_text(f"{OPTION}thing==1\n")
    (folder / "b.txt").write_text(f"{OPTION}thing==2\n")

    assert pins(folder, index).returncode == 0

    assert (folder / "a.txt").read_text() == f"{OPTION}thing==1 \\\n{lines(first)}"
    assert (folder / "b.txt").read_text() == f"{OPTION}thing==2 \\\n{lines(second)}"


def test_a_file_that_was_replaced_is_refused_by_pip_and_by_the_verb(index: Index, folder: Path) -> None:
    index.release("thing", "1")
    (folder / "a.txt").write_text(f"{OPTION}thing==1\n")
    assert pins(folder, index).returncode == 0
    before = (folder / "a.txt").read_text()
    for page in (index.root / "simple" / "thing").iterdir():
        page.unlink()
    index.release("thing", "1", "py2.py3-none-any")

    installed = install(folder, index, "a.txt")
    assert installed.returncode != 0
    assert "DO NOT MATCH THE HASHES" in installed.stderr  # what scripts/setup looks for

    done = pins(folder, index)
    assert done.returncode == 1
    assert "a.txt:2: 1 of the 1 hashes below thing==1 belong to no file" in done.stderr
    assert (folder / "a.txt").read_text() == before


def test_a_later_file_is_taken_when_it_is_asked_for(index: Index, folder: Path) -> None:
    first = index.release("thing", "1")
    (folder / "a.txt").write_text(f"{OPTION}thing==1\n")
    assert pins(folder, index).returncode == 0
    later = index.release("thing", "1", PLATFORMS[1])

    done = pins(folder, index)
    assert "1 new files of thing==1; --renew thing takes them" in done.stderr
    assert (folder / "a.txt").read_text() == f"{OPTION}thing==1 \\\n{lines(first)}"

    assert pins(folder, index, "--renew", "Thing").returncode == 0
    assert (folder / "a.txt").read_text() == f"{OPTION}thing==1 \\\n{lines(first | later)}"


def test_a_version_that_nobody_released_is_named_with_its_line(index: Index, folder: Path) -> None:
    index.release("thing", "1")
    index.release("other", "1")
    text = f"{OPTION}other==1\nthing==7\n"
    (folder / "a.txt").write_text(text)

    done = pins(folder, index)

    assert done.returncode == 1
    assert "a.txt:3: thing==7: " in done.stderr
    assert (folder / "a.txt").read_text() == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{OPTION}thing==1\n", "a.txt:2: thing==1 has no hash"),
        (f"thing==1 \\\n{lines({'0' * 64})}", "a.txt:1: no line '--only-binary :all:'"),
        (f"{OPTION}thing>=1\n", "a.txt:2: not a pin NAME==VERSION: 'thing>=1'"),
        (f"--index-url http://somewhere.example\n{OPTION}", "a.txt:1: not a pin NAME==VERSION"),
        (f"{OPTION}--extra-index-url http://somewhere.example\n", "a.txt:2: not a pin NAME==VERSION"),
        (f"{OPTION}thing @ http://somewhere.example/thing.whl\n", "a.txt:2: not a pin NAME==VERSION"),
        (f"{OPTION}thing==1 \\\n    --hash=md5:{'0' * 32}\n", "a.txt:3: expected a line"),
        (f"{OPTION}thing==1 \\\n    --hash=sha256:{'0' * 63}\n", "a.txt:3: expected a line"),
        (f"{OPTION}thing==1 \\\n", "a.txt:2: the file ends within the hashes"),
        (
            f"{OPTION}a-b==1 \\\n{lines({'0' * 64})}A_B==1 \\\n{lines({'0' * 64})}",
            "a.txt:4: a-b is pinned a second",
        ),
    ],
)
def test_the_check_refuses_what_is_not_a_pin_with_hashes(text: str, words: str, folder: Path) -> None:
    (folder / "a.txt").write_text(text)
    (folder / "sandbox-extra.txt").write_text("anything>=1\n")  # the administrator's own
    done = pins(folder, None, "--check")
    assert done.returncode == 1
    assert words in done.stderr


def test_one_pin_has_the_same_hashes_in_all_files(folder: Path) -> None:
    (folder / "a.txt").write_text(f"{OPTION}thing==1 \\\n{lines({'0' * 64})}")
    (folder / "b.txt").write_text(f"{OPTION}thing==1 \\\n{lines({'1' * 64})}")
    done = pins(folder, None, "--check")
    assert done.returncode == 1
    assert "b.txt:2: thing==1 has other hashes than" in done.stderr


def test_a_cpu_build_keeps_its_hashes_where_its_index_is_not_reached(index: Index, folder: Path) -> None:
    (folder / "a.txt").write_text(f"{OPTION}thing==1+cpu \\\n{lines({'0' * 64})}")
    done = pins(folder, index)  # the index has no such package
    assert done.returncode == 0
    assert "not compared, the recorded hashes stay" in done.stderr


def test_the_setup_installs_what_is_recorded_and_refuses_all_else(index: Index, folder: Path) -> None:
    other = f"pip-audit==1 \\\n{lines(index.release('pip_audit', '1'))}"
    hashes = index.release("uv", "1", *PLATFORMS)
    (folder / "pins.txt").write_text(f"{OPTION}{other}uv==1 \\\n{lines({'0' * 64})}")
    refused = setup(folder, index)
    assert refused.returncode == 1
    assert "a file's hash is not among the recorded ones" in refused.stderr
    assert "scripts/pins --renew NAME" in refused.stderr

    (folder / "pins.txt").write_text(f"{OPTION}{other}uv==1 \\\n{lines(hashes)}")
    done = setup(folder, index)
    assert done.returncode == 0, done.stderr


def test_the_setup_and_the_images_install_pins_by_hash_alone() -> None:
    for name in ("scripts/setup", "Dockerfile"):
        text = re.sub(r"\\\n *", "", (ROOT / name).read_text("utf-8"))
        for line in text.splitlines():
            if re.search(r"--no-deps\b", line) and "--no-index" not in line and not line.startswith("#"):
                assert "--require-hashes" in line, f"{name}: {line}"


def audit(folder: Path, vulnerable: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of scripts/check --audit against a service that knows something of one package."""
    (folder.parent / "scripts").mkdir(exist_ok=True)
    for name in ("check", "setup"):
        shutil.copy(ROOT / "scripts" / name, folder.parent / "scripts" / name)
    shutil.copy(ROOT / "requirements" / "pins.txt", folder)  # the same pins: the environment that is there
    events = [{"introduced": "0"}, {"fixed": "99"}]

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
            vulnerability = {
                "id": "TEST-2026-1",
                "modified": "2026-01-01T00:00:00Z",
                "affected": [{"package": asked, "ranges": [{"type": "ECOSYSTEM", "events": events}]}],
            }
            body = json.dumps({"vulns": [vulnerability]} if asked["name"] == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with served(Service) as url:
        command = [
            str(folder.parent / "scripts" / "check"),
            "--audit",
            "-s",
            "osv",
            "--osv-url",
            f"{url}/v1/query",
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_the_audit_names_the_pin_that_something_is_known_of(folder: Path, index: Index) -> None:
    pins(folder, index, "--help")  # skips where the environment is missing
    (folder / "a.txt").write_text(f"{OPTION}thing==1+cpu \\\n{lines({'0' * 64})}")
    (folder / "sandbox-extra.txt").write_text("anything>=1\n")

    done = audit(folder, "nothing")
    assert done.returncode == 0, done.stderr
    assert "pins looked up, nothing is known against them" in done.stdout

    done = audit(folder, "thing")
    assert done.returncode == 1
    assert "thing 1       TEST-2026-1 99" in done.stdout
    assert "something known, or not looked up, in: requirements/a.txt\n" in done.stderr


def test_the_pins_of_this_checkout_have_their_hashes() -> None:
    assert pins(ROOT / "requirements", None, "--check").returncode == 0
