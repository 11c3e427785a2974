"""Request bodies: read, inflated, parsed; and answers written as JSON.

Owns limits of size and time. Never trusts a length that a client named, and never holds a body twice. Invariant: a body
is used only if it arrived whole: a truncated or damaged gzip stream is refused, although what came of it might parse.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

import msgspec
from aiohttp import hdrs, web

from keepfit.errors import MalformedError
from keepfit.identity import parse_json
from keepfit.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

JSON = "application/json"
BROKEN_OFF = "The body broke off, or its chunks are not framed as RFC 9112 has it."
INFLATE_STEP_BYTES = 1 << 20
NOT_ACCEPTED = re.compile(r"q\s*=\s*0(\.0*)?")
# Parsing this much takes about a millisecond; more is done beside the event loop.
INLINE_BYTES_MAX = 64 * 1024
GZIP_BYTES_MIN = 1024


async def read_json(request: web.Request, settings: Settings) -> Any:
    """Read the request's JSON body.

    Raises
    ------
    MalformedError, InvalidError
        If it is damaged or no usable JSON.
    web.HTTPException
        408 if it drips in, 413 over the limit, 415 for another type or encoding.
    """
    check_type(request)
    body = await read(request, settings)
    return await beside_loop(len(body), parse_json, body)


async def read(request: web.Request, settings: Settings) -> bytes | bytearray:
    """Read the request's body, whatever its type; raises what :func:`read_json` does for reading."""
    content = request.content
    if content.is_eof() and hdrs.CONTENT_ENCODING not in request.headers:
        # A small body mostly comes with its head; nothing is to be waited for then.
        try:
            whole = content.read_nowait()
        except (ConnectionError, web.RequestPayloadError):
            raise MalformedError(BROKEN_OFF) from None
        _check_size(len(whole), settings.body_bytes_max)
        return whole
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(request, settings.body_bytes_max)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body took too long to arrive.") from None


async def beside_loop(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function`, in a thread where `size_bytes` of input would block the event loop."""
    if size_bytes <= INLINE_BYTES_MAX:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def check_type(request: web.Request, others: Collection[str] = ()) -> str:
    """Return the body's media type, which must be JSON or one of `others`."""
    if request.headers.get(hdrs.CONTENT_TYPE) == JSON:
        return JSON
    media_type = request.content_type
    if media_type in others:
        return media_type
    if media_type != JSON:
        wanted = " or ".join((JSON, *others))
        raise web.HTTPUnsupportedMediaType(text=f"Send the body as Content-Type: {wanted}.")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise web.HTTPUnsupportedMediaType(text=f"JSON is UTF-8, not {request.charset}.")
    return JSON


async def _read(request: web.Request, bytes_max: int) -> bytearray:
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding == "gzip":
        return await _inflate(request, bytes_max)
    if encoding != "identity":
        raise web.HTTPUnsupportedMediaType(text=f"Content-Encoding {encoding!r} is not known; use gzip or none.")
    body = bytearray()
    async for chunk in _chunks(request):
        _check_size(len(body) + len(chunk), bytes_max)
        body += chunk
    return body


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (ConnectionError, web.RequestPayloadError):
        raise MalformedError(BROKEN_OFF) from None


async def _inflate(request: web.Request, bytes_max: int) -> bytearray:
    inflater = zlib.decompressobj(wbits=31)
    body = bytearray()
    try:
        async for chunk in _chunks(request):
            rest = chunk
            while rest and not inflater.eof:
                # A few bytes may inflate into very many, so all but the first step of a small body is done elsewhere.
                part = await beside_loop(len(body) + len(rest), inflater.decompress, rest, INFLATE_STEP_BYTES)
                rest = inflater.unconsumed_tail
                _check_size(len(body) + len(part), bytes_max)
                body += part
            if inflater.eof and (inflater.unused_data or rest):
                raise MalformedError("Bytes follow the end of the gzip stream.")
    except zlib.error as error:
        raise MalformedError(f"The gzip stream is damaged: {error}.") from None
    if not inflater.eof:
        raise MalformedError("The gzip stream is cut short.")
    return body


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
    if isinstance(response, web.Response):
        compress(request.headers, response)
    return response


def compress(headers: Mapping[str, str], response: web.Response) -> None:
    """Compress an answer if the request's `headers` take gzip, and it pays; once or more often is the same."""
    if len(response.body or b"") >= GZIP_BYTES_MIN:  # type: ignore[arg-type]
        response.headers["Vary"] = "Accept-Encoding"
        if _takes_gzip(headers.get("Accept-Encoding", "")):
            response.enable_compression(web.ContentCoding.gzip)


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
