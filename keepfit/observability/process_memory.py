"""The memory of this process, as the kernel counts it.

Owns two readings of ``/proc/self/statm``. Invariant: on systems without it (all but Linux) they are 0.
"""

import os
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return _pages(1)


def data_bytes() -> int:
    """Return what the kernel counts for RLIMIT_DATA, in bytes."""
    return _pages(5)


def _pages(column: int) -> int:
    try:
        pages = Path("/proc/self/statm").read_text().split()[column]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
