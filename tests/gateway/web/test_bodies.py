"""Limits of size, time and memory of request bodies, and compression of responses."""

import asyncio
import gc
import gzip
import io
import itertools
import json
import random
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pyarrow as pa
import pytest
from pyarrow import parquet

from keepfit.errors import InvalidError
from keepfit.recipe.recipe import parse
from keepfit.settings import Settings
from keepfit_gateway import schemas
from keepfit_gateway.web import rows_body
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api, Reply, connected, eventually, serving

BYTES_MAX = 100_000
TIMEOUT_S = 0.5
GZIP = {"Content-Encoding": "gzip"}
PARQUET = {"Content-Type": rows_body.PARQUET}
HEAD = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
async def strict(settings: Settings) -> AsyncIterator[Api]:
    """Return the API of a gateway with low limits."""
    limits = {"body_bytes_max": BYTES_MAX, "head_timeout_s": TIMEOUT_S, "body_timeout_s": TIMEOUT_S}
    async with serving(settings.model_copy(update=limits)) as api:
        yield api


def body_of(size: int) -> bytes:
    """Return JSON of `size` bytes that is not a valid request."""
    return b'"' + b"x" * (size - 2) + b'"'


def parquet_of(columns: dict[str, list[float]]) -> bytes:
    """Return columns as a Parquet file."""
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """Yield a body in pieces, so that its length is unknown before its end."""
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


async def test_a_body_larger_than_the_limit_is_rejected(strict: Api) -> None:
    """A body of the limit's size is read, one byte more answers 413, with and without Content-Length."""
    (await strict.call("POST", "/v1/models", data=body_of(BYTES_MAX))).problem(400)
    for data in (body_of(BYTES_MAX + 1), chunks(body_of(BYTES_MAX + 1))):
        problem = (await strict.call("POST", "/v1/models", data=data)).problem(413)
        assert str(BYTES_MAX) in problem["detail"]


@pytest.mark.parametrize("size", [BYTES_MAX + 1, 200_000_000])
async def test_a_gzip_bomb_is_not_inflated_beyond_the_limit(strict: Api, size: int) -> None:
    """The limit applies to the inflated size."""
    packed = gzip.compress(bytes(size), compresslevel=1)
    (await strict.call("POST", "/v1/models", data=packed, headers={"Content-Encoding": "gzip"})).problem(413)
    whole = gzip.compress(body_of(BYTES_MAX))
    (await strict.call("POST", "/v1/models", data=whole, headers={"Content-Encoding": "gzip"})).problem(400)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_body_announced_as_too_large_is_rejected_at_once(strict: Api, encoding: str) -> None:
    """A Content-Length over the limit answers 413 before a byte of the body has arrived."""
    head = HEAD + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (encoding.encode(), BYTES_MAX + 1)
    async with connected(strict.url) as (reader, writer), asyncio.timeout(20):
        writer.write(head)
        reply = Reply.parse(await reader.readuntil(b"}"))
        assert str(BYTES_MAX) in reply.problem(413)["detail"]
        assert reply.headers["Connection"] == "close"


async def test_rows_for_a_missing_model_are_rejected_before_they_arrive(strict: Api) -> None:
    """Large bodies, and bodies of unknown size, for a missing model answer 404 before they have arrived."""
    for length in (b"Content-Length: 99999", b"Transfer-Encoding: chunked"):
        head = b"POST /v1/models/%s/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % (
            b"0" * 64
        )
        async with connected(strict.url) as (reader, writer), asyncio.timeout(20):
            writer.write(head + length + b"\r\n\r\n")
            Reply.parse(await reader.readuntil(b"}")).problem(404)


def gzip_of(size: int) -> bytes:
    """Return gzip of about `size` bytes of rows; gzip makes them a hundred times smaller."""
    return gzip.compress(b'{"X":[%s[1,2]],"y":[%s1]}' % (b"[0,0]," * (size // 8), b"0," * (size // 8)))


async def test_a_body_that_inflates_a_hundredfold_is_read(api: Api, metadata: dict[str, Any]) -> None:
    """A gzip body that inflates a hundredfold, within the limit, is learned completely."""
    path = await api.make(metadata, REGRESSOR)
    packed = gzip_of(5_000_000)
    assert len(packed) < 50_000
    for data in (packed, chunks(packed)):
        reply = await api.call("POST", f"{path}/partial_fit", data=data, headers=GZIP)
        assert reply.of(202)["accepted"] == 5_000_000 // 8 + 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[:-1], "truncated"),
        (lambda packed: packed[:-8] + bytes(8), "corrupt"),
        (lambda packed: packed + b"x", "follow the end"),
        (lambda packed: packed[:1000] + bytes(100) + packed[1100:], "corrupt"),
    ],
)
async def test_a_body_that_inflates_a_hundredfold_must_be_whole(
    api: Api, metadata: dict[str, Any], damage: Callable[[bytes], bytes], reason: str
) -> None:
    """A body that is measured before it is stored is checked like any other gzip body."""
    path = await api.make(metadata, REGRESSOR)
    packed = damage(gzip_of(5_000_000))
    for data in (packed, chunks(packed)):
        refused = await api.call("POST", f"{path}/partial_fit", data=data, headers=GZIP)
        assert reason in refused.problem(400)["detail"]
    assert (await api.model(path))["inbox"] == 0


async def test_bodies_share_a_memory_limit(settings: Settings, metadata: dict[str, Any]) -> None:
    """While other bodies use the memory, one more answers 503 with Retry-After; a single body is always read."""
    rows = b'{"X":[%s[1,2]],"y":[%s1]}' % (b"[0,0]," * 20_000, b"0," * 20_000)
    async with serving(settings.model_copy(update={"bodies_bytes_max": 200_000})) as api:
        path = await api.make(metadata, REGRESSOR)
        head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        packed = gzip.compress(rows)

        async def is_full() -> bool:
            reply = await api.call("POST", f"{path}/partial_fit", data=packed, headers=GZIP)
            if reply.status == 503:
                assert "bodies of other requests" in reply.problem(503)["detail"]
                assert int(reply.headers["Retry-After"]) >= 1
            return reply.status == 503

        async def is_free() -> bool:
            return not await is_full()

        assert not await is_full()
        async with connected(api.url) as (reader, writer), asyncio.timeout(30):
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(rows) + rows[:-1])
            await eventually(is_full, "the memory being used")
            # Small bodies are not counted.
            (await api.post(f"{path}/partial_fit", {"X": [[1, 2]], "y": [1]})).of(202)
            # Those are that are large once they are inflated.
            many = parquet_of({name: [0.0] * 20_000 for name in ("a", "b", "y")})
            assert len(many) < 10_000
            grown = await api.call("POST", f"{path}/partial_fit", data=many, headers=PARQUET)
            assert "bodies of other requests" in grown.problem(503)["detail"]
            writer.write(rows[-1:])
            assert Reply.parse(await reader.readuntil(b"}")).of(202)["accepted"] == 20_001
            assert not await is_full()
            assert (await api.call("POST", f"{path}/partial_fit", data=many, headers=PARQUET)).of(202)
        # An aborted request releases its memory, too.
        async with connected(api.url) as (_, writer):
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(rows) + rows[:-1])
            await eventually(is_full, "the memory being used")
        await eventually(is_free, "the memory being released")


