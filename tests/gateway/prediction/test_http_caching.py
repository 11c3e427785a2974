"""HTTP caching of predictions: when a cached answer is used, its header fields, and that its version is current."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog
from blockbuster import blockbuster_ctx
from pydantic import SecretStr

from keepfit.settings import Settings
from tests.conftest import SHOES_RECIPE, Stack
from tests.gateway.api_client import REGRESSOR, Api, Reply, connected, eventually, exchange, serving

X = [[1.0, 2.0], [3.0, 4.0]]
LABELLED = {"X": X, "y": [1.0, 2.0]}
MANY = [[float(i), 1.0] for i in range(200)]


@pytest.fixture
async def path(api: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned rows."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, **LABELLED)
    return path


async def ask(api: Api, path: str, data: Any = None, **headers: str) -> Reply:
    """Predict. Every answer has an ETag and may be stored, but must be revalidated."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(data if data is not None else {"X": X}).encode()
    reply = await api.call("POST", f"{path}/predict", data=body, headers=named)
    assert reply.status in (200, 304)
    assert re.fullmatch(r'W/"\d+-\d+-[0-9a-f]{32}"', reply.headers["ETag"])
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["Vary"] == "Accept-Encoding"
    return reply


async def test_equal_rows_are_answered_from_the_cache(api: Api, path: str, metadata: dict[str, Any]) -> None:
    """Equal rows in any spelling get the cached answer, equal in every byte, with its Age."""
    first = await ask(api, path)
    assert "Age" not in first.headers
    for body in (
        b'{"X": [[1.0, 2.0], [3.0, 4.0]]}',
        b'{"X":[[1,2],[3,4e0]]}',
        b'{"proba": false, "X": [[1, 2], [3, 4]]}',
    ):
        for _ in range(2):
            again = await api.call("POST", f"{path}/predict", data=body)
            assert (again.body, again.headers["ETag"]) == (first.body, first.headers["ETag"])
            assert int(again.headers["Age"]) < 60
            assert again.headers["Content-Type"] == "application/json"
    by_metadata = await api.post("/v1/predict", {"metadata": metadata, "X": X})
    assert (by_metadata.body, "Age" in by_metadata.headers) == (first.body, True)
    packed = {"Content-Encoding": "gzip"}
    sent = await api.call("POST", f"{path}/predict", data=gzip.compress(b'{"X": [[1, 2], [3, 4]]}'), headers=packed)
    assert (sent.body, "Age" in sent.headers) == (first.body, True)
    other = await ask(api, path, {"X": [[1.0, 2.0], [3.0, 5.0]]})
    assert "Age" not in other.headers
    assert other.headers["ETag"] != first.headers["ETag"]


