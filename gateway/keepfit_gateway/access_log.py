"""The access log: one event for each request that this gateway has answered, if the settings ask for it.

Owns which fields the event has. Invariant: no body, no query and no header field but the ids of the request and of its
trace is in it: they may hold values of rows, or a key.
"""

from typing import Any

import structlog
from aiohttp.web_request import BaseRequest
from multidict import istr

from keepfit.observability.trace_context import trace_id_of
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.web.problems import REQUEST_ID

log = structlog.get_logger(__name__)

TRACEPARENT = istr("traceparent")
# A path of a client's own making is cut.
PATH_LENGTH_MAX = 256


def log_request(request: BaseRequest, answer: Any, seconds: float) -> None:
    """Log a request with its answer, which has a `status`, and the time from its head to the answer."""
    caller = request.get(CALLER)
    body = getattr(answer, "body", None)
    log.info(
        "request_answered",
        request_id=request.get(REQUEST_ID),
        trace_id=trace_id_of(request.headers.getall(TRACEPARENT, [])),
        client=request.remote,
        api_key=None if caller is None else caller.name,
        method=request.method,
        path=request.path[:PATH_LENGTH_MAX],
        status=int(answer.status),
        # A stream has no length yet.
        bytes=len(body) if isinstance(body, bytes | bytearray) else None,
        seconds=round(seconds, 6),
    )
