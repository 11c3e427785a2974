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
    """aiohttp's connection handler, whose own errors (no HTTP, too long headers) are problem documents too.

    It also does what aiohttp leaves to a proxy: a request's head that drips in is answered with 408 after
    `head_timeout_s` seconds. A connection that is idle between two requests is left to aiohttp's own timer, and so is
    the rare head whose first bytes came in one packet with the request before it.
    """

    __slots__ = ("_head_timeout_s", "_head_timer")

    def __init__(self, *args: Any, head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._head_timer = self._loop.call_later(self._head_timeout_s, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Take in data, and note whether it began a head or ended one."""
        between, requests = not self._request_in_progress, self._request_count
        super().data_received(data)
        if self._request_count != requests:
            self._cancel_head_timer()
            self._break_off()
        elif between and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the timer."""
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _break_off(self) -> None:
        """Tell a handler that the rest of its body is no HTTP; aiohttp would let it wait until its time is up."""
        request, broken = self._current_request, self._messages[-1][0] if self._messages else None
        if not isinstance(broken, _ErrInfo):
            return
        # A circle that holds what was received, up to 256 KiB, until the next collection of garbage, which is far off.
        broken.exc.__traceback__ = None
        if request is not None and not request.content.is_eof():
            # The request's own answer says it all, and is the last on this connection.
            self._messages.pop()
            self.close()
            request.content.set_exception(web.RequestPayloadError(broken.message))
            request.content.feed_eof()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._waiter is not None and not self._waiter.done():
            late = TimeoutError()
            self._messages.append((_ErrInfo(status=408, exc=late, message=""), EMPTY_PAYLOAD))
            self._waiter.set_result(None)

    async def finish_response(self, request: BaseRequest, resp: Any, start_time: float | None) -> tuple[Any, bool]:
        """Send an answer; those that aiohttp made before our middlewares ran become problem documents."""
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
        """Answer a request that never reached a handler, and close its connection."""
        name = request_id.mint()
        if isinstance(exc, LineTooLong):
            status, detail = 431, "A header or the request line is too long."
        elif status == http.HTTPStatus.REQUEST_TIMEOUT:
            detail = "The request's head took too long to arrive."
        elif status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            detail = "The request is not HTTP as RFC 9112 has it."
        else:
            detail = "Something went wrong on our side; the log has the details."
            log.error("connection_failed", request_id=name, reason=repr(exc))
        response = problem(status, HTTPStatus(status).phrase.lower().replace(" ", "-"), detail)
        response.headers["X-Request-ID"] = name
        response.force_close()
        return response
