"""Processes that a benchmark starts: each with a log, ready before it is measured, and gone after.

Never ends a process that it did not start. Invariant: a system's children end with it, even those it leaves behind:
each is started as a session of its own, and the session's whole process group is ended by its id.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from keepfit.local.stack import end_with_parent

# Servers that import half of the scientific Python from a cold disk take their time.
START_S_MAX = 120.0
STOP_S_MAX = 60.0


class StartError(Exception):
    """A system did not start; says why, in its own last words."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_S_MAX) -> None:
    """Wait for `condition`; raises StartError with `what` when `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)


@contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run `command` until the block ends; yields its process id.

    Raises
    ------
    StartError
        If it ends, or is not ready in time.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread
        )
    try:
        wait_until(lambda: ready() or process.poll() is not None, f"{log.stem} being ready (see {log})")
        if process.poll() is not None:
            raise StartError(f"{log.stem} ended at its start: {last_words(log)}")
        yield process.pid
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process, then whatever is left of its group."""
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def last_words(log: Path) -> str:
    """Last line of a log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def children(pid: int) -> list[int]:
    """Process ids of a process' children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in megabytes (10^6 bytes)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kib * 1024 / 1e6
