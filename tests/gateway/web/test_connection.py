"""Connections: clients that shut down their sending side, HTTP/1.0, pipelines, trailers."""

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE

from keepfit_gateway.web.connection import ProblemHandler
from tests.gateway.api_client import DEADLINE_S, REGRESSOR, Api, Reply, connected, eventually, exchange

BODY = b'{"X":[[1.0,2.0]],"y":[1.0]}'
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
# The fast path does not accept the second spelling.
MEDIA_TYPES = ["application/json", "application/json; charset=utf-8"]


async def half_closed(url: str, *pieces: bytes) -> bytes:
    """Send bytes, shut down the sending side, and return everything that the gateway sends."""
    async with connected(url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        return await reader.read()


def learn(path: str, media_type: str, *lines: str) -> bytes:
    """Return a request to learn a row."""
    head = (f"POST {path}/partial_fit HTTP/1.1", "Host: localhost", f"Content-Type: {media_type}", *lines)
    return "\r\n".join((*head, f"Content-Length: {len(BODY)}", "", "")).encode() + BODY


@pytest.fixture
async def path(api: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned a row."""
    made = await api.make(metadata, REGRESSOR)
    await api.learn(made, [[1.0, 2.0]], [1.0])
    return made


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("lines", [(), ("Prefer: wait=10",), ("Expect: 100-continue",)])
async def test_a_client_may_shut_down_its_sending_side(
    api: Api, path: str, media_type: str, lines: tuple[str, ...]
) -> None:
    """A client that sends nothing after its request gets the answer, however long that takes, and then the end."""
    request = learn(path, media_type, *lines)
    for pieces in ((request,), (request[:-5], request[-5:]), (request[:20], request[20:])):
        data = await half_closed(api.url, *pieces)
        answer = data[data.rindex(b"HTTP/1.1 ") :]
        assert Reply.parse(answer).of(200 if lines[:1] == ("Prefer: wait=10",) else 202)["accepted"] == 1


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
async def test_a_prediction_that_workers_compute_reaches_it(api: Api, path: str, media_type: str) -> None:
    """The answer of a worker arrives after the client has shut down its sending side."""
    rows = b'{"X":[[7.0,2.0]]}'
    head = f"POST {path}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
    head += f"Cache-Control: no-cache\r\nContent-Length: {len(rows)}\r\n\r\n"
    assert len(Reply.parse(await half_closed(api.url, head.encode() + rows)).of(200)["predictions"]) == 1


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("lines", [(), ("Connection: Upgrade", "Upgrade: websocket")])
async def test_all_pipelined_requests_are_answered(
    api: Api, path: str, media_type: str, lines: tuple[str, ...]
) -> None:
    """Requests that arrived before the client shut down its sending side are all answered, in order, once.

    They are more than aiohttp parses ahead; requests for an upgrade are answered as plain HTTP.
    """
    count = MAX_MSG_QUEUE_SIZE + 8
    data = await half_closed(api.url, learn(path, media_type, *lines) * count + LIVEZ)
    answers = data.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"202"] * count + [b"200"]
    assert (await api.learn(path, [[1.0, 2.0]], [1.0]))["rows_seen"] == count + 2


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("framing", ["Content-Length: 99", "Content-Length: 99999", "Transfer-Encoding: chunked"])
async def test_a_body_that_ends_early_is_refused(api: Api, path: str, media_type: str, framing: str) -> None:
    """If the sending side ends within a body, the client gets a 400 and nothing is learned."""
    head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n{framing}\r\n\r\n"
    body = b"%x\r\n%s\r\n" % (len(BODY), BODY) if "chunked" in framing else BODY
    for pieces in ((head.encode() + body,), (head.encode(), body), (LIVEZ + head.encode(), body)):
        data = await half_closed(api.url, *pieces)
        assert "incomplete" in Reply.parse(data[data.rindex(b"HTTP/1.1 ") :]).problem(400)["detail"]
    model = await api.model(path)
    assert (model["inbox"], model["rows_seen"]) == (0, 1)


# What is left of a request when the sending side ends: nothing of the body, or a part of it.
CUT = {
    "no byte": ("Content-Length: 27", b""),
    "a part": ("Content-Length: 27", BODY[:-1]),
    "no chunk": ("Transfer-Encoding: chunked", b""),
    "a part of a size": ("Transfer-Encoding: chunked", b"1"),
    "a part of a chunk": ("Transfer-Encoding: chunked", b"1b\r\n" + BODY[:-1]),
    "no last chunk": ("Transfer-Encoding: chunked", b"1b\r\n" + BODY + b"\r\n"),
    "a part of the last chunk": ("Transfer-Encoding: chunked", b"1b\r\n" + BODY + b"\r\n0\r\n"),
    "nothing": ("Content-Length: 27", BODY),
}


BROKEN = b"zz\r\n"


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("cut", [*CUT, "invalid chunk"])
async def test_the_end_of_a_body_counts_whenever_it_arrives(
    workerless: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cut: str, media_type: str
) -> None:
    """However soon after a request its body is cut: an incomplete one is refused at once, a complete one accepted."""
    path = await workerless.make(metadata, REGRESSOR)
    framing, body = CUT.get(cut, CUT["no last chunk"])
    head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n{framing}\r\n\r\n"
    receive, loop = ProblemHandler.data_received, asyncio.get_running_loop()

    def cut_after(handler: ProblemHandler, turns: int) -> None:
        if turns:
            loop.call_soon(cut_after, handler, turns - 1)
        elif cut in CUT:
            handler.eof_received()
        else:
            receive(handler, BROKEN)
            receive(handler, LIVEZ)

    for turns in range(8):

        def data_received(handler: ProblemHandler, data: bytes, turns: int = turns) -> None:
            receive(handler, data)
            if data.startswith(b"POST"):
                cut_after(handler, turns)

        with monkeypatch.context() as patch:
            patch.setattr(ProblemHandler, "data_received", data_received)
            data = await exchange(workerless.url, head.encode() + body)
        assert data.count(b"HTTP/1.1 ") == 1
        if cut == "nothing":
            assert Reply.parse(data).of(202)["accepted"] == 1
        else:
            assert "incomplete" in Reply.parse(data).problem(400)["detail"]


@pytest.mark.parametrize("cut", ["no byte", "a part of a chunk", "nothing", "invalid chunk"])
async def test_the_end_of_a_body_behind_an_upgrade_counts(workerless: Api, metadata: dict[str, Any], cut: str) -> None:
    """A request behind one for an upgrade, which is answered as plain HTTP, is refused at once if its body is cut."""
    path = await workerless.make(metadata, REGRESSOR)
    framing, body = CUT.get(cut, CUT["no last chunk"])
    head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    sent = LIVEZ[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + head.encode() + body
    data = await (half_closed(workerless.url, sent) if cut in CUT else exchange(workerless.url, sent + BROKEN))
    # A request with an invalid chunk in the packet of its head has no version.
    assert re.findall(rb"HTTP/1\.[01] (\d+)", data) == [b"200", b"202" if cut == "nothing" else b"400"]


# Refused before their body is read.
REFUSED = {
    b"415": b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n",
    b"404": b"POST /missing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n",
}


async def test_an_idle_connection_is_no_late_head(
    workerless: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for a head does not begin with the bytes of a body, in whichever loop turn they arrive.

    That is: soon after their head, or after the answer that refuses them. The next request may come much later.
    """
    receive, loop = ProblemHandler.data_received, asyncio.get_running_loop()
    turns, received = dict[int, int](), dict[ProblemHandler, int]()

    def data_received(handler: ProblemHandler, data: bytes) -> None:
        head, separator, body = data.partition(b"\r\n\r\n")
        if not separator or not body:
            return after(0, handler, data)
        after(0, handler, head + separator)
        return after(turns[handler.transport.get_extra_info("peername")[1]], handler, body)

    def after(turns: int, handler: ProblemHandler, data: bytes) -> None:
        if turns:
            loop.call_soon(after, turns - 1, handler, data)
        else:
            receive(handler, data)
            received[handler] = received.get(handler, 0) + len(data)

    async def answer(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
        await reader.readexactly(length)
        return head[9:12]

    async def call(request: bytes, status: bytes, count: int = 0) -> None:
        async with connected(workerless.url) as (reader, writer):
            turns[writer.get_extra_info("sockname")[1]] = count
            before = set(received)
            writer.write(request)
            assert await answer(reader) == status
            if status != b"202":
                for piece in (BODY[:9], BODY[9:]):
                    writer.write(piece)
                    await asyncio.sleep(0.01)
            (handler,) = set(received) - before

            async def has_all() -> bool:
                return received[handler] == len(request) + (0 if status == b"202" else len(BODY))

            await eventually(has_all, "the whole body")
            assert handler._head_timer is None
            writer.write(LIVEZ)
            assert await answer(reader) == b"200"

    path = await workerless.make(metadata, REGRESSOR)
    monkeypatch.setattr(ProblemHandler, "data_received", data_received)
    async with asyncio.timeout(DEADLINE_S):
        for media_type in MEDIA_TYPES:
            for count in range(6):
                await call(learn(path, media_type), b"202", count)
        for status, request in REFUSED.items():
            await call(request, status)


async def test_a_refused_body_may_end_early(workerless: Api, caplog: pytest.LogCaptureFixture) -> None:
    """While the rest of a refused body is read, its end, or an invalid chunk, ends the connection without an error."""
    head = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rest in (b"", BROKEN):
        async with connected(workerless.url) as (reader, writer), asyncio.timeout(DEADLINE_S):
            writer.write(head)
            Reply.parse(await reader.readuntil(b"}")).problem(415)
            writer.write(rest)
            if not rest:
                writer.write_eof()
            assert await reader.read() == b""
    assert caplog.records == []


async def test_a_refusal_reaches_it_at_once(api: Api) -> None:
    """A refused request whose body is not read is answered, and the connection ends without waiting for the body."""
    head = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 99999\r\n\r\n"
    Reply.parse(await half_closed(api.url, head, b"x" * 10)).problem(415)


@pytest.mark.parametrize("data", [b"", b"GET /live", LIVEZ[:-2]])
async def test_a_connection_without_a_request_ends(api: Api, data: bytes) -> None:
    """Without a complete head there is nothing to answer."""
    assert await half_closed(api.url, data) == b""
    assert await half_closed(api.url, LIVEZ, data) != b""


async def test_ended_connections_leave_nothing_behind(workerless: Api) -> None:
    """Connections that clients end before, during and after a request are all closed."""
    for data in (b"", LIVEZ[:9], LIVEZ, LIVEZ * 3):
        for _ in range(20):
            async with connected(workerless.url) as (_, writer):
                writer.write(data)
                writer.write_eof()

    async def is_closed() -> bool:
        handlers = [task for task in asyncio.all_tasks() if "RequestHandler.start" in repr(task.get_coro())]
        # One connection is the client's own.
        return len(handlers) <= 1

    await eventually(is_closed, "the end of all connections")


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
async def test_trailers_are_ignored(api: Api, path: str, media_type: str) -> None:
    """A chunked body may have chunk extensions and trailers, which are no part of it."""
    head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nTrailer: X-A\r\n"
    head += "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    body = b"5;a=b\r\n%s\r\n%x\r\n%s\r\n0\r\nX-A: b\r\nX-Sum: 7\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
    assert Reply.parse(await exchange(api.url, head.encode() + body)).of(202)["accepted"] == 1


@pytest.mark.parametrize("header", ["Idempotency-Key", "Authorization", "Content-Type", "Host", "Origin"])
async def test_a_header_with_one_value_is_sent_once(workerless: Api, metadata: dict[str, Any], header: str) -> None:
    """Two values of a header that has one answer 400, equal or not, and nothing is accepted."""
    path = await workerless.make(metadata, REGRESSOR)
    sent = {"Idempotency-Key": "a", "Content-Type": "application/json", "Origin": workerless.url}
    sent["Authorization"] = "Bearer a"
    sent["Host"] = urlsplit(workerless.url).netloc
    for other in (sent.get(header, "b"), "b"):
        for media_type in MEDIA_TYPES:
            lines = [f"{name}: {value}" for name, value in {**sent, "Content-Type": media_type}.items()]
            lines.append(f"{header.lower()}: {other}")
            request = "\r\n".join((f"POST {path}/partial_fit HTTP/1.1", *lines, f"Content-Length: {len(BODY)}", "", ""))
            answer = await exchange(
                workerless.url, request.encode().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + BODY
            )
            assert header in Reply.parse(answer).problem(400)["detail"]
    assert (await workerless.model(path))["inbox"] == 0
