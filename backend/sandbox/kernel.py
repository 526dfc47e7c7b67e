"""What the sandbox asks of the Linux kernel, through ctypes: Landlock, seccomp, namespaces, mounts.

Knows system calls and constants. Does not know jobs. Every function raises OSError where the kernel says no.
"""

import ctypes
import errno
import os
from collections.abc import Iterable, Sequence
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
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
CAP_SYS_ADMIN = 21
# include/uapi/linux/capability.h: what root needs to give files and processes to others, and to end them.
OTHER_USERS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}


def prctl(option: int, argument: int) -> None:
    """Set one property of this process."""
    arguments = [ctypes.c_ulong(number) for number in (option, argument, 0, 0, 0)]
    _checked(_LIBC.prctl(*arguments), f"prctl {option}")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Give up every capability of this process, for good once no_new_privs is set."""
    header, empty = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _checked(_LIBC.capset(ctypes.byref(header), ctypes.byref(empty)), "capset")


def has_capabilities(*wanted: int) -> bool:
    """Say whether this process holds these capabilities."""
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
    """Give the version of Landlock that this kernel enforces; 0 where it does not."""
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


# ---------------------------------------------------------------- seccomp
_ALLOWED = """
access alarm arch_prctl brk cachestat capget chdir chmod chown clock_getres clock_gettime clock_nanosleep
close close_range copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchown fchownat fdatasync fgetxattr flistxattr flock fork fstat fstatfs
fsync ftruncate futex futex_waitv getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit
getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr llistxattr lseek lstat madvise
membarrier mincore mkdir mkdirat mknod mknodat mlock mlock2 mmap mprotect mremap msync munlock munmap
nanosleep newfstatat pause pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv
preadv2 pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmsg rename
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn
rt_sigsuspend rt_sigtimedwait sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_yield select sendfile sendmsg sendto
set_robust_list set_tid_address setitimer setpgid setrlimit setsid shutdown sigaltstack splice stat statfs
statx symlink symlinkat sync_file_range sysinfo tee time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times umask uname unlink unlinkat
utime utimensat utimes vfork wait4 waitid write writev
""".split()
# Everything else looks as if the kernel did not have it, so that libraries take another way. These say
# "Operation not permitted", because a human or a model reads it.
_REFUSED = """
accept accept4 add_key bind bpf chroot connect fanotify_init fsopen io_uring_setup kcmp kexec_load keyctl
listen memfd_create mount mq_open msgget name_to_handle_at open_by_handle_at open_tree perf_event_open
personality pidfd_getfd pivot_root process_vm_readv process_vm_writev ptrace reboot request_key semget setns
shmget socket swapon umount2 unshare userfaultfd
""".split()
# What Chromium needs besides, all of it on unix sockets alone.
_BROWSER = "accept accept4 bind connect listen setsockopt".split()
_SIGNALS = "kill rt_sigqueueinfo rt_tgsigqueueinfo tgkill tkill".split()
# F_DUPFD to F_SETLKW, the open-file-description locks, F_DUPFD_CLOEXEC and the size of pipes: not F_SETOWN
# and F_SETSIG, which send signals.
_FCNTL = (*range(8), 36, 37, 38, 1030, 1031, 1032)
# TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FICLONE: not TIOCSTI and FIOSETOWN.
_IOCTL = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x40049409)
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW*
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET = 1, 1, 5
_ACT_ALLOW, _ACT_ERRNO = 0x7FFF0000, 0x00050000
_CMP_NE, _CMP_EQ, _CMP_MASKED_EQ = 1, 4, 7
_FLAG_OPTIMIZE, _BINARY_TREE = 8, 2
_LOW_32 = 0xFFFFFFFF


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _masked(argument: int, mask: int, value: int) -> _Comparison:
    return _Comparison(argument, _CMP_MASKED_EQ, mask, value)


class _Filter:
    """A filter being made with libseccomp, which knows every architecture's numbers."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(
            self._library.seccomp_init(ctypes.c_uint32(_ACT_ERRNO | errno.ENOSYS))
        )
        if self._context.value is None:
            raise OSError(errno.ENOMEM, "seccomp_init")
        self._library.seccomp_attr_set(self._context, _FLAG_OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))

    def add(self, action: int, name: str, *comparisons: _Comparison) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # not on this architecture, or newer than the library
            return
        array = (_Comparison * len(comparisons))(*comparisons)
        result = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        if result < 0:
            raise OSError(-result, f"seccomp rule {name}")

    def export(self) -> bytes:
        with os.fdopen(os.memfd_create("seccomp"), "w+b") as file:
            result = self._library.seccomp_export_bpf(self._context, file.fileno())
            if result < 0:
                raise OSError(-result, "seccomp_export_bpf")
            file.seek(0)
            return file.read()


def system_call(name: str) -> int:
    """Give the number of a system call on this architecture."""
    return int(ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name(name.encode()))


