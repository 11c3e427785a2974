"""Floods: what a gateway holds in memory while clients send more than they should, and whether it serves on."""

import asyncio
import io
import logging
import os
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keepfit.local.servers import answers, free_port
from tests import servers
from tests.conftest import Stack
from tests.gateway.api_client import CRASHES, REGRESSOR, Api, Reply, connected

log = logging.getLogger(__name__)

MIB = 2**20
ABOVE_IDLE_BYTES_MAX = 150 * MIB
BODY_TIMEOUT_S = 8.0
SLOW = 500
HEAD = "POST {path}/partial_fit HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GZIP = {"Content-Encoding": "gzip"}


class Flooded:
    """A gateway's process and its memory."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._folder = Path(f"/proc/{pid}")

    def _bytes(self, field: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    def begin(self) -> int:
        """Forget the highest use of memory so far, and return that of now."""
        (self._folder / "clear_refs").write_text("5")
        return self._bytes("VmRSS")

    def highest(self) -> int:
        """Highest use of memory since then."""
        return self._bytes("VmHWM")


@pytest.fixture(scope="module")
def flooded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flooded]:
    """Run a gateway of the module's own on the stack's servers, with the limits that gateways have by default."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    environment = {
        **os.environ,
        **stack.environment(),
        "KEEPFIT_PORT": str(port),
        "KEEPFIT_HOST": "127.0.0.1",
        "KEEPFIT_BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
    }
    output = tmp_path_factory.mktemp("flooded") / "gateway.log"
    command = [sys.executable, "-m", "keepfit", "gateway"]
    with servers.running(command, output, lambda: answers(f"{url}/livez"), environment) as process:
        yield Flooded(url, process.pid)
    assert not CRASHES.search(output.read_text())


@pytest.fixture
async def path(flooded: Flooded, metadata: dict[str, Any]) -> AsyncIterator[str]:
    """Path of a model that has learned; after the flood it must learn and predict, and memory have held."""
    async with aiohttp.ClientSession(flooded.url) as http:
        api = Api(http)
        path = await api.make(metadata, REGRESSOR)
        await api.learn(path, [[1.0, 2.0]], [1.0])
        await api.predict(path, [[1.0, 2.0]])
        idle = flooded.begin()
        yield path
        above = flooded.highest() - idle
        assert (await api.learn(path, [[1.0, 2.0]], [1.0]))["sequence"] == 2
        assert len((await api.predict(path, [[3.0, 4.0]]))["predictions"]) == 1
    # Shown by --log-cli-level=INFO.
    log.info("%d MiB above the %d MiB of before", above / MIB, idle / MIB)
    assert above < ABOVE_IDLE_BYTES_MAX


def bomb(mib: int) -> bytes:
    """Return gzip of so many MiB of spaces, without its end, of a thousandth of their size."""
    packer = zlib.compressobj(9, wbits=31)
    first = packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (mib - 1)


async def pieces(*data: bytes, times: int = 1) -> AsyncIterator[bytes]:
    """Yield a body whose size nobody knows before its end."""
    for _ in range(times):
        for piece in data:
            yield piece


async def refused(url: str, path: str, data: Any, headers: dict[str, str] | None = None) -> str:
    """Send rows that must be refused as too large; return the reason."""
    async with aiohttp.ClientSession(url) as http:
        headers = {"Content-Type": "application/json", **(headers or {})}
        async with http.post(f"{path}/partial_fit", data=data, headers=headers) as response:
            reply = Reply(response.status, response.headers, await response.read())
    return str(reply.problem(413)["detail"])


async def test_gzip_bombs(flooded: Flooded, path: str) -> None:
    """Several bodies at once of a megabyte that inflate to a gigabyte each answer 413, and are never held inflated."""
    packed = bomb(1024)
    assert len(packed) < 2 * MIB
    sent = (io.BytesIO(packed), pieces(packed), io.BytesIO(packed))
    for detail in await asyncio.gather(*(refused(flooded.url, path, data, GZIP) for data in sent)):
        assert "larger than" in detail


async def test_bodies_over_the_limit(flooded: Flooded, path: str) -> None:
    """Bodies over 500 MB answer 413: at once where their length says so, and without being held where nothing does."""
    piece = b" " * MIB
    assert "larger than" in await refused(flooded.url, path, pieces(piece, times=501))
    head = HEAD.format(path=path)
    for length in (500 * MIB + 1, 10**15):
        async with connected(flooded.url) as (reader, writer):
            writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode())
            # Who is not stopped by the answer is read on for a while, and nothing is kept of it.
            writer.write(piece * 8)
            Reply.parse(await reader.readuntil(b"}")).problem(413)


async def test_lengths_that_are_never_sent(flooded: Flooded, path: str) -> None:
    """A length takes no memory: a hundred bodies of 400 MB are announced, begun, and given up."""
    head = f"{HEAD.format(path=path)}Content-Length: {400 * MIB}\r\n\r\n".encode()
    async with AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await stack.enter_async_context(connected(flooded.url))
            writer.write(head + b'{"X":[[' + b" " * 100_000)
            await writer.drain()


async def test_slow_connections(flooded: Flooded, path: str) -> None:
    """Five hundred connections whose heads or bodies drip in are ended with 408, while others are served."""
    head = HEAD.format(path=path).encode()
    begins = (
        b"GET /livez HTTP/1.1\r\nX: ",
        head + b"Content-Length: 1000\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n400\r\n",
        # A head of gzip with a comment, which is what drips in.
        head + b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n\x1f\x8b\x08\x10\0\0\0\0\0\0",
    )
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected(flooded.url)) for _ in range(SLOW)]
        for number, (_, writer) in enumerate(slow):
            writer.write(begins[number % len(begins)])

        async def drip() -> None:
            while True:
                for _, writer in slow:
                    writer.write(b" ")
                await asyncio.sleep(BODY_TIMEOUT_S / 10)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(60), aiohttp.ClientSession(flooded.url) as http:
            predicted = await Api(http).predict(path, [[1.0, 2.0]])
            assert len(predicted["predictions"]) == 1
            for reader, _ in slow:
                Reply.parse(await reader.readuntil(b"}")).problem(408)
        dripping.cancel()
        with suppress(asyncio.CancelledError):
            await dripping


async def test_connections_that_come_and_go(flooded: Flooded, path: str) -> None:
    """Thousands of connections with nothing, half a request or a huge header leave nothing behind."""
    head = HEAD.format(path=path).encode()
    sent = (b"", head, head + b"Content-Length: 99\r\n\r\n{", b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)
    for _ in range(20):
        async with AsyncExitStack() as stack:
            for number in range(100):
                _, writer = await stack.enter_async_context(connected(flooded.url))
                writer.write(sent[number % len(sent)])


async def test_heads_without_end(flooded: Flooded, path: str) -> None:
    """A header of megabytes, or a hundred thousand headers, are answered or cut off long before they are read."""
    header = b"X: " + b"a" * 1000 + b"\r\n"
    for line in (b"X: " + b"a" * 16 * MIB, header * 16_000):
        async with connected(flooded.url) as (reader, writer), asyncio.timeout(30):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n" + line)
            with suppress(ConnectionError):
                assert Reply.parse(await reader.read()).status in (400, 431)
