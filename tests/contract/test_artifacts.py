"""The store of artifacts keeps whatever it is given whole and gives it back, wherever it lives.

S3 is moto's server, which imitates S3's HTTP; an S3 of a maker has not been tried.
"""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.execution.artifacts import Artifacts
from draftloop.runs.job import OutputFile
from tests.code_runs import attempt, png, run, sha256, write

CONTENTS = {"图.png": png(), "out/汇总.csv": b"1,2\n" * 1000, "empty.txt": b""}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Start moto's server with a bucket; yield the bucket's address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    names = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "draftloop-tests",
        "AWS_SECRET_ACCESS_KEY": "draftloop-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in names.items():
            patched.setenv(name, value)
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    httpx.put(f"{url}/artifacts", trust_env=False).raise_for_status()
                    break
                except httpx.TransportError:
                    assert time.monotonic() < until, "moto's server does not start"
                    assert process.poll() is None, "moto's server ended"
                    time.sleep(0.2)
            yield "s3://artifacts"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(params=["folder", "file", "memory", pytest.param("s3", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    places = {"folder": f"{tmp_path}/kept", "file": f"file://{tmp_path}/kept"}
    return places.get(request.param, f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def store(url: str) -> Artifacts:
    return Artifacts(url)


def names(store: Artifacts) -> set[str]:
    paths: Any = store._fs.find(store._root)
    return {path.removeprefix(f"{store._root}/") for path in paths}


def read(store: Artifacts, key: str) -> bytes:
    with store.open(key) as stream:
        return stream.read()


def age(store: Artifacts, seconds: float) -> None:
    """Have everything be so old: where times cannot be set, wait."""
    if store._local:
        then = time.time() - seconds
        for path in store._fs.find(store._root):
            os.utime(path, (then, then))
    else:
        time.sleep(1.1)  # S3 reports whole seconds


def test_files_are_given_back_as_they_were_left(store: Artifacts, tmp_path: Path) -> None:
    files = write(tmp_path / "left", CONTENTS)
    store.keep(tmp_path / "left", files)
    for file in files:
        assert read(store, file.sha256) == CONTENTS[file.path]
        assert store.size(file.sha256) == len(CONTENTS[file.path])
    assert names(store) == {f"files/{file.sha256[:2]}/{file.sha256}" for file in files}


def test_the_same_content_is_kept_once_whatever_its_name(store: Artifacts, tmp_path: Path) -> None:
    files = write(tmp_path / "left", {"a.csv": b"same", "b.csv": b"same"})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.keep(tmp_path / "left", files), range(4)))
    assert len(names(store)) == 1
    assert read(store, sha256(b"same")) == b"same"


def test_bytes_that_are_not_what_their_hash_says_are_refused(store: Artifacts, tmp_path: Path) -> None:
    (file,) = write(tmp_path, {"a.csv": b"1"})
    (tmp_path / "a.csv").write_bytes(b"2")
    with pytest.raises(TaskError, match="has changed"):
        store.keep(tmp_path, [file])
    assert names(store) == set()


def test_what_lies_elsewhere_is_refused(store: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    folder = tmp_path / "left"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    for path in ("../secret", str(tmp_path / "secret"), "link"):
        with pytest.raises(TaskError, match="does not lie"):
            store.keep(folder, [OutputFile(path, 1, sha256(b"s"))])
    assert names(store) == set()


@pytest.mark.parametrize(
    "name", ["", "../runs/x", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 32 + "/" + "a" * 31]
)
def test_a_name_that_is_no_hash_never_becomes_a_path(store: Artifacts, tmp_path: Path, name: str) -> None:
    for ask in (store.open, store.size, store.run, lambda name: store.address(name, "text/plain", "a", 9)):
        with pytest.raises(TaskError, match="This is no"):
            ask(name)
    with pytest.raises(TaskError):
        store.keep(tmp_path, [OutputFile("a", 1, name)])
    with pytest.raises(TaskError):
        store.put_run(run(key=name))


def test_a_missing_file_is_a_task_error(store: Artifacts) -> None:
    for ask in (store.open, store.size):
        with pytest.raises(TaskError, match="There is no file"):
            ask("0" * 64)
    assert store.run("0" * 64) is None


def test_a_run_is_read_by_its_key_and_replaced_by_a_later_one(store: Artifacts) -> None:
    one = run(attempt(stdout="一\ud800\x00\n"))
    store.put_run(one)
    assert store.run(one.key) == one
    other = run(attempt("print(1)  \n", stdout="2"), origin="human")
    assert other.key == one.key
    store.put_run(other)
    assert store.run(one.key) == other
    assert names(store) == {f"runs/{one.key}.json"}


def test_collecting_removes_what_nobody_needs_and_nothing_else(store: Artifacts, tmp_path: Path) -> None:
    contents = {f"{name}.txt": name.encode() for name in ("first", "both", "wanted", "unwanted", "loose")}
    files = {file.path[:-4]: file for file in write(tmp_path, contents)}
    store.keep(tmp_path, list(files.values()))
    wanted = run(
        attempt("a", exit_status=1, files=(files["first"],)),
        attempt("b", files=(files["both"], files["wanted"])),
    )
    unwanted = run(attempt("c", files=(files["both"], files["unwanted"])))
    for one in (wanted, unwanted):
        store.put_run(one)
    before = names(store)

    assert store.collect({wanted.key}, 3600, dry_run=False).runs == 0, "all of it is young"
    age(store, 7200)
    limit = 3600 if store._local else 0.05
    would = store.collect({wanted.key}, limit, dry_run=True)
    assert names(store) == before
    done = store.collect({wanted.key}, limit, dry_run=False)
    assert done == would
    assert (done.runs, done.files, done.kept_runs, done.kept_files) == (1, 2, 1, 3)
    assert done.size_bytes > len("unwanted" + "loose")
    assert store.run(wanted.key) == wanted
    assert store.run(unwanted.key) is None
    for name, file in files.items():
        if name in ("unwanted", "loose"):
            with pytest.raises(TaskError):
                store.size(file.sha256)
        else:
            assert read(store, file.sha256) == name.encode()
    assert store.collect({wanted.key}, limit, dry_run=False).files == 0


def test_a_full_store_refuses_in_words_and_keeps_what_it_has(url: str, tmp_path: Path) -> None:
    store = Artifacts(url, max_bytes=10_000)
    first = write(tmp_path / "1", {"a.bin": b"a" * 6000})
    store.keep(tmp_path / "1", first)
    made = run(attempt(files=first))
    store.put_run(made)
    second = write(tmp_path / "2", {"b.bin": b"b" * 3000, "c.bin": b"c" * 3000})
    with pytest.raises(SetupError, match=r"The store of artifacts holds .* of 9\.77 KB") as refused:
        store.keep(tmp_path / "2", second)
    assert "draftloop artifacts collect" in refused.value.hint
    assert names(store) == {f"files/{first[0].sha256[:2]}/{first[0].sha256}", f"runs/{made.key}.json"}
    # What is there already takes no room, and a run is always kept.
    store.keep(tmp_path / "1", first)
    store.put_run(run(attempt("print(2)")))
    assert read(store, first[0].sha256) == b"a" * 6000
    # Another process counts what this one stored, and collecting makes room at once.
    with pytest.raises(SetupError):
        Artifacts(url, max_bytes=10_000).keep(tmp_path / "2", second)
    age(store, 7200)
    store.collect(set(), 3600 if store._local else 0.05, dry_run=False)
    store.keep(tmp_path / "2", second)
    assert read(store, second[0].sha256) == b"b" * 3000


def test_a_store_is_not_counted_for_every_run(tmp_path: Path) -> None:
    store = Artifacts(f"{tmp_path}/kept", max_bytes=1 << 20)
    for number in range(5):
        folder = tmp_path / str(number)
        store.keep(folder, write(folder, {"a": b"%d" % number * 100}))
        if number == 2:  # by somebody else; known after the next count
            (tmp_path / "kept" / "files" / "large").write_bytes(b"x" * (2 << 20))
    assert len(names(store)) == 6


def test_many_at_once_do_not_pass_the_limit(tmp_path: Path) -> None:
    store = Artifacts(f"{tmp_path}/kept", max_bytes=50_000)

    def keep(number: int) -> bool:
        folder = tmp_path / str(number)
        files = write(folder, {"a": b"%03d" % number * 1000})
        try:
            store.keep(folder, files)
        except SetupError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        kept = sum(pool.map(keep, range(40)))
    assert kept == 16
    assert sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file()) == 48_000


def test_collecting_an_empty_store_is_nothing(store: Artifacts) -> None:
    done = store.collect(set(), 0, dry_run=False)
    assert (done.runs, done.files, done.size_bytes, done.kept_runs, done.kept_files) == (0, 0, 0, 0, 0)


def test_what_is_stored_again_is_young_again(tmp_path: Path) -> None:
    store = Artifacts(f"{tmp_path}/kept")
    files = write(tmp_path / "left", {"a": b"1"})
    store.keep(tmp_path / "left", files)
    age(store, 7200)
    store.keep(tmp_path / "left", files)
    assert store.collect(set(), 3600, dry_run=False).files == 0, "its run is about to be written"


def test_what_a_crash_left_is_no_file_and_goes(tmp_path: Path) -> None:
    store = Artifacts(f"{tmp_path}/kept")
    files = write(tmp_path / "left", {"a": b"whole"})
    path = tmp_path / "kept" / "files" / files[0].sha256[:2] / files[0].sha256
    path.parent.mkdir(parents=True)
    path.write_bytes(b"who")  # of a machine that lost its power
    path.with_name(f".{path.name}.0.part").write_bytes(b"w")
    store.keep(tmp_path / "left", files)
    assert read(store, files[0].sha256) == b"whole"
    age(store, 7200)
    assert store.collect(set(), 3600, dry_run=False).files == 2
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()] == []


def test_a_store_that_holds_no_run_where_one_should_be_removes_nothing(tmp_path: Path) -> None:
    store = Artifacts(f"{tmp_path}/kept")
    files = write(tmp_path / "left", {"a": b"1"})
    store.keep(tmp_path / "left", files)
    (tmp_path / "kept" / "runs").mkdir()
    (tmp_path / "kept" / "runs" / f"{'0' * 64}.json").write_text("{}")
    age(store, 7200)
    with pytest.raises(ServiceError, match="is no run"):
        store.collect({"0" * 64}, 3600, dry_run=False)
    assert read(store, files[0].sha256) == b"1"


@pytest.mark.integration
def test_a_folder_signs_no_address_and_s3_does(s3: str, tmp_path: Path) -> None:
    (file,) = write(tmp_path / "left", {"汇总.csv": b"1,2"})
    folder, bucket = Artifacts(f"{tmp_path}/kept"), Artifacts(f"{s3}/signed")
    for store in (folder, bucket):
        store.keep(tmp_path / "left", [file])
    assert folder.address(file.sha256, "text/csv", "汇总.csv", 60) is None
    address = bucket.address(file.sha256, "text/csv", "汇总.csv", 60)
    assert address
    assert {"X-Amz-Signature", "Signature"} & set(parse_qs(urlsplit(address).query))
    answer = httpx.get(address, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"1,2")


@pytest.mark.integration
def test_a_failing_store_is_a_service_error_not_a_missing_file(s3: str, tmp_path: Path) -> None:
    (file,) = write(tmp_path / "left", {"a": b"1"})
    (tmp_path / "kept").write_text("a file, no folder")
    broken = [Artifacts(f"{tmp_path}/kept"), Artifacts("s3://no-such-bucket-here/x")]
    for store in broken:
        with pytest.raises(ServiceError, match="The store of artifacts at"):
            store.keep(tmp_path / "left", [file])
        with pytest.raises(ServiceError):
            store.put_run(run())


@pytest.mark.parametrize("url", ["", "s3://", "file://", "ftp://x/y", "gs://bucket/x", "https://x/y"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="ARTIFACTS_URL is"):
        Artifacts(url)


def test_nothing_is_made_before_something_is_kept(tmp_path: Path) -> None:
    store = Artifacts(f"{tmp_path}/kept")
    assert store.run("0" * 64) is None
    assert store.collect(set(), 0, dry_run=False).runs == 0
    assert list(tmp_path.iterdir()) == []
