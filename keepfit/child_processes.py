"""Children that a supervisor forks: how they start, how they are stopped, and how they end with it.

Owns the stop signals of a supervisor and of its children, and the signal that Linux sends to a child whose parent has
died. Never decides how many children there are, or when one is replaced. Invariants: a SIGTERM that is sent to a child
right after its fork is not lost; on Linux no child outlives its supervisor.
"""

import ctypes
import multiprocessing as mp
import os
import signal
import sys
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1
# A child that failed to start is replaced after this pause, so that a failing start does not become a fork loop.
RESTART_PAUSE_S = 1.0


class StopRequest:
    """SIGTERM or SIGINT to a supervisor, which waits for it and for its children at the same time."""

    def __init__(self) -> None:
        self.made = False
        self._woken, self._wake = mp.Pipe(duplex=False)

    def listen(self) -> None:
        """Handle both signals."""
        signal.signal(signal.SIGTERM, self._make)
        signal.signal(signal.SIGINT, self._make)

    def _make(self, signum: int, frame: FrameType | None) -> None:
        self.made = True
        self._wake.send_bytes(b"stop")

    def wait(self, others: Iterable[Any], timeout_s: float | None) -> list[Any]:
        """Wait for a stop request, one of `others`, or the timeout; return those of `others` that are ready."""
        ready = wait([self._woken, *others], timeout=timeout_s)
        if self._woken in ready:
            self._woken.recv_bytes()
        return [each for each in ready if each is not self._woken]


def fork(name: str, target: Callable[..., None], *args: Any) -> BaseProcess:
    """Fork a child that calls `target`, with SIGTERM blocked until the child has a handler for it.

    The inherited handler would have no effect there.
    """
    process = mp.get_context("fork").Process(target=target, args=args, name=name)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return process


def end_with(supervisor: int) -> None:
    """Have this child killed when its supervisor, the process `supervisor`, dies; end it if that is dead already."""
    signal_at_death_of_parent(signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)


def signal_at_death_of_parent(signum: signal.Signals) -> None:
    """Have Linux send a signal to this process when its parent dies. Other systems have nothing like it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
