"""The containment of one child: rlimits, a user of its own, Landlock, seccomp, in the one order that works.

Knows what a job may touch. The layers are worked out once, at the start of the sandbox; each child then
puts them on itself between fork and code.
"""

import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from draftloop.runs.job import MIB, Layer, Limits, SandboxProfile
from draftloop.sandbox import kernel, processes, seccomp

# What every program needs, without secrets; missing paths are skipped.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts",
    "/etc/localtime",
    "/etc/timezone", "/etc/mime.types", "/etc/ssl/openssl.cnf", "/var/cache/fontconfig",
)  # fmt: skip
# What the profile "browser" reads in addition; /proc shows only the sandbox's own processes.
BROWSER_PROGRAMS = str(Path(__file__).resolve().with_name("browser"))
_BROWSER = ("/proc", BROWSER_PROGRAMS)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_PROC = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory", "/proc/version")
_CPUS = ("/sys/devices/system/cpu",)
# V8 reserves address space that it does not use; data is what counts.
_ADDRESS_SPACE_BYTES = 4096 * MIB
_OPEN_FILES, _BROWSER_OPEN_FILES = 256, 4096
_SIGNALS = 512  # waiting signals and timers, which the kernel counts for each user
_LOCKED_BYTES = 64 << 10  # for libgcrypt, without which every ffmpeg warns of insecure memory
RUNNER = str(Path(__file__).resolve().with_name("runner.py"))


def python_paths() -> tuple[str, ...]:
    """Return the folders of this Python and its environment."""
    library = sysconfig.get_path("stdlib")
    paths = {sys.prefix, sys.base_prefix, str(Path(library).parents[1]), os.path.realpath(sys.executable)}
    return tuple(sorted(path for path in paths if path not in {"/", "/usr", "/usr/local"}))


@cache
def package_folders() -> tuple[str, ...]:
    """Return the folders of this Python's packages and modules, with a slash; the inner ones first."""
    names = ("purelib", "platlib", "stdlib", "platstdlib")
    paths = {*python_paths(), *(sysconfig.get_path(name) for name in names)}
    paths -= {os.path.realpath(sys.executable)}
    return tuple(f"{path}/" for path in sorted(paths, key=len, reverse=True))


@dataclass(frozen=True)
class Containment:
    """The layers in force, and the seccomp filter of each profile, made once."""

    layers: frozenset[Layer]
    landlock_abi: int
    seccomp: Mapping[SandboxProfile, bytes]

    def apply(
        self,
        *,
        uid: int | None,
        limits: Limits,
        profile: SandboxProfile,
        read: Sequence[str],
        write: Sequence[str],
    ) -> None:
        """Contain this process for good. There is no way back and no second call.

        Args:
            uid: The user to become; None stays who it is, where the layer "pool-uid" is not in force.
            limits: What each process may use; totals are watched from outside.
            profile: Which denials; the keeper has given a browser namespaces of its own.
            read: Files and folders to read, besides the system's.
            write: Folders to write to.
        """
        if ("pool-uid" in self.layers) != (uid is not None):
            raise RuntimeError("no user for this run")  # it would run as the sandbox's own
        if "rlimits" in self.layers:
            _limit(limits, uid, profile)
        os.nice(5)
        if uid is not None:
            kernel.become_user(uid)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # so that its user may look at what it holds
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if "landlock" in self.layers:
            system = (*SYSTEM, *_PROC, *_CPUS, *python_paths(), RUNNER)
            browser = profile == "browser"
            kernel.landlock(
                self.landlock_abi,
                read=(*system, *read, *(_BROWSER if browser else ())),
                write=write,
                devices=DEVICES,
                sockets=browser,
            )
        if "seccomp" in self.layers:
            seccomp.install(self.seccomp[profile])


def rlimits(limits: Limits, profile: SandboxProfile = "plain") -> dict[int, int]:
    """Return the limits that the kernel keeps for each process, without the number of processes."""
    kept = {
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_DATA: limits.memory_bytes,
        resource.RLIMIT_AS: limits.memory_bytes + _ADDRESS_SPACE_BYTES,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: _LOCKED_BYTES,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: _SIGNALS,
    }
    if profile == "browser":  # it reserves terabytes of address space
        del kept[resource.RLIMIT_AS]
        kept[resource.RLIMIT_NOFILE] = _BROWSER_OPEN_FILES
    return kept


def _limit(limits: Limits, uid: int | None, profile: SandboxProfile) -> None:
    for kind, wanted in rlimits(limits, profile).items():
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # A second between the signal that can be caught and the one that cannot.
        ceiling = value + 1 if kind == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else value
        resource.setrlimit(kind, (value, ceiling))
    # The kernel counts the user's threads; without a user of its own those of others count too.
    count = limits.processes + (0 if uid is not None else processes.threads_of(os.getuid()))
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    count = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (count, count))
