"""Targets of requests in all their spellings, OPTIONS, and the 100 that a client waits for."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from keepfit.security.api_keys import SCOPES, new_key
from keepfit.settings import Settings
from keepfit_gateway.routes import ROUTES, methods_of_paths
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api, Reply, address_of, connected, exchange, serving

BODY = b'{"X":[[1.0,2.0]],"y":[1.0]}'
JSON = "Content-Type: application/json"
TOO_LARGE = "Content-Length: 99999999999"
KEY, SLOW, READER = new_key("all", SCOPES), new_key("slow", SCOPES, "1/1"), new_key("reader", ["read"])
BEARER = f"Authorization: Bearer {KEY[0]}"


def head(method: str, target: str, *lines: str) -> bytes:
    """Return the head of a request."""
    return "\r\n".join((f"{method} {target} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


def spellings(path: str) -> list[str]:
    """Return other spellings of a path."""
    path, mark, query = path.partition("?")
    encoded = path.replace("/v", "/%76").replace("live", "l%69ve")
    others = [f"{path}/", f"{path}//", f"/{path}", path.replace("/", "//"), encoded, f"http://localhost:1{path}/"]
    return [other + mark + query for other in others]


@pytest.fixture
async def path(api: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned a row."""
    made = await api.make(metadata, REGRESSOR)
    await api.learn(made, [[1.0, 2.0]], [1.0])
    return made


# Targets.


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_other_spellings_of_a_path_reach_its_route(api: Api, route: Any) -> None:
    """A slash at the end, double slashes, encoded letters and a scheme with host change nothing, on every route."""
    where = address_of(route.path)
    body = b"[]"
    lines = (JSON, f"Content-Length: {len(body)}", "Connection: close")
    plain, *others = [
        Reply.parse(await exchange(api.url, head(route.method, target, *lines) + body))
        for target in (where, *spellings(where))
    ]
    assert plain.status not in (404, 405) or b"There is no" in plain.body
    assert {reply.status for reply in others} == {plain.status}


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
async def test_other_spellings_learn_and_predict(api: Api, path: str, content_type: str) -> None:
    """Rows sent to another spelling are learned, and predictions are the same, on the fast and the regular path."""
    rows = json.dumps({"X": [[1.0, 2.0]]}).encode()
    lines = (f"Content-Type: {content_type}", "Connection: close")
    for target in spellings(path):
        learn = head("POST", f"{target.rstrip('/')}/partial_fit/", *lines, f"Content-Length: {len(BODY)}")
        Reply.parse(await exchange(api.url, learn + BODY)).of(202)
        predict = head("POST", f"{target.rstrip('/')}/predict/", *lines, f"Content-Length: {len(rows)}")
        assert len(Reply.parse(await exchange(api.url, predict + rows)).of(200)["predictions"]) == 1
    last = await api.learn(path, [[1.0, 2.0]], [1.0])
    assert last["rows_seen"] == len(spellings(path)) + 2


async def test_a_query_is_not_changed(api: Api, metadata: dict[str, Any]) -> None:
    """Slashes and encoded characters in a query are values; only the path has other spellings."""
    name = "a//b/ %2F/"
    path = await api.make({**metadata, "name": name}, REGRESSOR)
    for target in ("/v1/models", "/v1/models/", "//v1/%6Dodels"):
        found = await exchange(
            api.url,
            head(
                "GET",
                f"{target}?session={metadata['session']}&name=a//b/%20%252F/",
                "Connection: close",
            ),
        )
        assert [model["hash"] for model in Reply.parse(found).of(200)["models"]] == [path.rpartition("/")[2]]


@pytest.mark.parametrize("target", ["/v1%2Fmodels", "/v1/./models", "/v1/../v1/models", "/v1/models;a=b", "/*", "/x"])
async def test_other_paths_are_not_found(api: Api, target: str) -> None:
    """What is another path stays one: an encoded slash, dots, parameters."""
    reply = Reply.parse(await exchange(api.url, head("GET", target, "Connection: close")))
    assert reply.status in (404, 405)
    assert (reply.status == 405) is (target == "/*")


# OPTIONS.


@pytest.mark.parametrize("path", sorted(methods_of_paths()))
async def test_options_lists_the_methods(api: Api, path: str) -> None:
    """OPTIONS answers 204, and Allow lists the methods of the path; OPTIONS * those of the server."""
    where = address_of(path)
    targets = ["*"] if path == "/*" else [where, f"{where}/"]
    for target in targets:
        reply = Reply.parse(await exchange(api.url, head("OPTIONS", target, "Connection: close")))
        assert (reply.status, reply.body) == (204, b"")
        allowed = set(reply.headers["Allow"].split(", "))
        assert allowed == methods_of_paths()[path]
        if path != "/*":
            unsupported = await api.call("PUT", where)
            unsupported.refusal(405, path)
            assert set(unsupported.headers["Allow"].split(", ")) == allowed


# 100 Continue.


@pytest.fixture
async def guarded(stack: Stack) -> AsyncIterator[Api]:
    """Return a gateway with keys on the servers of the stack."""
    settings = Settings(**{**stack.settings().model_dump(), "api_keys": f"{KEY[1]},{SLOW[1]},{READER[1]}"})
    async with serving(settings) as served:
        yield served


