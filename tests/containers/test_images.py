"""Digests of images, from a registry on this machine: read by skopeo and podman, used by buildah."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from draftloop.cli import servers
from tests.conftest import missing
from tests.containers.podman import Podman, open_podman
from tests.containers.podman import missing as missing_tools

OCI = "application/vnd.oci.image"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@dataclass
class Registry:
    """Manifests and blobs by the path at which a registry serves them."""

    port: int = 0
    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def push(self, name: str, tag: str, words: str) -> str:
        """Publish an image of two platforms with one file; return the digest of the list."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as layer:
            entry = tarfile.TarInfo("words")
            entry.size = len(words)
            layer.addfile(entry, io.BytesIO(words.encode()))
        manifests = []
        for architecture in (ARCHITECTURE, "riscv64"):
            config = {
                "architecture": architecture,
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(archive.getvalue())]},
            }
            manifest = {
                "schemaVersion": 2,
                "mediaType": f"{OCI}.manifest.v1+json",
                "config": self._blob(name, f"{OCI}.config.v1+json", json.dumps(config).encode()),
                "layers": [
                    self._blob(name, f"{OCI}.layer.v1.tar+gzip", gzip.compress(archive.getvalue(), mtime=0))
                ],
            }
            stored = self._manifest(name, manifest)
            manifests.append({**stored, "platform": {"architecture": architecture, "os": "linux"}})
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}
        return str(self._manifest(name, index, tag)["digest"])

    def _manifest(self, name: str, manifest: dict[str, Any], tag: str = "") -> dict[str, Any]:
        body = json.dumps(manifest).encode()
        for reference in filter(None, (tag, _digest(body))):
            self.pages[f"/v2/{name}/manifests/{reference}"] = manifest["mediaType"], body
        return {"mediaType": manifest["mediaType"], "digest": _digest(body), "size": len(body)}

    def _blob(self, name: str, media_type: str, body: bytes) -> dict[str, Any]:
        self.pages[f"/v2/{name}/blobs/{_digest(body)}"] = "application/octet-stream", body
        return {"mediaType": media_type, "digest": _digest(body), "size": len(body)}


def _digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, registry: Registry, *arguments: Any) -> None:
        self.registry = registry
        super().__init__(*arguments)

    def do_GET(self) -> None:
        media_type, body = self.registry.pages.get(self.path, ("application/json", b"{}"))
        self.send_response(200 if self.path == "/v2/" or self.path in self.registry.pages else 404)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", _digest(body))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    server = http.server.ThreadingHTTPServer((servers.LOCALHOST, 0), functools.partial(Handler, made))
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def podman(registry: Registry, tmp_path: Path) -> Podman:
    """Podman and skopeo that take this registry without TLS."""
    if reason := missing_tools():
        missing(reason)
    opened = open_podman()
    configuration = tmp_path / ".config" / "containers" / "registries.conf"  # where skopeo looks, too
    configuration.parent.mkdir(parents=True)
    configuration.write_text(
        f'[[registry]]\nlocation = "{servers.LOCALHOST}:{registry.port}"\ninsecure = true\n'
    )
    return Podman(
        opened.root,
        {**opened.environment, "HOME": str(tmp_path), "CONTAINERS_REGISTRIES_CONF": str(configuration)},
    )


def look_up(
    podman: Podman, tmp_path: Path, tool: str, text: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run scripts/pins --images where `tool` is the only one, on a .env with this text."""
    only = tmp_path / "only"
    only.mkdir(exist_ok=True)
    for name in (tool, "runc", "fuse-overlayfs"):
        if (program := shutil.which(name, path=podman.environment["PATH"])) and not (only / name).exists():
            (only / name).symlink_to(program)
    environment_file = tmp_path / ".env"
    environment_file.write_text(text)
    environment_file.chmod(0o600)
    command = [sys.executable, "-P", "-m", "scripts.pins", "--images", "--env-file", str(environment_file)]
    environment = {**podman.environment, "PATH": str(only), "PYTHONPATH": servers.PYTHONPATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done, environment_file


@pytest.mark.parametrize("tool", ["skopeo", "podman"])
def test_digests_are_written_and_an_image_is_built_from_one(
    tool: str, registry: Registry, podman: Podman, tmp_path: Path
) -> None:
    here = f"{servers.LOCALHOST}:{registry.port}"
    digests = {name: registry.push(name, "1", f"{name} of {tool}") for name in ("base", "postgres", "vllm")}
    text = f"POSTGRES_PASSWORD=secret\nBASE_IMAGE={here}/base:1\n# VLLM_IMAGE=\n"
    text += f"VLLM_IMAGE={here}/vllm:1@sha256:{'0' * 64}\nPOSTGRES_IMAGE='{here}/postgres:1'\n"

    done, written = look_up(podman, tmp_path, tool, text)

    assert done.returncode == 0, done.stderr
    base = f"{here}/base:1@{digests['base']}"
    assert written.read_text() == (
        f"POSTGRES_PASSWORD=secret\nBASE_IMAGE={base}\n# VLLM_IMAGE=\n"
        f"VLLM_IMAGE={here}/vllm:1@{digests['vllm']}\nPOSTGRES_IMAGE={here}/postgres:1@{digests['postgres']}\n"
    )
    assert written.stat().st_mode & 0o777 == 0o600

    registry.push("base", "1", "moved")  # the tag is now another image, the digest is not
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    built = f"{servers.LOCALHOST}/digest-test-{os.getpid()}"
    podman.run(
        *("buildah", "bud", "--isolation", "chroot", "--build-arg", f"BASE_IMAGE={base}", "--tag", built),
        str(tmp_path),
    )
    try:
        saved = podman.run("skopeo", "inspect", "--raw", f"docker://{here}/base@{digests['base']}")
        assert _digest(saved.encode()) == digests["base"]
        container = podman.run("buildah", "from", built).strip()
        folder = Path(podman.run("buildah", "mount", container).strip())
        assert (folder / "words").read_text() == f"base of {tool}"
        podman.run("buildah", "rm", container)
    finally:
        left = podman.run("podman", "images", "--quiet", "--filter", f"reference={here}/*").split()
        podman.run("podman", "image", "rm", "--force", built, *left, check=False)


def test_a_missing_image_keeps_its_line_and_is_named(
    registry: Registry, podman: Podman, tmp_path: Path
) -> None:
    here = f"{servers.LOCALHOST}:{registry.port}"
    digest = registry.push("base", "1", "base")
    text = f"BASE_IMAGE={here}/base:1\nPOSTGRES_IMAGE={here}/nobody:1\n"
    text += f"VLLM_IMAGE={here}/vllm@sha256:{'0' * 64}\n"

    done, written = look_up(podman, tmp_path, "skopeo", text)

    assert done.returncode == 1
    assert (
        f"POSTGRES_IMAGE stays as it is: {here}/nobody:1: no digest found. docker is not installed; skopeo: "
        in done.stderr
    )
    assert f"VLLM_IMAGE stays as it is: {here}/vllm has no tag" in done.stderr
    assert written.read_text() == text.replace("base:1", f"base:1@{digest}")
