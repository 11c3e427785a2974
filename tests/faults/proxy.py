"""A TCP proxy between keepfit and a Redis that injects connection faults on request.

Owns the connections through it. Never parses the data: it knows directions and bytes only. Invariant: without a fault
it changes nothing; a fault that is requested for a number of messages ends with the last of them.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK_BYTES = 256 * 1024


class Proxy:
    """One listening port in front of one server on loopback."""

    def __init__(self, upstream_port: int, seed: int = 0) -> None:
        self.port = 0
        self.dropped = 0
        self.torn = 0
        self.cuts = 0
        self._upstream_port = upstream_port
        self._random = random.Random(seed)
        self._delay_s = 0.0
        self._to_drop = 0
        self._to_tear = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Abort all connections now."""
        self.cuts += len(self._open) // 2
        for writer in list(self._open):
            writer.transport.abort()

    def drop_replies(self, count: int) -> None:
        """Forward the next requests, drop the replies to `count` of them and abort those connections."""
        self._to_drop += count

    def tear_requests(self, count: int) -> None:
        """Forward only a part of the next `count` requests, and abort those connections."""
        self._to_tear += count

    async def slow(self, delay_s: float, seconds: float) -> None:
        """Delay every message by `delay_s`, for `seconds`."""
        self._delay_s = delay_s
        await asyncio.sleep(seconds)
        self._delay_s = 0.0

    async def hang(self, seconds: float) -> None:
        """Forward nothing for `seconds`, without aborting a connection."""
        self._flows.clear()
        await asyncio.sleep(seconds)
        self._flows.set()

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._open.add(client_out)
        server_out = None
        try:
            server_in, server_out = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            self._open.add(server_out)
            pumps = [
                asyncio.ensure_future(self._pump(client_in, server_out, replies=False)),
                asyncio.ensure_future(self._pump(server_in, client_out, replies=True)),
            ]
            # When one side closes, close the other.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is unavailable: the client sees a closed connection
        finally:
            for writer in (client_out, server_out):
                if writer is not None:
                    self._open.discard(writer)
                    writer.transport.abort()
            self._serving.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool) -> None:
        while True:
            try:
                data = await source.read(CHUNK_BYTES)
            except OSError:
                return
            if not data:
                return
            await self._flows.wait()
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if replies and self._to_drop:
                self._to_drop -= 1
                self.dropped += 1
                return
            if not replies and self._to_tear:
                self._to_tear -= 1
                self.torn += 1
                sink.write(data[: self._random.randrange(len(data))])
                await _flushed(sink)
                return
            sink.write(data)
            if not await _flushed(sink):
                return

    async def close(self) -> None:
        """Abort all connections and wait until none is served."""
        self._flows.set()
        self.cut()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


async def _flushed(sink: asyncio.StreamWriter) -> bool:
    try:
        await sink.drain()
    except OSError:
        return False
    return True


@asynccontextmanager
async def proxied(upstream_port: int, seed: int = 0) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a port until the block ends."""
    proxy = Proxy(upstream_port, seed)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0, limit=2 * CHUNK_BYTES)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
