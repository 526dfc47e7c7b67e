"""Mounts: the files of the machine that the sandbox and its jobs see.

Two views, each in a mount namespace of its own, where the machine has namespaces:

    the sandbox's  a new root with the system's programs, Python, the inputs and the sandbox's folder
    a job's        that one, all of it read-only; of the sandbox's folder only the job's own part, of the
                   inputs only its own files; the job's two folders alone can be written to

A job's view is made by the process that turns into the job's code, and its mounts are gone when the last
process in it is: nothing has to be unmounted afterwards, so nothing that code does to names can mislead it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from draftloop.sandbox import kernel

_INPUT_FILE = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV


@dataclass(frozen=True)
class CheckedFile:
    """A file that a job may read: where it is, and which file that was when it was checked."""

    path: str
    device: int
    inode: int


@dataclass(frozen=True)
class JobView:
    """What a job sees.

    `folder` is the sandbox's folder; `job` the job's folder below it; `writable` and `input_folder` are
    folders in that one. `inputs` are mounted in `input_folder` on empty files of these names; `input_roots`
    disappear.
    """

    folder: str
    job: str
    writable: Sequence[str]
    input_folder: str
    inputs: Mapping[str, CheckedFile]
    input_roots: Sequence[str]
    network: bool  # a network namespace of its own


def enter_sandbox_view(
    empty: str, *, read: Sequence[str], write: Sequence[str], devices: Sequence[str]
) -> None:
    """Make a root folder that shows these paths only, and make it this process's; needs `unshare`.

    Args:
        empty: An empty folder, where the new root is put together.
        read: Paths to show read-only; symbolic links are made again, those that do not exist passed over.
        write: Folders to show as they are.
        devices: Device files to show.
    """
    kernel.make_mounts_private()
    kernel.mount_tmpfs(empty, size="4m")
    os.chmod(empty, 0o755)
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
        kernel.bind(path, str(target), read_only=read_only, devices=device)
    Path(empty, "proc").mkdir()
    kernel.mount_proc(f"{empty}/proc")
    kernel.pivot_root(empty)
    kernel.restrict_mount("/", kernel.ATTR_RDONLY, recursive=False)


def enter_job_view(view: JobView) -> None:
    """Switch this process to the view of a job; it must leave its current folder afterwards.

    Raises:
        OSError: A mount cannot be made, or an input is another file than the one that was checked.
    """
    kernel.unshare_mounts(network=view.network)
    # Opened while they can be reached: what follows covers them.
    job, writable = kernel.clone_mount(view.job), [kernel.clone_mount(path) for path in view.writable]
    inputs = {name: _open_input(file) for name, file in view.inputs.items()}
    for root in view.input_roots:
        kernel.unmount(root)
    kernel.mount_tmpfs(view.folder, size="64k")
    os.makedirs(view.job, mode=0o711)
    os.chmod(os.path.dirname(view.job), 0o711)
    kernel.attach_mount(job, view.job)
    kernel.restrict_mount("/", kernel.ATTR_RDONLY, recursive=True)
    for opened, path in zip(writable, view.writable, strict=True):
        kernel.attach_mount(opened, path, clear=kernel.ATTR_RDONLY)
    if not inputs:
        return
    kernel.attach_mount(kernel.clone_mount(view.input_folder), view.input_folder)
    for name, opened in inputs.items():
        kernel.attach_mount(opened, f"{view.input_folder}/{name}", set_=_INPUT_FILE)
    kernel.restrict_mount(view.input_folder, kernel.ATTR_RDONLY, recursive=False)


def _open_input(file: CheckedFile) -> int:
    opened = kernel.clone_mount(file.path)
    status = os.fstat(opened)
    if (status.st_dev, status.st_ino) != (file.device, file.inode):
        os.close(opened)
        raise OSError(f"{file.path} was replaced while the job was being started")
    return opened
