"""Predictions given again by HTTP: when they are, what their headers say, and that they are never of an old version."""

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
from tests.gateway.api_client import REGRESSOR, Api, Reply, connected, eventually, serving

X = [[1.0, 2.0], [3.0, 4.0]]
LABELLED = {"X": X, "y": [1.0, 2.0]}
MANY = [[float(i), 1.0] for i in range(200)]


@pytest.fixture
async def path(api: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, **LABELLED)
    return path


async def ask(api: Api, path: str, data: Any = None, **headers: str) -> Reply:
    """Predict; an answer has an ETag and may be kept, but must be asked for again."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(data if data is not None else {"X": X}).encode()
    reply = await api.call("POST", f"{path}/predict", data=body, headers=named)
    assert reply.status in (200, 304)
    assert re.fullmatch(r'W/"\d+-\d+-[0-9a-f]{32}"', reply.headers["ETag"])
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["Vary"] == "Accept-Encoding"
    return reply


async def test_the_same_rows_are_answered_from_memory(api: Api, path: str, metadata: dict[str, Any]) -> None:
    """Asked again, however it is written, a prediction comes with its age and is the same in every byte."""
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
async def test_the_order_of_columns_is_no_matter(api: Api, metadata: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Rows as lists, and as objects in any order, are the same question."""
    path = await api.make(metadata, recipe)
    make = "nike" if recipe is SHOES_RECIPE else 7
    await api.learn(path, [[make, 2001]], [4.0])
    first = await ask(api, path, {"X": [{"make": make, "year": 2001}]})
    for row in ({"year": 2001, "make": make}, [make, 2001.0]):
        again = await ask(api, path, {"X": [row]})
        assert (again.body, "Age" in again.headers) == (first.body, True)


@pytest.mark.parametrize(
    ("directive", "given"),
    [
        ("no-cache", False), ("no-store", False), ("max-age=0", False), ("max-age=0, max-stale", False),
        ("MAX-AGE=3600", True), ("max-stale=5", True), ("private", True),
    ],
)  # fmt: skip
async def test_cache_control_is_honoured(api: Api, path: str, directive: str, given: bool) -> None:
    """Who wants an answer computed anew, or not older than so much, gets it; on the short way and on the long one."""
    for _ in range(2):
        await ask(api, path)
    for spaces in ("", " "):
        body = json.dumps({"X": X}).encode() + spaces.encode()
        reply = await api.call("POST", f"{path}/predict", data=body, headers={"Cache-Control": directive})
        assert reply.status == 200
        assert ("Age" in reply.headers) is given


async def test_no_store_keeps_nothing_and_no_cache_does(api: Api, path: str) -> None:
    """An answer to no-store is not kept; one to no-cache is, for those who come after."""
    await ask(api, path, Cache_Control="no-store")
    assert not await kept(api, path)
    await api.learn(path, **LABELLED)
    await ask(api, path, Cache_Control="no-cache")
    assert await kept(api, path)


async def test_who_has_the_answer_gets_304(api: Api, path: str) -> None:
    """If-None-Match with the current ETag, weak or strong, alone or in a list, or `*`, is answered without a body."""
    etag = (await ask(api, path)).headers["ETag"]
    for named in (etag, etag[2:], f'"other", {etag}', f'W/"a,b",{etag} , "c"', "*"):
        for more in ({}, {"Cache_Control": "no-cache"}, {"Cache_Control": "max-age=60"}):
            reply = await ask(api, path, If_None_Match=named, **more)
            assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", etag)
            assert "Content-Type" not in reply.headers
    for named in ('"other"', etag.replace("1-", "9-"), etag[:-2], "**", ""):
        assert (await ask(api, path, If_None_Match=named)).of(200)


async def test_an_etag_changes_with_the_version(api: Api, path: str) -> None:
    """After a commit the old ETag is answered with the new prediction; the new one with 304, kept or not."""
    old = await ask(api, path)
    learned = await api.learn(path, **LABELLED)
    reply = await ask(api, path, If_None_Match=old.headers["ETag"])
    assert reply.of(200)["version"] == learned["version"] == old.json()["version"] + 1
    assert reply.headers["ETag"] != old.headers["ETag"]
    await api.learn(path, **LABELLED)
    # Another answer of the newest version is kept, so that the version is known, but not this one.
    version = (await ask(api, path, {"X": [[9.0, 9.0]]})).json()["version"]
    now = re.sub(r"-\d+-", f"-{version}-", reply.headers["ETag"])
    assert (await ask(api, path, If_None_Match=now)).status == 304
    assert (await ask(api, path)).headers["ETag"] == now


