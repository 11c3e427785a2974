"""The memory of a worker: its share of the machine or container, and what happens at the limit."""

import subprocess
import sys
from pathlib import Path

import pytest

from keepfit.settings import Settings
from keepfit_workers import memory
from tests.control_groups import written

GIB = 2**30


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"memory.max": GIB}, GIB),
        ("0::/pod/one", {"pod/memory.max": 2 * GIB, "pod/one/memory.max": "max"}, 2 * GIB),
        ("0::/pod/one", {"pod/memory.max": GIB, "pod/one/memory.max": 2 * GIB}, GIB),
        ("0::/host/path", {"memory.max": GIB}, GIB),
        ("4:cpu:/\n3:hugetlb,memory:/a", {"memory/a/memory.limit_in_bytes": GIB}, GIB),
        ("4:memory:/a\n0::/", {"memory/memory.limit_in_bytes": 2**62, "memory/a/memory.limit_in_bytes": GIB}, GIB),
        ("1:cpu:/", {"memory.max": GIB}, None),
        ("0::/", {}, None),
    ],
)
def test_the_limit_of_the_container_counts(
    tmp_path: Path, groups: str, files: dict[str, int | str], expected: int | None
) -> None:
    """The least limit of the control groups (version 1 or 2) counts; without one, the memory of the machine."""
    machine = memory.available_bytes(own=tmp_path / "missing")
    found = memory.available_bytes(*written(tmp_path, groups, files))
    assert found == (machine if expected is None else min(expected, machine))


def test_workers_share_what_there_is() -> None:
    """All workers together may use three quarters of the memory, if that suffices; a setting counts for each worker."""
    whole = memory.available_bytes()
    assert memory.bytes_max(Settings(workers=3)) * 3 <= 0.75 * whole < memory.bytes_max(Settings(workers=3)) * 3 + 3
    assert memory.bytes_max(Settings(workers=256)) >= memory.SHARE_BYTES_MIN
    assert memory.bytes_max(Settings(workers=3, worker_memory_bytes_max=GIB)) == GIB


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits all memory on Linux only")
@pytest.mark.parametrize("allocate", ["numpy.ones(2**27)", "bytearray(2**30)", "[0] * 2**27"])
def test_an_allocation_above_the_limit_is_a_memory_error(allocate: str) -> None:
    """At the limit an allocation fails with MemoryError, and the process goes on; below it nothing changes."""
    script = (
        "import numpy\n"
        "from keepfit.observability import process_memory\n"
        "from keepfit_workers import memory\n"
        "memory.limit_process(process_memory.resident_bytes() + 2**29)\n"
        "try:\n"
        f"    {allocate}\n"
        "except MemoryError:\n"
        "    print(len(bytearray(2**28)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"{2**28}\n", "")
