"""Connections of clients: aiohttp's protocol handler with problem documents, and time limits for slow clients.

Owns what aiohttp leaves to a proxy. Never handles a request itself. Invariants: a client that shuts down its sending
side after its last request gets all its answers; no request of a connection is handled while the answers before it
wait for the client to read them; a request whose head has arrived when the gateway begins to stop is answered.
"""

import asyncio
import http
import math
import socket
import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Protocol

import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo
from aiohttp.web_request import BaseRequest

from keepfit.observability import request_id
from keepfit_gateway.web.bodies import BodyMemoryLimit
from keepfit_gateway.web.incoming import expects_continue
from keepfit_gateway.web.inference_answers import with_error_form
from keepfit_gateway.web.open_connections import OpenConnections
from keepfit_gateway.web.problems import problem, problem_of_http
from keepfit_gateway.web.request_counts import RequestMetrics
from keepfit_gateway.web.small_response import SmallResponse

log = structlog.get_logger(__name__)

# A connection reads no further while requests with bodies of this size wait for the answers before them.
QUEUED_BYTES_MAX = 1 << 18


class Immediate(Protocol):
    """What answers some requests as soon as they have arrived; both calls return the whole response, or None."""

    def answer_known(self, data: bytes) -> bytes | None:
        """Answer the request that `data` is, from its beginning on, without parsing its head."""

    def answer(self, message: Any, content: Any, data: bytes | None) -> bytes | None:
        """Answer a request with its head and its body; `data` is what it was parsed from, if that begins with it."""


def limit_unread_answers(listeners: Iterable[socket.socket], seconds: float) -> None:
    """Have the kernel abort the connections of `listeners` whose client acknowledges nothing for `seconds`.

    That covers what is written but not read, also after the gateway has closed the connection (RFC 5482). Connections
    inherit the option when they are accepted. Other systems than Linux do not have it.
    """
    if sys.platform == "linux":
        for listener in listeners:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(seconds * 1000))


