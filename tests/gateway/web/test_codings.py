"""Content codings: gzip and zstd bodies, their bounds, and the coding that a response gets."""

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings, strategies
from multidict import CIMultiDict

from keepfit.errors import MalformedError
from keepfit.settings import Settings
from keepfit_gateway import app
from keepfit_gateway.web import bodies, codings, rows_body
from keepfit_gateway.web.bodies import BodyMemoryLimit
from keepfit_gateway.web.codings import DeflateInflater, GzipInflater, Inflater, ZstdInflater, negotiate
from tests.gateway.api_client import REGRESSOR, Api, Reply, connected, eventually, exchange, serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD = {"Content-Encoding": "zstd"}
BODY = b'{"X":[[1.0,2.0]],"y":[1.0]}'
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
MIB = 1 << 20
ALL_TYPES = {bodies.JSON, *rows_body.TABLES}


def inflate(inflater: Inflater, data: bytes, piece_bytes: int = 1000) -> bytes:
    """Inflate data that arrives in pieces."""
    out = []
    for start in range(0, len(data), piece_bytes):
        inflater.feed(data[start : start + piece_bytes])
        while inflater.pending:
            out.append(inflater.step())
            assert len(out[-1]) <= codings.STEP_BYTES
    inflater.finish()
    return b"".join(out)


