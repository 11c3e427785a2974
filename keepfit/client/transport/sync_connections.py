"""Connections of the blocking client: sockets that are kept open between calls, and used by one call at a time.

Owns the sockets. Never repeats a request. Invariant: a connection that has shown anything unexpected is closed, and one
that was opened before a fork is not used after it. Threads may share the pool.
"""

import math
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from keepfit.client.transport import http1
from keepfit.client.transport.address import Address, default_tls
from keepfit.client.transport.exchange import IDLE_S_MAX, LateError, LostError, NotConnectedError, Send, left_s
from keepfit.client.transport.http1 import ProtocolError, Response, ResponseReader

if TYPE_CHECKING:
    import ssl

# Idle connections that are kept; more may be in use.
IDLE_MAX = 32
CONNECT_S_MAX = 10.0
READ_BYTES = 1 << 16
# A time limit may be longer by this part than the time that is left.
LIMIT_PRECISION = 0.02
# An idle connection takes so many bytes without waiting.
SENT_AT_ONCE_BYTES = 4096
CLOSED = "the gateway has closed the connection"
NOT_SENT, NOT_ANSWERED = "the request could not be sent in time", "the answer has not come in time"


class Forks:
    """How many forks lie between the start of the first process and this one; to ask for a pid costs a system call."""

    count = 0

    @classmethod
    def note(cls) -> None:
        """Count a fork."""
        cls.count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Forks.note)


