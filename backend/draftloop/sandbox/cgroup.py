"""A control group that limits the memory of the whole sandbox, where one can be made.

As root on a machine of its own, mostly; a container shows none that can be written to. The limits of each job
are measured (`processes`, `holdings`), several times a second. This one is exact and holds for all jobs
together, with everything that the kernel keeps for them. One group for each job would be exact for each, and
costs 14 ms to enter, half of what a whole job takes.

Source:
    Linux, Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "draftloop-sandbox-"


@dataclass(frozen=True)
class ControlGroup:
    """The sandbox's group: `path` where it is, `events` the open file that counts processes ended in it."""

    path: Path
    events: int

    def enter(self) -> None:
        """Move this process into the group; children that it forks are in it too."""
        (self.path / "cgroup.procs").write_text("0")

    def count_ended(self) -> int:
        """Return how many processes the kernel has ended for the group's memory; works in any namespace."""
        counts = dict(line.split() for line in os.pread(self.events, 4096, 0).decode().splitlines())
        return int(counts.get("oom_kill", 0))

    def remove(self) -> None:
        """Remove it; does nothing while a process is in it."""
        with suppress(OSError):
            self.path.rmdir()


def make_group(limit_bytes: int) -> ControlGroup | None:
    """Make the sandbox's group and set its limit; remove those of sandboxes that were killed.

    Returns:
        None where none can be made.
    """
    for parent, unified in _parents():
        path = parent / f"{_PREFIX}{os.getpid()}"
        try:
            for old in parent.glob(f"{_PREFIX}*"):
                if not Path("/proc", old.name.removeprefix(_PREFIX)).exists():
                    ControlGroup(old, -1).remove()
            path.mkdir()
            (path / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit_bytes))
            for swap, most in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", limit_bytes)):
                if (path / swap).exists():
                    (path / swap).write_text(str(most))
            events = path / ("memory.events" if unified else "memory.oom_control")
            return ControlGroup(path, os.open(events, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            ControlGroup(path, -1).remove()
    return None


def _parents() -> list[tuple[Path, bool]]:
    """Return the groups in which ours may be made: the one we are in (version 1), or the top (version 2).

    Version 2 lets a group have either processes or limited groups, so ours cannot be in the one we are in.
    """
    own = {}
    for line in filter(None, Path("/proc/self/cgroup").read_text().split("\n")):
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    parents: list[tuple[Path, bool]] = []
    for line in filter(None, Path("/proc/self/mountinfo").read_text().split("\n")):
        mounted, described = line.split(" - ")
        root, point = mounted.split()[3:5]
        kind, _, options = described.split()
        if kind == "cgroup" and "memory" in options.split(","):
            mine = next((path for names, path in own.items() if "memory" in names.split(",")), "/")
            parents.append((Path(point + mine.removeprefix(root.rstrip("/"))), False))
        elif kind == "cgroup2" and "memory" in _passed_on(Path(point)):
            parents.append((Path(point), True))
    return parents


def _passed_on(path: Path) -> list[str]:
    """Return the controllers that a group of version 2 lets its children have."""
    try:
        return (path / "cgroup.subtree_control").read_text().split()
    except OSError:
        return []
