"""Load: what is sent at a running system, by wrk or at a fixed rate, and what came of it.

Owns the commands of both generators and the one line of JSON that both print. Invariant: a run in which anything but a
2xx came back has a count of errors, and whoever shows it shows that and no rate.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("wrk") / "request.lua"
TIMEOUT_S = 10


class LoadError(Exception):
    """The generator is missing or said nothing that can be read."""


@dataclass(frozen=True, slots=True)
class Call:
    """How a system is asked: a path, and a body with ``%.6f`` where numbers go (see ``wrk/request.lua``)."""

    path: str
    template: str

    def body(self, *numbers: float) -> str:
        """Body of one request.

        >>> Call("/", '{"X":[[%.6f,%.6f]]}').body(1, 2, 3)
        '{"X":[[1.000000,2.000000]]}'
        """
        return self.template % numbers[: self.template.count("%")]


@dataclass(frozen=True, slots=True)
class Load:
    """One run. `rate` is requests/s, None for as many as come back; `paths` names a file with a path a line."""

    connections: int
    seconds: float
    fresh: bool = True
    rate: float | None = None
    paths: Path | None = None
    exponent: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of one run: requests/s, milliseconds, and what went wrong, by kind ({} where nothing did)."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return bool(self.errors)

    def with_rate(self, rate: float) -> "Sample":
        """Return the same run, counted otherwise."""
        return replace(self, rate=rate)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def require_wrk() -> str:
    """Find wrk; raises LoadError where it is not installed."""
    path = shutil.which("wrk")
    if path is None:
        raise LoadError("wrk, the load generator, is not installed. On Debian and Ubuntu: apt-get install wrk")
    return path


def run(url: str, call: Call, load: Load, seed: int) -> Sample:
    """Put a system under load; `seed` makes its rows differ from those of any other run."""
    command = _paced(url, call, load, seed) if load.rate is not None else _wrk(url, call, load, seed)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=load.seconds + 60)
    return parse(done.stdout, done.stderr)


def _wrk(url: str, call: Call, load: Load, seed: int) -> list[str]:
    # wrk takes whole seconds. One thread: it has to share two cores with what it measures.
    return [
        require_wrk(), "-t", "1", "-c", str(load.connections), "-d", f"{max(1, round(load.seconds))}s",
        "--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT), url + call.path, "--",
        call.template, "fresh" if load.fresh else "repeated", str(seed), str(load.paths or ""), str(load.exponent),
    ]  # fmt: skip


def _paced(url: str, call: Call, load: Load, seed: int) -> list[str]:
    return [
        sys.executable, "-m", "benchmarks.pacer", url + call.path, call.template,
        "--rate", str(load.rate), "--connections", str(load.connections), "--seconds", str(load.seconds),
        "--seed", str(seed), "--paths", str(load.paths or ""), "--exponent", str(load.exponent),
    ]  # fmt: skip


def parse(output: str, complaint: str = "") -> Sample:
    """Read what a generator printed.

    Raises
    ------
    LoadError
        If there is no result in it; with what the generator complained of.
    """
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise LoadError(f"no result: {(complaint or output).strip()[-300:] or 'nothing was printed'}")
    found = json.loads(line.removeprefix("RESULT "))
    kinds = ("bad_status", "connect", "read", "write", "timeout")
    errors = {kind.replace("_", " "): found[kind] for kind in kinds if found[kind]}
    if not found["requests"]:
        errors["no answer"] = 1
    return Sample(
        rate=found["requests"] / max(found["duration_us"], 1) * 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        errors=errors,
    )
