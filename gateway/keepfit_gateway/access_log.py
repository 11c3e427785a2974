"""The access log: one event for each request that this gateway has answered, if the settings ask for it.

Owns which fields the event has. Invariant: no body, no query and no header field but the request id is in it: they may
hold values of rows, or a key.
"""

from typing import Any

import structlog
from aiohttp.web_request import BaseRequest

from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.web.problems import REQUEST_ID

log = structlog.get_logger(__name__)

# A path of a client's own making is cut.
PATH_LENGTH_MAX = 256


def log_request(request: BaseRequest, answer: Any, seconds: float) -> None:
    """Log a request with its answer, which has a `status`, and the time from its head to the answer."""
    caller = request.get(CALLER)
    body = getattr(answer, "body", None)
    log.info(
        "request_answered",
        request_id=request.get(REQUEST_ID),
        client=request.remote,
        api_key=None if caller is None else caller.name,
        method=request.method,
        path=request.path[:PATH_LENGTH_MAX],
        status=int(answer.status),
        # A stream has no length yet.
        bytes=len(body) if isinstance(body, bytes | bytearray) else None,
        seconds=round(seconds, 6),
    )
