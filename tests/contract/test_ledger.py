"""What every ledger keeps, whichever database is behind it: one suite, run against each of `LEDGERS`."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftloop.errors import ServiceError, SetupError
from draftloop.ledger.migrations import MIGRATIONS, migrate
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.prompt import Promoted
from draftloop.support.sqlite import Connection, SqliteError, SqliteFile

# Opens one ledger as several owners do: the same state, another process each.
Open = Callable[[str], Ledger]
LEDGERS = ("sqlite",)
ELSEWHERE, ANOTHER = "elsewhere:1:1", "elsewhere:2:2"  # owners on another machine: only their leases end
GONE = f"{os.uname().nodename}:999999999:1"  # an owner on this machine whose process has ended
FIRST, SECOND = Promoted("one", "compact"), Promoted("two", "full")
# NUL, a lone surrogate, what JSON escapes, other planes: databases differ in what they refuse.
TEXTS = ["", "a'b\"c\\", "line\nline\u2028line", "null\x00byte", "lone \ud800 surrogate", "😀 𠮷田"]


@pytest.fixture(params=LEDGERS)
def open_as(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    return lambda owner: Ledger(url, owner=owner)


@pytest.fixture
def ledger(open_as: Open) -> Ledger:
    return open_as(ELSEWHERE)


# ---------------------------------------------------------------------------- setups, versions, drafts
def test_setup_is_kept_by_project(ledger: Ledger) -> None:
    ledger.remember_setup(1, {"a": [1, None, "é"]})
    ledger.remember_setup(2, {})
    ledger.remember_setup(1, {"a": 2})
    assert (ledger.setup_of(1), ledger.setup_of(2), ledger.setup_of(3)) == ({"a": 2}, {}, {})


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_read_back(open_as: Open, text: str) -> None:
    writer, reader = open_as(ELSEWHERE), open_as(ANOTHER)
    writer.remember_setup(1, {text: text})
    assert reader.setup_of(1) == {text: text}
    writer.remember_version(1, "m-1", {"system": text})
    writer.remember_drafts([(1, 5, "m-1", "failed", [text], text)])
    assert reader.manifest("m-1") == {"system": text}
    assert reader.version_rows()[0].manifest == {"system": text}
    kept = reader.drafts_of(5, 1)
    storable = text.replace("\ud800", "?")  # outside of JSON no database takes a lone surrogate
    assert [(draft.raw, draft.reasons) for draft in kept] == [(storable, [text])]


@pytest.mark.parametrize("text", TEXTS)
def test_a_key_with_any_text_finds_its_row(ledger: Ledger, text: str) -> None:
    version = f"{text}-1"
    ledger.remember_version(1, version, {"is": 1})
    ledger.promote(1, Promoted(text, "full"))
    assert ledger.manifest(version) == {"is": 1}
    assert ledger.promoted(1) == Promoted(text.replace("\ud800", "?"), "full")
    assert ledger.claim(1, [5], version, 60) == {5}
    ledger.release([5], version)
    job, _ = ledger.begin_job(1, text, 0, 60)
    assert ledger.keep_job(job.id, text, 60)
    ledger.end_job(job.id, "failed", text)
    assert [(one.why, one.step, one.told) for one in ledger.jobs()] == [(text.replace("\ud800", "?"),) * 3]


def test_versions_are_listed_in_order_of_first_use(ledger: Ledger) -> None:
    for project, version in [(1, "b"), (2, "a"), (1, "a"), (1, "b"), (3, "c")]:
        ledger.remember_version(project, version, {"name": version})
    assert ledger.versions() == ["b", "a", "c"]
    assert ledger.versions(1) == ["b", "a"]
    assert ledger.versions(9) == []


def test_the_first_manifest_of_a_version_stands(ledger: Ledger) -> None:
    ledger.remember_version(1, "v", {"is": 1})
    ledger.remember_version(2, "v", {"is": 2})
    assert ledger.manifest("v") == {"is": 1}
    assert ledger.manifest("w") is None


def test_version_rows_count_drafts_of_the_project_asked_for(ledger: Ledger) -> None:
    for project in (1, 2):
        ledger.remember_version(project, "v", {})
    ledger.remember_drafts([(1, task, "v", "ok", [], "{}") for task in range(3)])
    ledger.remember_drafts([(2, 9, "v", "ok", [], "{}")])
    both, one = ledger.version_rows()[0], ledger.version_rows(1)[0]
    assert (both.projects, both.drafts) == ([1, 2], 4)
    assert (one.version, one.drafts) == ("v", 3)
    assert ledger.version_rows(3) == []


def test_a_later_draft_replaces_the_one_of_its_version(ledger: Ledger) -> None:
    ledger.remember_drafts([(1, 5, "v", "failed", ["why"], "x"), (1, 5, "w", "ok", [], "y")])
    ledger.remember_drafts([(1, 5, "v", "ok", [], "z")])
    assert {(draft.version, draft.status, draft.raw) for draft in ledger.drafts_of(5)} == {
        ("v", "ok", "z"),
        ("w", "ok", "y"),
    }
    assert ledger.reasons_of(1, 5) == []


def test_the_same_draft_twice_in_one_call_is_kept_once(ledger: Ledger) -> None:
    ledger.remember_drafts([(1, 5, "v", "failed", ["a"], "x"), (1, 5, "v", "failed", ["b"], "y")])
    assert ledger.reasons_of(1, 5) == [("v", "failed", ["b"])]


def test_drafts_of_one_number_in_two_projects_are_kept_apart(ledger: Ledger) -> None:
    ledger.remember_drafts([(1, 5, "v", "ok", [], "one"), (2, 5, "v", "ok", [], "two")])
    assert [draft.raw for draft in ledger.drafts_of(5, 2)] == ["two"]
    assert len(ledger.drafts_of(5)) == 2


# ---------------------------------------------------------------------------- promotions
def test_roll_back_shows_the_promotion_below(open_as: Open) -> None:
    one, other = open_as(ELSEWHERE), open_as(ANOTHER)
    assert one.promoted(1) is None
    one.promote(1, FIRST)
    one.promote(1, SECOND)
    one.promote(1, SECOND)  # again: nothing is added
    assert other.promoted(1) == SECOND
    assert other.roll_back(1) == (SECOND, FIRST)
    assert one.roll_back(1) == (FIRST, None)
    assert (one.promoted(1), one.all_promoted()) == (None, {})
    with pytest.raises(SetupError, match="nothing to roll back"):
        one.roll_back(1)
    one.promote(1, FIRST)
    assert other.all_promoted() == {1: FIRST}


# ---------------------------------------------------------------------------- claims
def test_a_task_is_claimed_once_in_a_version(open_as: Open) -> None:
    one, other = open_as(ELSEWHERE), open_as(ANOTHER)
    assert one.claim(1, [1, 2, 2], "v", 60) == {1, 2}
    assert other.claim(1, [2, 3], "v", 60) == {3}
    assert other.claim(1, [2], "w", 60) == {2}
    one.release([2], "v")
    assert other.claim(1, [1, 2], "v", 60) == {2}
    assert one.claim(1, [], "v", 60) == set()


def test_a_claim_ends_with_its_lease(open_as: Open) -> None:
    one, other = open_as(ELSEWHERE), open_as(ANOTHER)
    assert one.claim(1, [1, 2], "v", -1) == {1, 2}
    one.extend([2], "v", 60, late=False)
    assert other.claim(1, [1, 2], "v", 60) == {1}


def test_late_tasks_outlive_their_owner(open_as: Open) -> None:
    owner, heir = open_as(ELSEWHERE), open_as(ANOTHER)
    owner.claim(1, [1, 2, 3], "v", 60)
    owner.claim(2, [9], "v", 60)
    owner.extend([1, 2], "v", 60, late=True)
    owner.extend([9], "v", -1, late=True)
    assert (heir.late(), heir.claim(2, [9], "v", 60)) == (3, set())
    assert heir.abandoned(60) == {2: [(9, "v")]}
    assert owner.abandoned(60) == {}  # the heir has it, and its lease goes on
    heir.release([9], "v")
    assert owner.late() == 2


def test_what_a_dead_process_of_this_machine_held_is_free(open_as: Open) -> None:
    dead, alive = open_as(GONE), open_as(ELSEWHERE)
    dead.claim(1, [1, 2], "v", 3600)
    dead.extend([1], "v", 3600, late=True)
    assert alive.abandoned(60) == {1: [(1, "v")]}
    assert alive.claim(1, [1, 2], "v", 60) == {2}


CLAIM = """
import sys
from draftloop.ledger.sqlite import Ledger
url, owner = sys.argv[1:]
ledger, mine = Ledger(url, owner=owner), []
for first in range(0, 400, 20):
    mine += ledger.claim(1, range(first, first + 20), "v", 3600)
