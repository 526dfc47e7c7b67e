"""Calls of the Linux kernel, through ctypes: Landlock, capabilities, namespaces, mounts.

Knows system calls and constants. Does not know jobs. Every function raises OSError where the kernel says no.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(number: int, what: str, *arguments: object) -> int:
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments), what)


# ---------------------------------------------------------------- prctl and capabilities
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
# include/uapi/linux/capability.h: what root needs to give files and processes to others, and to end them.
OTHER_USERS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}


def prctl(option: int, argument: int) -> None:
    """Set one property of this process."""
    arguments = [ctypes.c_ulong(number) for number in (option, argument, 0, 0, 0)]
    _checked(_LIBC.prctl(*arguments), f"prctl {option}")


def prctl_pointer(option: int, argument: int, pointer: object) -> None:
    """Set one property of this process that is described by a structure."""
    _checked(_LIBC.prctl(option, ctypes.c_ulong(argument), pointer, 0, 0), f"prctl {option}")


def become_user(uid: int) -> None:
    """Change this process's user and group for good, without other groups."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Drop every capability of this process, for good once no_new_privs is set."""
    header, empty = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _checked(_LIBC.capset(ctypes.byref(header), ctypes.byref(empty)), "capset")


def has_capabilities(*wanted: int) -> bool:
    """Check whether this process holds these capabilities."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    return all(effective >> number & 1 for number in wanted)


# ---------------------------------------------------------------- Landlock
# include/uapi/linux/landlock.h; the three system calls have these numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


def landlock_abi() -> int:
    """Return the version of Landlock that this kernel enforces; 0 where it does not."""
    try:
        return _call(_CREATE_RULESET, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def landlock(
    abi: int, *, read: Iterable[str], write: Iterable[str], devices: Iterable[str], sockets: bool = False
) -> None:
    """Restrict this process and its children to these paths; needs no_new_privs.

    From ABI 4 on TCP, from ABI 6 on abstract sockets and signals to outsiders are denied as well.

    Args:
        abi: What `landlock_abi` said.
        read: Files and folders to read and execute; those that do not exist are passed over.
        write: Folders in which everything but devices and sockets may be made.
        devices: Device files to read and write.
        sockets: Let sockets be made in the folders to write to.
    """
    handled = (1 << 13) - 1
    handled |= _REFER if abi >= 2 else 0
    handled |= _TRUNCATE if abi >= 3 else 0
    handled |= _IOCTL_DEV if abi >= 5 else 0
    attributes = _RulesetAttributes(handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    known_bytes = 24 if abi >= 6 else 16 if abi >= 4 else 8
    size = ctypes.c_size_t(known_bytes)
    ruleset = _call(_CREATE_RULESET, "landlock", ctypes.byref(attributes), size, ctypes.c_uint32(0))

    def allow(paths: Iterable[str], access: int) -> None:
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            rights = access & handled if Path(path).is_dir() else access & handled & _FILE_RIGHTS
            rule = _PathBeneath(rights, fd)
            _call(_ADD_RULE, f"landlock {path}", ruleset, 1, ctypes.byref(rule), ctypes.c_uint32(0))
            os.close(fd)

    allow(read, _EXECUTE | _READ_FILE | _READ_DIR)
    allow(write, handled & ~(_MAKE_CHAR | _MAKE_BLOCK | (0 if sockets else _MAKE_SOCK)))
    allow(devices, _READ_FILE | _WRITE_FILE)
    _call(_RESTRICT_SELF, "landlock", ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


# ---------------------------------------------------------------- namespaces and mounts
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # on every architecture
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_FROM_EMPTY_PATH = 1, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def unshare(*, user: bool) -> None:
    """Leave the machine's namespaces; the next child is process 1 of a new one.

    Args:
        user: Make a user namespace too, in which this user is itself and alone, with every capability.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | (_NEWUSER if user else 0)
    _checked(_LIBC.unshare(ctypes.c_int(flags)), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def unshare_mounts(*, network: bool) -> None:
    """Start a mount namespace for this process, which ends with its last descendant.

    Args:
        network: Give it a network and System V objects of its own too.
    """
    flags = _NEWNS | ((_NEWNET | _NEWIPC) if network else 0)
    _checked(_LIBC.unshare(ctypes.c_int(flags)), "unshare")
    make_mounts_private()


def make_mounts_private() -> None:
    """Stop mounts from propagating to the namespace that this one was copied from."""
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Attach a file system, or part of one, to a folder."""
    arguments = [value.encode() if value is not None else None for value in (source, target, kind)]
    options = data.encode() if data is not None else None
    _checked(_LIBC.mount(*arguments, ctypes.c_ulong(flags), options), f"mount {target}")


def mount_tmpfs(target: str, *, size: str) -> None:
    """Cover a folder with an empty one in memory, which everybody may pass through and only we may list."""
    mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=0711,size={size}")


def mount_proc(target: str) -> None:
    """Show the processes of this namespace at a folder."""
    mount("proc", target, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def bind(source: str, target: str, *, read_only: bool, devices: bool = False) -> None:
    """Bind `source` and all below it to `target`, which must exist."""
    mount(source, target, None, _MS_BIND | _MS_REC)
    flags = ATTR_NOSUID | (0 if devices else ATTR_NODEV) | (ATTR_RDONLY if read_only else 0)
    restrict_mount(target, flags, recursive=True)


def clone_mount(path: str) -> int:
    """Open a mount of this file or folder that is not attached anywhere; links are not followed."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW)
    return _call(_OPEN_TREE, f"open_tree {path}", ctypes.c_int(_AT_FDCWD), path.encode(), flags)


def attach_mount(opened: int, target: str, *, set_: int = 0, clear: int = 0) -> None:
    """Attach what `clone_mount` opened, its attributes changed, and close it; links are not followed."""
    try:
        _set_attributes(opened, b"", _AT_EMPTY_PATH, set_, clear, f"mount_setattr for {target}")
        _call(
            _MOVE_MOUNT,
            f"move_mount {target}",
            ctypes.c_int(opened),
            b"",
            ctypes.c_int(_AT_FDCWD),
            target.encode(),
            ctypes.c_uint(_MOVE_FROM_EMPTY_PATH),
        )
    finally:
        os.close(opened)


def restrict_mount(target: str, flags: int, *, recursive: bool) -> None:
    """Add attributes to the mount at `target`, and to those below it where `recursive`."""
    where = _AT_RECURSIVE if recursive else 0
    _set_attributes(_AT_FDCWD, target.encode(), where, flags, 0, f"mount_setattr {target}")


def _set_attributes(folder: int, path: bytes, where: int, set_: int, clear: int, what: str) -> None:
    attributes = _MountAttributes(set_, clear, 0, 0)
    _call(
        _MOUNT_SETATTR,
        what,
        ctypes.c_int(folder),
        path,
        ctypes.c_uint(where),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def unmount(target: str) -> None:
    """Detach a mount, which those who use it keep; no link is followed."""
    flags = ctypes.c_int(_MNT_DETACH | _UMOUNT_NOFOLLOW)
    _checked(_LIBC.umount2(target.encode(), flags), f"umount {target}")


def pivot_root(folder: str) -> None:
    """Make a folder, which must be a mount, the root of this process; the old root is taken away."""
    os.chdir(folder)
    _checked(_LIBC.pivot_root(b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")
