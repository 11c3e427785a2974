"""Responses: JSON bodies and their compression.

Owns how an answer is written as JSON and whether it is compressed. Never decides its content or status.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

ZERO_WEIGHT = re.compile(r"q\s*=\s*0(\.0*)?")
# Smaller bodies fit one packet with their head; gzip saves nothing there.
GZIP_BYTES_MIN = 1024

encode_json = msgspec.json.Encoder().encode


def json_response(
    answer: Any,
    status: int = 200,
    content_type: str = "application/json",
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Return a response with `answer` (a form or plain JSON) as its body."""
    return web.Response(body=encode_json(answer), status=status, content_type=content_type, headers=headers)


@web.middleware
async def compress_responses(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Compress responses of 1 KiB or more for clients that accept gzip."""
    response: web.StreamResponse = await handler(request)
    if isinstance(response, web.Response):
        compress(request.headers, response)
    return response


def compress(headers: Mapping[str, str], response: web.Response) -> None:
    """Compress a response of 1 KiB or more if the request's `headers` accept gzip; repeated calls change nothing."""
    if len(response.body or b"") >= GZIP_BYTES_MIN:  # type: ignore[arg-type]
        response.headers["Vary"] = "Accept-Encoding"
        if _accepts_gzip(headers.get("Accept-Encoding", "")):
            response.enable_compression(web.ContentCoding.gzip)


def _accepts_gzip(accepted: str) -> bool:
    """Return whether an Accept-Encoding names gzip with a weight above 0.

    >>> _accepts_gzip("deflate, gzip;q=0.5"), _accepts_gzip("gzip;q=0, deflate"), _accepts_gzip("")
    (True, False, False)
    """
    for item in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name == "gzip":
            return not any(map(ZERO_WEIGHT.fullmatch, parameters))
    return False
