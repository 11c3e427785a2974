"""Request bodies: read, inflated, parsed; and answers written as JSON.

Owns limits of size and time. Never trusts a length that a client named, unless it is too large; never holds a body
twice, nor more than a little of one that is not known to be within the limit. Invariant: a body is used only if it
arrived whole: a truncated or damaged gzip stream is refused, although what came of it might parse.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from aiohttp import hdrs, web

from keepfit.errors import MalformedError, UnavailableError
from keepfit.identity import parse_json
from keepfit.settings import Settings
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, run_in_thread_if_large

JSON = "application/json"
BROKEN_OFF = "The body broke off, or its chunks are not framed as RFC 9112 has it."
STEP_BYTES = 1 << 20
# Of a body whose size is not known before its end so much waits in memory, the rest on disk.
AWAITED_BYTES_MAX = 8 << 20


class BodyMemoryLimit:
    """Memory for bodies: how many bytes of them all requests of one gateway hold together.

    A body counts from its first 64 KiB on, as it arrives and not as it is announced, until its request is answered.
    """

    __slots__ = ("_bytes_max", "_taken")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken = 0

    def take(self, request: web.Request, size: int) -> None:
        """Count `size` more bytes for a request; one that is alone may have any number.

        Raises
        ------
        UnavailableError
            If all together would be too many.
        """
        mine = request.get(TAKEN, 0)
        if mine < self._taken and self._taken + size > self._bytes_max:
            raise UnavailableError("The bodies of other requests take all the memory that there is for them.")
        self._taken += size
        request[TAKEN] = mine + size

    def leave(self, request: web.Request) -> None:
        """Count a request no more; once or more often is the same."""
        self._taken -= request.pop(TAKEN, 0)


ROOM = web.AppKey("room", BodyMemoryLimit)
TAKEN = web.RequestKey("body_bytes_taken", int)


@web.middleware
async def leaves_room(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Let go of what a request's body took once it is answered."""
    try:
        response: web.StreamResponse = await handler(request)
        return response
    finally:
        request.app[ROOM].leave(request)


async def read_json(request: web.Request, settings: Settings, bytes_max: int) -> Any:
    """Read the request's JSON body, of `bytes_max` at most.

    Raises
    ------
    MalformedError, InvalidError
        If it is damaged or no usable JSON.
    UnavailableError
        If other bodies take all the memory for bodies.
    web.HTTPException
        408 if it drips in, 413 over the limit, 415 for another type or encoding.
    """
    check_type(request)
    body = await read(request, settings, bytes_max)
    return await run_in_thread_if_large(len(body), parse_json, body)


async def read(request: web.Request, settings: Settings, bytes_max: int | None = None) -> bytes | bytearray:
    """Read the request's body, whatever its type; raises what :func:`read_json` does for reading.

    Its limit is that of the settings, and `bytes_max` if that is less.
    """
    bytes_max = min(bytes_max or settings.body_bytes_max, settings.body_bytes_max)
    # What says itself that it is too large need not be seen to be so.
    _check_size(request.content_length or 0, bytes_max)
    content = request.content
    if content.is_eof() and hdrs.CONTENT_ENCODING not in request.headers:
        # A small body mostly comes with its head; nothing is to be waited for then.
        try:
            whole = content.read_nowait()
        except (ConnectionError, web.RequestPayloadError):
            raise MalformedError(BROKEN_OFF) from None
        _check_size(len(whole), bytes_max)
        return whole
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(request, _Body(request, bytes_max))
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body took too long to arrive.") from None


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


class _Body:
    """A body as far as it has come, no larger than it may be."""

    __slots__ = ("_request", "bytes_max", "data", "size")

    def __init__(self, request: web.Request, bytes_max: int) -> None:
        self._request = request
        self.bytes_max = bytes_max
        self.data = bytearray()
        self.size = 0

    def keep(self, part: bytes) -> None:
        """Add a part."""
        self.count(len(part))
        self._take(len(part))
        self.data += part

    def whole(self, size: int) -> bytearray:
        """Return a place for a body of known size."""
        self.count(size)
        self._take(size)
        return bytearray(size)

    def _take(self, size: int) -> None:
        # What every connection may hold anyway takes no room.
        if self.size > INLINE_BYTES_MAX:
            self._request.app[ROOM].take(self._request, size)

    def count(self, size: int) -> None:
        """Count a part that is not kept."""
        self.size += size
        _check_size(self.size, self.bytes_max)


async def _read(request: web.Request, body: _Body) -> bytearray:
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding not in ("gzip", "identity"):
        raise web.HTTPUnsupportedMediaType(text=f"Content-Encoding {encoding!r} is not known; use gzip or none.")
    if encoding == "identity" and request.content_length is not None:
        async for chunk in _chunks(request):
            body.keep(chunk)
        return body.data
    async with _waiting_place() as came:
        try:
            data, at = body.whole(await _measure(request, encoding, body.bytes_max, came)), 0
            await run_in_thread_if_large(came.tell(), came.seek, 0)
            inflater = zlib.decompressobj(wbits=31)
            while chunk := await run_in_thread_if_large(len(data), came.read, STEP_BYTES):
                async for part in _inflated(inflater, chunk, at) if encoding == "gzip" else _alone(chunk):
                    data[at : at + len(part)] = part
                    at += len(part)
        except OSError as error:
            raise UnavailableError(
                f"A body whose size is not known before its end is kept on disk, which failed: {error.strerror}."
            ) from None
    return data


async def _alone(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


@asynccontextmanager
async def _waiting_place() -> AsyncIterator[IO[bytes]]:
    came = SpooledTemporaryFile(AWAITED_BYTES_MAX)  # noqa: SIM115 - closed below
    try:
        yield came
    finally:
        # To give back the blocks of a large file takes its time.
        await run_in_thread_if_large(came.tell(), came.close)


async def _measure(request: web.Request, encoding: str, bytes_max: int, came: IO[bytes]) -> int:
    """Put a body into `came` as it comes, and return its size, once it is seen to be within the limit, and whole."""
    sent, became = _Body(request, bytes_max), _Body(request, bytes_max)
    inflater = zlib.decompressobj(wbits=31)
    try:
        async for chunk in _chunks(request):
            sent.count(len(chunk))
            await run_in_thread_if_large(sent.size, came.write, chunk)
            if encoding == "gzip":
                async for part in _inflated(inflater, chunk, became.size):
                    became.count(len(part))
    except zlib.error as error:
        raise MalformedError(f"The gzip stream is damaged: {error}.") from None
    if encoding != "gzip":
        return sent.size
    if not inflater.eof:
        raise MalformedError("The gzip stream is cut short.")
    return became.size


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (ConnectionError, web.RequestPayloadError):
        raise MalformedError(BROKEN_OFF) from None


async def _inflated(inflater: "zlib._Decompress", chunk: bytes, before: int) -> AsyncIterator[bytes]:
    """Inflate a chunk in steps, which are done elsewhere but for the first of a small body; `before` is its size."""
    rest, size = chunk, before
    while rest and not inflater.eof:
        part = await run_in_thread_if_large(size + len(rest), inflater.decompress, rest, STEP_BYTES)
        rest = inflater.unconsumed_tail
        size += len(part)
        yield part
    if inflater.eof and (inflater.unused_data or rest):
        raise MalformedError("Bytes follow the end of the gzip stream.")


def _check_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise web.HTTPRequestEntityTooLarge(
            max_size=bytes_max, actual_size=size, text=f"The body is larger than {bytes_max} bytes."
        )
