"""The proxy changes nothing without a fault, and injects exactly the requested fault."""

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
    """Run a proxy in front of a Valkey."""
    async with proxied(redis.asyncio.connection.parse_url(redis_url)["port"]) as started:
        yield started


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[redis.asyncio.Redis]:
    """Open a client that connects through the proxy and never retries."""
    opened = redis.asyncio.Redis(port=proxy.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))
    yield opened
    await opened.aclose()


async def test_large_values_pass_unchanged(client: redis.asyncio.Redis) -> None:
    """Large values pass unchanged in both directions."""
    await client.set("large", LARGE)
    assert await client.get("large") == LARGE


async def test_a_request_with_a_dropped_reply_is_executed(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """The client sees a closed connection, the server has executed the request; the next request is answered."""
    await client.incr("n")
    proxy.drop_replies(1)
    with pytest.raises(ConnectionError):
        await client.incr("n")
    assert await client.get("n") == b"2"
    assert proxy.dropped == 1


async def test_a_torn_request_is_not_executed(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """A partial command has no effect, and the connection is closed."""
    await client.ping()
    proxy.tear_requests(1)
    with pytest.raises(ConnectionError):
        await client.set("torn", LARGE)
    assert await client.exists("torn") == 0
    assert proxy.torn == 1


async def test_a_cut_closes_open_connections(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """A client that waits for a reply gets an error immediately, and can connect again."""
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


async def test_a_hang_closes_no_connection(proxy: Proxy, client: redis.asyncio.Redis) -> None:
    """Nothing is forwarded until the hang ends; then the delayed data is."""
    await client.ping()
    hanging = asyncio.create_task(proxy.hang(0.3))
    await asyncio.sleep(0)
    request = asyncio.create_task(client.ping())
    done, _ = await asyncio.wait([hanging, request], return_when=asyncio.FIRST_COMPLETED)
    assert done == {hanging}
    assert await request


async def test_an_unavailable_server_closes_the_connection(proxy: Proxy) -> None:
    """If nothing listens behind the proxy, it closes the connections of its clients."""
    async with proxied(1) as nowhere:
        client = redis.asyncio.Redis(port=nowhere.port, retry=Retry(NoBackoff(), 0))
        with pytest.raises((ConnectionError, TimeoutError)):
            await client.ping()
        await client.aclose()
