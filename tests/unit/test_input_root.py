"""Input files of tasks: those of the task's project or shared ones, with the content that it names."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftloop.errors import TaskError
from draftloop.execution.inputs import InputRoot, find_input
from draftloop.runs.run import InputFile
from tests.code_runs import sha256

REFUSED = "is not among the project's files, or is not what it was"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("projects/7/三月", "projects/8", "shared"):
        (tmp_path / "inputs" / folder).mkdir(parents=True)
    return tmp_path / "inputs"


def entry(content: bytes, path: str = "a.csv") -> InputFile:
    return InputFile(path.rpartition("/")[2], path, len(content), sha256(content))


def test_a_file_belongs_to_its_project_and_a_shared_one_to_all(root: Path) -> None:
    (root / "projects/7/三月/a.csv").write_bytes(b"7")
    (root / "projects/8/b.csv").write_bytes(b"8")
    (root / "shared/c.csv").write_bytes(b"c")
    (root / "d.csv").write_bytes(b"d")
    inputs = InputRoot(root)
    assert inputs.verified(entry(b"7", "三月/a.csv"), 7).path == root / "projects/7/三月/a.csv"
    for project in (7, 8, 0, 9):
        assert inputs.verified(entry(b"c", "c.csv"), project).path == root / "shared/c.csv"
    for project, content, path in (
        (7, b"8", "b.csv"),
        (7, b"8", "projects/8/b.csv"),
        (8, b"7", "三月/a.csv"),
        (0, b"8", "b.csv"),
        (-8, b"8", "b.csv"),
        (7, b"d", "d.csv"),
        (7, b"c", "shared/c.csv"),
    ):
        with pytest.raises(TaskError, match=REFUSED):
            inputs.verified(entry(content, path), project)


def test_a_projects_own_file_comes_before_a_shared_one_unless_the_content_is_that_ones(root: Path) -> None:
    (root / "projects/7/a.csv").write_bytes(b"own")
    (root / "shared/a.csv").write_bytes(b"all")
    inputs = InputRoot(root)
    assert inputs.verified(entry(b"own"), 7).path == root / "projects/7/a.csv"
    assert inputs.verified(entry(b"all"), 7).path == root / "shared/a.csv"


def test_a_refusal_does_not_reveal_which_files_exist(root: Path) -> None:
    (root / "projects/7/a.csv").write_bytes(b"secret")
    os.mkfifo(root / "projects/7/pipe")
    (root / "projects/7/out").symlink_to("/etc/hostname")
    right = entry(b"secret")
    wrong = [
        InputFile("a.csv", "a.csv", 6, "0" * 64),
        InputFile("a.csv", "a.csv", 5, right.sha256),
        InputFile("a.csv", "gone.csv", 6, right.sha256),
        InputFile("a.csv", "pipe", 0, sha256(b"")),
        InputFile("a.csv", "out", 6, right.sha256),
        InputFile("a.csv", "a.csv/b", 6, right.sha256),
    ]
    messages = set()
    with structlog.testing.capture_logs() as logged:
        for file in wrong:
            with pytest.raises(TaskError) as refused:
                InputRoot(root).verified(file, 7)
            messages.add(str(refused.value))
    assert len(messages) == 1
    assert [entry["event"] for entry in logged] == ["input refused"] * len(wrong)
    assert "content has changed" in str(logged[0]), "the admin's log says it"
    assert "secret" not in str(logged)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../8/b.csv", "x/../../8/b.csv", "..", ".", "", "a\0b", "a" * 300]
)
def test_a_path_stays_below_the_root(root: Path, path: str) -> None:
    (root / "projects/8/b.csv").write_bytes(b"8")
    with pytest.raises(TaskError, match=REFUSED):
        InputRoot(root).verified(InputFile("b.csv", path, 1, sha256(b"8")), 7)


def test_a_link_is_followed_within_what_a_project_may_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_bytes(b"out")
    (root / "projects/8/b.csv").write_bytes(b"8")
    (root / "shared/c.csv").write_bytes(b"c")
    own = root / "projects/7"
    (own / "shared.csv").symlink_to("../../shared/c.csv")
    (own / "other.csv").symlink_to("../8/b.csv")
    (own / "folder").symlink_to("../8")
    (own / "out.csv").symlink_to(tmp_path / "out.csv")
    (own / "loop").symlink_to("loop")
    inputs = InputRoot(root)
    assert inputs.verified(entry(b"c", "shared.csv"), 7).path == root / "shared/c.csv"
    for content, path in ((b"8", "other.csv"), (b"8", "folder/b.csv"), (b"out", "out.csv"), (b"", "loop")):
        with pytest.raises(TaskError, match=REFUSED):
            inputs.verified(entry(content, path), 7)


def test_a_root_that_is_a_link_is_the_root(root: Path, tmp_path: Path) -> None:
    (root / "shared/c.csv").write_bytes(b"c")
    (tmp_path / "link").symlink_to(root)
    assert (
        InputRoot(tmp_path / "link").verified(entry(b"c", "c.csv"), 7).path == tmp_path / "link/shared/c.csv"
    )


def test_only_regular_files_are_opened(root: Path) -> None:
    os.mkfifo(root / "shared/pipe")
    (root / "shared/null").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "shared/s"))
        for name in ("pipe", "null", "s", "../shared"):
            with pytest.raises(TaskError, match=REFUSED):
                InputRoot(root).verified(InputFile("x", name, 0, sha256(b"")), 7)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_an_unchanged_file_is_hashed_once(root: Path) -> None:
    content = os.urandom(8 << 20)
    path = root / "shared/large.csv"
    path.write_bytes(content)
    inputs, file = InputRoot(root), entry(content, "large.csv")
    time.sleep(2.1)  # what was written just now may be written again within one tick
    before = bytes_read()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: inputs.verified(file, 7), range(8)))
    assert len(content) <= bytes_read() - before < 1.5 * len(content)
    times = path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as who hides a change would
    with pytest.raises(TaskError, match=REFUSED):
        inputs.verified(file, 7)


def test_a_change_right_after_the_hash_is_seen(root: Path) -> None:
    path = root / "shared/a.csv"
    inputs = InputRoot(root)
    for number in range(50):
        content = b"%02d" % number
        path.write_bytes(content)
        assert inputs.verified(entry(content), 7).path == path
        path.write_bytes(b"xx")
        with pytest.raises(TaskError, match=REFUSED):
            inputs.verified(entry(content), 7)


def test_files_that_belong_to_no_project_are_named_to_the_admin(root: Path, tmp_path: Path) -> None:
    assert InputRoot(root).misplaced() == []
    assert InputRoot(tmp_path / "gone").misplaced() == []
    (root / "d.csv").write_bytes(b"d")
    (root / ".git").mkdir()
    assert InputRoot(root).misplaced() == ["d.csv"]
    with pytest.raises(TaskError, match="lies directly below the root") as refused:
        find_input(root, "d.csv", 7)
    assert f"Put it as {root}/projects/7/d.csv" in str(refused.value)


def test_an_import_takes_files_of_its_project_alone(root: Path) -> None:
    (root / "projects/7/三月/a.csv").write_bytes(b"7")
    (root / "projects/8/b.csv").write_bytes(b"8")
    (root / "projects/7/link.csv").symlink_to("../8/b.csv")
    (root / "shared/c.csv").write_bytes(b"c")
    file, real = find_input(root, "三月/a.csv", 7)
    assert (file, real) == (entry(b"7", "三月/a.csv"), root / "projects/7/三月/a.csv")
    assert InputRoot(root).verified(file, 7).path == real
    assert find_input(root, "c.csv", 7)[1] == root / "shared/c.csv"
    for path in ("b.csv", "projects/8/b.csv", "../8/b.csv", "link.csv"):
        with pytest.raises(TaskError):
            find_input(root, path, 7)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.text(), st.integers(), st.text(), st.integers())
def test_whatever_is_named_is_refused(
    root: Path, name: str, path: str, size_bytes: int, digest: str, project: int
) -> None:
    with pytest.raises(TaskError):
        InputRoot(root).verified(InputFile(name, path, size_bytes, digest), project)
