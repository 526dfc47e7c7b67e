"""The layers of a sandbox in words: what they cover, and which gaps stay."""

from draftloop.runs.job import Layer


def describe_layers(
    layers: frozenset[Layer], abi: int, family: str, *, grouped: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences on what is contained, and sentences on what is not.

    Args:
        layers: Those in force.
        abi: Landlock's version.
        family: The Chinese font; empty where there is none.
        grouped: Whether the kernel limits the memory of all runs together.
    """
    covers = [
        "Code reads the system's programs, its inputs and its own folder, and writes to its own folder."
    ]
    covers.append("Code opens no socket.")
    gaps = ["The memory and the disk of a whole run are measured 5 to 20 times a second."]
    if grouped:
        covers.append("The kernel limits the memory of all runs together (cgroup).")
    else:
        gaps.append("The memory of all runs together is not limited by the kernel (no cgroup can be made).")
    if "pool-uid" in layers:
        covers.append("Each run has a user of its own.")
    else:
        gaps.append("All runs have the sandbox's own user; Landlock, seccomp and mounts keep them apart.")
        if abi < 6:
            gaps.append("Code cannot signal its own children (Landlock before ABI 6).")
    if "namespaces" in layers:
        covers.append("Runs see neither the machine's processes nor its network nor any other file.")
        covers.append("All but a run's own folder is mounted read-only, its inputs too.")
    else:
        gaps.append("Runs can see that files and processes exist, and sizes and times, not what is in them.")
        gaps.append("Inputs are symbolic links: use find -L, tar -h, gzip -c.")
        if "pool-uid" not in layers:
            gaps.append(
                "chmod, chown and utime report success and do nothing: run a script as `bash script`."
            )
    if not family:
        gaps.append("There is no Chinese font: install Debian's fonts-noto-cjk.")
    return tuple(covers), tuple(gaps)
