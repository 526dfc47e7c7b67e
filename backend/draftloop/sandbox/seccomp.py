"""The system calls that jobs may make, as a seccomp filter: a list of what is allowed.

Knows system calls and their arguments, by libseccomp, which knows every architecture's numbers. Does not know
files: which ones a call reaches is up to Landlock and to the mounts of the job.
"""

import ctypes
import errno
import os

from draftloop.sandbox import kernel

_ALLOWED = """
access alarm arch_prctl brk cachestat capget chdir clock_getres clock_gettime clock_nanosleep
close close_range copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
fallocate fchdir fdatasync fgetxattr flistxattr flock fork fstat fstatfs
fsync ftruncate futex futex_waitv getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit
getrusage getsid getsockname getsockopt gettid gettimeofday getuid link linkat lseek lstat madvise
membarrier mincore mkdir mkdirat mknod mknodat mlock mlock2 mprotect mremap msync munlock munmap
nanosleep newfstatat pause pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll pread64 preadv
preadv2 pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmsg rename
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn
rt_sigsuspend rt_sigtimedwait sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_yield select sendfile sendto
set_robust_list set_tid_address setitimer setpgid setrlimit setsid shutdown sigaltstack splice stat statfs
statx symlink symlinkat sync_file_range sysinfo tee time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times umask uname unlink unlinkat
vfork wait4 waitid write writev
""".split()
# Landlock knows nothing of modes, owners and times: where jobs have a user or mounts of their own, these
# calls reach nothing else. Elsewhere they report success and do nothing: libraries copy modes and times.
_FILE_METADATA = """
chmod chown fchmod fchmodat fchmodat2 fchown fchownat futimesat lchown utime utimensat utimes
""".split()
# Landlock knows nothing of these either, and they read content: as if the file system had no such attributes.
# fgetxattr and flistxattr want an open file, which is up to Landlock.
_XATTR_BY_PATH = "getxattr lgetxattr listxattr llistxattr".split()
# Everything else looks as if the kernel did not have it, so that libraries take another way. These say
# "Operation not permitted", because a human or a model reads it.
_REFUSED = """
accept accept4 add_key bind bpf chroot connect fanotify_init fsopen io_uring_setup kcmp kexec_load keyctl
listen memfd_create mount mq_open msgget name_to_handle_at open_by_handle_at open_tree perf_event_open
personality pidfd_getfd pivot_root process_vm_readv process_vm_writev ptrace reboot request_key semget setns
shmget socket swapon umount2 unshare userfaultfd
""".split()
# What Chromium needs besides, all of it on unix sockets alone. sendmsg can hand over open files, which then
# belong to no process as long as nobody receives them.
_BROWSER = "accept accept4 bind connect listen sendmsg setsockopt".split()
_SIGNALS = "kill rt_sigqueueinfo rt_tgsigqueueinfo tgkill tkill".split()
# F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC and the size of pipes: not F_SETOWN and F_SETSIG, which send signals,
# not leases and directory notifications, and not locks of open file descriptions, which belong to no process.
_FCNTL = (*range(8), 1030, 1031, 1032)
# TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FICLONE: not TIOCSTI and FIOSETOWN.
_IOCTL = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x40049409)
# PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP,
# PR_CAPBSET_READ, those of timer slack, NO_NEW_PRIVS, TID_ADDRESS, THP_DISABLE, CAP_AMBIENT, PR_SET_VMA. Not
# PR_SET_DUMPABLE: what a job holds open must be seen from outside.
_PRCTL = (1, 2, 3, 15, 16, 21, 23, 29, 30, 38, 39, 40, 41, 42, 47, 0x53564D41)
_BROWSER_PRCTL = (4, 0x59616D61)  # PR_SET_DUMPABLE, PR_SET_PTRACER
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW*
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET = 1, 1, 5
_ACT_ALLOW, _ACT_ERRNO = 0x7FFF0000, 0x00050000
_CMP_NE, _CMP_EQ, _CMP_MASKED_EQ = 1, 4, 7
_FLAG_OPTIMIZE, _BINARY_TREE = 8, 2
_LOW_32 = 0xFFFFFFFF
_SET_SECCOMP, _MODE_FILTER = 22, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_SHARED_VALIDATE, _MAP_TYPE, _MAP_ANONYMOUS = 1, 2, 3, 0xF, 0x20


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
    """A filter being made with libseccomp."""

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
    """Return the number of a system call on this architecture, negative where it has none."""
    return int(ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name(name.encode()))


