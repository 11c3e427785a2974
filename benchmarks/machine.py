"""Conditions of a benchmark: the machine, the versions and the command, from which a reader can judge the numbers."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.load import require_wrk
from benchmarks.systems import SYSTEMS


def conditions(quick: bool) -> dict[str, Any]:
    """Return machine, versions, date and command."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "make bench QUICK=1" if quick else "make bench",
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _first_value("/proc/cpuinfo", "model name", ":"),
        "memory_gb": round(int(_first_value("/proc/meminfo", "MemTotal", ":").split()[0]) * 1024 / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "wrk": _wrk_version(),
        "versions": {system.name: system.versions() for system in SYSTEMS},
    }


def _first_value(path: str, name: str, separator: str) -> str:
    lines = Path(path).read_text().splitlines()
    line = next((text for text in lines if text.startswith(name)), f"{name}{separator}unknown")
    return line.partition(separator)[2].strip()


def _wrk_version() -> str:
    # `wrk -v` prints its version, then its usage, and ends with 1.
    printed = subprocess.run([require_wrk(), "-v"], capture_output=True, text=True, check=False)
    return " ".join((printed.stdout + printed.stderr).split()[:2])
