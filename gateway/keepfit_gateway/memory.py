"""How the process gets memory from the operating system, and returns it.

Owns the settings of the C library's allocator, and when its holes are returned. Invariant: without glibc nothing
changes.
"""

import asyncio
import ctypes

from keepfit.observability.process_memory import resident_bytes

# Numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Blocks from this size on are mapped one by one, so that each is returned when it is freed. By default glibc raises
# this size to that of the largest block so far, and then keeps the holes that large bodies leave in its heap. It is
# above the size of a chunk of a body: to map each chunk doubles the time of an upload.
MAPPED_BYTES_MIN = 1 << 20
# Threads share arenas: each arena keeps holes of its own.
ARENAS_MAX = 2
# How often the memory is looked at; growth after which holes are returned, at this look and the ones that follow.
LOOK_S, GROWTH_BYTES, LOOKS = 2.0, 1 << 20, 15


def return_freed_blocks() -> None:
    """Return large blocks to the operating system as soon as they are freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
        mallopt(M_TRIM_THRESHOLD, MAPPED_BYTES_MIN)
        mallopt(M_ARENA_MAX, ARENAS_MAX)


async def return_holes() -> None:
    """Return freed pages between blocks that stay, while the process grows and half a minute longer; until cancelled.

    Bodies and connections that many clients send at a time come in blocks smaller than :data:`MAPPED_BYTES_MIN`. A few
    small blocks that are allocated meanwhile, and stay, keep the heap from shrinking when the others are freed, which
    is later than the growth and changes nothing that the operating system sees.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    least, looks = resident_bytes(), 0
    while True:
        await asyncio.sleep(LOOK_S)
        resident = resident_bytes()
        if resident > least + GROWTH_BYTES:
            looks = LOOKS
        least = min(least, resident)
        if looks:
            looks -= 1
            # 7 to 13 ms for 100 MB of holes, 0.3 ms without any; the event loop goes on unless it needs a block.
            await asyncio.to_thread(trim, 0)
            least = resident_bytes()
