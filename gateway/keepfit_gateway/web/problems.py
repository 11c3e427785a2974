"""Errors as answers: RFC 9457 problem documents for everything that goes wrong.

Owns the one table from the error tree to status codes. Invariants: every class of :mod:`keepfit.errors` is in the table
(a test walks the tree); no traceback, path or secret is ever in an answer, only in the log.
"""

import asyncio
import http
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo
from aiohttp.web_request import BaseRequest

from keepfit import errors
from keepfit.errors import InvalidError, KeepfitError, OverloadedError, UnavailableError
from keepfit.observability import request_id
from keepfit.observability.outage import LogThrottle
from keepfit_gateway.schemas import Problem, ProblemError
from keepfit_gateway.web.bodies import json_response
from keepfit_gateway.web.small_response import SmallResponse

log = structlog.get_logger(__name__)

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)

STATUS: dict[type[KeepfitError], int] = {
    errors.MalformedError: 400,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.NotConfirmedError: 409,
    errors.StaleModelError: 409,
    errors.InvalidError: 422,
    errors.IdempotencyError: 422,
    errors.LearningError: 422,
    errors.UnstorableError: 422,
    errors.OverloadedError: 429,
    errors.InboxFullError: 429,
    errors.QueueFullError: 429,
    errors.RateLimitError: 429,
    errors.UnavailableError: 503,
    errors.CorruptLogError: 503,
    errors.DeadlineError: 504,
    errors.PoisonError: 500,
    errors.RuntimeMismatchError: 503,
    errors.UnknownKeyError: 500,
    errors.CorruptBundleError: 503,
    errors.MissingRequestsError: 500,
    errors.EnvelopeError: 500,
    errors.SettingsError: 500,
    errors.KeepfitError: 500,
}
RETRY_AFTER_S = 1
TOLD = LogThrottle(every_s=1.0)
MEDIA_TYPE = "application/problem+json"


def status_of(error: KeepfitError) -> int:
    """Status code of the most specific class in the table."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(
    status: int,
    name: str,
    detail: str,
    faults: list[ProblemError] | None = None,
    retry_after_s: int | None = None,
) -> web.Response:
    """Make a problem document; `name` becomes its type, as ``urn:keepfit:problem:<name>``."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    document = Problem(
        type=f"urn:keepfit:problem:{name}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=faults or None,
    )
    return json_response(document, status, MEDIA_TYPE, headers)


def problem_of(error: KeepfitError) -> web.Response:
    """Answer to one of our own errors."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__.removesuffix("Error")).lower()
    faults = None
    if isinstance(error, InvalidError):
        faults = [ProblemError(detail=f.detail, row=f.row, column=f.column) for f in error.faults]
    retry_after_s = None
    if isinstance(error, OverloadedError):
        retry_after_s = error.retry_after_s
    elif isinstance(error, UnavailableError):
        retry_after_s = RETRY_AFTER_S
    answer = problem(status_of(error), name, str(error), faults, retry_after_s)
    if isinstance(error, errors.UnauthorizedError):
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


@web.middleware
async def problems(request: BaseRequest, handler: Callable[[Any], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Turn every error of a handler into a problem document."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - each is told of
        return to_problem(request, error)


def to_problem(request: BaseRequest, error: Exception) -> web.Response:
    """Make the answer to what a handler raised, and log what is our fault."""
    if isinstance(error, KeepfitError):
        # While a part is away as many requests fail as come; one line a second tells of them.
        more = TOLD.due(type(error).__name__) if status_of(error) >= http.HTTPStatus.INTERNAL_SERVER_ERROR else None
        if more is not None:
            name = type(error).__name__
            log.warning(
                "request_failed",
                request_id=request.get(REQUEST_ID),
                path=request.path,
                error=name,
                reason=str(error),
                more=more,
            )
        return problem_of(error)
    if isinstance(error, web.HTTPException):
        return _problem_of_http(request, error)
    log.error(
        "request_crashed",
        request_id=request.get(REQUEST_ID),
        method=request.method,
        path=request.path,
        exc_info=error,
    )
    return problem(500, "internal", "Something went wrong on our side; the log has the details.")


def _problem_of_http(request: BaseRequest, error: web.HTTPException) -> web.Response:
    name = error.reason.lower().replace(" ", "-")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = problem(405, name, f"{request.method} is not possible here; use {allowed}.")
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, web.HTTPNotFound):
        return problem(404, name, f"There is nothing at {request.path}; /openapi.json lists what there is.")
    response = problem(error.status, name, error.text or error.reason)
    if error.status in (408, 413):
        # What is left of the body was not read, so the connection cannot be used for another request.
        response.force_close()
    return response


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
            resp = _problem_of_http(request, resp)
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
