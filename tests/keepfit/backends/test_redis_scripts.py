"""Errors of connections to Redis."""

import asyncio

import pytest
import uvloop

from keepfit.backends.redis_scripts import unavailable
from keepfit.errors import UnavailableError


def test_a_connection_that_was_closed_meanwhile_is_an_unavailable_redis() -> None:
    """uvloop has an error of its own for it, which redis-py passes on; other errors of that class are defects."""

    async def write_to_a_closed_connection() -> None:
        async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.transport.abort()
            await asyncio.sleep(0)
            with unavailable():
                writer.writelines([b"PING"])

    with pytest.raises(UnavailableError, match=r"Redis is unavailable: .*the handler is closed"):
        uvloop.run(write_to_a_closed_connection())
    with pytest.raises(RuntimeError, match="a defect"), unavailable():
        raise RuntimeError("a defect")
