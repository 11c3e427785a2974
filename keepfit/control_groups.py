"""Limits of the control groups of this process: what a container may use of its machine.

Owns where the kernel shows them (versions 1 and 2). Invariant: what cannot be read limits nothing.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def groups(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[tuple[int, Path]]:
    """Yield the folders of the groups of this process and of those above them, each with its version."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version, folder = 2, root
        elif controller in controllers.split(","):
            version, folder = 1, root / controller
        else:
            continue
        # In a container the path may be that of the host: then only the root of the mounted tree exists.
        inner = folder / path.strip("/")
        for group in (inner, *inner.parents):
            if group.is_relative_to(folder):
                yield version, group


def numbers(file: Path) -> list[int]:
    """Return the numbers in a file; none if it does not exist, or says ``max``."""
    try:
        return [int(each) for each in file.read_text().split()]
    except (OSError, ValueError):
        return []


def cores(root: Path = ROOT, own: Path = OWN) -> int:
    """Return how many processors this process may keep busy, at least 1."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for version, group in groups("cpu", root, own):
        if version == 2:
            quota = numbers(group / "cpu.max")
        else:
            quota = numbers(group / "cpu.cfs_quota_us") + numbers(group / "cpu.cfs_period_us")
        if len(quota) == 2 and min(quota) > 0:
            found.append(quota[0] // quota[1])
    return max(1, min(found))
