"""Connections of the asyncio client: kept open between calls, and used by one call at a time.

Owns the transports of one event loop. Never repeats a request. Invariant: a connection that has shown anything
unexpected is closed; a call that is cancelled takes its connection with it, because an answer is still to come there.
"""

import asyncio
import contextlib
import os
import time
from asyncio.trsock import TransportSocket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TYPE_CHECKING, cast

from keepfit.client.transport.address import Address, default_tls
from keepfit.client.transport.exchange import IDLE_S_MAX, LateError, LostError, NotConnectedError, Send, left_s
from keepfit.client.transport.http1 import ProtocolError, Response, ResponseReader

if TYPE_CHECKING:
    import ssl

CONNECTIONS_MAX = 64
CONNECT_S_MAX = 10.0
READ_BYTES = 1 << 16


class AsyncConnections:
    """The connections to one gateway; at most `connections_max` are open, further calls wait for one."""

    def __init__(
        self, address: Address, tls: "ssl.SSLContext | None" = None, connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self._address = address
        self._tls = tls or (default_tls() if address.is_secure else None)
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._free = connections_max
        self._is_closed = False

    async def close(self) -> None:
        """Close the idle connections, and those in use when their calls end."""
        self._is_closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        # TLS and the event loop take a turn to close a socket.
        await asyncio.sleep(0)

    async def send(self, step: Send) -> Response:
        """Send a request and return the response; raises ExchangeError."""
        async with self._turn(step.deadline):
            connection = await self._connection(step.deadline)
            try:
                response = await connection.exchange(self._address, step)
            except BaseException:
                connection.abort()
                raise
            if response.keep_alive and not self._is_closed and not connection.is_lost:
                connection.usable_until = time.monotonic() + IDLE_S_MAX
                self._idle.append(connection)
            else:
                connection.abort()
            return response

    async def stream(self, step: Send, silence_s_max: float) -> AsyncGenerator[Response | bytes, None]:
        """Send a request; yield its response when the head is there, then the body as it arrives, until it ends.

        A response that is not successful is yielded whole.
        """
        connection = await self._connection(step.deadline)
        try:
            connection.begin(ResponseReader())
            await connection.send(self._address, step)
            reader = await connection.arrives(step.deadline)
            while not reader.may_be_streamed:
                reader = await connection.arrives(step.deadline)
            yield reader.response
            while not reader.is_complete:
                # More may have arrived while the caller had the last part.
                if part := reader.take():
                    yield part
                else:
                    await connection.arrives(time.monotonic() + silence_s_max)
            if reader.response.body:
                yield bytes(reader.response.body)
        finally:
            connection.abort()

    @contextlib.asynccontextmanager
    async def _turn_after_others(self, deadline: float) -> AsyncIterator[None]:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(left_s(deadline)):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._release()
            waiter.cancel()
            if isinstance(error, TimeoutError):
                raise LateError("all connections were in use") from None
            raise
        try:
            yield
        finally:
            self._release()

    def _turn(self, deadline: float) -> "contextlib.AbstractAsyncContextManager[None]":
        if self._free > 0:
            self._free -= 1
            return _Turn(self)
        return self._turn_after_others(deadline)

    def _release(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    async def _connection(self, deadline: float) -> "Connection":
        if self._is_closed:
            raise RuntimeError("The client is closed.")
        loop = asyncio.get_running_loop()
        while self._idle:
            connection = self._idle.pop()
            # A loop that has ended took its connections with it.
            if connection.loop is not loop:
                continue
            if not connection.is_lost and time.monotonic() < connection.usable_until:
                return connection
            connection.abort()
        address = self._address
        try:
            async with asyncio.timeout(min(left_s(deadline), CONNECT_S_MAX)):
                _, made = await loop.create_connection(
                    Connection,
                    address.host,
                    address.port,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls else None,
                )
        except (OSError, UnicodeError, TimeoutError) as error:
            raise NotConnectedError(str(error)) from error
        return made


class _Turn:
    """The turn of a call that did not have to wait for it."""

    __slots__ = ("_pool",)

    def __init__(self, pool: AsyncConnections) -> None:
        self._pool = pool

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        self._pool._release()


class Connection(asyncio.Protocol):
    """One connection, and the response that is being read from it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._reader: ResponseReader | None = None
        self._arrival: asyncio.Future[ResponseReader] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._error: ExchangeErrors | None = None
        self._awaits_all = True
        self.is_complete = False
        self.is_lost = False
        self.usable_until = 0.0

    def begin(self, reader: ResponseReader, *, awaits_all: bool = False) -> None:
        """Read a response from now on; `awaits_all` is whether to wait for all of it at once."""
        self._reader, self._error, self.is_complete, self._awaits_all = reader, None, False, awaits_all

    async def exchange(self, address: Address, step: Send) -> Response:
        """Send a request and return the response."""
        reader = ResponseReader(is_head=step.request.method == "HEAD")
        self.begin(reader, awaits_all=True)
        is_whole = True
        try:
            is_whole = await self.send(address, step)
            await self.arrives(step.deadline)
        except LostError:
            # The gateway may have answered, and closed the connection, without reading the body.
            if not self.is_complete:
                raise
        self._reader = None
        if not is_whole or self.is_lost:
            reader.response.keep_alive = False
        return reader.response

    async def send(self, address: Address, step: Send) -> bool:
        """Send a request; return whether all of it was sent: not if an answer has come before its end."""
        data, pieces = address.encode(step.request)
        if self.is_lost:
            raise LostError("the gateway has closed the connection")
        self._transport.write(data)
        return not pieces or await self._send_pieces(pieces, step.deadline)

    async def _send_pieces(self, pieces: Iterable[bytes | memoryview], deadline: float) -> bool:
        reader = self._reader
        for piece in pieces:
            if self.is_lost:
                raise LostError("the gateway has closed the connection")
            # An interim response (1xx) is no answer.
            if reader is not None and reader.has_head:
                return False
            self._transport.write(piece)
            try:
                async with asyncio.timeout(left_s(deadline)):
                    await self._may_write.wait()
            except TimeoutError:
                raise LateError("the request could not be sent in time") from None
            # Encoding takes time in which other tasks wait.
            await asyncio.sleep(0)
        return reader is None or not reader.has_head or self._transport.get_write_buffer_size() == 0

    async def arrives(self, deadline: float) -> ResponseReader:
        """Wait until more of the response has arrived, or all of it."""
        if self._error is not None:
            raise self._error
        reader = self._reader
        if reader is None or self.is_complete:
            return cast("ResponseReader", reader)
        loop = asyncio.get_running_loop()
        self._arrival = loop.create_future()
        self._transport.resume_reading()
        timer = loop.call_later(left_s(deadline), self._is_late)
        try:
            return await self._arrival
        finally:
            timer.cancel()
            self._arrival = None

    def abort(self) -> None:
        """Close the connection at once."""
        self.is_lost = True
        self._transport.abort()

    def _is_late(self) -> None:
        self._fail(LateError("the answer has not come in time"))

    def _fail(self, error: "ExchangeErrors") -> None:
        if self._error is None:
            self._error = error
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_exception(self._error)

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done() and self._reader is not None:
            self._arrival.set_result(self._reader)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of a new connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        if self._reader is None or self.is_complete:
            # Nothing has asked for it.
            self.abort()
            return
        try:
            self.is_complete = self._reader.feed(data)
        except ProtocolError as error:
            lost = LostError(str(error))
            lost.__cause__ = error
            self._fail(lost)
            self.abort()
            return
        if self._reader.has_head:
            # The gateway has answered: it may read no more of the body.
            self._may_write.set()
        if not self._awaits_all:
            # The caller may be slower than the gateway: what it has not asked for stays with the system.
            self._transport.pause_reading()
        if self.is_complete or not self._awaits_all:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection, which may be the end of a response."""
        self.is_lost = True
        self._may_write.set()
        if isinstance(exc, OSError) and not self._transport.get_extra_info("sslcontext"):
            self._read_rest()
        if self._reader is not None and not self.is_complete:
            if exc is None and self._reader.end():
                self.is_complete = True
                self._wake()
            else:
                lost = LostError("the gateway has closed the connection")
                lost.__cause__ = exc
                self._fail(lost)

    def _read_rest(self) -> None:
        """Read the answer that had arrived when a write failed: asyncio reads no more after that."""
        opened = self._transport.get_extra_info("socket")
        # Other loops have closed it by now, and its number may be that of another file.
        if not isinstance(opened, TransportSocket):
            return
        with contextlib.suppress(OSError):
            while self._reader is not None and not self.is_complete and (data := os.read(opened.fileno(), READ_BYTES)):
                self.data_received(data)

    def pause_writing(self) -> None:
        """Wait before the next piece of a body: the gateway reads more slowly than it is encoded."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Go on with the next piece."""
        self._may_write.set()


ExchangeErrors = LateError | LostError
