"""Connections: which are used again, what arrives while a body is sent, and what waiting takes part in a deadline."""

import asyncio
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import uvloop

from keepfit import AsyncClient, Client
from keepfit.client.transport import sync_connections
from keepfit.client.transport.address import Address
from keepfit.client.transport.async_connections import AsyncConnections
from keepfit.client.transport.async_connections import Connection as AsyncConnection
from keepfit.client.transport.exchange import PIECE_BYTES, LateError, Request, Send
from keepfit.client.transport.http1 import ResponseReader
from keepfit.client.transport.sync_connections import Connection, SyncConnections
from keepfit.errors import NotFoundError, UnavailableError
from tests.keepfit.client.scripted_server import ok, scripted
from tests.tls import Authority

HASH = "5f" * 32
MISSING = ok('{"type": "urn:keepfit:problem:not-found", "detail": "None."}', status="404 Not Found")
# Longer than what the system keeps of a connection.
MATRIX = np.zeros((200_000, 8))


def predicted(value: float) -> bytes:
    """Return the answer to a prediction of one row."""
    return ok(json.dumps({"hash": HASH, "version": 1, "rows_seen": 1, "predictions": [value]}))


@contextmanager
def server(*serves: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server that serves its connections, one after another, with these functions; yield its URL."""
    served: list[socket.socket] = []

    def run() -> None:
        for serve in serves:
            connection, _ = listener.accept()
            served.append(connection)
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
    for connection in served:
        connection.close()


def predict(url: str, client: str, rows: Any = ((1.0,),)) -> Any:
    """Predict rows with one of the clients."""

    async def awaited() -> Any:
        async with AsyncClient(url, timeout_s=20) as made:
            return await made.model(HASH).predict(rows)

    if client != "blocking":
        return (asyncio if client == "asyncio" else uvloop).run(awaited())
    with Client(url, timeout_s=20) as made:
        return made.model(HASH).predict(rows)


@pytest.mark.parametrize("client", ["blocking", "asyncio", "uvloop"])
def test_an_interim_response_does_not_end_the_sending(client: str) -> None:
    """After a 103 the rest of a body is sent, and the answer comes after it."""

    def serve(connection: socket.socket) -> None:
        data = connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        left = MATRIX.nbytes - len(data)
        while left > 0:
            left -= len(connection.recv(1 << 20))
        # The heads of the request and of the array are left.
        connection.sendall(predicted(1.5))

    with server(serve) as url:
        assert list(predict(url, client, MATRIX)) == [1.5]


@pytest.mark.parametrize("client", ["blocking", "asyncio", "uvloop"])
def test_an_answer_is_read_while_the_gateway_reads_nothing(client: str) -> None:
    """A gateway that refuses a body, keeps the connection and reads no more of it is answer enough."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(MISSING)

    with server(serve) as url, pytest.raises(NotFoundError, match="None"):
        predict(url, client, MATRIX)


@pytest.mark.parametrize("client", ["blocking", "asyncio", "uvloop"])
def test_an_answer_is_read_after_the_gateway_has_reset_the_connection(client: str) -> None:
    """A gateway that refuses a body and closes the connection while it arrives is answer enough."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(MISSING)
        # What has arrived and is not read makes the system reset the connection.
        connection.close()

    for _ in range(10):
        with server(serve) as url, pytest.raises(NotFoundError, match="None"):
            predict(url, client, MATRIX)


def test_a_connection_that_was_lost_is_not_used_again() -> None:
    """An answer that came before the connection was lost is the answer; the connection is of no use."""
    ours, theirs = socket.socketpair()
    theirs.sendall(MISSING)
    theirs.close()
    connection = Connection(ours, Address("http://host"))
    response = connection.exchange(Send(Request("POST", "/v1/x", b"{}"), time.monotonic() + 20))
    assert (response.status, response.keep_alive) == (404, False)
    connection.close()


def test_bytes_without_a_request_are_no_answer() -> None:
    """Bytes that arrive on an idle connection are not taken for the answer to the next request."""
    goes_on = threading.Event()

    def first(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(predicted(1.5))
        assert goes_on.wait(30)
        connection.sendall(predicted(6.5))
        goes_on.clear()

    def second(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(predicted(2.5))

    with server(first, second) as url, Client(url, timeout_s=20) as client:
        model = client.model(HASH)
        assert list(model.predict([[1.0]])) == [1.5]
        goes_on.set()
        while goes_on.is_set():
            time.sleep(0.001)
        assert list(model.predict([[1.0]])) == [2.5]


async def test_waiting_for_a_connection_ends_at_the_deadline() -> None:
    """A call that gets no connection ends in time, and the connection goes to the next one."""
    request = Request("GET", "/v1/x")
    with scripted([None, ok('{"a": 1}')]) as running:
        connections = AsyncConnections(Address(running.url), connections_max=1)
        silent = asyncio.create_task(connections.send(Send(request, time.monotonic() + 60)))
        await asyncio.sleep(0)
        for seconds in (0.05, -1.0):
            with pytest.raises(LateError):
                await connections.send(Send(request, time.monotonic() + seconds))
        assert not silent.done()
        silent.cancel()
        response = await connections.send(Send(request, time.monotonic() + 60))
        assert bytes(response.body) == b'{"a": 1}'
        await connections.close()


async def test_a_slow_listener_stops_the_gateway() -> None:
    """Of a body that is read as it comes, no more is taken than the caller asks for."""

    class Transport:
        is_paused = False

        def pause_reading(self) -> None:
            self.is_paused = True

        def resume_reading(self) -> None:
            self.is_paused = False

    transport, connection = Transport(), AsyncConnection()
    connection.connection_made(cast("asyncio.Transport", transport))
    connection.begin(ResponseReader())
    waiting = asyncio.create_task(connection.arrives(time.monotonic() + 60))
    await asyncio.sleep(0)
    assert not transport.is_paused
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert transport.is_paused
    assert (await waiting).take() == b"abc"


def test_a_long_body_goes_in_pieces() -> None:
    """Bytes are divided without a copy, as a body that is encoded while it is sent."""
    body = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"
    head, pieces = Address("http://host").encode(Request("POST", "/v1/x", body))
    found = list(pieces)
    assert head.endswith(b"Content-Length: %d\r\n\r\n" % len(body))
    assert [len(piece) for piece in found] == [PIECE_BYTES] * 3 + [3]
    assert b"".join(found) == body
    assert all(isinstance(piece, memoryview) and piece.obj is body for piece in found)


@pytest.mark.parametrize("client", ["blocking", "asyncio", "uvloop"])
def test_https_is_checked_and_kept_open(tmp_path: Path, client: str) -> None:
    """A certificate of an unknown authority is refused; else one connection serves one call after another."""
    authority = Authority.make(tmp_path / "ca.pem")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(authority.certificate())
    trusting = ssl.create_default_context(cafile=str(authority.path))

    def refused(connection: socket.socket) -> None:
        with suppress(OSError):
            served.wrap_socket(connection, server_side=True)

    def serve(connection: socket.socket) -> None:
        with served.wrap_socket(connection, server_side=True) as secure:
            for value in (1.5, 2.5, 3.5):
                secure.recv(1 << 16)
                secure.sendall(predicted(value))

    def blocking(url: str) -> list[Any]:
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"), Client(url) as made:
            made.model(HASH).predict([[1.0]])
        with Client(url, tls=trusting) as made:
            return [made.model(HASH).predict([[1.0]])[0] for _ in range(3)]

    async def awaited(url: str) -> list[Any]:
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            async with AsyncClient(url) as made:
                await made.model(HASH).predict([[1.0]])
        async with AsyncClient(url, tls=trusting) as made:
            return [(await made.model(HASH).predict([[1.0]]))[0] for _ in range(3)]

    with server(refused, serve) as url:
        secure = url.replace("http:", "https:")
        assert (blocking(secure) if client == "blocking" else asyncio.run(awaited(secure))) == [1.5, 2.5, 3.5]


def test_many_addresses_do_not_take_longer_than_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of several addresses that do not answer is given up at the deadline, not after a limit for each."""
    now_s, attempts = 1000.0, []

    def connect(place: tuple[str, int], timeout: float) -> socket.socket:
        nonlocal now_s
        attempts.append((place[0], timeout))
        now_s += timeout
        raise TimeoutError

    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{number}", 80)) for number in range(4)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(sync_connections.time, "monotonic", lambda: now_s)
    with pytest.raises(LateError):
        SyncConnections(Address("http://host")).send(Send(Request("GET", "/v1/x"), now_s + 15))
    assert attempts == [("192.0.2.0", 10.0), ("192.0.2.1", 5.0)]


def test_a_forked_process_has_connections_of_its_own() -> None:
    """A client goes on after a fork, in both processes, and no connection is used by both."""
    with scripted([predicted(1.5), predicted(2.5), predicted(3.5)]) as running, Client(running.url) as client:
        model = client.model(HASH)
        assert list(model.predict([[1.0]])) == [1.5]
        child = os.fork()
        if child == 0:
            answer = 0.0
            with suppress(BaseException):
                answer = model.predict([[1.0]])[0]
            os._exit(0 if answer == 2.5 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert list(model.predict([[1.0]])) == [3.5]
        assert (running.connections, len(running.received)) == (2, 3)
