"""Error responses: an RFC 9457 problem document for every error, except below ``/v2`` and ``/api/v2``.

Owns the only table from the error tree to status codes. Invariants: every class of :mod:`keepfit.errors` is in the
table (a test walks the tree); no response holds a traceback or a secret; those are in the log only. Addresses and paths
of the service are in the log, and in responses to callers that may see them (`SEES_REASONS`).
"""

import http
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import hdrs, web
from aiohttp.web_request import BaseRequest
from msgspec import UNSET

from keepfit import errors
from keepfit.errors import InvalidError, KeepfitError, OverloadedError, UnavailableError
from keepfit.observability.outage import LogThrottle
from keepfit_gateway.schemas import Problem, ProblemError
from keepfit_gateway.web import inference_answers, influx_answers
from keepfit_gateway.web.responses import json_response

log = structlog.get_logger(__name__)

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
# Whether the caller has an API key with the scope `admin`; missing if not. The guard sets it.
SEES_REASONS: web.RequestKey[bool] = web.RequestKey("sees_reasons", bool)

STATUS: dict[type[KeepfitError], int] = {
    errors.MalformedError: 400,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.ForeignOriginError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.NotConfirmedError: 409,
    errors.StaleModelError: 409,
    errors.TooLargeError: 413,
    errors.InvalidError: 422,
    errors.IdempotencyError: 422,
    errors.LearningError: 422,
    errors.UnstorableError: 422,
    errors.OverloadedError: 429,
    errors.InboxFullError: 429,
    errors.OpenRowsFullError: 429,
    errors.QueueFullError: 429,
    errors.QuotaError: 429,
    errors.RateLimitError: 429,
    errors.UnavailableError: 503,
    errors.CorruptLogError: 503,
    errors.DeadlineError: 504,
    errors.PoisonError: 500,
    errors.RuntimeMismatchError: 503,
    errors.UnloadableError: 500,
    errors.UnknownKeyError: 500,
    errors.CorruptBundleError: 503,
    errors.MissingRequestsError: 500,
    errors.ScorerError: 500,
    errors.EnvelopeError: 500,
    errors.SettingsError: 500,
    errors.KeepfitError: 500,
}
RETRY_AFTER_S = 1
THROTTLE = LogThrottle(every_s=1.0)
MEDIA_TYPE = "application/problem+json"
# Fields of aiohttp's errors that say what would be right.
HINTS = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING)


def status_of(error: KeepfitError) -> int:
    """Return the status code of the most specific class in the table."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(
    status: int,
    name: str,
    detail: str,
    faults: list[ProblemError] | None = None,
    retry_after_s: int | None = None,
) -> web.Response:
    """Return a problem document; its type is ``urn:keepfit:problem:<name>``."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    document = Problem(
        type=f"urn:keepfit:problem:{name}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=faults or UNSET,
    )
    return json_response(document, status, MEDIA_TYPE, headers)


def problem_name(error: KeepfitError) -> str:
    """Return the last part of the type of an error's problem document.

    >>> problem_name(errors.QueueFullError("full"))
    'queue-full'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__.removesuffix("Error")).lower()


def problem_of(error: KeepfitError, *, with_reason: bool = False) -> web.Response:
    """Return the problem document of an error of keepfit; `with_reason` with the addresses and paths of its message."""
    faults = None
    if isinstance(error, InvalidError):
        faults = [
            ProblemError(
                detail=fault.detail,
                row=UNSET if fault.row is None else fault.row,
                column=UNSET if fault.column is None else fault.column,
            )
            for fault in error.faults
        ]
    retry_after_s = None
    if isinstance(error, OverloadedError):
        retry_after_s = error.retry_after_s
    elif isinstance(error, UnavailableError):
        retry_after_s = RETRY_AFTER_S
    detail = str(error) if with_reason else errors.public_message_of(error)
    response = problem(status_of(error), problem_name(error), detail, faults, retry_after_s)
    if isinstance(error, errors.UnauthorizedError):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@web.middleware
async def problems(request: BaseRequest, handler: Callable[[Any], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Convert every error of a handler to a problem document."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - converted to a response
        return to_problem(request, error)


def to_problem(request: BaseRequest, error: Exception) -> web.Response:
    """Convert an exception of a handler to a problem document; log errors of the server.

    Below ``/v2`` the answer has the form that the Open Inference Protocol has for errors, below ``/api/v2`` that of
    InfluxDB.
    """
    try:
        response = inference_answers.with_error_form(request, _to_problem(request, error))
        return influx_answers.with_error_form(request, response)
    finally:
        # Its frames hold the rows of the request, and would until the next garbage collection.
        errors.without_frames(error)


def _to_problem(request: BaseRequest, error: Exception) -> web.Response:
    if isinstance(error, KeepfitError):
        # While a dependency is unavailable every request fails: log one line a second with the number of the others.
        more = THROTTLE.due(type(error).__name__) if status_of(error) >= http.HTTPStatus.INTERNAL_SERVER_ERROR else None
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
        return problem_of(error, with_reason=request.get(SEES_REASONS, False))
    if isinstance(error, web.HTTPException):
        return problem_of_http(request, error)
    log.error(
        "request_crashed",
        request_id=request.get(REQUEST_ID),
        method=request.method,
        path=request.path,
        exc_info=error,
    )
    return problem(500, "internal", "Internal error; the gateway's log has the details.")


def problem_of_http(request: BaseRequest, error: web.HTTPException) -> web.Response:
    """Return the problem document for one of aiohttp's own errors."""
    name = error.reason.lower().replace(" ", "-")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = problem(405, name, f"{request.method} is not allowed here; use {allowed}.")
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, web.HTTPNotFound):
        return problem(404, name, f"Nothing exists at {request.path}; /openapi.json lists all paths.")
    response = problem(error.status, name, error.text or error.reason)
    response.headers.update({field: error.headers[field] for field in HINTS if field in error.headers})
    if error.status in (408, 413):
        # The rest of the body was not read, so the connection cannot carry another request.
        response.force_close()
    return response