def zstd_of(data: bytes, window_log: int) -> bytes:
    """Return a frame with a window of this size."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
    return compressor.compress(data) + compressor.flush()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """Yield a body in pieces, so that its length is unknown before its end."""
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


# Inflating.


@settings(max_examples=50, deadline=None)
@given(strategies.binary(max_size=3000), strategies.integers(1, 500))
def test_a_body_is_inflated_however_it_is_cut(data: bytes, piece_bytes: int) -> None:
    """The result does not depend on where the network cuts a body."""
    assert inflate(GzipInflater(), gzip.compress(data), piece_bytes) == data
    assert inflate(ZstdInflater(), zstd.compress(data), piece_bytes) == data
    assert inflate(DeflateInflater(), zlib.compress(data), piece_bytes) == data


@pytest.mark.parametrize(
    ("inflater", "compress"),
    [(GzipInflater, gzip.compress), (ZstdInflater, zstd.compress), (DeflateInflater, zlib.compress)],
)
def test_a_bomb_is_inflated_in_small_steps(inflater: type[Inflater], compress: Callable[[bytes], bytes]) -> None:
    """However much a body expands, one step returns a megabyte at most."""
    assert inflate(inflater(), compress(bytes(20 * MIB))) == bytes(20 * MIB)


def test_a_zstd_body_may_have_several_frames() -> None:
    """Frames that follow each other are one body, and skippable frames are no part of it (RFC 8878, 3)."""
    first, second = zstd.compress(b"one "), zstd.compress(b"body")
    assert inflate(ZstdInflater(), SKIPPABLE + first + SKIPPABLE + second + SKIPPABLE) == b"one body"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(BODY, "corrupt", id="not zstd"),
        pytest.param(zstd.compress(BODY)[:-1], "truncated", id="last byte missing"),
        pytest.param(zstd.compress(BODY) + b"x", "follow the end", id="trailing garbage"),
        pytest.param(zstd.compress(BODY) + zstd.compress(BODY)[:3], "truncated", id="a second frame that ends early"),
        pytest.param(zstd.compress(BODY) + b"(x2345678", "corrupt", id="a second frame that is none"),
        pytest.param(zstd_of(BODY, 24), "more than 8 MiB", id="large window"),
        pytest.param(zstd_of(BODY, 27), "more than 8 MiB", id="huge window"),
        pytest.param(
            zstd.compress(BODY, options={zstd.CompressionParameter.checksum_flag: 1})[:-4] + bytes(4),
            "corrupt",
            id="wrong checksum",
        ),
        pytest.param(
            zstd.compress(BODY, zstd_dict=zstd.train_dict([b"[%d]" % i * 20 for i in range(999)], 999)),
            "Dictionary",
            id="dictionary",
        ),
        pytest.param(zstd.compress(b"") * 10_001, "more than 10000 frames", id="thousands of frames"),
    ],
)
async def test_invalid_zstd_streams(api: Api, metadata: dict[str, Any], data: bytes, reason: str) -> None:
    """A zstd body that is corrupt, truncated, followed by data or needs too much memory answers 400."""
    path = await api.make(metadata, REGRESSOR)
    for body in (data, pieces(data)):
        reply = await api.call("POST", f"{path}/partial_fit", data=body, headers=ZSTD)
        assert reason in reply.problem(400)["detail"]
    assert (await api.model(path))["inbox"] == 0
    with pytest.raises(MalformedError, match=reason):
        inflate(ZstdInflater(), data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(BODY, "corrupt", id="not deflate"),
        pytest.param(zlib.compress(BODY)[:-1], "truncated", id="last byte missing"),
        pytest.param(zlib.compress(BODY) + b"x", "follow the end", id="trailing garbage"),
        pytest.param(zlib.compress(BODY)[:-4] + bytes(4), "corrupt", id="wrong checksum"),
        pytest.param(zlib.compress(BODY, wbits=-15), "corrupt", id="deflate without the zlib format"),
    ],
)
async def test_invalid_deflate_streams(api: Api, metadata: dict[str, Any], data: bytes, reason: str) -> None:
    """A deflate body that is corrupt, truncated, followed by data or not in the zlib format answers 400."""
    path = await api.make(metadata, REGRESSOR)
    reply = await api.call("POST", f"{path}/partial_fit", data=data, headers={"Content-Encoding": "deflate"})
    assert reason in reply.problem(400)["detail"]


def test_a_window_of_8_mib_is_accepted() -> None:
    """The largest window that RFC 9659 permits is accepted."""
    assert inflate(ZstdInflater(), zstd_of(BODY, 23)) == BODY


# Requests.


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("GZip", gzip.compress(BODY, mtime=0)),
        ("identity, gzip", gzip.compress(BODY, mtime=0)),
        ("zstd", zstd.compress(BODY)),
        ("ZSTD", zstd.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("zstd, identity", zstd.compress(BODY)),
        ("identity", BODY),
        ("identity, identity", BODY),
        ("", BODY),
    ],
)
async def test_codings_of_requests(api: Api, metadata: dict[str, Any], coding: str, data: bytes) -> None:
    """gzip, also by its old name, zstd and deflate are accepted, in any case, at once and in chunks, of any size."""
    path = await api.make(metadata, REGRESSOR)
    count = 40_000
    large = b'{"X":[%s[1.0,2.0]],"y":[%s1.0]}' % (b"[1.0,2.0]," * count, b"1.0," * count)
    if not data.startswith(b"{"):
        packer = zlib if coding == "deflate" else gzip if "zip" in coding.lower() else zstd
        large = packer.compress(large)
    for sent, rows in ((data, 1), (pieces(data), 1), (large, count + 1), (pieces(large), count + 1)):
        reply = await api.call("POST", f"{path}/partial_fit", data=sent, headers={"Content-Encoding": coding})
        assert reply.of(202)["accepted"] == rows


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "gzip, zstd", "compress", "aws-chunked", "zstd;q=1"])
async def test_an_unsupported_coding_names_the_supported_ones(api: Api, metadata: dict[str, Any], coding: str) -> None:
    """Another coding, or two, answers 415 with Accept-Encoding (RFC 7694)."""
    path = await api.make(metadata, REGRESSOR)
    reply = await api.call("POST", f"{path}/partial_fit", data=BODY, headers={"Content-Encoding": coding})
    assert coding in reply.problem(415)["detail"]
    assert reply.headers["Accept-Encoding"] == "gzip, zstd, deflate"
    assert "Accept" not in reply.headers


async def test_a_coding_on_two_lines_is_a_list(api: Api, metadata: dict[str, Any]) -> None:
    """Codings on two lines are two codings, which are not supported."""
    path = await api.make(metadata, REGRESSOR)
    packed = gzip.compress(gzip.compress(BODY))
    head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n"
    reply = Reply.parse(await exchange(api.url, head.encode() + b"Connection: close\r\n\r\n" + packed))
    assert "'gzip, gzip'" in reply.problem(415)["detail"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/json; charset=latin-1", "application/xml"])
async def test_another_media_type_names_the_accepted_ones(api: Api, media_type: str) -> None:
    """A 415 about the media type has Accept, and no Accept-Encoding, which would be about the coding."""
    reply = await api.call("POST", "/v1/models", data=b"{}", headers={"Content-Type": media_type})
    reply.problem(415)
    assert reply.headers["Accept"] == "application/json"
    assert "Accept-Encoding" not in reply.headers


@pytest.mark.parametrize("media_type", [None, "", "json"])
async def test_a_body_without_a_media_type_is_no_table(api: Api, media_type: str | None) -> None:
    """Without a usable Content-Type the answer is 415 with the accepted types, on every call about rows."""
    for call in ("predict", "partial_fit", "score"):
        for path in (f"/v1/{call}", f"/v1/models/{'0' * 64}/{call}"):
            async with aiohttp.ClientSession(api.url, skip_auto_headers=["Content-Type"]) as http:
                headers = {} if media_type is None else {"Content-Type": media_type}
                async with http.post(path, data=b"{}", headers=headers) as response:
                    problem = await response.json(content_type="application/problem+json")
            assert (response.status, set(response.headers["Accept"].split(", "))) == (415, ALL_TYPES)
            assert problem["detail"].startswith("Send the body as Content-Type: application/json")


@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8"])
async def test_accept_encoding_may_have_several_lines(api: Api, metadata: dict[str, Any], media_type: str) -> None:
    """The lines of Accept-Encoding are one list, on the fast and on the regular path."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0, 2.0]], [1.0])
    for lines, coding in ((("gzip", "identity;q=0"), "gzip"), (("br", "zstd, *;q=0"), "zstd"), (("gzip", "br"), None)):
        headers = [("Content-Type", media_type), *(("Accept-Encoding", line) for line in lines)]
        async with (
            aiohttp.ClientSession(api.url, auto_decompress=False) as http,
            http.post(f"{path}/predict", data=b'{"X":[[1.0,2.0]]}', headers=CIMultiDict(headers)) as response,
        ):
            assert (response.status, response.headers.get("Content-Encoding")) == (200, coding)


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8", "us-ascii"])
async def test_utf_8_may_be_named(api: Api, charset: str) -> None:
    """JSON is UTF-8, and may say so."""
    reply = await api.call(
        "POST", "/v1/models", data=b"{}", headers={"Content-Type": f"application/json; charset={charset}"}
    )
    assert "metadata" in reply.problem(400)["detail"]