class SyncConnections:
    """The connections to one gateway."""

    def __init__(self, address: Address, tls: "ssl.SSLContext | None" = None) -> None:
        self._idle: list[Connection] = []
        self._address = address
        self._tls = tls or (default_tls() if address.is_secure else None)
        self._forks = Forks.count
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Close the idle connections, and those in use when their calls end."""
        with self._lock:
            self._is_closed, idle, self._idle = True, self._idle, []
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        for connection in self._idle:
            connection.close()

    def send(self, step: Send) -> Response:
        """Send a request and return the response; raises ExchangeError."""
        connection = self._connection(step.deadline)
        try:
            response = connection.exchange(step)
        except BaseException:
            connection.close()
            raise
        self._keep(connection, keep_alive=response.keep_alive)
        return response

    def ask(self, data: bytes, deadline: float) -> Response:
        """Send a short POST, with its head, and return the response; raises ExchangeError."""
        connection = self._connection(deadline)
        try:
            response = connection.ask(data, deadline)
        except BaseException:
            connection.close()
            raise
        self._keep(connection, keep_alive=response.keep_alive)
        return response

    def stream(self, step: Send, silence_s_max: float) -> Iterator[Response | bytes]:
        """Send a request; yield its response when the head is there, then the body as it arrives, until it ends.

        A response that is not successful is yielded whole.
        """
        connection = self._connection(step.deadline)
        try:
            reader = ResponseReader()
            connection.send(step, reader)
            while not reader.may_be_streamed:
                connection.receive(reader, step.deadline)
            yield reader.response
            while not reader.is_complete:
                if part := reader.take():
                    yield part
                connection.receive(reader, time.monotonic() + silence_s_max)
            if reader.response.body:
                yield bytes(reader.response.body)
        finally:
            connection.close()

    def _connection(self, deadline: float) -> "Connection":
        if self._is_closed:
            raise RuntimeError("The client is closed.")
        if self._forks != Forks.count:
            # The parent process uses these sockets: closing them here leaves its connections open.
            with self._lock:
                idle, self._idle, self._forks = self._idle, [], Forks.count
            for connection in idle:
                connection.close()
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            # Readable means that the gateway has closed it, or sent what nothing has asked for.
            if time.monotonic() < connection.usable_until and not connection.is_readable():
                return connection
            connection.close()
        return self._connect(deadline)

    def _connect(self, deadline: float) -> "Connection":
        address = self._address
        try:
            opened = self._open(deadline)
        except (OSError, UnicodeError) as error:
            raise NotConnectedError(str(error)) from error
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                opened = self._tls.wrap_socket(opened, server_hostname=address.host)
        except OSError as error:
            opened.close()
            raise NotConnectedError(str(error)) from error
        return Connection(opened, address)

    def _open(self, deadline: float) -> socket.socket:
        """Return a socket that is connected to one of the addresses of the gateway."""
        failure = OSError("the host has no address")
        port = self._address.port
        for *_, place in socket.getaddrinfo(self._address.host, port, type=socket.SOCK_STREAM):
            try:
                return socket.create_connection((str(place[0]), port), min(left_s(deadline), CONNECT_S_MAX))
            except OSError as error:
                failure = error
        raise failure

    def _keep(self, connection: "Connection", *, keep_alive: bool) -> None:
        if not keep_alive or self._is_closed or len(self._idle) >= IDLE_MAX:
            connection.close()
        else:
            connection.usable_until = time.monotonic() + IDLE_S_MAX
            self._idle.append(connection)


class Connection:
    """One socket, used by one call at a time."""

    __slots__ = ("_address", "_poll", "_socket", "_timeout_s", "usable_until")

    def __init__(self, opened: socket.socket, address: Address) -> None:
        self._socket = opened
        self._address = address
        self._timeout_s = 0.0
        self.usable_until = math.inf
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(opened, select.POLLIN)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def exchange(self, step: Send) -> Response:
        """Send a request and return its response."""
        data, pieces = self._address.encode(step.request)
        if not pieces and step.request.method == "POST":
            return self.ask(data, step.deadline)
        reader = ResponseReader(is_head=step.request.method == "HEAD")
        try:
            self._send_all(data, step.deadline)
            is_whole = self._send_pieces(pieces, step.deadline, reader)
        except LostError as error:
            if reader.is_begun:
                raise
            return self._unread(reader, step.deadline, error)
        response = self._rest(reader, step.deadline)
        if not is_whole:
            response.keep_alive = False
        return response

    def ask(self, data: bytes, deadline: float) -> Response:
        """Send a short POST and return its response: most arrive whole. This is the path of predictions."""
        self._limit(deadline)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise LateError(NOT_SENT) from None
        except OSError as error:
            return self._unread(ResponseReader(), deadline, _lost(error))
        if len(data) > SENT_AT_ONCE_BYTES:
            self._limit(deadline)
        try:
            received = self._socket.recv(READ_BYTES)
        except TimeoutError:
            raise LateError(NOT_ANSWERED) from None
        except OSError as error:
            raise _lost(error) from error
        response = http1.read_whole(received)
        if response is not None:
            return response
        if not received:
            raise LostError(CLOSED)
        reader = ResponseReader()
        _feed(reader, received)
        return self._rest(reader, deadline)

    def _rest(self, reader: ResponseReader, deadline: float) -> Response:
        while not reader.is_complete:
            self.receive(reader, deadline)
        return reader.response

    def _unread(self, reader: ResponseReader, deadline: float, lost: LostError) -> Response:
        """Return the answer of a gateway that has closed the connection without reading the request."""
        try:
            response = self._rest(reader, deadline)
        except LostError:
            raise lost from lost.__cause__
        response.keep_alive = False
        return response

    def send(self, step: Send, reader: ResponseReader) -> bool:
        """Send a request; return whether all of it was sent: not if `reader` got the head of an answer meanwhile."""
        data, pieces = self._address.encode(step.request)
        self._send_all(data, step.deadline)
        return self._send_pieces(pieces, step.deadline, reader)

    def _send_pieces(self, pieces: Iterable[bytes | memoryview], deadline: float, reader: ResponseReader) -> bool:
        if self._address.is_secure:
            # Below TLS, what arrives may belong to its protocol.
            for piece in pieces:
                self._send_all(piece, deadline)
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            return all(self._send_piece(memoryview(piece).cast("B"), deadline, reader, selector) for piece in pieces)

    def _send_piece(
        self, piece: memoryview, deadline: float, reader: ResponseReader, selector: selectors.BaseSelector
    ) -> bool:
        """Send a piece; return whether all of it was sent: the gateway may answer without reading the rest."""
        while piece:
            events = 0
            for _, ready in selector.select(left_s(deadline)):
                events |= ready
            if events & selectors.EVENT_READ:
                self.receive(reader, deadline)
                # An interim response (1xx) is none.
                if reader.has_head:
                    return False
            if events & selectors.EVENT_WRITE:
                piece = piece[self._send_part(piece, deadline) :]
        return True

    def _send_part(self, piece: memoryview, deadline: float) -> int:
        self._limit(deadline)
        try:
            return self._socket.send(piece)
        except TimeoutError:
            raise LateError(NOT_SENT) from None
        except OSError as error:
            raise _lost(error) from error

    def _send_all(self, data: bytes | memoryview, deadline: float) -> None:
        try:
            self._limit(deadline)
            self._socket.sendall(data)
        except TimeoutError:
            raise LateError(NOT_SENT) from None
        except OSError as error:
            raise _lost(error) from error

    def receive(self, reader: ResponseReader, deadline: float) -> None:
        """Read what has arrived, and wait for it."""
        data = self._receive(deadline)
        if data:
            _feed(reader, data)
        elif not reader.end():
            raise LostError(CLOSED)

    def _receive(self, deadline: float) -> bytes:
        try:
            self._limit(deadline)
            return self._socket.recv(READ_BYTES)
        except TimeoutError:
            raise LateError(NOT_ANSWERED) from None
        except OSError as error:
            raise _lost(error) from error

    def is_readable(self) -> bool:
        """Whether bytes, or the end of the connection, have arrived."""
        try:
            if self._poll is None:
                return bool(select.select([self._socket], [], [], 0)[0])
            return bool(self._poll.poll(0))
        except (OSError, ValueError):
            return True

    def _limit(self, deadline: float) -> None:
        """Limit the next operation to the time that is left; to set a limit costs a system call."""
        left = left_s(deadline)
        if not left <= self._timeout_s <= left * (1 + LIMIT_PRECISION):
            self._timeout_s = left * (1 + LIMIT_PRECISION)
            self._socket.settimeout(self._timeout_s)


def _feed(reader: ResponseReader, data: bytes) -> None:
    try:
        reader.feed(data)
    except ProtocolError as error:
        raise LostError(str(error)) from error


def _lost(error: OSError) -> LostError:
    lost = LostError(str(error))
    lost.__cause__ = error
    return lost
