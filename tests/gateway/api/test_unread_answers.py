"""Clients that do not read their answers: memory of the gateway, and how long their connections stay."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.conftest import Stack
from tests.gateway.api_client import DEADLINE_S, REGRESSOR, Api, eventually, serving
from tests.gateway.gateway_process import GatewayProcess, gateway_process
from tests.gateway.raw_requests import get, post, unread

MIB = 2**20
ABOVE_IDLE_BYTES_MAX = 100 * MIB
SENT_BYTES_MAX = 1024 * MIB
PLAIN, SPELLED = "application/json", "application/json; charset=utf-8"
SMALL = b'{"X":[[1.0,2.0]]}'
# The answer has 6 MB, more than a connection holds outside of the gateway.
LARGE = b'{"X":[%s[1,2]]}' % (b"[0.1,2]," * 600_000)
# So has the answer to a hundredth of the rows with labels of a thousand letters. The body has 4.8 MB as well.
LONG_LABELS = {"estimator": "SGDClassifier", "classes": ["a" * 1000, "b" * 1000]}
LABELLED = b'{"X":[%s%s[1,2]]}' % (b"[0.1,2]," * 6000, b" " * 4_752_000)


@pytest.fixture(scope="module")
def gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Run a gateway for this module that aborts connections after a second without progress."""
    with gateway_process(stack, tmp_path_factory.mktemp("unread"), KEEPFIT_ANSWER_TIMEOUT_S="1") as process:
        yield process


@pytest.fixture
async def path(gateway: GatewayProcess, metadata: dict[str, Any]) -> AsyncIterator[str]:
    """Return the path of a model that has learned a row and has a cached prediction."""
    async with aiohttp.ClientSession(gateway.url) as http:
        api = Api(http)
        path = await api.make(metadata, REGRESSOR)
        await api.learn(path, [[0.001, 0.002]], [0.5])
        await api.predict(path, [[1.0, 2.0]])
        yield path
        assert len((await api.predict(path, [[3.0, 4.0]]))["predictions"]) == 1


def predict(path: str, body: bytes, media_type: str = PLAIN, *lines: str) -> bytes:
    """Return a request to predict."""
    return post(f"{path}/predict", body, media_type, *lines)


