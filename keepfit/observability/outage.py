"""Absences of a part, told once each and not at every try.

Owns when a log line is due. Never decides what is tried again, or when. Invariant: that a part went away and that it
came back is each in the log once; while it stays away a line comes every :data:`REMIND_S` seconds, whoever asks how
often.
"""

import math
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

REMIND_S = 30.0


class Outage:
    """What is known of the absences of `part`, without which `effect`; `clock` gives seconds that never go back."""

    def __init__(self, part: str, effect: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._part = part
        self._effect = effect
        self._clock = clock
        self._since_s = math.inf
        self._told_s = -math.inf

    @property
    def away(self) -> bool:
        """Whether the part was away when last heard of."""
        return self._since_s < math.inf

    def begin(self, reason: object) -> None:
        """Note that the part did not do what was asked of it."""
        now_s = self._clock()
        if not self.away:
            self._since_s, self._told_s = now_s, -math.inf
        if now_s - self._told_s >= REMIND_S:
            self._told_s = now_s
            log.warning("part_away", part=self._part, effect=self._effect, reason=str(reason))

    def end(self) -> bool:
        """Note that the part did what was asked of it; tell whether it had been away."""
        if not self.away:
            return False
        seconds, self._since_s = self._clock() - self._since_s, math.inf
        log.info("part_back", part=self._part, effect=self._effect, seconds=round(seconds, 3))
        return True


class LogThrottle:
    """Lets one of many like log lines through per `every_s` seconds, and counts the others."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last_s: dict[str, float] = {}
        self._more: dict[str, int] = {}

    def due(self, name: str) -> int | None:
        """Tell whether a line of this name is due: how many were kept back since the last one; None if it is not."""
        now_s = self._clock()
        if now_s - self._last_s.get(name, -math.inf) < self._every_s:
            self._more[name] = self._more.get(name, 0) + 1
            return None
        self._last_s[name] = now_s
        return self._more.pop(name, 0)
