"""Floods: memory of a gateway while clients send too much, and whether it still serves."""

import asyncio
import io
import logging
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import aiohttp
import pytest

from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api, Reply, connected
from tests.gateway.gateway_process import GatewayProcess, gateway_process

log = logging.getLogger(__name__)

MIB = 2**20
ABOVE_IDLE_BYTES_MAX = 150 * MIB
BODY_TIMEOUT_S = 16.0
SLOW = 500
HEAD = "POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GZIP = {"Content-Encoding": "gzip"}


@pytest.fixture(scope="module")
def flooded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Run a gateway for this module on the servers of the stack, with the default limits."""
    folder = tmp_path_factory.mktemp("flooded")
    times = {"KEEPFIT_BODY_TIMEOUT_S": str(BODY_TIMEOUT_S), "KEEPFIT_HEAD_TIMEOUT_S": str(BODY_TIMEOUT_S)}
    with gateway_process(stack, folder, **times) as process:
        yield process


@pytest.fixture
async def path(flooded: GatewayProcess, metadata: dict[str, Any]) -> AsyncIterator[str]:
    """Return the path of a model; after the test it must learn and predict, and memory be below the limit."""
    async with aiohttp.ClientSession(flooded.url) as http:
        api = Api(http)
        path = await api.make(metadata, REGRESSOR)
        await api.learn(path, [[1.0, 2.0]], [1.0])
        await api.predict(path, [[1.0, 2.0]])
        idle = flooded.reset_peak()
        yield path
        above = flooded.peak() - idle
        assert (await api.learn(path, [[1.0, 2.0]], [1.0]))["sequence"] == 2
        assert len((await api.predict(path, [[3.0, 4.0]]))["predictions"]) == 1
    # Visible with --log-cli-level=INFO.
    log.info("%d MiB above the %d MiB before the test", above / MIB, idle / MIB)
    assert above < ABOVE_IDLE_BYTES_MAX


def bomb(mib: int) -> bytes:
    """Return gzip of `mib` MiB of spaces, without its end; its size is a thousandth of that."""
    packer = zlib.compressobj(9, wbits=31)
    first = packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (mib - 1)


async def pieces(*data: bytes, times: int = 1) -> AsyncIterator[bytes]:
    """Yield a body whose size is unknown before its end."""
    for _ in range(times):
        for piece in data:
            yield piece


async def rejected(url: str, path: str, data: Any, headers: dict[str, str] | None = None) -> str:
    """Send rows that must be rejected as too large; return the reason."""
    async with aiohttp.ClientSession(url) as http:
        headers = {"Content-Type": "application/json", **(headers or {})}
        async with http.post(f"{path}/partial_fit", data=data, headers=headers) as response:
            reply = Reply(response.status, response.headers, await response.read())
    return str(reply.problem(413)["detail"])


async def test_gzip_bombs(flooded: GatewayProcess, path: str) -> None:
    """Concurrent bodies of a megabyte that inflate to a gigabyte answer 413 and are never in memory inflated."""
    packed = bomb(1024)
    assert len(packed) < 2 * MIB
    sent = (io.BytesIO(packed), pieces(packed), io.BytesIO(packed))
    for detail in await asyncio.gather(*(rejected(flooded.url, path, data, GZIP) for data in sent)):
        assert "larger than" in detail


async def test_bodies_over_the_limit(flooded: GatewayProcess, path: str) -> None:
    """Bodies over 500 MB answer 413: at once with Content-Length, and without being stored otherwise."""
    piece = b" " * MIB
    assert "larger than" in await rejected(flooded.url, path, pieces(piece, times=501))
    head = HEAD.format(path=path)
    for length in (500 * MIB + 1, 10**15):
        async with connected(flooded.url) as (reader, writer):
            writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode())
            # If the client sends on after the answer, the data is read for a while and discarded.
            writer.write(piece * 8)
            Reply.parse(await reader.readuntil(b"}")).problem(413)


async def test_announced_lengths_that_are_never_sent(flooded: GatewayProcess, path: str) -> None:
    """A Content-Length reserves no memory: a hundred bodies of 400 MB are announced, begun and aborted."""
    head = f"{HEAD.format(path=path)}Content-Length: {400 * MIB}\r\n\r\n".encode()
    async with AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await stack.enter_async_context(connected(flooded.url))
            writer.write(head + b'{"X":[[' + b" " * 100_000)
            await writer.drain()


async def test_slow_connections(flooded: GatewayProcess, path: str) -> None:
    """Five hundred connections with slow heads or bodies get a 408, while others are served."""
    head = HEAD.format(path=path).encode()
    begins = (
        b"GET /livez HTTP/1.1\r\nX: ",
        head + b"Content-Length: 1000\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n400\r\n",
        # A gzip header with a comment; the slow bytes are that comment.
        head + b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n\x1f\x8b\x08\x10\0\0\0\0\0\0",
    )
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected(flooded.url)) for _ in range(SLOW)]
        for number, (_, writer) in enumerate(slow):
            writer.write(begins[number % len(begins)])

        async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Reply:
            """Send a byte now and then until the answer is there: a byte after it may close the connection."""
            answer = asyncio.create_task(reader.readuntil(b"}"))
            while not (await asyncio.wait({answer}, timeout=BODY_TIMEOUT_S / 10))[0]:
                writer.write(b" ")
            return Reply.parse(answer.result())

        async with asyncio.timeout(100), aiohttp.ClientSession(flooded.url) as http, asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(answered(*connection)) for connection in slow]
            predicted = await Api(http).predict(path, [[1.0, 2.0]])
            assert len(predicted["predictions"]) == 1
        for answer in answers:
            answer.result().problem(408)


async def test_connections_that_are_opened_and_closed(flooded: GatewayProcess, path: str) -> None:
    """Thousands of connections with no data, half a request or a huge header use no memory afterwards."""
    head = HEAD.format(path=path).encode()
    sent = (b"", head, head + b"Content-Length: 99\r\n\r\n{", b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)
    for _ in range(20):
        async with AsyncExitStack() as stack:
            for number in range(100):
                _, writer = await stack.enter_async_context(connected(flooded.url))
                writer.write(sent[number % len(sent)])


async def test_endless_heads(flooded: GatewayProcess, path: str) -> None:
    """A header of megabytes, or thousands of headers, are answered or disconnected long before they are read."""
    header = b"X: " + b"a" * 1000 + b"\r\n"
    for line in (b"X: " + b"a" * 16 * MIB, header * 16_000):
        async with connected(flooded.url) as (reader, writer), asyncio.timeout(30):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + line)
            with suppress(ConnectionError):
                assert Reply.parse(await reader.read()).status in (400, 431)
