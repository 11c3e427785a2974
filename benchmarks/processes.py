"""Processes of a benchmark: each has a log, is ready before it is measured, and is stopped afterwards.

Never stops a process that it did not start. Invariant: all children of a system stop with it, also orphaned ones: each
system starts in a session of its own, and the session's process group is killed by its id.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from keepfit.local.stack import end_with_parent

# Servers that import many scientific packages from a cold disk start slowly.
START_S_MAX = 120.0
STOP_S_MAX = 60.0


class StartError(Exception):
    """A system did not start; the message holds the last line of its log."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_S_MAX) -> None:
    """Wait for `condition`.

    Raises
    ------
    StartError
        With `what`, if `seconds` have passed.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)


@contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run `command` until the block ends; yield its process id.

    Raises
    ------
    StartError
        If it exits, or is not ready in time.
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
            raise StartError(f"{log.stem} exited at its start: {last_line(log)}")
        yield process.pid
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Terminate a process, then kill the rest of its process group."""
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


def last_line(log: Path) -> str:
    """Return the last line of a log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "its log is empty"


def children(pid: int) -> list[int]:
    """Return the process ids of a process' children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in megabytes (10^6 bytes)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kib * 1024 / 1e6
