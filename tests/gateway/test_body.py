"""Limits of size and time of what comes in, and compression of what goes out."""

import asyncio
import gzip
import itertools
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from keepfit.settings import Settings
from tests.conftest import Stack
from tests.gateway.api import REGRESSOR, Api, Reply, connected, serving

BYTES_MAX = 100_000
TIMEOUT_S = 0.5
HEAD = b"POST /v1/models HTTP/1.1\r\nHost: keepfit\r\nContent-Type: application/json\r\n"


@pytest.fixture
async def strict(settings: Settings) -> AsyncIterator[Api]:
    """Return the API of a gateway with little patience."""
    limits = {"body_bytes_max": BYTES_MAX, "body_timeout_s": TIMEOUT_S}
    async with serving(settings.model_copy(update=limits)) as api:
        yield api


def body_of(size: int) -> bytes:
    """Return JSON of so many bytes that is no request."""
    return b'"' + b"x" * (size - 2) + b'"'


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """Yield a body in pieces, so that nobody knows its length before its end."""
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


async def test_a_body_may_be_as_large_as_the_limit_and_no_larger(strict: Api) -> None:
    """The limit counts the body's bytes: one more answers 413, whether its length was told or not."""
    (await strict.call("POST", "/v1/models", data=body_of(BYTES_MAX))).problem(400)
    for data in (body_of(BYTES_MAX + 1), chunks(body_of(BYTES_MAX + 1))):
        problem = (await strict.call("POST", "/v1/models", data=data)).problem(413)
        assert str(BYTES_MAX) in problem["detail"]


@pytest.mark.parametrize("size", [BYTES_MAX + 1, 200_000_000])
async def test_a_gzip_bomb_is_not_inflated_beyond_the_limit(strict: Api, size: int) -> None:
    """The limit counts what a body inflates to."""
    packed = gzip.compress(bytes(size), compresslevel=1)
    (await strict.call("POST", "/v1/models", data=packed, headers={"Content-Encoding": "gzip"})).problem(413)
    whole = gzip.compress(body_of(BYTES_MAX))
    (await strict.call("POST", "/v1/models", data=whole, headers={"Content-Encoding": "gzip"})).problem(400)


@pytest.mark.parametrize(
    ("begin", "drops"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: kee", [b"p"], id="head"),
        pytest.param(HEAD + b"Content-Length: 1000\r\n\r\n", [b"x"], id="body"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", [b"1\r\nx\r\n"], id="chunks"),
        pytest.param(
            HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n",
            [bytes([byte]) for byte in gzip.compress(random.Random(1).randbytes(1000))],
            id="gzip",
        ),
    ],
)
async def test_a_request_that_drips_in_is_ended(strict: Api, begin: bytes, drops: list[bytes]) -> None:
    """A request that has not arrived when its time is up answers 408, however it drips, and the connection ends."""
    async with connected(strict.url) as (reader, writer), asyncio.timeout(20):
        writer.write(begin)
        answer = asyncio.create_task(reader.readuntil(b"}"))
        for drop in itertools.cycle(drops):
            writer.write(drop)
            if (await asyncio.wait([answer], timeout=TIMEOUT_S / 10))[0]:
                break
        reply = Reply.parse(await answer)
        reply.problem(408)
        assert reply.headers.get("Connection") == "close" or (await reader.read()) == b""
    assert (await strict.get("/livez")).status == 200


async def test_a_connection_may_idle_between_requests(strict: Api) -> None:
    """The time for a head begins with its first byte: a kept connection outlasts it and serves on."""
    request = b"GET /livez HTTP/1.1\r\nHost: keepfit\r\n\r\n"
    async with (
        connected(strict.url) as (reader, writer),
        connected(strict.url) as (late_reader, late_writer),
        asyncio.timeout(20),
    ):
        writer.write(request)
        first = await reader.readuntil(b"}")
        # A head begun after this answer runs out of time: by then the idle connection has waited longer than that.
        late_writer.write(b"GET")
        Reply.parse(await late_reader.read()).problem(408)
        writer.write(request[:20])
        writer.write(request[20:])
        assert Reply.parse(await reader.readuntil(b"}")).body == Reply.parse(first).body
        # The second wait between requests is as patient as the first, and the second head as little as the first.
        writer.write(b"GET")
        Reply.parse(await reader.read()).problem(408)


async def test_a_large_answer_is_compressed_for_who_asks(stack: Stack, api: Api, metadata: dict[str, Any]) -> None:
    """Accept-Encoding: gzip gets a gzip answer that inflates to the plain one; small answers stay as they are."""
    path = await api.make(metadata, REGRESSOR)
    X = [[float(i)] for i in range(2000)]
    await api.learn(path, X, [1.0] * 2000)
    plain = await api.predict(path, X)
    async with aiohttp.ClientSession(stack.url, auto_decompress=False) as http:

        async def predict(rows: Any, accept: str) -> tuple[str | None, str | None, bytes]:
            headers = {"Accept-Encoding": accept}
            async with http.post(f"{path}/predict", json={"X": rows}, headers=headers) as response:
                assert response.status == 200
                sent = response.headers
                return sent.get("Content-Encoding"), sent.get("Vary"), await response.read()

        for accept in ("gzip", "gzip, deflate, br", "deflate, GZIP;q=0.5"):
            encoding, vary, body = await predict(X, accept)
            assert (encoding, vary) == ("gzip", "Accept-Encoding")
            assert json.loads(gzip.decompress(body)) == plain
            assert len(body) < len(json.dumps(plain)) / 2
        for accept in ("identity", "gzip;q=0", "deflate", ""):
            encoding, vary, body = await predict(X, accept)
            assert (encoding, vary) == (None, "Accept-Encoding")
            assert json.loads(body) == plain
        encoding, _, body = await predict(X[:2], "gzip")
        assert encoding is None
        assert json.loads(body)["predictions"] == pytest.approx(plain["predictions"][:2])