def make_filter(*, signals: bool, guard_truncate: bool, own_files: bool, browser: bool = False) -> bytes:
    """Make the system call filter for jobs.

    Args:
        signals: Allow signals to any process; who may get one is then up to uids or to Landlock.
        guard_truncate: Deny what would truncate a file that is not open for writing, for a Landlock that
            does not know of it (ABI 1 and 2).
        own_files: Change modes, owners and times: only where uids or mounts keep jobs from other files.
            Without it these calls report success and change nothing.
        browser: Allow unix sockets of every kind.
    Returns:
        The filter as BPF, to be made once and installed many times.
    Raises:
        OSError: libseccomp is missing or refuses a rule.
    """
    made = _Filter()
    _add_by_name(made, own_files=own_files, browser=browser)
    _add_signals(made, signals=signals)
    _add_sockets(made, browser=browser)
    _add_by_argument(made, browser=browser)
    _add_opens(made, guard_truncate=guard_truncate)
    return made.export()


def _add_by_name(made: _Filter, *, own_files: bool, browser: bool) -> None:
    for name in _ALLOWED:
        made.add(_ACT_ALLOW, name)
    for name in _FILE_METADATA:
        made.add(_ACT_ALLOW if own_files else _ACT_ERRNO | 0, name)
    for name in _XATTR_BY_PATH:
        made.add(_ACT_ERRNO | errno.ENOTSUP, name)
    for name in _REFUSED:
        if not (browser and name in (*_BROWSER, "socket")):
            made.add(_ACT_ERRNO | errno.EPERM, name)


def _add_signals(made: _Filter, *, signals: bool) -> None:
    if signals:
        for name in _SIGNALS:
            made.add(_ACT_ALLOW, name)
    else:  # the own process group alone
        made.add(_ACT_ALLOW, "kill", _Comparison(0, _CMP_EQ, 0, 0))


def _add_by_argument(made: _Filter, *, browser: bool) -> None:
    made.add(_ACT_ALLOW, "clone", _masked(0, _NAMESPACE_FLAGS, 0))
    for command in _FCNTL:
        made.add(_ACT_ALLOW, "fcntl", _masked(1, _LOW_32, command))
    for command in _IOCTL:
        made.add(_ACT_ALLOW, "ioctl", _masked(1, _LOW_32, command))
    for option in (*_PRCTL, *(_BROWSER_PRCTL if browser else ())):
        made.add(_ACT_ALLOW, "prctl", _masked(0, _LOW_32, option))
    # Memory that is shared without a file stays when no process shows it as its own any more.
    for kind in (_MAP_SHARED, _MAP_SHARED_VALIDATE):
        made.add(_ACT_ALLOW, "mmap", _masked(3, _MAP_TYPE | _MAP_ANONYMOUS, kind))
    made.add(_ACT_ALLOW, "mmap", _masked(3, _MAP_TYPE, _MAP_PRIVATE))
    made.add(
        _ACT_ERRNO | errno.EPERM, "mmap", _masked(3, _MAP_TYPE | _MAP_ANONYMOUS, _MAP_SHARED | _MAP_ANONYMOUS)
    )
    # Of its own process only: with equal uids they work on strangers.
    made.add(_ACT_ALLOW, "prlimit64", _masked(0, _LOW_32, 0))
    made.add(_ACT_ALLOW, "sched_setaffinity", _masked(0, _LOW_32, 0))
    made.add(_ACT_ALLOW, "setpriority", _masked(0, _LOW_32, 0), _masked(1, _LOW_32, 0))


def _add_opens(made: _Filter, *, guard_truncate: bool) -> None:
    if not guard_truncate:
        for name in ("open", "openat", "truncate"):
            made.add(_ACT_ALLOW, name)
        return
    for name, argument in (("open", 1), ("openat", 2)):
        mode = os.O_ACCMODE
        made.add(_ACT_ALLOW, name, _masked(argument, mode | os.O_TRUNC, os.O_RDONLY))
        made.add(_ACT_ALLOW, name, _masked(argument, mode, os.O_WRONLY))
        made.add(_ACT_ALLOW, name, _masked(argument, mode, os.O_RDWR))


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


def install(program: bytes) -> None:
    """Put a filter on this process and its children; needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    kernel.prctl_pointer(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_))
