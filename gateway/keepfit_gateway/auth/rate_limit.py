"""Rate limit of an API key: a token bucket of one process, and the header fields that describe a bucket.

Owns the arithmetic and the fields of draft-ietf-httpapi-ratelimit-headers-11. Never reads a clock: the caller passes
the time. :mod:`keepfit_gateway.auth.shared_rates` uses this bucket only while Redis is away. Invariant: in any period,
at most the burst plus the refill of that period is allowed.
"""

import math


def policy_of(rate_per_s: float, burst: int) -> str:
    """Return the value of RateLimit-Policy.

    The window is the time in which an empty bucket fills, at least one second: the draft has no fractions.
    """
    return f'"key";q={burst};w={math.ceil(burst / rate_per_s)}'


def rate_fields(policy: str, rate_per_s: float, burst: int, tokens: float) -> tuple[tuple[str, str], ...]:
    """Return the fields RateLimit-Policy and RateLimit of a bucket with so many tokens."""
    full_s = math.ceil((burst - tokens) / rate_per_s)
    return ("RateLimit-Policy", policy), ("RateLimit", f'"key";r={int(tokens)};t={full_s}')


class TokenBucket:
    """Allow `burst` requests at once, refilled by `rate_per_s`. Times are seconds of one monotonic clock.

    It begins with `tokens`, by default full.

    >>> bucket = TokenBucket(rate_per_s=2.0, burst=3, now_s=100.0)
    >>> [bucket.take(100.0) for _ in range(4)], bucket.retry_after_s()
    ([True, True, True, False], 1)
    >>> bucket.take(100.5), bucket.fields()
    (True, 'RateLimit-Policy: "key";q=3;w=2\\r\\nRateLimit: "key";r=0;t=2\\r\\n')
    """

    __slots__ = ("_at_s", "_policy", "_tokens", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: int, now_s: float, tokens: float | None = None) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = float(burst) if tokens is None else tokens
        self._at_s = now_s
        self._policy = policy_of(rate_per_s, burst)

    def take(self, now_s: float) -> bool:
        """Take one token. Return False if there is none."""
        self._tokens = min(self.burst, self._tokens + max(now_s - self._at_s, 0.0) * self.rate_per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def retry_after_s(self) -> int:
        """Return the whole seconds until the next token is available, at least 1."""
        return max(1, math.ceil((1 - self._tokens) / self.rate_per_s))

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the fields RateLimit-Policy and RateLimit; `t` is the time until the bucket is full."""
        return rate_fields(self._policy, self.rate_per_s, self.burst, self._tokens)

    def fields(self) -> str:
        """Return :meth:`headers` as lines of a response head."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers())