async def send_until_aborted(url: str, request: bytes) -> None:
    """Repeat a request without reading until the gateway aborts the connection, which it must."""
    many = request * (1 + MIB // len(request))

    async def send(client: socket.socket) -> None:
        for _ in range(SENT_BYTES_MAX // len(many)):
            await asyncio.get_running_loop().sock_sendall(client, many)

    with unread(url) as client, pytest.raises(ConnectionError):
        async with asyncio.timeout(DEADLINE_S):
            await send(client)


@pytest.mark.parametrize(
    "what", ["cached", "regular", "uncached", "malformed", "document", "metrics", "missing", "page"]
)
async def test_pipelined_requests_whose_answers_are_not_read_take_no_memory(
    gateway: GatewayProcess, path: str, what: str
) -> None:
    """A connection that only sends is stopped, then aborted with one log line, on every path of answers."""
    request = {
        "cached": predict(path, SMALL),
        "regular": predict(path, SMALL, SPELLED),
        "uncached": predict(path, SMALL, PLAIN, "Cache-Control: no-cache"),
        "malformed": predict(path, b"[" * 1000),
        "document": get("/openapi.json"),
        "metrics": get("/metrics"),
        "missing": get("/missing"),
        "page": get("/docs/swagger-ui-bundle.js"),
    }[what]
    gateway.reset_peak()
    idle, before = gateway.memory(), len(gateway.events("answer_aborted"))
    await send_until_aborted(gateway.url, request)
    assert gateway.peak() - idle < ABOVE_IDLE_BYTES_MAX

    async def logged() -> bool:
        return len(gateway.events("answer_aborted")) > before

    await eventually(logged, "the log line")
    (line,) = gateway.events("answer_aborted")[before:]
    assert (line["level"], line["client"]) == ("warning", "127.0.0.1")


@pytest.mark.parametrize("media_type", [PLAIN, SPELLED])
async def test_large_bodies_that_wait_in_a_pipeline_take_no_memory(
    gateway: GatewayProcess, path: str, media_type: str
) -> None:
    """Twenty connections that pipeline bodies of 240 KB hold a few hundred KB each while they wait."""
    request = predict(path, b'{"X":[%s[1,2]]}' % (b"[0.1,2]," * 30_000), media_type)
    gateway.reset_peak()
    idle, before = gateway.memory(), len(gateway.events("answer_aborted"))
    await asyncio.gather(*(send_until_aborted(gateway.url, request) for _ in range(20)))
    assert gateway.peak() - idle < ABOVE_IDLE_BYTES_MAX

    async def all_logged() -> bool:
        return len(gateway.events("answer_aborted")) == before + 20

    await eventually(all_logged, "the log lines")


async def test_a_large_answer_is_aborted_and_counted_also_after_the_client_has_ended(
    gateway: GatewayProcess, path: str
) -> None:
    """A client that shuts down its sending side and never reads is aborted and counted like others."""

    async def count() -> float:
        async with aiohttp.ClientSession(gateway.url) as http, http.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("keepfit_answers_aborted_total"))

    before = await count()
    with unread(gateway.url) as first, unread(gateway.url) as second:
        for client in (first, second):
            await asyncio.get_running_loop().sock_sendall(client, predict(path, LARGE))
        second.shutdown(socket.SHUT_WR)

        async def both_counted() -> bool:
            return await count() == before + 2

        await eventually(both_counted, "the count of both connections")


async def test_answers_that_were_read_take_no_memory(gateway: GatewayProcess, metadata: dict[str, Any]) -> None:
    """A connection that stays open after its answer was read does not keep the answer."""
    async with aiohttp.ClientSession(gateway.url) as http:
        path = await labelled(Api(http), metadata)
    request = predict(path, LABELLED, PLAIN, "Cache-Control: no-cache")
    idle = gateway.memory()
    with ExitStack() as opened:
        for _ in range(16):
            parts = urlsplit(gateway.url)
            client = opened.enter_context(socket.create_connection((parts.hostname, parts.port), DEADLINE_S))
            await asyncio.to_thread(answer_of, client, request)
        assert gateway.memory() - idle < ABOVE_IDLE_BYTES_MAX


async def labelled(api: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model with long labels that has learned a row of each."""
    path = await api.make(metadata, LONG_LABELS)
    await api.learn(path, [[0.001, 0.002], [0.3, 0.4]], LONG_LABELS["classes"])
    return path


def answer_of(client: socket.socket, request: bytes) -> None:
    """Send a request and read its answer."""
    client.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(MIB)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
    assert head.startswith(b"HTTP/1.1 200")
    assert length > 5.8e6
    size = len(body)
    while size < length:
        size += len(client.recv(MIB))


async def test_answers_share_the_memory_limit_of_bodies(stack: Stack, metadata: dict[str, Any]) -> None:
    """While an unread answer uses the memory, one more large answer is a 503; it is free when that one is gone."""
    # The limit allows for an answer (6.0 MB) and the body of another request (4.8 MB), and not for two answers.
    async with serving(stack.settings().model_copy(update={"bodies_bytes_max": 11_400_000})) as api:
        path = await labelled(api, metadata)

        async def status() -> int:
            plain = {"Accept-Encoding": "identity"}
            reply = await api.call("POST", f"{path}/predict", data=io.BytesIO(LABELLED), headers=plain)
            if reply.status == 503:
                assert "other requests and answers" in reply.problem(503)["detail"]
                assert int(reply.headers["Retry-After"]) >= 1
            return reply.status

        async def is_free() -> bool:
            return await status() == 200

        assert await is_free()
        with unread(api.url) as client:
            await asyncio.get_running_loop().sock_sendall(client, predict(path, LABELLED))

            async def answered() -> bool:
                try:
                    return client.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
                except BlockingIOError:
                    return False

            await eventually(answered, "the first answer")
            assert await status() == 503
            assert len((await api.predict(path, [[1.0, 2.0]]))["predictions"]) == 1
        await eventually(is_free, "the memory being released")
