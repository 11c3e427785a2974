"""Rates of API keys that hold over all gateways and their processes.

Owns the tokens that this process has taken from the shared bucket in Redis (:mod:`keepfit.rates`) and not spent: its
allotment, about as many as it spends in a tenth of a second. Never makes a request wait while it has tokens, or knows
that there are none. Invariants: a request is allowed for a token that was taken in Redis, so all processes together
allow at most burst and refill; while Redis is away each process counts by itself, with the same rate and burst.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection

from redis.asyncio import Redis

from keepfit.backends import queue_servers, redis_clients
from keepfit.observability.outage import Outage
from keepfit.rates import tokens
from keepfit.rates.tokens import Taken
from keepfit.security.api_keys import Key
from keepfit.settings import Settings
from keepfit_gateway.auth.rate_limit import TokenBucket, policy_of, rate_fields

# An allotment is what a process spends in this time. Also what it may hold while other processes need it.
ALLOTMENT_S = 0.1
# A burst is not held by one process that takes tokens: at most this part of it.
ALLOTMENT_OF_BURST = 4
# After fewer tokens than wanted, Redis is asked again when the next token is there, but not more often than this.
PAUSE_S = 0.02
# A request does not wait longer for Redis; from then on this process counts alone.
WAIT_S = 0.25
# While Redis is away it is asked again so often.
PROBE_S = 1.0

# With several servers of the queue, all rates are on the one that serves this key.
SERVER_KEY = "rates"

Take = Callable[[str, float, int, int], Awaitable[Taken]]


class Source:
    """Where the buckets of one process take their tokens; `away` while it gives no answer."""

    def __init__(self, take: Take, clock: Callable[[], float] = time.monotonic) -> None:
        self._take = take
        self.clock = clock
        self.away = False
        self._probe_at_s = -math.inf
        self._outage = Outage("queue", "rates of API keys count in each process of a gateway", clock)

    async def take(self, name: str, rate_per_s: float, burst: int, wanted: int) -> Taken | None:
        """Take tokens; None if there is no answer in time."""
        try:
            async with asyncio.timeout(WAIT_S):
                taken = await self._take(name, rate_per_s, burst, wanted)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with Redis, requests are served
            self._outage.begin(repr(error) if isinstance(error, TimeoutError) else error)
            self.away = True
            return None
        self._outage.end()
        self.away = False
        return taken

    def probe_is_due(self, now_s: float) -> bool:
        """Return whether to ask again although Redis is away; True once in :data:`PROBE_S`."""
        if now_s < self._probe_at_s:
            return False
        self._probe_at_s = now_s + PROBE_S
        return True


class SharedBucket:
    """The tokens of the keys with one name, as one process has them."""

    __slots__ = (
        "_alone", "_asked_at_s", "_asking", "_empty_until_s", "_expires_s", "_held", "_left", "_left_at_s", "_most",
        "_name", "_policy", "_size", "_source", "_spent", "_waiting", "burst", "rate_per_s",
    )  # fmt: skip

    def __init__(self, name: str, rate_per_s: float, burst: int, source: Source) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._name = name
        self._source = source
        self._policy = policy_of(rate_per_s, burst)
        # Tokens taken and not spent; a bucket would overflow if they stayed in it longer than `_expires_s`.
        self._held = 0
        self._expires_s = -math.inf
        # Tokens in Redis after the last answer, and when that came; there are none to take until `_empty_until_s`.
        self._left, self._left_at_s = float(burst), source.clock()
        self._empty_until_s = -math.inf
        # Tokens to ask for, their maximum, and those that were spent since Redis was asked.
        self._size, self._spent, self._asked_at_s = 1, 0, -math.inf
        self._most = max(1, min(math.ceil(rate_per_s * ALLOTMENT_S), burst // ALLOTMENT_OF_BURST))
        self._asking: asyncio.Task[None] | None = None
        self._waiting = 0
        self._alone: TokenBucket | None = None

    def take_held(self, now_s: float) -> bool | None:
        """Take a token, without waiting. Return False if there is none, None if only Redis knows: :meth:`take`."""
        if self._source.away:
            return self._take_alone(now_s)
        if self._held and now_s < self._expires_s:
            self._held -= 1
            self._spent += 1
            if self._held < self._size // 2 and self._asking is None and now_s >= self._empty_until_s:
                self._ask(now_s)
            return True
        return False if now_s < self._empty_until_s else None

    async def take(self) -> bool:
        """Take a token; wait for an answer of Redis if that is needed."""
        while True:
            now_s = self._source.clock()
            taken = self.take_held(now_s)
            if taken is not None:
                return taken
            self._waiting += 1
            try:
                await asyncio.shield(self._asking or self._ask(now_s))
            finally:
                self._waiting -= 1

    def retry_after_s(self) -> int:
        """Return the whole seconds until the next token is available, at least 1."""
        if self._alone is not None:
            return self._alone.retry_after_s()
        elapsed_s = self._source.clock() - self._left_at_s
        return max(1, math.ceil((1 - self._left) / self.rate_per_s - elapsed_s))

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the fields RateLimit-Policy and RateLimit, by what this process knows of the shared bucket."""
        if self._alone is not None:
            return self._alone.headers()
        now_s = self._source.clock()
        available = min(self.burst, self._left + (now_s - self._left_at_s) * self.rate_per_s)
        held = self._held if now_s < self._expires_s else 0
        if not held and now_s < self._empty_until_s:
            available = min(available, 0.0)
        return rate_fields(self._policy, self.rate_per_s, self.burst, min(self.burst, available + held))

    def fields(self) -> str:
        """Return :meth:`headers` as lines of a response head."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers())

    def close(self) -> None:
        """End a pending question."""
        if self._asking is not None:
            self._asking.cancel()

    def _take_alone(self, now_s: float) -> bool:
        if self._alone is None:
            known = min(self.burst, self._left + (now_s - self._left_at_s) * self.rate_per_s + self._held)
            self._alone, self._held = TokenBucket(self.rate_per_s, self.burst, now_s, known), 0
        if self._asking is None and self._source.probe_is_due(now_s):
            self._ask(now_s)
        return self._alone.take(now_s)

    def _ask(self, now_s: float) -> "asyncio.Task[None]":
        self._asking = asyncio.create_task(self._fetch(now_s))
        return self._asking

    async def _fetch(self, now_s: float) -> None:
        """Take the next allotment: as many tokens as were spent in :data:`ALLOTMENT_S`, or as requests wait for."""
        since_s = max(now_s - self._asked_at_s, 1e-6)
        self._size = max(1, min(self._most, math.ceil(self._spent * ALLOTMENT_S / since_s)))
        self._spent, self._asked_at_s = 0, now_s
        wanted = max(self._size, min(self._waiting, self.burst))
        try:
            taken = await self._source.take(self._name, self.rate_per_s, self.burst, wanted)
        finally:
            self._asking = None
        if taken is None:
            return
        now_s = self._source.clock()
        if now_s >= self._expires_s:
            self._held = 0
        self._alone = None
        self._held += taken.number
        self._expires_s = now_s + max(self.burst / self.rate_per_s, ALLOTMENT_S)
        self._left, self._left_at_s = taken.left, now_s
        if taken.number < wanted:
            pause_s = min(PAUSE_S, self._most / 2 / self.rate_per_s)
            self._empty_until_s = now_s + max((1 - taken.left) / self.rate_per_s, pause_s)


class SharedRates:
    """The buckets of one gateway process, which opens a connection when the first key with a rate is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Redis | None = None
        self._source = Source(self._take)
        self._buckets: dict[str, SharedBucket] = {}

    def bucket(self, key: Key) -> SharedBucket:
        """Return the bucket of the keys with the name of `key`; a new one if its rate has changed."""
        bucket = self._buckets.get(key.name)
        if bucket is None or (bucket.rate_per_s, bucket.burst) != (key.rate_per_s, key.burst):
            bucket = self._buckets[key.name] = SharedBucket(key.name, key.rate_per_s, key.burst, self._source)
        return bucket

    def keep(self, names: Collection[str]) -> None:
        """Forget the buckets of keys with other names."""
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in names}

    async def close(self) -> None:
        """Close the connections."""
        for bucket in self._buckets.values():
            bucket.close()
        if self._client is not None:
            await self._client.aclose()

    async def _take(self, name: str, rate_per_s: float, burst: int, wanted: int) -> Taken:
        if self._client is None:
            self._client = redis_clients.queue_async(queue_servers.settings_for(self._settings, SERVER_KEY))
        return await tokens.take(self._client, name, rate_per_s, burst, wanted)
