"""Connections of clients: aiohttp's protocol handler with problem documents and a time limit for request heads.

Owns what aiohttp leaves to a proxy. Never handles a request itself.
"""

import asyncio
import http
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo
from aiohttp.web_request import BaseRequest

from keepfit.observability import request_id
from keepfit_gateway.web.problems import problem, problem_of_http
from keepfit_gateway.web.small_response import SmallResponse

log = structlog.get_logger(__name__)


class ProblemHandler(web.RequestHandler):
    """aiohttp's connection handler; protocol errors (invalid HTTP, too long headers) become problem documents.

    It also answers 408 if the head of a request is incomplete after `head_timeout_s` seconds, which aiohttp leaves to a
    proxy. Two cases keep aiohttp's own timer: a connection that is idle between two requests, and the rare head whose
    first bytes arrive in one packet with the previous request.
    """

    __slots__ = ("_head_timeout_s", "_head_timer")

    def __init__(self, *args: Any, head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the first head."""
        super().connection_made(transport)
        self._head_timer = self._loop.call_later(self._head_timeout_s, self._on_head_timeout)

    def data_received(self, data: bytes) -> None:
        """Process data; start the timer if a head begins, stop it if a head ends."""
        between, requests = not self._request_in_progress, self._request_count
        super().data_received(data)
        if self._request_count != requests:
            self._cancel_head_timer()
            self._fail_broken_body()
        elif between and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_timeout_s, self._on_head_timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer."""
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _fail_broken_body(self) -> None:
        """Raise in a handler whose body has invalid framing; aiohttp would let it wait until its timeout."""
        request, error = self._current_request, self._messages[-1][0] if self._messages else None
        if not isinstance(error, _ErrInfo):
            return
        # A reference cycle that would keep the received data, up to 256 KiB, until the next garbage collection.
        error.exc.__traceback__ = None
        if request is not None and not request.content.is_eof():
            # The response to the request reports the error, and is the last on this connection.
            self._messages.pop()
            self.close()
            request.content.set_exception(web.RequestPayloadError(error.message))
            request.content.feed_eof()

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
        if isinstance(resp, SmallResponse):
            request._finish()
            return resp, not resp.write(request)
        if isinstance(resp, web.HTTPException):
            resp = problem_of_http(request, resp)
        return await super().finish_response(request, resp, start_time)

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
        else:
            detail = "Internal error; the gateway's log has the details."
            log.error("connection_failed", request_id=name, reason=repr(exc))
        response = problem(status, HTTPStatus(status).phrase.lower().replace(" ", "-"), detail)
        response.headers["X-Request-ID"] = name
        response.force_close()
        return response
