"""The bucket of an API key in a real Redis: refill, bounds, clocks that jump, expiry."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from keepfit.backends import redis_keys
from keepfit.rates.tokens import Taken, take

KEY = redis_keys.tokens("web")
# So slow that nothing is added while a test runs.
SLOW = 1e-6


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """Connect to the Redis of the test."""
    async with redis.asyncio.Redis.from_url(redis_url) as opened:
        yield opened


async def now_us(client: redis.asyncio.Redis) -> int:
    """Return the time of the server in microseconds."""
    seconds, micros = await client.time()
    return int(seconds) * 1_000_000 + int(micros)


async def test_tokens_are_taken_while_there_are_some(client: redis.asyncio.Redis) -> None:
    """A new bucket is full; each call takes what it wants, the last one what is left, and then there is none."""
    assert [await take(client, "web", SLOW, 5, wanted) for wanted in (2, 1, 9, 1)] == [
        Taken(number, pytest.approx(left, abs=1e-3)) for number, left in ((2, 3), (1, 2), (2, 0), (0, 0))
    ]
    assert (await take(client, "other", SLOW, 5, 9)).number == 5


async def test_concurrent_calls_take_each_token_once(client: redis.asyncio.Redis) -> None:
    """Many connections together take the burst and nothing more."""
    taken = await asyncio.gather(*(take(client, "web", SLOW, 100, 7) for _ in range(50)))
    assert sum(each.number for each in taken) == 100


@pytest.mark.parametrize(
    ("elapsed_s", "expected"), [(0.0, 3), (1.5, 6), (3.4, 9), (1e9, 20), (-5.0, 3), (-1e9, 3)], ids=str
)
async def test_time_adds_tokens_up_to_the_burst(client: redis.asyncio.Redis, elapsed_s: float, expected: int) -> None:
    """The refill follows the clock of Redis: one that was set back adds nothing, one that was set forward fills it.

    Afterwards the time of the bucket is that of the clock, so that the refill goes on from there.
    """
    await client.set(KEY, f"3 {await now_us(client) - round(elapsed_s * 1e6):d}")
    assert (await take(client, "web", 2.0, 20, 20)).number == expected
    stored = await client.get(KEY)
    assert abs(int(stored.split()[1]) - await now_us(client)) < 60_000_000


async def test_many_calls_lose_no_fraction(client: redis.asyncio.Redis) -> None:
    """Tokens that are added between calls, also much less than one, add up."""
    await client.set(KEY, f"0 {await now_us(client) - 1_000_000}")
    before = await now_us(client) - 1_000_000
    for _ in range(300):
        last = await take(client, "web", 0.001, 10, 1)
        assert last.number == 0
    assert last.left == pytest.approx((await now_us(client) - before) * 1e-9, abs=1e-5)


async def test_a_bucket_expires_when_it_is_full(client: redis.asyncio.Redis) -> None:
    """A key is in Redis until its bucket would be full, and a second longer; the largest values have a valid time."""
    await take(client, "web", 10.0, 100, 50)
    assert 5_000 < await client.pttl(KEY) <= 6_000
    await take(client, "slow", 1e-6, 999_999_999, 999_999_999)
    assert await client.pttl(redis_keys.tokens("slow")) > 0
    await take(client, "fast", 999_999_999.0, 1, 1)
    assert 0 < await client.pttl(redis_keys.tokens("fast")) <= 1_001


async def test_a_changed_rate_counts_at_once(client: redis.asyncio.Redis) -> None:
    """A smaller burst cuts what is in the bucket; a larger one has to fill."""
    assert (await take(client, "web", SLOW, 100, 1)).number == 1
    assert (await take(client, "web", SLOW, 5, 9)).number == 5
    assert (await take(client, "web", SLOW, 100, 9)).number == 0
