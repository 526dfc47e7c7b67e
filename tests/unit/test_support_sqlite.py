"""An SQLite file that is shared: its URL, its connections, its safety."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from draftloop.errors import SetupError
from draftloop.support.sqlite import SqliteError, SqliteFile, path_from_url


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:///a.sqlite3", "a.sqlite3"), ("sqlite:////data/a b.sqlite3", "/data/a b.sqlite3")],
)
def test_a_url_names_a_path(url: str, path: str) -> None:
    assert path_from_url(url, "LEDGER_URL") == path


@pytest.mark.parametrize("url", ["", "a.sqlite3", "sqlite://a", "sqlite:///", "redis://127.0.0.1/0"])
def test_other_urls_are_refused_with_the_setting_that_holds_them(url: str) -> None:
    with pytest.raises(SetupError, match="LEDGER_URL is ") as raised:
        path_from_url(url, "LEDGER_URL")
    assert "sqlite:///file" in raised.value.hint


@pytest.mark.parametrize(("survives", "synchronous"), [(True, 1), (False, 0)])
def test_readers_never_wait_and_a_ledger_outlives_a_power_cut(
    tmp_path: Path, survives: bool, synchronous: int
) -> None:
    file = SqliteFile(f"{tmp_path}/a.sqlite3", wait_s=1, survives_power_cut=survives)
    assert not list(tmp_path.iterdir()), "nothing is opened before it is asked for"
    connection = file.connection()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)


def test_each_thread_has_one_connection(tmp_path: Path) -> None:
    file = SqliteFile(f"{tmp_path}/a.sqlite3", wait_s=1, survives_power_cut=False)
    barrier = threading.Barrier(3)

    def connections(_: int) -> tuple[int, int]:
        both = id(file.connection()), id(file.connection())
        barrier.wait()  # each in a thread of its own
        return both

    with ThreadPoolExecutor(3) as pool:
        pairs = list(pool.map(connections, range(3)))
    assert all(one == other for one, other in pairs)
    assert len({one for one, _ in pairs}) == 3


def test_what_one_thread_commits_another_reads(tmp_path: Path) -> None:
    file = SqliteFile(f"{tmp_path}/a.sqlite3", wait_s=1, survives_power_cut=True)
    with file.connection() as connection:
        connection.execute("CREATE TABLE numbers (number INTEGER)")
        connection.execute("INSERT INTO numbers VALUES (1)")
    with ThreadPoolExecutor(1) as pool:
        rows = pool.submit(lambda: file.connection().execute("SELECT * FROM numbers").fetchall())
        assert rows.result() == [(1,)]


def test_a_writer_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    path = f"{tmp_path}/a.sqlite3"
    first = SqliteFile(path, wait_s=1, survives_power_cut=False).connection()
    first.execute("CREATE TABLE numbers (number INTEGER)")
    first.execute("BEGIN IMMEDIATE")
    second = SqliteFile(path, wait_s=0.05, survives_power_cut=False).connection()
    with pytest.raises(SqliteError, match="locked"):
        second.execute("BEGIN IMMEDIATE")
    first.rollback()
    second.execute("BEGIN IMMEDIATE")
    second.rollback()


def test_a_file_that_cannot_be_opened_is_an_error_of_each_call(tmp_path: Path) -> None:
    file = SqliteFile(f"{tmp_path}/nowhere/a.sqlite3", wait_s=1, survives_power_cut=False)
    for _ in range(2):
        with pytest.raises(SqliteError, match="unable to open"):
            file.connection()
