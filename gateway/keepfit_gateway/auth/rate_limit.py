"""How often a key may ask: a token bucket, and the header fields that tell of it.

Owns the arithmetic and the words of draft-ietf-httpapi-ratelimit-headers-11. Never reads a clock: the caller does.
Invariant: over any span of time no more requests are let through than the burst and what the rate gave meanwhile.
"""

import math


class Bucket:
    """`burst` requests at once, refilled by `rate_per_s`; times are seconds of one monotonic clock.

    >>> bucket = Bucket(rate_per_s=2.0, burst=3, now_s=100.0)
    >>> [bucket.take(100.0) for _ in range(4)], bucket.retry_after_s()
    ([True, True, True, False], 1)
    >>> bucket.take(100.5), bucket.fields()
    (True, 'RateLimit-Policy: "key";q=3;w=2\\r\\nRateLimit: "key";r=0;t=2\\r\\n')
    """

    __slots__ = ("_at_s", "_left", "_policy", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: int, now_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._left = float(burst)
        self._at_s = now_s
        # The window is the time in which the whole bucket fills, a second at least: the draft has no fractions.
        self._policy = f'"key";q={burst};w={math.ceil(burst / rate_per_s)}'

    def take(self, now_s: float) -> bool:
        """Take one request out; False if there is none."""
        self._left = min(self.burst, self._left + max(now_s - self._at_s, 0.0) * self.rate_per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def retry_after_s(self) -> int:
        """Whole seconds until the next request can be taken."""
        return max(1, math.ceil((1 - self._left) / self.rate_per_s))

    def headers(self) -> tuple[tuple[str, str], ...]:
        """RateLimit-Policy and RateLimit; `t` is the time until all of it is there again."""
        full_s = math.ceil((self.burst - self._left) / self.rate_per_s)
        return ("RateLimit-Policy", self._policy), ("RateLimit", f'"key";r={int(self._left)};t={full_s}')

    def fields(self) -> str:
        """:meth:`headers` as lines of an answer's head."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers())
