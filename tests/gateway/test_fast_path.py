"""The fast path of small requests: its answers equal those of the regular path."""

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.gateway.api_client import REGRESSOR, Api, Reply, connected, exchange

LABELLED = {"X": [[1.0, 2.0]], "y": [1.0]}
ROWS = {"X": [[1.0, 2.0]]}
FAST = {"Content-Type": "application/json"}
# The same media type, in a spelling that the fast path does not accept.
REGULAR = {"Content-Type": "application/json; charset=utf-8"}


@pytest.fixture
async def path(api: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned a row."""
    made = await api.make(metadata, REGRESSOR)
    await api.learn(made, **LABELLED)
    return made


async def both(api: Api, path: str, document: Any, **headers: str) -> tuple[Reply, Reply]:
    """Send the same body on the fast and on the regular path; return both answers."""
    body = json.dumps(document).encode()
    fast = await api.call("POST", path, data=body, headers={**FAST, **headers})
    return fast, await api.call("POST", path, data=body, headers={**REGULAR, **headers})


def fields(reply: Reply) -> dict[str, str]:
    """Return the header fields except time, age and request id."""
    own = ("Date", "Age", "X-Request-Id")
    return {name.title(): value for name, value in reply.headers.items() if name.title() not in own}


@pytest.mark.parametrize("by_metadata", [False, True])
async def test_predictions_are_the_same_on_both_paths(
    api: Api, path: str, metadata: dict[str, Any], by_metadata: bool
) -> None:
    """Status, header fields and body are equal, whether computed or from the cache."""
    where, document = ("/v1/predict", {**ROWS, "metadata": metadata}) if by_metadata else (f"{path}/predict", ROWS)
    for headers in ({"Cache-Control": "no-cache"}, {}, {}):
        fast, regular = await both(api, where, document, **headers)
        assert (fast.status, fields(fast), fast.body) == (regular.status, fields(regular), regular.body)
        assert ("Age" in fast.headers) == ("Age" in regular.headers) == (not headers)


async def test_accepted_answers_are_the_same_on_both_paths(api: Api, path: str) -> None:
    """Rows are accepted with the same answer, except for their sequence."""
    fast, regular = await both(api, f"{path}/partial_fit", LABELLED)
    first, second = fast.of(202), regular.of(202)
    assert second.pop("sequence") == first.pop("sequence") + 1
    first.pop("version")
    second.pop("version")
    assert (first, fields(fast)) == (second, fields(regular))


@pytest.mark.parametrize(
    ("call", "document", "status"),
    [
        ("predict", {"X": [[1.0]]}, 422),
        ("predict", {"X": []}, 422),
        ("predict", {"X": [[1.0, "a"]]}, 422),
        ("predict", {"Y": [[1.0]]}, 400),
        ("partial_fit", {"X": [[1.0, 2.0]], "y": []}, 422),
        ("partial_fit", {"X": [[1.0, 2.0, 3.0]], "y": [1.0]}, 422),
    ],
)
async def test_errors_are_the_same_on_both_paths(api: Api, path: str, call: str, document: Any, status: int) -> None:
    """Problem documents are equal."""
    fast, regular = await both(api, f"{path}/{call}", document)
    assert fast.problem(status) == regular.problem(status)
    assert fields(fast) == fields(regular)


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [("1.1", None, True), ("1.1", "close", False), ("1.0", None, False), ("1.0", "keep-alive", True)],
)
async def test_connections_are_kept_or_closed_as_http_requires(
    api: Api, path: str, version: str, connection: str | None, stays: bool
) -> None:
    """The fast path keeps or closes a connection as RFC 9112 requires for each HTTP version."""
    body = json.dumps(ROWS).encode()
    head = f"POST {path}/predict HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Connection: {connection}\r\n" if connection else ""
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    last = request.replace(f"HTTP/{version}".encode(), b"HTTP/1.1")
    last = last.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")
    data = await exchange(api.url, request + (last if stays else b""))
    assert data.count(b'{"hash"') == 1 + stays
    assert data.startswith(f"HTTP/{version} 200 OK\r\n".encode())
    first = data.split(b"\r\n\r\n", 1)[0]
    if not stays and version == "1.1":
        assert b"Connection: close" in first
    if stays and version == "1.0":
        assert b"Connection: keep-alive" in first


async def test_a_client_that_disconnects_at_once_causes_no_error(api: Api, path: str) -> None:
    """A response to a connection that the client has closed is dropped without a log line."""
    body = json.dumps(ROWS).encode()
    head = f"POST {path}/predict HTTP/1.1\r\nHost: {urlsplit(api.url).netloc}\r\nContent-Type: application/json\r\n"
    head += f"Cache-Control: no-cache\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(20):
        async with connected(api.url) as (_, writer):
            writer.write(head.encode() + body)
            await writer.drain()
    assert (await api.predict(path, **ROWS))["rows_seen"] == 1