def seccomp_filter(*, signals: bool, guard_truncate: bool, browser: bool = False) -> bytes:
    """Make the system call filter for jobs, a list of what is allowed.

    Args:
        signals: Allow signals to any process; who may get one is then up to uids or to Landlock.
        guard_truncate: Deny what would truncate a file that is not open for writing, for a Landlock that
            does not know of it (ABI 1 and 2).
        browser: Allow unix sockets of every kind.
    Returns:
        The filter as BPF, to be made once and installed many times.
    """
    made = _Filter()
    for name in _ALLOWED:
        made.add(_ACT_ALLOW, name)
    for name in _REFUSED:
        if not (browser and name in (*_BROWSER, "socket")):
            made.add(_ACT_ERRNO | errno.EPERM, name)
    for name in _SIGNALS:
        if signals:
            made.add(_ACT_ALLOW, name)
    if not signals:  # the own process group alone
        made.add(_ACT_ALLOW, "kill", _Comparison(0, _CMP_EQ, 0, 0))
    made.add(_ACT_ALLOW, "clone", _masked(0, _NAMESPACE_FLAGS, 0))
    _add_sockets(made, browser=browser)
    for command in _FCNTL:
        made.add(_ACT_ALLOW, "fcntl", _masked(1, _LOW_32, command))
    for command in _IOCTL:
        made.add(_ACT_ALLOW, "ioctl", _masked(1, _LOW_32, command))
    # Of its own process only: with equal uids they work on strangers.
    made.add(_ACT_ALLOW, "prlimit64", _masked(0, _LOW_32, 0))
    made.add(_ACT_ALLOW, "sched_setaffinity", _masked(0, _LOW_32, 0))
    made.add(_ACT_ALLOW, "setpriority", _masked(0, _LOW_32, 0), _masked(1, _LOW_32, 0))
    if not guard_truncate:
        for name in ("open", "openat", "truncate"):
            made.add(_ACT_ALLOW, name)
        return made.export()
    for name, argument in (("open", 1), ("openat", 2)):
        mode = os.O_ACCMODE
        made.add(_ACT_ALLOW, name, _masked(argument, mode | os.O_TRUNC, os.O_RDONLY))
        made.add(_ACT_ALLOW, name, _masked(argument, mode, os.O_WRONLY))
        made.add(_ACT_ALLOW, name, _masked(argument, mode, os.O_RDWR))
    return made.export()


def _add_sockets(made: _Filter, *, browser: bool) -> None:
    unix = _masked(0, _LOW_32, _AF_UNIX)
    if not browser:
        for kind in (_SOCK_STREAM, _SOCK_SEQPACKET):  # a connected pair cannot be sent elsewhere
            made.add(_ACT_ALLOW, "socketpair", unix, _masked(1, 0xF, kind))
        return
    for name in ("socket", "socketpair"):
        made.add(_ACT_ALLOW, name, unix)
    made.add(_ACT_ERRNO | errno.EPERM, "socket", _Comparison(0, _CMP_NE, _AF_UNIX, 0))
    for name in _BROWSER:
        made.add(_ACT_ALLOW, name)


def install_seccomp(program: bytes) -> None:
    """Put a filter on this process and its children; needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _checked(_LIBC.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(filter_), 0, 0), "seccomp")


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
_MOUNT_SETATTR, _AT_RECURSIVE, _MNT_DETACH = 442, 0x8000, 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4


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


def unshare_again() -> None:
    """Leave the namespaces of the other jobs: mounts, network, System V objects."""
    _checked(_LIBC.unshare(ctypes.c_int(_NEWNS | _NEWNET | _NEWIPC)), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [value.encode() if value is not None else None for value in (source, target, kind)]
    options = data.encode() if data is not None else None
    _checked(_LIBC.mount(*arguments, ctypes.c_ulong(flags), options), f"mount {target}")


def bind(source: str, target: str, *, read_only: bool, devices: bool = False) -> None:
    """Let `source` and all below it be seen at `target`, which must exist."""
    _mount(source, target, None, _MS_BIND | _MS_REC)
    flags = _ATTR_NOSUID | (0 if devices else _ATTR_NODEV) | (_ATTR_RDONLY if read_only else 0)
    _restrict_mount(target, flags, recursive=True)


def _restrict_mount(target: str, flags: int, *, recursive: bool) -> None:
    attributes = _MountAttributes(flags, 0, 0, 0)
    _call(
        _MOUNT_SETATTR,
        f"mount_setattr {target}",
        ctypes.c_int(-100),  # AT_FDCWD
        target.encode(),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def unmount(target: str) -> None:
    """Take a mount away, at once for those who come and later for those who are in it."""
    _checked(_LIBC.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def enter_view(empty: str, *, read: Sequence[str], write: Sequence[str], devices: Sequence[str]) -> None:
    """Make a root folder that shows these paths only, and make it this process's; needs `unshare`.

    Args:
        empty: An empty folder, where the new root is put together.
        read: Paths to show read-only; symbolic links are made again, those that do not exist passed over.
        write: Folders to show as they are.
        devices: Device files to show.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", empty, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=4m")
    shown = [(path, True, False) for path in read]
    shown += [(path, False, False) for path in write] + [(path, True, True) for path in devices]
    for path, read_only, device in sorted(shown, key=lambda row: len(Path(row[0]).parts)):
        source, target = Path(path), Path(empty + path)
        if target.is_symlink() or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
            continue
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            target.touch()
        bind(path, str(target), read_only=read_only, devices=device)
    Path(empty, "proc").mkdir()
    _mount("proc", f"{empty}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    os.chdir(empty)
    _call(system_call("pivot_root"), "pivot_root", b".", b".")
    unmount(".")
    os.chdir("/")
    _restrict_mount("/", _ATTR_RDONLY, recursive=False)
