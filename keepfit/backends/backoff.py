"""Pauses between attempts to reach a server that is unavailable.

Owns how long they are. Never waits and never logs: callers do (:class:`~keepfit.observability.outage.Outage`).
Invariant: pauses grow with each failure in a row up to a maximum, and differ between processes, so that a server that
comes back does not get the connections of all of them at once.
"""

from redis.backoff import EqualJitterBackoff

# More doublings of a pause reach every maximum; redis-py's float would overflow after a thousand.
DOUBLINGS_MAX = 30


class Backoff:
    """The pauses of one loop: from about `first_s` seconds on, doubled by each failure in a row, at most `max_s`."""

    def __init__(self, first_s: float, max_s: float) -> None:
        self._pauses = EqualJitterBackoff(cap=max_s, base=first_s)
        self._failures = 0

    def next_s(self) -> float:
        """Count a failure and return the seconds until the next attempt: half of them are certain, half random."""
        pause_s: float = self._pauses.compute(min(self._failures, DOUBLINGS_MAX))
        self._failures += 1
        return pause_s

    def reset(self) -> None:
        """Record a success: the next failure is the first in a row."""
        self._failures = 0
