"""Files that are there whole or not at all: what readers, killed processes and full disks see."""

import hashlib
import os
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.errors import ServiceError
from draftloop.support.files import (
    AtomicFileWriter,
    append_to_disk,
    creating_folder,
    disk_errors,
    hash_file,
    remove_unfinished,
    replacing_file,
    size_and_hash,
    unfinished_path,
    write_atomically,
    write_fully,
)

OLD, NEW = b"old", b"new " * 100


def in_child(action: Callable[[], object], *, file_bytes: int = -1) -> int:
    """Run an action in a process, whose files may end soon; return its exit status, 7 for an OSError."""
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            action()
            os._exit(0)
        except OSError:
            os._exit(7)
        finally:
            os._exit(8)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_whole(path: Path) -> None:
    write_atomically(path, NEW)


def write_in_pieces(path: Path) -> None:
    with AtomicFileWriter(path) as writer:
        for start in range(0, len(NEW), 7):
            writer.write(NEW[start : start + 7])


def write_beside(path: Path) -> None:
    with replacing_file(path) as part:
        part.write_bytes(NEW)


def write_by_several(path: Path) -> None:
    with replacing_file(path, by_several=True, durable=False) as part:
        part.write_bytes(NEW)


writers = pytest.mark.parametrize("write", [write_whole, write_in_pieces, write_beside, write_by_several])


@writers
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    write(path)
    assert path.read_bytes() == NEW
    assert list(tmp_path.iterdir()) == [path]


@writers
def test_a_full_disk_is_an_error_and_the_older_file_stays(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    assert in_child(lambda: write(path), file_bytes=100) == 7
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


@writers
def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "a.json")


def killed_while_writing(path: Path) -> None:
    with replacing_file(path) as part:
        part.write_bytes(NEW)
        os.kill(os.getpid(), signal.SIGKILL)


def killed_between_pieces(path: Path) -> None:
    with AtomicFileWriter(path) as writer:
        writer.write(NEW * 1000)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("write", [killed_while_writing, killed_between_pieces])
def test_a_killed_process_leaves_the_older_file_and_a_name_that_is_removed(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    assert in_child(lambda: write(path)) == -signal.SIGKILL
    assert path.read_bytes() == OLD
    assert unfinished_path(path).is_file()
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def write_and_fail(path: Path) -> None:
    path.write_bytes(NEW)
    raise KeyError


def test_an_error_in_the_block_is_raised_and_the_older_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    with pytest.raises(KeyError), replacing_file(path) as part:
        write_and_fail(part)
    with pytest.raises(KeyError), AtomicFileWriter(path):
        write_and_fail(unfinished_path(path))
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_several_threads_replace_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    def write(number: int) -> None:
        with replacing_file(path, by_several=True, durable=False) as part:
            part.write_bytes(b"%d" % number * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    content = path.read_bytes()
    assert content == content[:1] * 10_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_secrets_keep_their_mode_behind_a_link(tmp_path: Path, mode: int) -> None:
    path, link = tmp_path / "secrets", tmp_path / "link"
    path.write_bytes(OLD)
    path.chmod(mode)
    link.symlink_to(path)
    unfinished_path(path).write_bytes(b"left by a killed process, for all to read")
    write_atomically(link, NEW, keep_access=True)
    assert link.is_symlink()
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (NEW, mode)
    assert sorted(tmp_path.iterdir()) == [link, path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_secrets_keep_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_bytes(OLD)
    os.chown(path, 12345, 23456)
    write_atomically(path, NEW, keep_access=True)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_secrets_that_are_not_there_have_no_access_to_keep(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "secrets", NEW, keep_access=True)
    assert not list(tmp_path.iterdir())


@given(pieces=st.lists(st.binary(max_size=50_000), max_size=5))
def test_what_is_written_in_pieces_is_counted_and_hashed(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "a"
    content = b"".join(pieces)
    with AtomicFileWriter(path) as writer:
        assert writer.writable()
        assert [writer.write(piece) for piece in pieces] == [len(piece) for piece in pieces]
    assert path.read_bytes() == content
    assert (writer.size_bytes, writer.rows) == (len(content), content.count(b"\n"))
    assert writer.sha256 == hash_file(path) == hashlib.sha256(content).hexdigest()
    assert size_and_hash(path) == (len(content), writer.sha256)


def test_a_writer_that_is_closed_can_be_discarded_or_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    for end, content in ((AtomicFileWriter.discard, OLD), (AtomicFileWriter.commit, NEW)):
        writer = AtomicFileWriter(path)
        writer.write(NEW)
        writer.close()
        end(writer)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_that_takes_a_part_at_a_time_gets_everything() -> None:
    content = bytes(range(256)) * 2000
    reading, writing = os.pipe()
    with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as stream:
        read = pool.submit(stream.read)
        write_fully(writing, content)
        os.close(writing)
        assert read.result() == content


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_to_disk(path, b"1\n")
    append_to_disk(path, b"2\n3\n")
    assert path.read_bytes() == b"1\n2\n3\n"


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "missing" / "made"
    with creating_folder(folder) as part:
        assert part.parent == folder.parent
        (part / "a").write_bytes(NEW)
        (part / "b").mkdir()
        (part / "b" / "c").write_bytes(OLD)
        assert not folder.exists()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {"a", "b", "b/c"}
    assert list(folder.parent.iterdir()) == [folder]


def killed_while_filling(folder: Path) -> None:
    with creating_folder(folder) as part:
        (part / "a").write_bytes(NEW)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_that_a_killed_process_left_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert in_child(lambda: killed_while_filling(folder)) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [unfinished_path(folder)]
    with creating_folder(folder, durable=False) as part:
        (part / "b").write_bytes(NEW)
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_left_unfinished_is_removed(tmp_path: Path) -> None:
    assert in_child(lambda: killed_while_filling(tmp_path / "made")) == -signal.SIGKILL
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_no_folder_and_a_taken_name_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with pytest.raises(KeyError), creating_folder(folder) as part:
        write_and_fail(part / "a")
    assert not list(tmp_path.iterdir())
    folder.mkdir()
    (folder / "old").write_bytes(OLD)
    with pytest.raises(OSError, match="not empty"), creating_folder(folder) as part:
        (part / "a").write_bytes(NEW)
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_the_disk_raises_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServiceError) as raised, disk_errors("The ledger", "Make room."):
        (tmp_path / "nowhere" / "a").write_bytes(NEW)
    assert str(raised.value) == "The ledger cannot be written: No such file or directory. Make room."
    with (
        pytest.raises(ServiceError, match="a cannot be read: cut short"),
        disk_errors("a", "", access="read"),
    ):
        raise OSError("cut short")
    with pytest.raises(KeyError), disk_errors("a", ""):
        raise KeyError
