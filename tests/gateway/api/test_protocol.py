"""HTTP as such: methods, paths, pipelines, expectations."""

import asyncio

import pytest

from keepfit_gateway.routes import ROUTES
from tests.gateway.api_client import Api, Reply, connected, exchange

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: keepfit\r\n\r\n"


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/models/", "/v2", "/v1/../etc/passwd", "/livez%00"])
async def test_an_unknown_path_is_not_found(api: Api, path: str) -> None:
    """Where there is nothing, 404 says where to look."""
    assert "/openapi.json" in (await api.get(path)).problem(404)["detail"]


@pytest.mark.parametrize("path", sorted({route.path for route in ROUTES}))
async def test_a_method_that_a_path_lacks_names_those_it_has(api: Api, path: str) -> None:
    """Any other method answers 405, and Allow holds exactly the methods that work."""
    methods = {route.method for route in ROUTES if route.path == path}
    allowed = methods | ({"HEAD"} if "GET" in methods else set())
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - methods:
        reply = await api.call(method, path.replace("{hash}", "0" * 64))
        assert reply.problem(405)["detail"].startswith(f"{method} is not allowed here")
        assert set(reply.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/v1/models?session=none", "/v1/models/0"])
async def test_head_is_get_without_a_body(api: Api, path: str) -> None:
    """HEAD answers what GET does, length and all, but for the body."""
    got, headed = await api.get(path), await api.call("HEAD", path)
    assert headed.status == got.status
    assert headed.body == b""
    for name in ("Content-Type", "Content-Length"):
        assert headed.headers.get(name) == got.headers.get(name)


async def test_requests_may_be_sent_ahead(api: Api) -> None:
    """Pipelined requests are answered one by one, in their order."""
    data = (
        LIVEZ + b"GET /nope HTTP/1.1\r\nHost: a\r\n\r\n" + LIVEZ.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    answers = (await exchange(api.url, data)).split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, 404, 200]


async def test_garbage_after_a_request_ends_only_its_connection(api: Api) -> None:
    """Garbage behind an answered request is answered with 400 and the end of that connection, and no other."""
    async with connected(api.url) as (reader, writer), connected(api.url) as (other_reader, other_writer):
        async with asyncio.timeout(20):
            for each in (writer, other_writer):
                each.write(LIVEZ)
            for each_reader in (reader, other_reader):
                assert Reply.parse(await each_reader.readuntil(b"}")).json() == {"status": "ok"}
            writer.write(b"\x00garbage\r\n\r\n")
            Reply.parse(await reader.read()).problem(400)
            other_writer.write(LIVEZ)
            assert Reply.parse(await other_reader.readuntil(b"}")).status == 200


async def test_garbage_in_the_same_packet_as_a_request_does_not_crash(api: Api) -> None:
    """A request with garbage right behind it ends in 400; the service serves on."""
    answer = await exchange(api.url, LIVEZ + b"\x00garbage\r\n\r\n")
    Reply.parse(answer[answer.rindex(b"HTTP/1.") :]).problem(400)
    assert (await api.get("/livez")).status == 200


async def test_an_expectation_of_100_continue_is_met(api: Api) -> None:
    """A client that asks first is told to go on, and then answered."""
    head = b"POST /v1/models HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    async with connected(api.url) as (reader, writer), asyncio.timeout(20):
        writer.write(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        Reply.parse(await reader.read()).problem(400)


@pytest.mark.parametrize("path", [b"/v1/models", b"/nope"])
async def test_any_other_expectation_fails(api: Api, path: bytes) -> None:
    """An expectation that HTTP does not know answers 417, as a problem too."""
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: tea\r\nConnection: close\r\n\r\n" % path
    Reply.parse(await exchange(api.url, head)).problem(417)


async def test_an_upgrade_that_nobody_offers_is_ignored(api: Api) -> None:
    """A request to upgrade to a web socket is answered as plain HTTP."""
    head = LIVEZ[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    async with connected(api.url) as (reader, writer), asyncio.timeout(20):
        writer.write(head)
        assert Reply.parse(await reader.readuntil(b"}")).status == 200