class ProblemHandler(web.RequestHandler):
    """aiohttp's connection handler; protocol errors (invalid HTTP, too long headers) become problem documents.

    It also answers 408 if the head of a request is incomplete after `head_timeout_s` seconds; aiohttp lacks this limit.
    aiohttp's `keepalive_timeout` applies between two requests, and to a head that begins before the previous answer.
    """

    __slots__ = (
        "_broken", "_connections", "_ends", "_head_timeout_s", "_head_timer", "_immediate", "_last_content", "_memory",
        "_metrics", "_unread", "client",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        head_timeout_s: float,
        memory: BodyMemoryLimit,
        metrics: RequestMetrics,
        connections: OpenConnections,
        immediate: Immediate,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._memory = memory
        self._metrics = metrics
        self._connections = connections
        self._immediate = immediate
        self.client = ""
        self._head_timer: asyncio.TimerHandle | None = None
        # No request follows those that have arrived; what follows a body with invalid framing is none.
        self._ends = self._broken = False
        # The body of the request that arrived last, which is the only one that can be incomplete.
        self._last_content = EMPTY_PAYLOAD
        self._unread: StreamReader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the first head."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if peer else ""
        self._connections.add(self)
        self._head_timer = self._loop.call_later(self._head_timeout_s, self._on_head_timeout)

    def data_received(self, data: bytes) -> None:
        """Process data; start the timer if a head begins, stop it if a head ends."""
        if self._broken:
            return
        if self._stops:
            self._receive_rest(data)
            return
        # Until the last body is complete, all data belong to it.
        begins = bool(data) and not self._request_in_progress and self._last_content.is_eof()
        # The timer runs while a part of a head has arrived, and before the first one.
        is_between = begins and self._head_timer is None
        if is_between and self._is_idle() and self._write(self._immediate.answer_known(data)):
            return
        requests = self._request_count
        # The task of an idle connection sleeps on until it is certain that it has something to do.
        waiter, self._waiter = self._waiter, None
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if waiter is not None and self._messages and not waiter.done():
            if self._answers_immediately(data if is_between else None):
                return
            waiter.set_result(None)
        while self._upgraded and self._parser is not None:
            # The answer to a request for an upgrade is plain HTTP; aiohttp would parse what follows after it.
            self._parser.set_upgraded(False)
            self._upgraded = False
            tail, self._message_tail = self._message_tail, b""
            super().data_received(tail)
        if self._request_count != requests:
            self._cancel_head_timer()
            self._connections.mark_busy(self)
            self._note_last()
            if len(self._messages) > 1 and not self._buffer_paused and self._queued_bytes() >= QUEUED_BYTES_MAX:
                self._pause_reading_for_buffer()
        elif begins and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_timeout_s, self._on_head_timeout)

    @property
    def _stops(self) -> bool:
        """Whether the connection is closed after the present answer, as all are when the gateway stops."""
        return self._close or self._force_close

    def _receive_rest(self, data: bytes) -> None:
        """Receive the rest of the body that was arriving when the gateway began to stop, and nothing after it.

        aiohttp would discard it; its handler would wait in vain, and the client would get no answer.
        """
        if self._last_content.is_eof():
            return
        requests, stops = self._request_count, (self._close, self._force_close)
        self._close = self._force_close = False
        try:
            super().data_received(data)
        finally:
            self._close, self._force_close = stops
        if self._request_count != requests:
            self._note_last()
            # A request that follows is for another gateway.
            self._broken = True

    def _is_idle(self) -> bool:
        """Return whether everything that has arrived before is answered, and read, and the connection goes on."""
        waiter = self._waiter
        return (
            waiter is not None
            and not waiter.done()
            and not self._messages
            and not (self._upgraded or self._ends or self._close or self._force_close or self.has_unsent)
            and self._parser is not None
        )

    def _answers_immediately(self, data: bytes | None) -> bool:
        """Send the answer to the only request that has arrived, if there is an immediate one; return whether it did.

        Nothing is unsent then, and a small answer fills no buffer: no request is handled before earlier answers are
        read. What follows a request for an upgrade has arrived too, and is not parsed yet.
        """
        message, content = self._messages[0]
        if (
            len(self._messages) > 1
            or not content.is_eof()
            or isinstance(message, _ErrInfo)
            or self._upgraded
            or self._ends
            or self.has_unsent
            or self._parser is None
            or not self._write(self._immediate.answer(message, content, data))
        ):
            return False
        self._messages.popleft()
        self._parser.message_consumed()
        if self._head_timer is not None:
            self._cancel_head_timer()
        return True

    def _write(self, answer: bytes | None) -> bool:
        """Send an immediate answer; return whether there is one, and a connection."""
        if answer is None or self.transport is None:
            return False
        self._connections.mark_answered(self)
        self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
        self.transport.write(answer)
        return True

    def _queued_bytes(self) -> int:
        """Return the size of the bodies of pipelined requests, which aiohttp limits in number only."""
        return sum(content.total_bytes for _, content in self._messages)

    def _resume_reading_if_drained(self) -> None:
        """Read again once aiohttp and the limit of bytes permit it; called before each request."""
        if self._queued_bytes() < QUEUED_BYTES_MAX:
            super()._resume_reading_if_drained()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether to keep the connection open, for the answers to requests that have arrived."""
        if self._waiter is not None and not self._waiter.done():
            return False
        if not self._request_count:
            return False
        self._ends = True
        self._end_after_answers()
        if not self._last_content.is_eof():
            self._fail_last("The client ended the connection within the body.")
        return True

    def _end_after_answers(self) -> None:
        """End the connection after the current answer if no other request waits."""
        if not self._messages:
            self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer; count and log a client that did not read its answers."""
        self._cancel_head_timer()
        self._connections.remove(self)
        if isinstance(exc, TimeoutError):
            self._metrics.count_aborted_answer()
            log.warning("answer_aborted", client=self.client)
        super().connection_lost(exc)

    @property
    def waits_for_client(self) -> bool:
        """Whether nothing happens until the client reads an answer or sends the rest of a body."""
        return self._paused or not (self._messages or self._last_content.is_eof())

    @property
    def has_ended(self) -> bool:
        """Whether the client has shut down its sending side, as one does that is gone: no request follows."""
        return self._ends

    @property
    def has_unsent(self) -> bool:
        """Whether a part of an answer is still in the gateway, because the client does not read."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def drop(self) -> None:
        """Close the connection at once, for another one; what is unsent is discarded."""
        if self.transport is not None:
            self.transport.abort()

    def _note_last(self) -> None:
        """Note the body of the request that arrived last; if its framing is invalid, the answer to it reports that.

        aiohttp would let its handler wait until a timeout, and answer the rest of the body as a request.
        """
        error, content = self._messages[-1]
        if not isinstance(error, _ErrInfo):
            self._last_content = content
            return
        # A reference cycle that would keep the received data, up to 256 KiB, until the next garbage collection.
        error.exc.__traceback__ = None
        if len(self._messages) > 1:
            self._last_content = self._messages[-2][1]
        if not self._last_content.is_eof():
            self._messages.pop()
            self._broken = self._ends = True
            self._end_after_answers()
            self._fail_last(error.message)

    def _fail_last(self, reason: str) -> None:
        """End the last body: raise in the handler that reads it or will read it."""
        # After the answer, aiohttp reads the rest of a body that no handler wanted.
        if self._last_content is not self._unread:
            self._last_content.set_exception(web.RequestPayloadError(reason))
        self._last_content.feed_eof()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._waiter is not None and not self._waiter.done():
            timeout = _ErrInfo(status=408, exc=TimeoutError(), message="")
            self._messages.append((timeout, EMPTY_PAYLOAD))
            self._waiter.set_result(None)

    async def finish_response(self, request: BaseRequest, resp: Any, start_time: float | None) -> tuple[Any, bool]:
        """Send a response; errors that aiohttp raised before the middlewares become problem documents."""
        if self._ends:
            self._end_after_answers()
        sent = await self._send(request, resp, start_time)
        if not self._messages:
            self._connections.mark_idle(self)
        return sent

    async def _send(self, request: BaseRequest, resp: Any, start_time: float | None) -> tuple[Any, bool]:
        if isinstance(resp, SmallResponse):
            request._finish()
            written = resp.write(request, self._stops)
            if self._paused:
                # The client does not read: its next request waits.
                await self._drain_helper()
            return resp, not written
        if isinstance(resp, web.HTTPException):
            resp = with_error_form(request, problem_of_http(request, resp))
        if self._stops:
            resp.force_close()
        self._unread = None if request.content.is_eof() else request.content
        if self._unread is not None and expects_continue(request):
            # The client may send the body or not: it cannot be told from a next request.
            resp.force_close()
            if not self._unread.total_bytes:
                self._close = True
                self._unread.feed_eof()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._memory.release(request)
            if isinstance(resp, web.Response):
                # aiohttp keeps the last response of a connection until the next request.
                resp.body = None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that reached no handler, and close its connection."""
        name = request_id.mint()
        if isinstance(exc, LineTooLong):
            status, detail = 431, "A header or the request line is too long."
        elif status == http.HTTPStatus.REQUEST_TIMEOUT:
            detail = "The head of the request took too long to arrive."
        elif status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            detail = "The request is not valid HTTP (RFC 9112)."
            if isinstance(exc, BadHttpMessage) and exc.message.startswith(("Duplicate", "Missing")):
                # The header that is wrong; other messages of aiohttp quote what was sent.
                detail = f"{detail[:-1]}: {exc.message}"
        else:
            detail = "Internal error; the gateway's log has the details."
            log.error("connection_failed", request_id=name, reason=repr(exc))
        response = problem(status, HTTPStatus(status).phrase.lower().replace(" ", "-"), detail)
        response.headers["X-Request-ID"] = name
        response.force_close()
        return response
