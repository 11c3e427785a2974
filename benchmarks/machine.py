"""The machine that a benchmark ran on, in words that let another reader judge the numbers."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.load import require_wrk
from benchmarks.systems import SYSTEMS


def conditions(quick: bool) -> dict[str, Any]:
    """Describe machine, versions, date and command."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "make bench QUICK=1" if quick else "make bench",
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _first("/proc/cpuinfo", "model name", ":"),
        "memory_gb": round(int(_first("/proc/meminfo", "MemTotal", ":").split()[0]) * 1024 / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "wrk": _wrk_version(),
        "versions": {system.name: system.versions() for system in SYSTEMS},
    }


def _first(path: str, name: str, separator: str) -> str:
    lines = Path(path).read_text().splitlines()
    found = next((line for line in lines if line.startswith(name)), f"{name}{separator}unknown")
    return found.partition(separator)[2].strip()


def _wrk_version() -> str:
    # `wrk -v` prints its version, then its usage, and ends with 1.
    said = subprocess.run([require_wrk(), "-v"], capture_output=True, text=True, check=False)
    return " ".join((said.stdout + said.stderr).split()[:2])
