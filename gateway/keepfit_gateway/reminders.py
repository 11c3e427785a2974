"""Reminders of requests that have no reply yet.

Owns one timer for all of them. Never sends anything: the caller does. Invariants: a reminder comes only if a request
has had no reply for a while, so quick replies cost next to nothing; of the same requests the next one comes after twice
the time, and no two come within :data:`FIRST_S`.
"""

import asyncio
import heapq
from collections.abc import Callable, Container, Sequence

# Longer than a round of a lease that serves other requests meanwhile.
FIRST_S = 0.025


class Reminders:
    """Calls `remind` while one of the added numbers is among the `pending` ones."""

    def __init__(self, pending: Container[int], remind: Callable[[], None]) -> None:
        self._pending = pending
        self._remind = remind
        # When numbers are looked at, how long after the last time, and the numbers.
        self._due: list[tuple[float, float, Sequence[int]]] = []
        # uvloop's handles do not tell when they are due; one that is due at once has no time at all.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._not_before_s = 0.0

    def add(self, numbers: Sequence[int]) -> None:
        """Remind of these requests, which were sent now, if they have no reply in time."""
        self._put(asyncio.get_running_loop(), FIRST_S, numbers)
        self._set_timer()

    def _put(self, loop: asyncio.AbstractEventLoop, delay_s: float, numbers: Sequence[int]) -> None:
        heapq.heappush(self._due, (loop.time() + delay_s, delay_s, numbers))

    def _set_timer(self) -> None:
        due_s = max(self._due[0][0], self._not_before_s)
        if self._timer is not None:
            if self._timer_s <= due_s:
                return
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = asyncio.get_running_loop().call_at(due_s, self._look)

    def _look(self) -> None:
        """Remind if one of the requests that are due is pending, and set the next timer."""
        loop, late = asyncio.get_running_loop(), []
        self._timer = None
        while self._due and self._due[0][0] <= loop.time():
            _, delay_s, numbers = heapq.heappop(self._due)
            left = [number for number in numbers if number in self._pending]
            if left:
                late.append((delay_s, left))
        for delay_s, left in late:
            self._put(loop, 2 * delay_s, left)
        if late:
            self._not_before_s = loop.time() + FIRST_S
            self._remind()
        if self._due:
            self._set_timer()

    def close(self) -> None:
        """Remind no more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
