"""What is different for answers below ``/api/v2``: errors as clients of InfluxDB read them.

Owns their form. Never decides a status or a message. Invariant: an error is a JSON object with ``code`` and
``message``.
"""

import msgspec
from aiohttp import web
from aiohttp.web_request import BaseRequest

from keepfit_gateway.schemas.answers import Problem
from keepfit_gateway.schemas.history import InfluxError

ROOT = "/api/v2/"
# As InfluxDB 2 names them.
CODES = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    413: "request too large",
    415: "invalid",
    422: "unprocessable entity",
    429: "too many requests",
    503: "unavailable",
}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Problem).decode


def is_path(path: str) -> bool:
    """Return whether a path is one of InfluxDB's."""
    return path.startswith(ROOT)


def with_error_form(request: BaseRequest, response: web.Response) -> web.Response:
    """Return a problem document in the form that the path of its request has for errors."""
    if is_path(request.path) and isinstance(response.body, bytes):
        code = CODES.get(response.status, "internal error" if response.status >= 500 else "invalid")
        response.body = _encode(InfluxError(code=code, message=_decode(response.body).detail))
        response.content_type = "application/json"
    return response