async def test_a_zstd_bomb_is_not_inflated_beyond_the_limit(settings: Settings) -> None:
    """The limit of the body's size applies to the inflated size."""
    limit = 100_000
    async with serving(settings.model_copy(update={"body_bytes_max": limit})) as api:
        for bomb in (zstd.compress(bytes(limit + 1)), zstd.compress(bytes(300 * MIB)), zstd_of(bytes(300 * MIB), 23)):
            (await api.call("POST", "/v1/models", data=bomb, headers=ZSTD)).problem(413)
        whole = zstd.compress(b'"' + b"x" * (limit - 2) + b'"')
        (await api.call("POST", "/v1/models", data=whole, headers=ZSTD)).problem(400)


async def test_windows_share_the_memory_for_bodies(
    settings: Settings, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that inflating takes counts like that of bodies: another large request answers 503 meanwhile."""
    rows = gzip.compress(b'{"X":[%s[1,2]],"y":[%s1]}' % (b"[0,0]," * 20_000, b"0," * 20_000))
    packed, held = zstd_of(bytes(6 * MIB), 23), asyncio.Event()

    class Limit(BodyMemoryLimit):
        def reserve(self, request: Any, size: int) -> None:
            super().reserve(request, size)
            if request[bodies.RESERVED_BYTES] >= 5 * MIB:
                held.set()

    monkeypatch.setattr(app, "BodyMemoryLimit", Limit)
    async with serving(settings.model_copy(update={"bodies_bytes_max": 4 * MIB})) as api:
        path = await api.make(metadata, REGRESSOR)

        async def learn() -> Reply:
            return await api.call("POST", f"{path}/partial_fit", data=rows, headers={"Content-Encoding": "gzip"})

        head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Encoding: zstd\r\nContent-Length: {len(packed)}\r\n\r\n"
        async with connected(api.url) as (_, writer), asyncio.timeout(30):
            writer.write(head.encode() + packed[:-1])
            await held.wait()
            (await learn()).problem(503)

        async def is_free() -> bool:
            return (await learn()).status == 202

        await eventually(is_free, "the memory being released")


# Responses.


@pytest.mark.parametrize(
    ("accepted", "large", "small"),
    [
        (None, "identity", "identity"),
        ("", "identity", "identity"),
        ("gzip", "gzip", "identity"),
        ("x-gzip", "gzip", "identity"),
        ("zstd", "zstd", "identity"),
        ("gzip, deflate, br, zstd", "zstd", "identity"),
        ("gzip, deflate", "gzip", "identity"),
        ("deflate", "deflate", "identity"),
        ("gzip;q=0.5, deflate", "deflate", "identity"),
        ("gzip;q=0, zstd;q=0, *", "deflate", "identity"),
        ("gzip, zstd;q=0.5", "gzip", "identity"),
        ("gzip;q=0.2, zstd;q=0.1", "gzip", "identity"),
        ("gzip;q=0", "identity", "identity"),
        ("gzip;q=0.000, zstd;q=0", "identity", "identity"),
        ("br", "identity", "identity"),
        ("*", "gzip", "identity"),
        ("*;q=0.1", "gzip", "identity"),
        ("gzip;q=0, *", "zstd", "identity"),
        ("identity, *", "identity", "identity"),
        ("identity, gzip", "gzip", "identity"),
        ("identity, gzip;q=0.5", "identity", "identity"),
        ("identity;q=0.5, gzip", "gzip", "identity"),
        ("identity;q=0, gzip", "gzip", "gzip"),
        ("*;q=0, zstd", "zstd", "zstd"),
        ("identity;q=0, *", "gzip", "gzip"),
        ("identity;q=0", None, None),
        ("*;q=0", None, None),
        ("identity;q=0, br", None, None),
        ("*;q=0, identity", "identity", "identity"),
        ("gzip;q=2", "identity", "identity"),
        ("GZIP; Q=1", "gzip", "identity"),
    ],
)
def test_the_coding_of_a_response(accepted: str | None, large: str | None, small: str | None) -> None:
    """Names, weights, * and identity decide the coding as RFC 9110 (12.5.3) says; a small response is not coded."""
    headers = CIMultiDict[str]() if accepted is None else CIMultiDict({"Accept-Encoding": accepted})
    assert (negotiate(headers, small=False), negotiate(headers, small=True)) == (large, small)


@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8"])
async def test_responses_have_the_coding_that_the_client_accepts(
    api: Api, metadata: dict[str, Any], media_type: str
) -> None:
    """Predictions and errors are coded alike on the fast and on the regular path."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0, 2.0]], [1.0])
    async with aiohttp.ClientSession(api.url, auto_decompress=False) as http:

        async def ask(accepted: str, rows: int, width: int = 2) -> tuple[int, str | None, str | None, bytes]:
            headers = {"Accept-Encoding": accepted, "Content-Type": media_type}
            body = json.dumps({"X": [["a" if width < 2 else 1.0] * width] * rows})
            async with http.post(f"{path}/predict", data=body, headers=headers) as response:
                coding, vary = response.headers.get("Content-Encoding"), response.headers.get("Vary")
                return response.status, coding, vary, await response.read()

        unpack = {None: bytes, "gzip": gzip.decompress, "zstd": zstd.decompress, "deflate": zlib.decompress}
        for rows, width in ((500, 2), (1, 2), (40, 1)):
            plain = await ask("", rows, width)
            assert plain[1] is None
            several = ("gzip, zstd", "gzip;q=0, zstd;q=0.5", "identity;q=0, gzip", "*;q=0, zstd")
            for accepted in ("gzip", "zstd", "deflate", *several):
                status, coding, vary, body = await ask(accepted, rows, width)
                assert status == plain[0] == (200 if width == 2 else 422)
                assert (coding is None) is (rows == 1 and "=0," not in accepted.replace("gzip;q=0", ""))
                assert coding is None or (coding in accepted and vary == "Accept-Encoding")
                assert unpack[coding](body) == plain[3]


@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8"])
async def test_a_client_that_accepts_no_coding_gets_406(api: Api, metadata: dict[str, Any], media_type: str) -> None:
    """A request whose answer could have no coding answers 406 and teaches nothing."""
    path = await api.make(metadata, REGRESSOR)
    headers = {"Accept-Encoding": "identity;q=0", "Content-Type": media_type}
    refused = await api.call("POST", f"{path}/partial_fit", data=BODY, headers=headers)
    assert "identity" in refused.problem(406)["detail"]
    assert (await api.model(path))["inbox"] == 0


async def test_an_unmodified_client_reads_zstd(api: Api, metadata: dict[str, Any]) -> None:
    """aiohttp's client announces zstd by itself, and reads what it gets."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0, 2.0]], [1.0])
    reply: Reply = await api.post(f"{path}/predict", {"X": [[1.0, 2.0]] * 500})
    assert reply.headers["Content-Encoding"] == "zstd"
    assert len(reply.of(200)["predictions"]) == 500
