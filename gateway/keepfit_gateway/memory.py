"""How the process gets memory from the operating system.

Owns the settings of the C library's allocator. Invariant: without glibc nothing changes.
"""

import ctypes

# Numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Blocks from this size on are mapped one by one, so that each is returned when it is freed. By default glibc raises
# this size to that of the largest block so far, and then keeps the holes that large bodies leave in its heap. It is
# above the size of a chunk of a body: to map each chunk doubles the time of an upload.
MAPPED_BYTES_MIN = 1 << 20
# Threads share arenas: each arena keeps holes of its own.
ARENAS_MAX = 2


def return_freed_blocks() -> None:
    """Return large blocks to the operating system as soon as they are freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
        mallopt(M_TRIM_THRESHOLD, MAPPED_BYTES_MIN)
        mallopt(M_ARENA_MAX, ARENAS_MAX)
