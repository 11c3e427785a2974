"""What is different for answers below ``/v2``: errors and content codings as the Open Inference Protocol has them.

Owns both differences. Never decides a status or a message. Invariants: an error is an object with the field `error` and
the media type ``application/json``, which clients compare as text; only tensors are coded, and only as gzip or deflate,
because clients of the protocol decode nothing else.
"""

import msgspec
from aiohttp import web
from aiohttp.web_request import BaseRequest

from keepfit_gateway.schemas import InferenceError, Problem

ROOT = "/v2"
CODINGS = ("gzip", "deflate")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Problem).decode


def is_path(path: str) -> bool:
    """Return whether a path belongs to the protocol."""
    return path == ROOT or path.startswith(f"{ROOT}/")


def is_inference(request: BaseRequest) -> bool:
    """Return whether a request belongs to the protocol."""
    return is_path(request.path)


def with_error_form(request: BaseRequest, response: web.Response) -> web.Response:
    """Return a problem document in the form that the path of its request has for errors."""
    if is_inference(request) and isinstance(response.body, bytes):
        response.body = _encode(InferenceError(error=_decode(response.body).detail))
        response.content_type = "application/json"
    return response


def codings_of(request: BaseRequest, response: web.Response) -> tuple[str, ...]:
    """Return the content codings that an answer of the protocol may have, besides identity."""
    return CODINGS if request.method == "POST" and response.status == 200 else ()
