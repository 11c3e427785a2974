"""Log lines about outages of dependencies, and a limit on repeated log lines.

Owns the decision when a line is due. Never decides what is retried, or when. Invariant: the begin and the end of an
outage are logged once each. While it lasts, a reminder is logged every :data:`REMIND_S` seconds, independent of the
number of failures.
"""

import math
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

REMIND_S = 30.0


class Outage:
    """The outages of one dependency: `effect` says what does not work meanwhile. `clock` returns monotonic seconds."""

    def __init__(self, dependency: str, effect: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._dependency = dependency
        self._effect = effect
        self._clock = clock
        self._since_s = math.inf
        self._logged_s = -math.inf

    @property
    def active(self) -> bool:
        """Whether the last operation failed."""
        return self._since_s < math.inf

    def begin(self, reason: object) -> None:
        """Record a failed operation. Log the begin of an outage, or a reminder if one is due."""
        now_s = self._clock()
        if not self.active:
            self._since_s, self._logged_s = now_s, -math.inf
        if now_s - self._logged_s >= REMIND_S:
            self._logged_s = now_s
            log.warning("dependency_unavailable", dependency=self._dependency, effect=self._effect, reason=str(reason))

    def end(self) -> bool:
        """Record a successful operation. Return True, and log the recovery, if an outage was active."""
        if not self.active:
            return False
        seconds, self._since_s = self._clock() - self._since_s, math.inf
        log.info("dependency_recovered", dependency=self._dependency, effect=self._effect, seconds=round(seconds, 3))
        return True


class LogThrottle:
    """Let one log line per name through in `every_s` seconds and count the suppressed ones."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last_s: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def due(self, name: str) -> int | None:
        """Return the number of lines of this name suppressed since the last one; None if no line is due yet."""
        now_s = self._clock()
        if now_s - self._last_s.get(name, -math.inf) < self._every_s:
            self._suppressed[name] = self._suppressed.get(name, 0) + 1
            return None
        self._last_s[name] = now_s
        return self._suppressed.pop(name, 0)