@pytest.mark.parametrize("recipe", [SHOES_RECIPE, {**REGRESSOR, "features": {"make": "number", "year": "number"}}])
async def test_the_order_of_columns_does_not_matter(api: Api, metadata: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Rows as lists, and as objects in any order of keys, get the same cached answer."""
    path = await api.make(metadata, recipe)
    make = "nike" if recipe is SHOES_RECIPE else 7
    await api.learn(path, [[make, 2001]], [4.0])
    first = await ask(api, path, {"X": [{"make": make, "year": 2001}]})
    for row in ({"year": 2001, "make": make}, [make, 2001.0]):
        again = await ask(api, path, {"X": [row]})
        assert (again.body, "Age" in again.headers) == (first.body, True)


@pytest.mark.parametrize(
    ("directive", "cached"),
    [
        ("no-cache", False), ("no-store", False), ("max-age=0", False), ("max-age=0, max-stale", False),
        ("MAX-AGE=3600", True), ("max-stale=5", True), ("private", True),
    ],
)  # fmt: skip
async def test_cache_control_is_honoured(api: Api, path: str, directive: str, cached: bool) -> None:
    """Cache-Control of a request decides whether a cached answer is used, on the fast and the regular path."""
    for _ in range(2):
        await ask(api, path)
    for spaces in ("", " "):
        body = json.dumps({"X": X}).encode() + spaces.encode()
        reply = await api.call("POST", f"{path}/predict", data=body, headers={"Cache-Control": directive})
        assert reply.status == 200
        assert ("Age" in reply.headers) is cached


async def test_no_store_stores_nothing_and_no_cache_does(api: Api, path: str) -> None:
    """An answer to a no-store request is not cached; an answer to a no-cache request is."""
    await ask(api, path, Cache_Control="no-store")
    assert not await is_cached(api, path)
    await api.learn(path, **LABELLED)
    await ask(api, path, Cache_Control="no-cache")
    assert await is_cached(api, path)


async def test_a_matching_etag_gets_304(api: Api, path: str) -> None:
    """If-None-Match with the current ETag, weak or strong, alone or in a list, or `*`, gets a 304 without a body."""
    etag = (await ask(api, path)).headers["ETag"]
    for named in (etag, etag[2:], f'"other", {etag}', f'W/"a,b",{etag} , "c"', "*"):
        for more in ({}, {"Cache_Control": "no-cache"}, {"Cache_Control": "max-age=60"}):
            reply = await ask(api, path, If_None_Match=named, **more)
            assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", etag)
            assert "Content-Type" not in reply.headers
    for named in ('"other"', etag.replace("1-", "9-"), etag[:-2], "**", ""):
        assert (await ask(api, path, If_None_Match=named)).of(200)


@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8"])
async def test_several_lines_of_if_none_match_are_one_list(api: Api, path: str, media_type: str) -> None:
    """A tag on any line of If-None-Match gets 304."""
    etag = (await ask(api, path)).headers["ETag"]
    for lines, status in (
        (('"a"', etag), 304),
        ((etag, etag), 304),
        ((f'"a", {etag}', '"b"'), 304),
        (('"a"', '"b"'), 200),
    ):
        assert (await conditional(api, path, media_type, *(f"If-None-Match: {line}" for line in lines))) == status


@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8"])
@pytest.mark.parametrize("name", ["If-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range"])
async def test_other_conditions_are_ignored(api: Api, path: str, media_type: str, name: str) -> None:
    """Other conditional headers change no answer, once or twice."""
    for lines in ((f'{name}: "a"',), (f'{name}: "a"', f"{name}: *")):
        assert (await conditional(api, path, media_type, *lines)) == 200


async def conditional(api: Api, path: str, media_type: str, *lines: str) -> int:
    """Return the status of a prediction with further header lines."""
    body = json.dumps({"X": X}).encode()
    head = (
        f"POST {path}/predict HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {media_type}",
        "Connection: close",
        *lines,
    )
    request = "\r\n".join((*head, f"Content-Length: {len(body)}", "", "")).encode() + body
    return Reply.parse(await exchange(api.url, request)).status


async def test_an_etag_changes_with_the_version(api: Api, path: str) -> None:
    """After a commit the old ETag gets the new prediction; the new ETag gets 304, cached or not."""
    old = await ask(api, path)
    learned = await api.learn(path, **LABELLED)
    reply = await ask(api, path, If_None_Match=old.headers["ETag"])
    assert reply.of(200)["version"] == learned["version"] == old.json()["version"] + 1
    assert reply.headers["ETag"] != old.headers["ETag"]
    await api.learn(path, **LABELLED)
    # Another answer of the newest version is cached, so the version is known, but not this answer.
    version = (await ask(api, path, {"X": [[9.0, 9.0]]})).json()["version"]
    now = re.sub(r"-\d+-", f"-{version}-", reply.headers["ETag"])
    assert (await ask(api, path, If_None_Match=now)).status == 304
    assert (await ask(api, path)).headers["ETag"] == now


async def test_writes_are_visible_at_once(api: Api, path: str) -> None:
    """A predict after a waiting partial_fit never has an earlier version, while other clients keep the cache warm."""
    stop = asyncio.Event()

    async def hammer() -> None:
        while not stop.is_set():
            await ask(api, path)

    others = [asyncio.create_task(hammer()) for _ in range(2)]
    for _ in range(60):
        learned = await api.learn(path, **LABELLED)
        for _ in range(2):
            assert (await ask(api, path)).of(200)["version"] >= learned["version"]
    # A version that is read with GET counts as observed too.
    (await api.post(f"{path}/partial_fit", LABELLED)).of(202)
    seen = (await api.model(path))["version"]
    assert (await ask(api, path)).of(200)["version"] >= seen
    stop.set()
    await asyncio.gather(*others)


async def test_a_recreated_model_has_no_cached_answers(api: Api, path: str, metadata: dict[str, Any]) -> None:
    """A deleted model answers 404; a recreated one never returns an answer of its predecessor."""
    old = [await ask(api, path) for _ in range(2)][1]
    assert (await api.call("DELETE", path)).status == 204
    (await api.post(f"{path}/predict", {"X": X})).problem(404)
    await api.make(metadata, REGRESSOR)
    (await api.post(f"{path}/predict", {"X": X})).problem(409)
    await api.learn(path, X, [100.0, -50.0])
    new = await ask(api, path, If_None_Match=old.headers["ETag"])
    assert new.of(200)["version"] == old.json()["version"]
    assert new.json()["predictions"] != old.json()["predictions"]


async def test_cached_answers_are_compressed(api: Api, path: str) -> None:
    """A long cached answer is gzip if the client accepts it and plain otherwise, with Vary."""
    for rows in (MANY, [[each[0], 1] for each in MANY]):
        for coding in ("gzip", "identity", "gzip", "identity"):
            reply = await ask(api, path, {"X": rows}, Accept_Encoding=coding)
            assert reply.headers.get("Content-Encoding", "identity") == coding
            assert len(reply.of(200)["predictions"]) == len(MANY)
        assert "Age" in reply.headers


async def test_errors_are_not_cached(api: Api, path: str) -> None:
    """A refused request is checked again each time, and its response has no caching fields."""
    for _ in range(3):
        reply = await api.post(f"{path}/predict", {"X": [[1.0]]})
        reply.problem(422)
        assert not {"ETag", "Age", "Cache-Control"} & set(reply.headers)


@pytest.mark.parametrize("pieces", ["at once", "head first", "byte by byte", "chunked"])
async def test_a_body_may_come_in_pieces(api: Api, path: str, pieces: str) -> None:
    """A body in any pieces gets its cached prediction."""
    await ask(api, path)
    body, head = (
        b'{"X": [[1, 2], [3, 4]]}',
        f"POST {path}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n",
    )
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    chunks = {
        "at once": [head.encode() + length + body],
        "head first": [head.encode() + length, body],
        "byte by byte": [head.encode() + length, *(bytes([byte]) for byte in body)],
        "chunked": [
            head.encode() + b"Transfer-Encoding: chunked\r\n\r\n",
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        ],
    }[pieces]
    async with connected(api.url) as (reader, writer), asyncio.timeout(30):
        for _ in range(3):
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(0.003)
            answer = await reader.readuntil(b"\r\n\r\n")
            reply = Reply.parse(answer + await reader.readexactly(int(Reply.parse(answer).headers["Content-Length"])))
            assert "Age" in reply.headers
            assert len(reply.of(200)["predictions"]) == 2


class Proxy:
    """A TCP proxy in front of Redis that can stop forwarding and can close all connections."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    def stall(self) -> None:
        """Stop forwarding without an error, like a lost network."""
        self._flowing.clear()

    def flow(self) -> None:
        """Forward again, including data held back, and accept connections again."""
        self._cut = False
        self._flowing.set()

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._cut = True
        for writer in self._writers:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Run the proxy. Yield the URL of Redis through it."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}{self._target.path}"
        finally:
            server.close()
            self.cut()
            self.flow()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._writers.add(sink)
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(sink)
            sink.close()


@asynccontextmanager
async def beside(stack: Stack, **update: Any) -> AsyncIterator[tuple[Api, Proxy]]:
    """Run another gateway of the stack in this process, which connects to the store through a proxy."""
    shared: Settings = stack.settings()
    proxy = Proxy(shared.store_url.get_secret_value())
    async with proxy.running() as through:
        update = {"store_url": SecretStr(through), **update}
        async with serving(shared.model_copy(update=update)) as api:
            yield api, proxy


async def is_cached(api: Api, path: str) -> bool:
    """Predict, and return whether the answer came from the cache."""
    return "Age" in (await ask(api, path)).headers


async def test_a_commit_through_another_gateway_is_observed(stack: Stack, api: Api, path: str) -> None:
    """Soon after a commit through another gateway, this gateway answers with the new version, and caches it."""
    async with beside(stack, predict_staleness_s=60.0) as (other, _):
        for _ in range(5):
            await eventually(lambda: is_cached(other, path), "an answer from the cache")
            version = (await api.learn(path, **LABELLED))["version"]

            async def newest(version: int = version) -> bool:
                return bool((await ask(other, path)).json()["version"] == version)

            await eventually(newest, "the new version")


async def test_a_missed_commit_is_stale_no_longer_than_the_bound(stack: Stack, api: Api, path: str) -> None:
    """A gateway that loses the subscription without an error uses no cached answer longer than the staleness bound."""
    bound_s = 0.5
    async with beside(stack, predict_staleness_s=bound_s) as (isolated, proxy):
        await eventually(lambda: is_cached(isolated, path), "an answer from the cache")
        proxy.stall()
        version = (await api.learn(path, **LABELLED))["version"]
        committed_s = time.monotonic()
        while True:
            asked_s = time.monotonic()
            reply = await ask(isolated, path)
            if reply.json()["version"] == version:
                break
            assert asked_s < committed_s + bound_s
        assert "Age" not in reply.headers
        await asyncio.sleep(max(0, committed_s + bound_s - time.monotonic()))
        assert not [1 for _ in range(3) if await is_cached(isolated, path)]
        proxy.flow()
        await eventually(lambda: is_cached(isolated, path), "an answer from the cache")


async def test_an_interrupted_subscription_invalidates_everything(stack: Stack, path: str) -> None:
    """While the subscription is down no cached answer is used, and afterwards none from before."""
    async with beside(stack, predict_staleness_s=60.0) as (api, proxy):
        await eventually(lambda: is_cached(api, path), "an answer from the cache")
        proxy.cut()

        async def computed() -> bool:
            return not await is_cached(api, path)

        await eventually(computed, "noticing the interruption")
        assert not [1 for _ in range(5) if await is_cached(api, path)]
        proxy.flow()
        await eventually(lambda: is_cached(api, path), "an answer from the cache")


async def test_a_subscription_without_pongs_is_replaced(
    stack: Stack, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that answers no ping counts as interrupted and is opened again."""
    monkeypatch.setattr("keepfit_gateway.learning.commit_feed.PING_TIMEOUT_S", 0.2)
    async with beside(stack) as (api, proxy):
        await eventually(lambda: is_cached(api, path), "an answer from the cache")
        with structlog.testing.capture_logs() as logged:
            proxy.stall()

            async def replaced() -> bool:
                return any(
                    entry.get("reason", "").startswith("The subscription did not reply to a ping") for entry in logged
                )

            await eventually(replaced, "the end of the subscription")
        proxy.flow()
        await eventually(lambda: is_cached(api, path), "an answer from the cache")


async def test_a_bound_of_0_disables_the_cache(stack: Stack, path: str) -> None:
    """With a bound of 0 bytes no answer is cached; ETags still work."""
    async with beside(stack, predict_cache_bytes_max=0) as (api, _):
        etag = (await ask(api, path)).headers["ETag"]
        assert not [1 for _ in range(3) if await is_cached(api, path)]
        assert (await ask(api, path, If_None_Match=etag)).status == 304


async def test_the_cache_does_not_block_the_event_loop(stack: Stack, path: str) -> None:
    """Neither computing nor caching nor answering from the cache blocks the event loop."""
    async with beside(stack) as (api, _):
        with blockbuster_ctx() as blockbuster:
            for function in blockbuster.functions.values():
                # redis-py reads its own version from disk for each new connection.
                function.can_block_in("redis/utils.py", "get_lib_version")
            await eventually(lambda: is_cached(api, path), "an answer from the cache")
            assert (await ask(api, path, {"X": MANY})).status == 200
