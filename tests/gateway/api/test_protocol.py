"""The HTTP protocol: methods, paths, pipelining, expectations."""

import asyncio

import pytest

from keepfit_gateway.routes import PAGE_FILES, ROUTES, methods_of_paths
from tests.gateway.api_client import Api, Reply, address_of, connected, exchange

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/models%2F", "/v3", "/v1/../etc/passwd", "/livez%00"])
async def test_an_unknown_path_is_not_found(api: Api, path: str) -> None:
    """An unknown path answers 404 with a reference to the OpenAPI document."""
    assert "/openapi.json" in (await api.get(path)).problem(404)["detail"]


@pytest.mark.parametrize("path", sorted({*(route.path for route in ROUTES), *PAGE_FILES}))
async def test_an_unsupported_method_lists_the_allowed_ones(api: Api, path: str) -> None:
    """An unsupported method answers 405, and Allow lists exactly the supported ones."""
    methods = {route.method for route in ROUTES if route.path == path} or {"GET"}
    allowed = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    assert methods_of_paths()[path] == allowed
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - methods:
        reply = await api.call(method, address_of(path))
        assert reply.refusal(405, path).startswith(f"{method} is not allowed here")
        assert set(reply.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/openapi.json", "/docs", *PAGE_FILES, "/v1/models?session=none", "/v1/models/0"]
)
async def test_head_is_get_without_a_body(api: Api, path: str) -> None:
    """HEAD answers like GET, including the length, without the body."""
    got, headed = await api.get(path), await api.call("HEAD", path)
    assert headed.status == got.status
    assert headed.body == b""
    for name in ("Content-Type", "Content-Length"):
        assert headed.headers.get(name) == got.headers.get(name)


async def test_requests_can_be_pipelined(api: Api) -> None:
    """Pipelined requests are answered in their order."""
    data = (
        LIVEZ
        + b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n"
        + LIVEZ.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    answers = (await exchange(api.url, data)).split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, 404, 200]


async def test_garbage_after_a_request_ends_only_its_connection(api: Api) -> None:
    """Garbage after an answered request gets a 400 and closes that connection only."""
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
    """A request with garbage in the same packet gets a 400; the gateway still serves."""
    answer = await exchange(api.url, LIVEZ + b"\x00garbage\r\n\r\n")
    Reply.parse(answer[answer.rindex(b"HTTP/1.") :]).problem(400)
    assert (await api.get("/livez")).status == 200


async def test_100_continue_is_supported(api: Api) -> None:
    """A client that expects 100-continue gets it, and then its answer."""
    head = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    async with connected(api.url) as (reader, writer), asyncio.timeout(20):
        writer.write(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        Reply.parse(await reader.read()).problem(400)


@pytest.mark.parametrize("path", [b"/v1/models", b"/nope"])
async def test_other_expectations_answer_417(api: Api, path: bytes) -> None:
    """An unknown expectation answers 417 with a problem document."""
    head = (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nExpect: tea\r\nConnection: close\r\n\r\n" % path
    )
    Reply.parse(await exchange(api.url, head)).problem(417)


async def test_an_unsupported_upgrade_is_ignored(api: Api) -> None:
    """A request for an upgrade to WebSocket is answered as plain HTTP."""
    head = LIVEZ[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    async with connected(api.url) as (reader, writer), asyncio.timeout(20):
        writer.write(head)
        assert Reply.parse(await reader.readuntil(b"}")).status == 200
