"""How many cores a process may use: of the machine, or of its container."""

import os
from pathlib import Path

import pytest

from keepfit.control_groups import cores
from keepfit.settings import Settings, load
from tests.control_groups import written
from tests.keepfit.cli.command import keepfit

MACHINE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/app", {"app/cpu.max": "150000 100000"}, 1),
        ("0::/app", {"app/cpu.max": "max 100000"}, None),
        ("0::/app/in", {"app/cpu.max": "100000 100000", "app/in/cpu.max": "max 100000"}, 1),
        ("0::/app", {"app/cpu.max": "50000 100000"}, 1),
        ("0::/app", {"app/cpu.max": "99900000 100000"}, None),
        ("3:cpu,cpuacct:/app", {"cpu/app/cpu.cfs_quota_us": "100000", "cpu/app/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu,cpuacct:/app", {"cpu/app/cpu.cfs_quota_us": "-1", "cpu/app/cpu.cfs_period_us": "100000"}, None),
        ("0::/none", {}, None),
    ],
)
def test_the_quota_of_the_container_counts(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int | None
) -> None:
    """The least quota counts, whole cores of it, at least one; without one, what the kernel lets the process use."""
    assert cores(*written(tmp_path, groups, files)) == (MACHINE if expected is None else expected)
    assert cores(own=tmp_path / "missing") == MACHINE


def test_workers_may_be_as_many_as_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The setting takes `auto`; the option refuses what is neither that nor a number."""
    monkeypatch.setenv("KEEPFIT_WORKERS", " auto")
    assert load().workers == Settings(workers="auto").workers == cores()
    for wrong in ("many", "0", "257", "-1"):
        done = keepfit("up", f"--workers={wrong}", cwd=tmp_path)
        assert done.returncode == 2
        assert "neither a number from 1 to 256 nor auto" in done.stderr