@pytest.mark.parametrize(
    ("status", "request_head"),
    [
        pytest.param(413, head("POST", "/v1/models", BEARER, JSON, TOO_LARGE), id="too large"),
        pytest.param(413, head("POST", "/v1/predict", BEARER, JSON, TOO_LARGE), id="too large for the fast path"),
        pytest.param(415, head("POST", "/v1/models", BEARER, "Content-Type: text/plain"), id="media type"),
        pytest.param(415, head("POST", "/v1/predict", BEARER, JSON, "Content-Encoding: br"), id="coding"),
        pytest.param(415, head("POST", "/v1/predict", BEARER, f"{JSON}; charset=latin-1"), id="charset"),
        pytest.param(404, head("POST", "/nowhere", BEARER, JSON), id="unknown path"),
        pytest.param(405, head("PUT", "/v1/models", BEARER, JSON), id="method"),
        pytest.param(401, head("POST", "/v1/predict", JSON), id="no key"),
        pytest.param(401, head("POST", "/v1/predict", JSON, "Authorization: Bearer kf_x"), id="unknown key"),
        pytest.param(403, head("POST", "/v1/predict", JSON, f"Authorization: Bearer {READER[0]}"), id="scope"),
        pytest.param(403, head("POST", "/v1/models", JSON, f"Authorization: Bearer {READER[0]}"), id="scope, regular"),
        pytest.param(400, head("POST", "/v1/partial_fit", BEARER, JSON, "Idempotency-Key: a b"), id="key"),
        pytest.param(400, head("POST", "/v1/predict?timeout=x", BEARER, JSON), id="parameter"),
        pytest.param(400, head("POST", "/v1/predict?timeout=1&timeout=2", BEARER, JSON), id="parameter twice"),
        pytest.param(404, head("POST", f"/v1/models/{'0' * 64}/predict", BEARER, JSON), id="model"),
        pytest.param(404, head("POST", f"/v1/models/{'0' * 64}/score", BEARER, JSON), id="model, regular"),
        pytest.param(400, head("POST", "/v1/models/0/predict", BEARER, JSON), id="hash"),
        pytest.param(400, head("POST", "/v1/models/0/dead/retry", BEARER, JSON), id="hash of dead letters"),
        pytest.param(406, head("POST", "/v1/predict", BEARER, JSON, "Accept-Encoding: identity;q=0"), id="accepted"),
    ],
)
async def test_what_the_head_decides_needs_no_body(guarded: Api, status: int, request_head: bytes) -> None:
    """A client that waits for a 100 gets the refusal instead, and the connection is closed, at once."""
    length = b"" if b"Content-Length" in request_head else b"Content-Length: 27\r\n"
    data = await exchange(guarded.url, request_head[:-2] + length + b"Expect: 100-continue\r\n\r\n")
    reply = Reply.parse(data)
    reply.problem(status)
    assert data.count(b"HTTP/1.1 ") == 1
    assert reply.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "lines", [("Expect: tea",), ("Expect: 100-continue, x",), ("Expect: 100-continue", "Expect: x")]
)
async def test_other_expectations_are_refused(guarded: Api, lines: tuple[str, ...]) -> None:
    """The refusal comes at once and without a 100; the client may send the body nevertheless, and the next request."""
    async with connected(guarded.url) as (reader, writer), asyncio.timeout(20):
        writer.write(head("POST", "/v1/predict", BEARER, JSON, *lines, f"Content-Length: {len(BODY)}"))
        Reply.parse(await reader.readuntil(b"}")).problem(417)
        writer.write(BODY + head("GET", "/livez"))
        assert (await reader.readuntil(b"\r\n")).split()[:2] == [b"HTTP/1.1", b"200"]


async def test_a_rate_limit_needs_no_body(guarded: Api) -> None:
    """A client that exceeds its rate gets 429 instead of a 100."""
    slow = f"Authorization: Bearer {SLOW[0]}"
    Reply.parse(await exchange(guarded.url, head("GET", "/v1/models", slow, "Connection: close"))).of(200)
    waiting = head("POST", "/v1/predict", slow, JSON, "Content-Length: 27", "Expect: 100-continue")
    data = await exchange(guarded.url, waiting)
    assert Reply.parse(data).headers["Retry-After"]
    Reply.parse(data).problem(429)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
@pytest.mark.parametrize("expectation", ["100-continue", "100-Continue"])
async def test_a_client_gets_its_100_when_the_body_is_needed(
    api: Api, path: str, content_type: str, expectation: str
) -> None:
    """Otherwise the client gets the 100, sends the body and gets its answer; the connection stays open."""
    lines = (f"Content-Type: {content_type}", f"Content-Length: {len(BODY)}", f"Expect: {expectation}")
    async with connected(api.url) as (reader, writer), asyncio.timeout(20):
        for _ in range(2):
            writer.write(head("POST", f"{path}/partial_fit", *lines))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            Reply.parse(await reader.readuntil(b"}")).of(202)


async def test_a_client_that_does_not_wait_gets_no_100(api: Api, path: str) -> None:
    """A body that has arrived needs no 100, and HTTP/1.0 has none."""
    lines = (JSON, f"Content-Length: {len(BODY)}", "Expect: 100-continue", "Connection: close")
    whole = head("POST", f"{path}/partial_fit", *lines) + BODY
    for data in (whole, whole.replace(b"HTTP/1.1", b"HTTP/1.0")):
        Reply.parse(await exchange(api.url, data)).of(202)