print(*mine)
"""


def test_processes_that_claim_at_once_share_the_tasks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    claimers = [
        subprocess.Popen([sys.executable, "-c", CLAIM, url, f"elsewhere:{n}:1"], stdout=subprocess.PIPE)
        for n in range(4)
    ]
    claimed = [int(task) for claimer in claimers for task in claimer.communicate(timeout=120)[0].split()]
    assert sorted(claimed) == list(range(400))


def test_threads_claim_each_task_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda _: ledger.claim(1, range(50), "v", 60), range(16)))
    assert sorted(task for tasks in taken for task in tasks) == list(range(50))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["claim", "release", "late"]), st.integers(0, 1), st.integers(0, 4)))
)
def test_no_two_owners_hold_a_task(open_as: Open, calls: list[tuple[str, int, int]]) -> None:
    owners = [open_as(ELSEWHERE), open_as(ANOTHER)]
    version = f"v-{time.monotonic_ns()}"  # the file is shared by the examples
    holder: dict[int, int] = {}
    for call, owner, task in calls:
        if call == "claim":
            assert owners[owner].claim(1, [task], version, 3600) == ({task} if task not in holder else set())
            holder.setdefault(task, owner)
        elif holder.get(task) == owner:
            if call == "late":
                owners[owner].extend([task], version, 3600, late=True)
            else:
                owners[owner].release([task], version)
                del holder[task]
    assert all(owner.abandoned(60) == {} for owner in owners)


# ---------------------------------------------------------------------------- jobs, webhooks
def test_one_job_runs_at_a_time(open_as: Open) -> None:
    one, other = open_as(ELSEWHERE), open_as(ANOTHER)
    job, begun = one.begin_job(1, "50 corrections", 120, 60)
    assert (begun, job.state, job.annotations) == (True, "running", 120)
    assert other.begin_job(2, "by hand", 0, 60) == (job, False)
    one.end_job(job.id, "refused", "no better")
    again, begun = other.begin_job(2, "by hand", 0, 60)
    assert begun
    assert [(kept.id, kept.state) for kept in one.jobs()] == [(again.id, "running"), (job.id, "refused")]
    assert [kept.id for kept in one.jobs(1)] == [job.id]
    assert len(one.jobs(most=1)) == 1


def test_a_job_is_its_owners_alone(open_as: Open) -> None:
    begun, taken = open_as(ELSEWHERE), open_as(ANOTHER)
    job, _ = begun.begin_job(1, "by hand", 0, 60)
    assert taken.take_job(job.id, 60).owner == ANOTHER
    assert not begun.keep_job(job.id, "train", 60)
    begun.end_job(job.id, "promoted", "not mine any more")
    assert taken.jobs()[0].state == "running"
    assert taken.keep_job(job.id, "train", 60)
    taken.end_job(job.id, "promoted", "better")
    assert [(kept.state, kept.step) for kept in begun.jobs()] == [("promoted", "train")]
    with pytest.raises(SetupError, match="does not run"):
        begun.take_job(job.id, 60)


def test_a_job_whose_process_is_gone_is_killed_and_the_next_one_begins(open_as: Open) -> None:
    dead, alive = open_as(GONE), open_as(ELSEWHERE)
    job, _ = dead.begin_job(1, "by hand", 0, 3600)
    _, begun = alive.begin_job(1, "by hand", 0, -1)
    assert begun
    states = {kept.id: kept.state for kept in alive.jobs()}
    assert states[job.id] == "killed"
    assert list(states.values()) == ["killed", "killed"]  # the second one's lease had ended, too


def test_webhooks_with_the_main_login_are_kept_until_they_are_mended(ledger: Ledger) -> None:
    assert ledger.remember_webhook(7, with_main_login=True)
    assert not ledger.remember_webhook(7, with_main_login=True)
    assert ledger.remember_webhook(3, with_main_login=True)
    assert ledger.webhooks_with_main_login() == [3, 7]
    assert ledger.remember_webhook(7, with_main_login=False)
    assert ledger.webhooks_with_main_login() == [3]


# ---------------------------------------------------------------------------- SQLite alone
def test_a_file_that_is_no_ledger_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "no.sqlite3").write_text(
        "not a database, but a text that is long enough to be read as one" * 9
    )
    with pytest.raises(SetupError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/no.sqlite3")
    with pytest.raises(SetupError, match="no ledger"):
        Ledger(f"sqlite:///{tmp_path}/none.sqlite3", existing=True)
    with pytest.raises(SetupError, match="LEDGER_URL"):
        Ledger("postgresql://elsewhere/ledger")


def test_a_ledger_that_is_destroyed_later_is_a_service_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger(f"sqlite:///{path}").remember_setup(1, {})
    reopened = Ledger(f"sqlite:///{path}")
    for file in tmp_path.iterdir():
        file.write_bytes(b"x" * 8192)
    with ThreadPoolExecutor(1) as thread, pytest.raises(ServiceError, match="The ledger failed"):
        thread.submit(reopened.setup_of, 1).result()


# ---------------------------------------------------------------------------- migrations of an SQLite file
# A file from before there were migrations: its version is 0, and it lacks the table that came last.
UNVERSIONED = """
CREATE TABLE setups (project INTEGER PRIMARY KEY, extra_params TEXT NOT NULL);
CREATE TABLE versions (version TEXT PRIMARY KEY, manifest TEXT NOT NULL,
    first_used TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE project_versions (project INTEGER NOT NULL, version TEXT NOT NULL,
    first_used TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (project, version));
CREATE TABLE drafts (project INTEGER NOT NULL, task INTEGER NOT NULL, version TEXT NOT NULL,
    status TEXT NOT NULL, reasons TEXT NOT NULL, raw TEXT NOT NULL,
    drafted TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (task, project, version));
CREATE TABLE claims (task INTEGER NOT NULL, version TEXT NOT NULL, project INTEGER NOT NULL,
    owner TEXT NOT NULL, until REAL NOT NULL, late INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (task, version));
CREATE TABLE promotions (id INTEGER PRIMARY KEY, project INTEGER NOT NULL, model TEXT NOT NULL,
    profile TEXT NOT NULL, promoted TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, ended TEXT);
CREATE TABLE jobs (id INTEGER PRIMARY KEY, project INTEGER NOT NULL, why TEXT NOT NULL,
    annotations INTEGER NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL, told TEXT NOT NULL,
    begun TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, ended TEXT, owner TEXT NOT NULL, until REAL NOT NULL);
INSERT INTO setups VALUES (7, '{"case": "complaint"}');
INSERT INTO versions (version, manifest) VALUES ('v-1', '{"model": "模型"}');
INSERT INTO project_versions (project, version) VALUES (7, 'v-1');
INSERT INTO drafts (project, task, version, status, reasons, raw)
    VALUES (7, 5, 'v-1', 'invalid', '["too long"]', '{"a": "é"}');
INSERT INTO claims VALUES (6, 'v-1', 7, 'elsewhere:1:1', 4102444800.0, 1);
INSERT INTO promotions (project, model, profile) VALUES (7, 'one', 'compact');
INSERT INTO jobs (project, why, annotations, state, step, told, owner, until)
    VALUES (7, 'by hand', 60, 'promoted', 'promote', 'It drafts.', 'elsewhere:1:1', 0);
"""


def connect(path: Path) -> Connection:
    return SqliteFile(str(path), wait_s=10, survives_power_cut=True).connection()


def version_of(connection: Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_file_from_before_migrations_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    connect(path).executescript(UNVERSIONED)
    for _ in range(2):  # migrated, and opened again as it is then
        ledger = Ledger(f"sqlite:///{path}", owner=ANOTHER)
        assert version_of(connect(path)) == len(MIGRATIONS)
        assert ledger.setup_of(7) == {"case": "complaint"}
        assert [(row.version, row.projects, row.drafts, row.manifest) for row in ledger.version_rows()] == [
            ("v-1", [7], 1, {"model": "模型"})
        ]
        assert [draft.raw for draft in ledger.drafts_of(5, 7)] == ['{"a": "é"}']
        assert ledger.reasons_of(7, 5) == [("v-1", "invalid", ["too long"])]
        assert (ledger.late(), ledger.claim(7, [6], "v-1", 60)) == (1, set())
        assert ledger.all_promoted() == {7: FIRST}
        assert [(job.state, job.told) for job in ledger.jobs(7)] == [("promoted", "It drafts.")]
        assert ledger.webhooks_with_main_login() == []


def test_a_new_file_and_a_migrated_one_have_the_same_tables(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite3", tmp_path / "new.sqlite3"
    connect(old).executescript(UNVERSIONED)
    columns = []
    for path in (old, new):
        Ledger(f"sqlite:///{path}")
        names = connect(path).execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        columns.append(
            {name: connect(path).execute(f"PRAGMA table_info({name})").fetchall() for (name,) in names}
        )
    assert columns[0] == columns[1]


def test_each_migration_is_applied_once_in_its_order(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.sqlite3")
    steps = [("CREATE TABLE a (x)", "INSERT INTO a VALUES (1)"), ("UPDATE a SET x = x + 1",)]
    migrate(connection, steps[:1])
    assert version_of(connection) == 1
    migrate(connection, steps)
    migrate(connection, steps)
    assert (version_of(connection), connection.execute("SELECT x FROM a").fetchall()) == (2, [(2,)])


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.sqlite3")
    steps = [("CREATE TABLE a (x)",), ("INSERT INTO a VALUES (1)", "ALTER TABLE a ADD y", "no SQL")]
    with pytest.raises(SqliteError):
        migrate(connection, steps)
    assert version_of(connection) == 1
    assert connection.execute("SELECT * FROM a").fetchall() == []
    assert len(connection.execute("PRAGMA table_info(a)").fetchall()) == 1


def test_processes_that_open_an_old_file_at_once_migrate_it_once(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    connect(path).executescript("CREATE TABLE a (x); INSERT INTO a VALUES (0)")
    steps = [("UPDATE a SET x = x + 1",)] * 20
    with ThreadPoolExecutor(4) as threads:  # each has a connection of its own
        list(threads.map(lambda _: migrate(connect(path), steps), range(4)))
    assert connect(path).execute("SELECT x FROM a").fetchone() == (20,)


def test_a_file_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger(f"sqlite:///{path}").remember_setup(7, {"case": "complaint"})
    connect(path).execute(f"PRAGMA user_version = {len(MIGRATIONS) + 2}")
    with pytest.raises(SetupError, match=f"version {len(MIGRATIONS) + 2} of its tables") as refused:
        Ledger(f"sqlite:///{path}")
    assert "LEDGER_URL" in refused.value.hint
    connect(path).execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    assert Ledger(f"sqlite:///{path}").setup_of(7) == {"case": "complaint"}
