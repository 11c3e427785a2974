"""The memory that one worker process may use.

Owns the default limit, a share of the memory of the machine or the container, and the limit of the kernel on a process.
Invariant: an allocation beyond the limit is a MemoryError in the worker that asked for it, so that one request fails;
without it the kernel would kill a process of its own choice.
"""

import os
import resource
from pathlib import Path

from keepfit import control_groups
from keepfit.observability import process_memory
from keepfit.settings import Settings

# The rest is for the supervisor, for what the processes share, and for other programs.
SHARE = 0.75
# With less, a worker would be replaced after each job: it needs 120 MB at its start.
SHARE_BYTES_MIN = 256 * 2**20
# A worker can do its bookkeeping even if its limit is below what it needs at its start.
HEADROOM_BYTES = 64 * 2**20


def bytes_max(settings: Settings) -> int:
    """Return the bytes that one worker process may use: the setting, or its share of what there is."""
    share = int(available_bytes() * SHARE / settings.workers)
    return settings.worker_memory_bytes_max or max(share, SHARE_BYTES_MIN)


def available_bytes(root: Path = control_groups.ROOT, own: Path = control_groups.OWN) -> int:
    """Return the memory of the machine, or that of the container if it is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = {1: "memory.limit_in_bytes", 2: "memory.max"}
    groups = control_groups.groups("memory", root, own)
    return min(
        [machine, *(limit for version, group in groups for limit in control_groups.numbers(group / files[version]))]
    )


def limit_process(most: int) -> None:
    """Let this process use `most` bytes, or a little more than now if it uses as much already (Linux only)."""
    in_use, data = process_memory.resident_bytes(), process_memory.data_bytes()
    if not data:
        return
    soft = data + max(most - in_use, HEADROOM_BYTES)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
