"""The proxy changes nothing unless asked to, and then exactly that."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004

from tests.faults.proxy import Proxy, proxied

LARGE = b"x" * 3_000_000


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """Return a proxy in front of a Valkey."""
    async with proxied(redis.asyncio.connection.parse_url(redis_url)["port"]) as started:
        yield started


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[redis.asyncio.Redis]:
    """Return a client that goes through the proxy and never tries again."""
    opened = redis.asyncio.Redis(port=proxy.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))
    yield opened
    await opened.aclose()


async def test_it_carries_what_it_is_given(client: redis.asyncio.Redis) -> None:
    """Large values come through whole, in both directions."""
    await client.set("large", LARGE)
    assert await client.get("large") == LARGE


async def test_a_dropped_reply_is_of_a_request_that_was_carried_out(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """The client sees a broken connection, the server has counted; the next request is answered."""
    await client.incr("n")
    proxy.drop_replies(1)
    with pytest.raises(ConnectionError):
        await client.incr("n")
    assert await client.get("n") == b"2"
    assert proxy.dropped == 1


async def test_a_torn_request_is_not_carried_out(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """A part of a command does nothing, and the connection breaks."""
    await client.ping()
    proxy.tear_requests(1)
    with pytest.raises(ConnectionError):
        await client.set("torn", LARGE)
    assert await client.exists("torn") == 0
    assert proxy.torn == 1


async def test_a_cut_breaks_what_is_open(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """A client that waits for an answer has an error at once, and may connect again."""
    waiting = asyncio.create_task(client.blpop(["nothing"], timeout=30))
    async with asyncio.timeout(10):
        while True:
            if proxy._open:
                break
            await asyncio.sleep(0)
        proxy.cut()
        with pytest.raises(ConnectionError):
            await waiting
    assert await client.ping()


async def test_a_hang_breaks_nothing(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """Nothing comes through until the hang is over; then what was held back does."""
    await client.ping()
    hanging = asyncio.create_task(proxy.hang(0.3))
    await asyncio.sleep(0)
    asked = asyncio.create_task(client.ping())
    done, _ = await asyncio.wait([hanging, asked], return_when=asyncio.FIRST_COMPLETED)
    assert done == {hanging}
    assert await asked


async def test_a_server_that_is_away_is_away(proxy: Proxy) -> None:
    """Where nothing listens behind the proxy, its clients lose their connection."""
    async with proxied(1) as nowhere:
        client = redis.asyncio.Redis(port=nowhere.port, retry=Retry(NoBackoff(), 0))
        with pytest.raises((ConnectionError, TimeoutError)):
            await client.ping()
        await client.aclose()
