"""Request bodies: read, inflated, parsed; and answers written as JSON.

Owns limits of size and time. Never trusts a length that a client named. Invariant: a body is used only if it arrived
whole: a truncated or damaged gzip stream is refused, although what came of it might parse.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, ParamSpec, TypeVar

import msgspec
from aiohttp import web

from keepfit.errors import MalformedError
from keepfit.identity import parse_json
from keepfit.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

INFLATE_STEP_BYTES = 1 << 20
NOT_ACCEPTED = re.compile(r"q\s*=\s*0(\.0*)?")
# Parsing this much takes about a millisecond; more is done beside the event loop.
INLINE_BYTES_MAX = 64 * 1024
GZIP_BYTES_MIN = 1024


async def read_json(request: web.Request, settings: Settings) -> tuple[Any, int]:
    """Read the request's JSON body; return it with its size in bytes.

    Raises
    ------
    MalformedError, InvalidError
        If it is damaged or no usable JSON.
    web.HTTPException
        408 if it drips in, 413 over the limit, 415 for another type or encoding.
    """
    _check_type(request)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            body = await _read(request, settings.body_bytes_max)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body took too long to arrive.") from None
    return await beside_loop(len(body), parse_json, body), len(body)


async def beside_loop(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function`, in a thread where `size_bytes` of input would block the event loop."""
    if size_bytes <= INLINE_BYTES_MAX:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def _check_type(request: web.Request) -> None:
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="Send the body as Content-Type: application/json.")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise web.HTTPUnsupportedMediaType(text=f"JSON is UTF-8, not {request.charset}.")


async def _read(request: web.Request, bytes_max: int) -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "gzip":
        return await _inflate(request, bytes_max)
    if encoding != "identity":
        raise web.HTTPUnsupportedMediaType(text=f"Content-Encoding {encoding!r} is not known; use gzip or none.")
    parts, size = [], 0
    async for chunk in _chunks(request):
        size += len(chunk)
        _check_size(size, bytes_max)
        parts.append(chunk)
    return b"".join(parts)


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (ConnectionError, web.RequestPayloadError):
        raise MalformedError("The body broke off, or its chunks are not framed as RFC 9112 has it.") from None


async def _inflate(request: web.Request, bytes_max: int) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    parts, size = [], 0
    try:
        async for chunk in _chunks(request):
            rest = chunk
            while rest and not inflater.eof:
                # A few bytes may inflate into very many, so all but the first step of a small body is done elsewhere.
                part = await beside_loop(size + len(rest), inflater.decompress, rest, INFLATE_STEP_BYTES)
                rest = inflater.unconsumed_tail
                size += len(part)
                _check_size(size, bytes_max)
                parts.append(part)
            if inflater.eof and (inflater.unused_data or rest):
                raise MalformedError("Bytes follow the end of the gzip stream.")
    except zlib.error as error:
        raise MalformedError(f"The gzip stream is damaged: {error}.") from None
    if not inflater.eof:
        raise MalformedError("The gzip stream is cut short.")
    return b"".join(parts)


def _check_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise web.HTTPRequestEntityTooLarge(
            max_size=bytes_max, actual_size=size, text=f"The body is larger than {bytes_max} bytes."
        )


def json_response(
    answer: Any,
    status: int = 200,
    content_type: str = "application/json",
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Write `answer` (a form or plain JSON) as the body of a response."""
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type=content_type, headers=headers)


@web.middleware
async def gzip_answers(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Compress answers for clients that take gzip, where it pays."""
    response: web.StreamResponse = await handler(request)
    if isinstance(response, web.Response) and len(response.body or b"") >= GZIP_BYTES_MIN:  # type: ignore[arg-type]
        response.headers["Vary"] = "Accept-Encoding"
        if _takes_gzip(request.headers.get("Accept-Encoding", "")):
            response.enable_compression(web.ContentCoding.gzip)
    return response


def _takes_gzip(accepted: str) -> bool:
    """Tell whether an Accept-Encoding names gzip.

    >>> _takes_gzip("deflate, gzip;q=0.5"), _takes_gzip("gzip;q=0, deflate"), _takes_gzip("")
    (True, False, False)
    """
    for item in accepted.lower().split(","):
        name, *weight = (part.strip() for part in item.split(";"))
        if name == "gzip":
            return not any(map(NOT_ACCEPTED.fullmatch, weight))
    return False