async def test_large_bodies_must_be_plain_rows(
    workerless: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that needs the strict parser has a lower limit, because its lists are many times larger in memory."""
    monkeypatch.setattr(rows_body, "STRICT_BYTES_MAX", 100_000)
    path = await workerless.make(metadata, REGRESSOR)
    start, end = b'{"X":[' + b"[0,0]," * 20_000, b']],"y":[%s1]}' % (b"0," * 20_000)
    for row in (b"[1,{}", b'[1,"\\"', b"[1,[]", b"[1,,"):
        problem = (await workerless.call("POST", f"{path}/partial_fit", data=start + row + end)).problem(413)
        assert "plain rows" in problem["detail"]
    problem = (await workerless.call("POST", f"{path}/partial_fit", data=start + b"[1,true" + end)).problem(422)
    assert problem["errors"] == [{"row": 20_000, "column": 1, "detail": "true is not a number"}]
    assert (await workerless.call("POST", f"{path}/partial_fit", data=start + b"[1,2" + end)).of(202)[
        "accepted"
    ] == 20_001


def test_large_invalid_rows_are_freed() -> None:
    """After the rejection nothing references large rows, not even uncollected garbage."""

    class Text(bytearray):
        """A body that supports weak references."""

    text = Text(b'{"X":[[1,2],["a",2]],"y":[1,2]}')
    watch = weakref.ref(text)
    sent = rows_body._parse_large(text, schemas.PartialFit, "a" * 64)
    assert isinstance(sent, rows_body.LargeRows)
    gc.disable()
    try:
        with pytest.raises(InvalidError) as refused:
            sent.shape(parse(dict(REGRESSOR)), learning=True)
        assert refused.value.faults[0].row == 1
        del text, sent, refused
        assert watch() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("begin", "drops"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: localhost", [b"p"], id="head"),
        pytest.param(HEAD + b"Content-Length: 1000\r\n\r\n", [b"x"], id="body"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", [b"1\r\nx\r\n"], id="chunks"),
        pytest.param(
            HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n",
            [bytes([byte]) for byte in gzip.compress(random.Random(1).randbytes(1000))],
            id="gzip",
        ),
    ],
)
async def test_a_slow_request_times_out(strict: Api, begin: bytes, drops: list[bytes]) -> None:
    """A request that does not arrive in time answers 408, wherever it is slow, and its connection is closed."""
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


async def test_a_connection_may_be_idle_between_requests(strict: Api) -> None:
    """The time limit of a head begins with its first byte: an idle connection stays open longer than that."""
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with (
        connected(strict.url) as (reader, writer),
        connected(strict.url) as (late_reader, late_writer),
        asyncio.timeout(20),
    ):
        writer.write(request)
        first = await reader.readuntil(b"}")
        # A head that begins after this answer times out: by then the idle connection has been idle for longer.
        late_writer.write(b"GET")
        Reply.parse(await late_reader.read()).problem(408)
        writer.write(request[:20])
        writer.write(request[20:])
        assert Reply.parse(await reader.readuntil(b"}")).body == Reply.parse(first).body
        # The limits are the same for the second idle time and the second head.
        writer.write(b"GET")
        Reply.parse(await reader.read()).problem(408)


async def test_a_large_response_is_compressed_if_the_client_accepts_gzip(
    stack: Stack, api: Api, metadata: dict[str, Any]
) -> None:
    """With Accept-Encoding: gzip a large response is compressed, a small one is not."""
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

        for accept in ("gzip", "gzip, deflate, br", "br, GZIP;q=0.5"):
            encoding, vary, body = await predict(X, accept)
            assert (encoding, vary) == ("gzip", "Accept-Encoding")
            assert json.loads(gzip.decompress(body)) == plain
            assert len(body) < len(json.dumps(plain)) / 2
        for accept in ("identity", "gzip;q=0", "br", ""):
            encoding, vary, body = await predict(X, accept)
            assert (encoding, vary) == (None, "Accept-Encoding")
            assert json.loads(body) == plain
        encoding, _, body = await predict(X[:2], "gzip")
        assert encoding is None
        assert json.loads(body)["predictions"] == pytest.approx(plain["predictions"][:2])
