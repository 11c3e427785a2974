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
