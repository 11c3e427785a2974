"""The rate at which workers reply, from which the retry time of a full queue is computed.

Owns an average. Never reads a clock: callers pass the time.
"""

import math

# The period over which the rate is averaged.
RATE_WINDOW_S = 2.0


class ReplyRate:
    """Replies per second, averaged with exponentially decreasing weight."""

    def __init__(self) -> None:
        self._count = 0.0
        self._at_s = 0.0

    def record(self, count: int, now_s: float) -> None:
        """Count `count` replies that came at `now_s`."""
        self._count = self._count * math.exp((self._at_s - now_s) / RATE_WINDOW_S) + count
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """Return the replies per second, as of `now_s`.

        >>> rate = ReplyRate()
        >>> for tenth in range(200):
        ...     rate.record(5, tenth / 10)
        >>> 45 < rate.per_s(20.0) < 55
        True
        """
        return self._count * math.exp((self._at_s - now_s) / RATE_WINDOW_S) / RATE_WINDOW_S
