"""Load generators: requests sent to a running system by wrk or at a fixed rate, and the result of each run.

Owns the commands of both generators and the line of JSON that both print. Invariant: a run in which any answer was not
a 2xx has error counts, and reports show these instead of a rate.
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
    """The load generator is missing, or its output cannot be parsed."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a system: a path, and a body with ``%.6f`` for each number (see ``wrk/request.lua``)."""

    path: str
    template: str

    def body(self, *numbers: float) -> str:
        """Return the body of one request.

        >>> Call("/", '{"X":[[%.6f,%.6f]]}').body(1, 2, 3)
        '{"X":[[1.000000,2.000000]]}'
        """
        return self.template % numbers[: self.template.count("%")]


@dataclass(frozen=True, slots=True)
class Load:
    """One run. `rate` is requests/s, None for the maximum; `paths` names a file with one path per line."""

    connections: int
    seconds: float
    fresh: bool = True
    rate: float | None = None
    paths: Path | None = None
    exponent: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Result of one run: requests/s, latencies in milliseconds, and the number of errors by kind ({} for none)."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]

    @property
    def failed(self) -> bool:
        """Whether there were errors."""
        return bool(self.errors)

    def with_rate(self, rate: float) -> "Sample":
        """Return the same result with another rate."""
        return replace(self, rate=rate)

    def document(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def require_wrk() -> str:
    """Return the path of wrk; raise LoadError if it is not installed."""
    path = shutil.which("wrk")
    if path is None:
        raise LoadError("wrk, the load generator, is not installed. On Debian and Ubuntu: apt-get install wrk")
    return path


def run(url: str, call: Call, load: Load, seed: int) -> Sample:
    """Run a load against a system; `seed` makes its rows differ from those of other runs.

    Raises
    ------
    LoadError
        If the generator printed no result.
    """
    command = _paced(url, call, load, seed) if load.rate is not None else _wrk(url, call, load, seed)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=load.seconds + 60)
    return parse(done.stdout, done.stderr)


def _wrk(url: str, call: Call, load: Load, seed: int) -> list[str]:
    # wrk takes whole seconds. One thread, because it shares two cores with the measured system.
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


def parse(output: str, stderr: str = "") -> Sample:
    """Parse the output of a load generator.

    Raises
    ------
    LoadError
        If it has no result, with the error output of the generator.
    """
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise LoadError(f"no result: {(stderr or output).strip()[-300:] or 'nothing was printed'}")
    result = json.loads(line.removeprefix("RESULT "))
    kinds = ("bad_status", "connect", "read", "write", "timeout")
    errors = {kind.replace("_", " "): result[kind] for kind in kinds if result[kind]}
    if not result["requests"]:
        errors["no answer"] = 1
    return Sample(
        rate=result["requests"] / max(result["duration_us"], 1) * 1e6,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        errors=errors,
    )