async def test_writes_are_read_at_once(api: Api, path: str) -> None:
    """A predict after a waited-for partial_fit is never of a version before it, while others keep the cache warm."""
    stop = asyncio.Event()

    async def hammer() -> None:
        while not stop.is_set():
            await ask(api, path)

    others = [asyncio.create_task(hammer()) for _ in range(2)]
    for _ in range(60):
        learned = await api.learn(path, **LABELLED)
        for _ in range(2):
            assert (await ask(api, path)).of(200)["version"] >= learned["version"]
    # What is read of the model is heard of too.
    (await api.post(f"{path}/partial_fit", LABELLED)).of(202)
    seen = (await api.model(path))["version"]
    assert (await ask(api, path)).of(200)["version"] >= seen
    stop.set()
    await asyncio.gather(*others)


async def test_a_model_that_was_made_again_is_another_one(api: Api, path: str, metadata: dict[str, Any]) -> None:
    """After a DELETE there is nothing to give; after the model was made again nothing of its predecessor."""
    old = [await ask(api, path) for _ in range(2)][1]
    assert (await api.call("DELETE", path)).status == 204
    (await api.post(f"{path}/predict", {"X": X})).problem(404)
    await api.make(metadata, REGRESSOR)
    (await api.post(f"{path}/predict", {"X": X})).problem(409)
    await api.learn(path, X, [100.0, -50.0])
    new = await ask(api, path, If_None_Match=old.headers["ETag"])
    assert new.of(200)["version"] == old.json()["version"]
    assert new.json()["predictions"] != old.json()["predictions"]


async def test_kept_answers_are_compressed_too(api: Api, path: str) -> None:
    """A long answer from memory is gzip for who takes it and plain for who does not, and says that it varies."""
    for rows in (MANY, [[each[0], 1] for each in MANY]):
        for coding in ("gzip", "identity", "gzip", "identity"):
            reply = await ask(api, path, {"X": rows}, Accept_Encoding=coding)
            assert reply.headers.get("Content-Encoding", "identity") == coding
            assert len(reply.of(200)["predictions"]) == len(MANY)
        assert "Age" in reply.headers


async def test_errors_are_not_kept(api: Api, path: str) -> None:
    """A refusal is made anew each time, and has nothing to keep it by."""
    for _ in range(3):
        reply = await api.post(f"{path}/predict", {"X": [[1.0]]})
        reply.problem(422)
        assert not {"ETag", "Age", "Cache-Control"} & set(reply.headers)


@pytest.mark.parametrize("pieces", ["at once", "head first", "byte by byte", "chunked"])
async def test_a_body_may_come_in_pieces(api: Api, path: str, pieces: str) -> None:
    """However a body is cut on its way, its prediction is found."""
    await ask(api, path)
    body, head = (
        b'{"X": [[1, 2], [3, 4]]}',
        f"POST {path}/predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n",
    )
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    parts = {
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
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.003)
            answer = await reader.readuntil(b"\r\n\r\n")
            reply = Reply.parse(answer + await reader.readexactly(int(Reply.parse(answer).headers["Content-Length"])))
            assert "Age" in reply.headers
            assert len(reply.of(200)["predictions"]) == 2


class Proxy:
    """A TCP proxy before a Redis, which may stop forwarding and may cut all connections."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    def stall(self) -> None:
        """Forward nothing more, as if the network were gone, and tell nobody."""
        self._flowing.clear()

    def flow(self) -> None:
        """Forward again, also what came meanwhile, and take connections again."""
        self._cut = False
        self._flowing.set()

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._cut = True
        for writer in self._writers:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Run the proxy; gives the URL of the Redis through it."""
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
    """Run another gateway of the stack, in this process, which reaches the store through a proxy."""
    shared: Settings = stack.settings()
    proxy = Proxy(shared.store_url.get_secret_value())
    async with proxy.running() as through:
        update = {"store_url": SecretStr(through), **update}
        async with serving(shared.model_copy(update=update)) as api:
            yield api, proxy


