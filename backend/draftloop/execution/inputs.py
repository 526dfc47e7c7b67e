"""Input files of code tasks: below the input root, verified by their hash, owned by a project.

    projects/7/sales.csv    an input of project 7 alone; its tasks name it "sales.csv"
    shared/rates.csv        an input of every project

A task names a path, a size and a SHA-256. It gets the file of its own project, or a shared one, whose content
has that hash: who writes a task's data reads no file whose hash they do not know already. Files are
referenced, never copied or changed. Does not know what is in them (`heads`) or how code reads them.
"""

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import structlog

from draftloop.errors import TaskError
from draftloop.runs.run import InputFile, is_inner_path
from draftloop.support.files import size_and_hash

_log = structlog.get_logger("backend")

SHARED = "shared"
_PROJECTS = "projects"
_LOCKS = 64
_DIGESTS = 10_000  # of files, kept while they do not change: some MB
_TICK_NS = 2_000_000_000  # FAT's clock, the coarsest that is met
_FEW = 5


class _State(NamedTuple):
    """The fields of `os.stat` that change when a file's content does."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True)
class Verified:
    """An input file of a project's task, where it lies, and its state when it had the right content."""

    file: InputFile
    project: int
    path: Path
    state: _State


class InputRoot:
    """The folder of input files. Safe to use from several threads.

    A file is hashed once while it is the same: device, inode, size and times.
    """

    def __init__(self, root: Path) -> None:
        """Prepare; nothing is read yet."""
        self._root = root.absolute()
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._keeping = threading.Lock()
        self._digests: OrderedDict[_State, str] = OrderedDict()

    def misplaced(self) -> list[str]:
        """List files directly in the folder, which belong to no project; at most a few names."""
        try:
            with os.scandir(self._root) as entries:
                names = (entry.name for entry in entries if entry.name not in (_PROJECTS, SHARED))
                return list(islice((name for name in names if not name.startswith(".")), _FEW))
        except OSError:
            return []

    def verified(self, file: InputFile, project: int) -> Verified:
        """Find a task's input file: that of its project, else a shared one.

        Args:
            file: The file as the task names it.
            project: The task's project; 0 where that is not known has shared files alone.
        Raises:
            TaskError: There is none with this content. The message does not say what there is instead: the
                author of the task may not know.
        """
        reasons = []
        for folder in _folders(project):
            try:
                return Verified(file, project, *self._verify(folder, project, file))
            except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError
                reasons.append(f"{folder}: {getattr(error, 'strerror', None) or error}")
        _log.warning("input refused", project=project, path=file.path, reasons=reasons)
        raise TaskError(
            f"Input {file.name!r} cannot be read: it is not among the project's files, or is not what it was "
            "at the import.",
            hint=f"Put it below INPUT_ROOT, into {_PROJECTS}/{project or 'ID'} or {SHARED}, or import the "
            "task again; the backend's log says more.",
        )

    def verify_again(self, known: Verified) -> None:
        """Check that a file still has the content that it was verified for.

        Raises:
            TaskError: It has not.
        """
        try:
            if _state(known.path.stat(follow_symlinks=False)) == known.state:
                return
        except OSError:
            pass  # reported below
        self.verified(known.file, known.project)

    def _verify(self, folder: str, project: int, file: InputFile) -> tuple[Path, _State]:
        if not is_inner_path(file.path):
            raise ValueError("the path leads out")
        real_root = self._root.resolve(strict=True)
        path = self._root.joinpath(folder, file.path).resolve(strict=True)
        allowed = [self._root.joinpath(own).resolve() for own in _folders(project)]
        if not path.is_relative_to(real_root) or not any(path.is_relative_to(own) for own in allowed):
            raise ValueError("it leads out of the folder by a link")
        # A pipe that is opened blocks, and a device may do something: so look before, and hold it open after.
        if not stat.S_ISREG(path.stat(follow_symlinks=False).st_mode):
            raise ValueError("it is not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:  # noqa: PTH123  a descriptor has no path
            facts = os.fstat(descriptor)
            state = _state(facts)
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError("it is not a regular file")
            if state.size_bytes != file.size_bytes:
                raise ValueError(f"it has {state.size_bytes} bytes and had {file.size_bytes}")
            if self._digest(stream, state) != file.sha256:
                raise ValueError("its content has changed")
        # Below the root as it was configured, which may be a link itself: so the sandbox knows it.
        return self._root / path.relative_to(real_root), state

    def _digest(self, stream: BufferedReader, state: _State) -> str:
        with self._locks[state.inode % _LOCKS]:
            with self._keeping:
                known = self._digests.get(state)
                if known is not None:
                    self._digests.move_to_end(state)
                    return known
            began_ns = time.time_ns()
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if _state(os.fstat(stream.fileno())) != state:
                raise ValueError("it changes just now")
            # Two changes within one tick of the file system's clock have one time.
            if began_ns - max(state.modified_ns, state.changed_ns) > _TICK_NS:
                with self._keeping:
                    self._digests[state] = digest
                    while len(self._digests) > _DIGESTS:
                        self._digests.popitem(last=False)
            return digest


def _folders(project: int) -> tuple[str, ...]:
    return (f"{_PROJECTS}/{project}", SHARED) if project > 0 else (SHARED,)


def _state(facts: os.stat_result) -> _State:
    return _State(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def find_input(root: Path, path: str, project: int = 0) -> tuple[InputFile, Path]:
    """Find a file of a project, or a shared one, below the input root and take its size and hash.

    Args:
        root: The input root.
        path: Relative to the project's folder, or to the shared one, with `/` between folders.
        project: The project; 0 looks among the shared files alone.
    Returns:
        The file as a task names it, and where it really lies.
    Raises:
        TaskError: There is none, it is not a regular file, or it is outside of the folder.
    """
    given = PurePosixPath(path)
    if not path.strip() or not is_inner_path(path):
        raise TaskError(
            f"Input {path!r} is no path below the input root.",
            hint="Name it relative to the project's folder there.",
        )
    if not given.name.isprintable():
        raise TaskError(f"Input {path!r} has characters in its name that cannot be shown.", hint="Rename it.")
    folder = next((one for one in _folders(project) if os.path.lexists(root / one / given)), None)
    if folder is None:
        own = root / _folders(project)[0] / given
        places = " or ".join(_folders(project))
        others = f", or as {root / SHARED / given} for all projects" if project else ""
        words = "; it lies directly below the root" if os.path.lexists(root / given) else ""
        raise TaskError(
            f"Input {path!r} cannot be read: No such file or directory in {places}{words}.",
            hint=f"Put it as {own}{others}.",
        )
    try:
        real_root = (root / folder).resolve(strict=True)
        real = (root / folder / given).resolve(strict=True)
        kind = real.stat().st_mode
        allowed = [(root / one).resolve() for one in _folders(project)]
        if not any(real.is_relative_to(one) for one in (real_root, *allowed)):
            raise TaskError(
                f"Input {path!r} leads out of the input root by a link, or to another project.",
                hint="Put it there.",
            )
        if not stat.S_ISREG(kind):
            raise TaskError(f"Input {path!r} is not a regular file.", hint="Name a file.")
        size_bytes, sha256 = size_and_hash(real)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TaskError(f"Input {path!r} cannot be read: {reason}.", hint="Is it below the root?") from error
    return InputFile(given.name, str(given), size_bytes, sha256), real
