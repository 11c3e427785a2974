"""A server whose answers a test writes: raw bytes, connections that end, silence."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Received:
    """A request as it arrived."""

    line: str
    fields: dict[str, str]
    body: bytes


@dataclass
class Scripted:
    """A running server: its address, and the requests that it got, in order."""

    url: str
    received: list[Received] = field(default_factory=list)
    connections: int = 0


def ok(body: str = "{}", *lines: str, status: str = "200 OK") -> bytes:
    """Return an answer with a length."""
    head = "".join(f"{line}\r\n" for line in lines)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n{body}".encode()


CLOSE = b""


@contextmanager
def scripted(answers: Sequence[bytes | None]) -> Iterator[Scripted]:
    """Run a server that gives these answers, one for each request.

    :data:`CLOSE` closes the connection instead of answering; None answers nothing. After an answer with
    ``Connection: close`` or without a length it is closed, too.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    server = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}")
    waiting = list(answers)
    opened: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        data = b""
        while True:
            while (request := _take(data)) is None:
                more = connection.recv(1 << 20)
                if not more:
                    return
                data += more
            received, data = request
            server.received.append(received)
            answer = waiting.pop(0) if waiting else ok()
            if answer is None:
                continue
            if answer != CLOSE:
                connection.sendall(answer)
            if (
                answer == CLOSE
                or b"Connection: close" in answer
                or (b"Length" not in answer and b"chunked" not in answer)
            ):
                connection.shutdown(socket.SHUT_RDWR)
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            server.connections += 1
            opened.append(connection)
            threading.Thread(target=_quietly, args=(serve, connection), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in opened:
            connection.close()


def _quietly(serve: object, connection: socket.socket) -> None:
    try:
        serve(connection)  # type: ignore[operator]
    except OSError:
        # The test has ended, or the client has gone.
        connection.close()


def _take(data: bytes) -> tuple[Received, bytes] | None:
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    line, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
    if "chunked" in fields.get("transfer-encoding", ""):
        body = b""
        while True:
            size, found, more = rest.partition(b"\r\n")
            if not found or len(more) < int(size, 16) + 2:
                return None
            body, rest = body + more[: int(size, 16)], more[int(size, 16) + 2 :]
            if int(size, 16) == 0:
                return Received(line, fields, body), rest
    length = int(fields.get("content-length", 0))
    return None if len(rest) < length else (Received(line, fields, rest[:length]), rest[length:])