async def kept(api: Api, path: str) -> bool:
    """Predict, and tell whether the answer came from memory."""
    return "Age" in (await ask(api, path)).headers


async def test_a_commit_through_another_gateway_is_heard(stack: Stack, api: Api, path: str) -> None:
    """Soon after another gateway has learned rows, this one answers by them, and by memory again."""
    async with beside(stack, predict_staleness_s=60.0) as (other, _):
        for _ in range(5):
            await eventually(lambda: kept(other, path), "an answer from memory")
            version = (await api.learn(path, **LABELLED))["version"]

            async def newest(version: int = version) -> bool:
                return bool((await ask(other, path)).json()["version"] == version)

            await eventually(newest, "hearing of the commit", seconds=10)


async def test_an_unheard_commit_is_overlooked_no_longer_than_the_bound(stack: Stack, api: Api, path: str) -> None:
    """Cut off without an error, a gateway gives nothing from memory that is overtaken for longer than the bound."""
    bound_s = 0.5
    async with beside(stack, predict_staleness_s=bound_s) as (deaf, proxy):
        await eventually(lambda: kept(deaf, path), "an answer from memory")
        proxy.stall()
        version = (await api.learn(path, **LABELLED))["version"]
        overtaken_s = time.monotonic()
        while True:
            asked_s = time.monotonic()
            reply = await ask(deaf, path)
            if reply.json()["version"] == version:
                break
            assert asked_s < overtaken_s + bound_s
        assert "Age" not in reply.headers
        await asyncio.sleep(max(0, overtaken_s + bound_s - time.monotonic()))
        assert not [1 for _ in range(3) if await kept(deaf, path)]
        proxy.flow()
        await eventually(lambda: kept(deaf, path), "an answer from memory")


async def test_a_broken_subscription_drops_everything(stack: Stack, path: str) -> None:
    """While the subscription is down nothing comes from memory, and after it nothing from before."""
    async with beside(stack, predict_staleness_s=60.0) as (api, proxy):
        await eventually(lambda: kept(api, path), "an answer from memory")
        proxy.cut()

        async def anew() -> bool:
            return not await kept(api, path)

        await eventually(anew, "noticing the break", seconds=20)
        assert not [1 for _ in range(5) if await kept(api, path)]
        proxy.flow()
        await eventually(lambda: kept(api, path), "an answer from memory")


async def test_a_subscription_without_signs_of_life_is_given_up(
    stack: Stack, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that answers no ping is taken for broken, and made anew."""
    monkeypatch.setattr("keepfit_gateway.learning.commit_feed.DEAF_S", 0.2)
    async with beside(stack) as (api, proxy):
        await eventually(lambda: kept(api, path), "an answer from memory")
        with structlog.testing.capture_logs() as logged:
            proxy.stall()

            async def given_up() -> bool:
                return any(
                    entry.get("reason", "").startswith("The subscription gave no sign of life") for entry in logged
                )

            await eventually(given_up, "giving the subscription up")
        proxy.flow()
        await eventually(lambda: kept(api, path), "an answer from memory")


async def test_without_a_cache_all_is_computed(stack: Stack, path: str) -> None:
    """With a bound of 0 bytes nothing comes from memory; ETags work as ever."""
    async with beside(stack, predict_cache_bytes_max=0) as (api, _):
        etag = (await ask(api, path)).headers["ETag"]
        assert not [1 for _ in range(3) if await kept(api, path)]
        assert (await ask(api, path, If_None_Match=etag)).status == 304


async def test_answering_from_memory_does_not_block(stack: Stack, path: str) -> None:
    """Neither computing, nor keeping, nor giving again blocks the event loop."""
    async with beside(stack) as (api, _):
        with blockbuster_ctx() as blockbuster:
            for function in blockbuster.functions.values():
                # redis-py reads its own version from disk for each new connection.
                function.can_block_in("redis/utils.py", "get_lib_version")
            await eventually(lambda: kept(api, path), "an answer from memory")
            assert (await ask(api, path, {"X": MANY})).status == 200
