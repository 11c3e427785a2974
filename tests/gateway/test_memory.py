"""Freed memory of a gateway goes back to the operating system."""

import subprocess
import sys

import pytest

MIB = 2**20
# Blocks of growing size, as bodies are, with small ones between them that stay; then the large ones are freed.
SCRIPT = """
import sys
from keepfit_gateway.memory import return_freed_blocks

if sys.argv[1] == "True":
    return_freed_blocks()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before, kept = resident(), []
for size in range(1, 25):
    freed = bytearray(size << 20)
    del freed
large = []
for number in range(40):
    large.append(bytearray(3 << 20))
    kept.append(bytearray(2000))
del large
print(resident() - before)
"""


def bytes_left(*, returned: bool) -> int:
    """Return the bytes that a process has more than before, after it has freed large blocks."""
    return int(subprocess.check_output([sys.executable, "-c", SCRIPT, str(returned)]))


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_large_blocks_are_returned_when_they_are_freed() -> None:
    """Of 120 MiB that were freed nearly nothing is left; by default the C library keeps them."""
    assert bytes_left(returned=True) < 10 * MIB < 100 * MIB < bytes_left(returned=False)


# Blocks that are too small to be mapped one by one, with smaller ones between them that stay.
HOLES = """
import asyncio, sys
from keepfit_gateway import memory

memory.return_freed_blocks()
memory.LOOK_S = 0.01
before = memory.resident_bytes()

async def main():
    returning = asyncio.create_task(memory.return_holes()) if sys.argv[1] == "True" else None
    # The first look.
    await asyncio.sleep(0)
    freed, kept = [], []
    for number in range(400):
        freed.append(bytearray(300_000))
        kept.append(bytearray(2000))
    del freed
    left = memory.resident_bytes() - before
    for _ in range(20 if returning is None else 1000):
        await asyncio.sleep(0.01)
        left = memory.resident_bytes() - before
        if returning is None or left < 20 << 20:
            break
    print(left)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_holes_in_the_heap_are_returned() -> None:
    """Of 120 MB in blocks between others that stay, most are returned soon after they are freed; by default none is."""
    left = [int(subprocess.check_output([sys.executable, "-c", HOLES, str(returned)])) for returned in (True, False)]
    assert left[0] < 20 * MIB < 100 * MIB < left[1]
