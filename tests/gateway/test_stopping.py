"""A gateway that stops while requests arrive: a real process, SIGTERM, and bodies that end after it."""

import json
import signal
import socket
from contextlib import ExitStack, closing
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import servers
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api
from tests.gateway.gateway_process import gateway_process

NEXT = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(url: str) -> socket.socket:
    """Return a connection to a gateway."""
    host, _, port = urlsplit(url).netloc.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=servers.START_S_MAX)


def head(path: str, framing: str) -> bytes:
    """Return the head of a POST."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", framing, "", "")
    return "\r\n".join(lines).encode()


def chunk(data: bytes) -> bytes:
    """Return a chunk of a body without a length."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(connection: socket.socket) -> tuple[int, str | None, Any]:
    """Return the status, the header Connection and the body of an answer after which the connection is closed."""
    response = HTTPResponse(connection)
    response.begin()
    body = json.loads(response.read())
    assert connection.recv(1) == b""
    return response.status, response.getheader("Connection"), body


@pytest.mark.timeout(120)
async def test_bodies_that_end_after_sigterm_are_answered(
    stack: Stack, api: Api, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    """Rows whose body was arriving are accepted, bad framing is a 400; each answer says that the connection closes."""
    path = await api.make(metadata, REGRESSOR)
    rows = b'{"X":[[1.0,2.0]],"y":[1.0]}'
    first, rest = rows[:9], rows[9:]
    target = f"{path}/partial_fit"
    sized, chunked = head(target, f"Content-Length: {len(rows)}"), head(target, "Transfer-Encoding: chunked")
    begun = {
        "length": (sized + first, rest),
        "followed": (sized + first, rest + NEXT),
        "chunks": (chunked + chunk(first), chunk(rest) + chunk(b"")),
        "bad": (chunked + chunk(first), b"no size\r\n"),
        "nothing": (sized, rows),
    }
    with gateway_process(stack, tmp_path) as gateway, ExitStack() as at_end:
        opened = {name: at_end.enter_context(closing(connect(gateway.url))) for name in begun}
        for name, (before, _) in begun.items():
            opened[name].sendall(before)
        idle = at_end.enter_context(closing(connect(gateway.url)))
        # The process has one loop: it has read the others before it answers this one.
        idle.sendall(NEXT)
        assert idle.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        gateway.process.send_signal(signal.SIGTERM)
        # It closes idle connections when it has begun to stop.
        assert idle.recv(1) == b""
        for name, (_, after) in begun.items():
            opened[name].sendall(after)
        found = {name: answer(connection) for name, connection in opened.items()}
        assert gateway.process.wait(servers.START_S_MAX) == 0
    assert {name: status for name, (status, _, _) in found.items()} == {
        "length": 202, "followed": 202, "chunks": 202, "bad": 400, "nothing": 202,
    }  # fmt: skip
    assert {connection for _, connection, _ in found.values()} == {"close"}
    accepted = [body["sequence"] for status, _, body in found.values() if status == 202]
    assert sorted(accepted) == [1, 2, 3, 4]
