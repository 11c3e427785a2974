"""Request bodies: media type, limits of size, time and memory, decompression.

Owns those limits, and that of the memory of large answers. Never parses a body, except in :func:`read_json`. Never
trusts the length that a client announces, unless it is over the limit. Never holds a body twice, nor more than a few
megabytes of a body whose final size is unknown. Invariants: a body is returned only if it arrived whole: a truncated or
corrupt coded stream is rejected even if the bytes inflated so far would parse; what the head of a request
decides is decided before the gateway waits for the body. Data comes from aiohttp's stream and goes to the parser.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from aiohttp import hdrs, web
from aiohttp.web_request import BaseRequest

from keepfit.errors import MalformedError, UnavailableError
from keepfit.identity import parse_json
from keepfit.settings import Settings
from keepfit_gateway.web import codings
from keepfit_gateway.web.codings import STEP_BYTES, Inflater
from keepfit_gateway.web.incoming import send_continue
from keepfit_gateway.web.large_requests import Turns
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, compute, run_in_thread_if_large

JSON = "application/json"
INCOMPLETE = "The body is incomplete, or its chunked framing violates RFC 9112."
# A body of unknown size is buffered: this much in memory, the rest on disk.
BUFFERED_BYTES_MAX = 8 << 20


class BodyMemoryLimit:
    """Limit for the bytes of request bodies and answers that all requests of one gateway hold together, and `turns`.

    A body counts when it exceeds 64 KiB, by the bytes that arrived, not by its announced length, until its request is
    answered. An answer counts when it exceeds 64 KiB, until it is written: as long as its client takes to read it.
    """

    __slots__ = ("_bytes_max", "_reserved", "turns")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._reserved = 0
        self.turns = Turns()

    def reserve(self, request: BaseRequest, size: int) -> None:
        """Count `size` more bytes for a request; a request that is the only one may reserve any number.

        Raises
        ------
        UnavailableError
            If the sum for all requests would exceed the limit.
        """
        own = request.get(RESERVED_BYTES, 0)
        if own < self._reserved and self._reserved + size > self._bytes_max:
            raise UnavailableError(
                "The bodies of other requests and answers use all the memory for bodies; send this again."
            )
        self._reserved += size
        request[RESERVED_BYTES] = own + size

    def hold_answer(self, request: BaseRequest, response: web.StreamResponse) -> None:
        """Count a large answer instead of the body of its request, until :meth:`release` is called.

        Raises
        ------
        UnavailableError
            If the sum for all requests would exceed the limit; the caller drops the answer.
        """
        self.release(request)
        body = response.body if isinstance(response, web.Response) else None
        if isinstance(body, bytes) and len(body) > INLINE_BYTES_MAX:
            self.reserve(request, len(body))

    def release(self, request: BaseRequest) -> None:
        """Release what a request reserved, and end its turn; repeated calls change nothing."""
        self.turns.end(request)
        self._reserved -= request.pop(RESERVED_BYTES, 0)


BODY_MEMORY = web.AppKey("body_memory", BodyMemoryLimit)
RESERVED_BYTES = web.RequestKey("reserved_body_bytes", int)


async def read_json(request: web.Request, settings: Settings, bytes_max: int) -> Any:
    """Read and parse a JSON body of at most `bytes_max` bytes; raises what :func:`read` and `parse_json` raise."""
    body = await read(request, settings, bytes_max=bytes_max)
    return await compute(len(body), parse_json, body)


async def read(
    request: web.Request, settings: Settings, media_types: Collection[str] = (JSON,), bytes_max: int | None = None
) -> bytes | bytearray:
    """Return the inflated body, whose media type must be one of `media_types`; "" among them: it may have none.

    The limit of its size is `settings.body_bytes_max`, or `bytes_max` if that is lower.

    Raises
    ------
    MalformedError
        If the body is incomplete or its coded stream is corrupt.
    UnavailableError
        If the bodies of other requests use all memory for bodies, or the disk buffer fails.
    web.HTTPException
        408 if the body does not arrive in time, 413 over the limit, 415 for another media type or encoding.
    """
    _check_media_type(request, media_types)
    bytes_max = min(bytes_max or settings.body_bytes_max, settings.body_bytes_max)
    inflater = codings.inflater_of(request.headers)
    # A body whose announced length is over the limit need not be read.
    _check_size(request.content_length or 0, bytes_max)
    content = request.content
    if content.is_eof() and inflater is None:
        # Most small bodies arrive together with their head: there is nothing to wait for.
        try:
            body = content.read_nowait()
        except (ConnectionError, web.RequestPayloadError):
            raise MalformedError(INCOMPLETE) from None
        _check_size(len(body), bytes_max)
        return body
    send_continue(request)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read_stream(request, inflater, _Body(request, bytes_max))
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body took too long to arrive.") from None


def check_file(request: web.Request, settings: Settings, media_types: Sequence[str]) -> None:
    """Check the head of a request whose body is a file, which is as large as it arrives.

    Raises
    ------
    web.HTTPException
        413 over the limit, 415 for a media type that is not one of `media_types`, or any encoding.
    """
    if media_type_of(request) == JSON:
        # Not refused below, where JSON is always one of the types.
        raise web.HTTPUnsupportedMediaType(
            text=f"Send the file as Content-Type: {media_types[0]}.",
            headers={hdrs.ACCEPT: ", ".join(filter(None, media_types))},
        )
    _check_media_type(request, media_types)
    if codings.inflater_of(request.headers) is not None:
        raise web.HTTPUnsupportedMediaType(
            text="Send the file as it is, without Content-Encoding.", headers={hdrs.ACCEPT_ENCODING: "identity"}
        )
    _check_size(request.content_length or 0, settings.body_bytes_max)


async def copy(request: web.Request, settings: Settings, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Pass the body of a request to `write` as it arrives, and keep nothing of it; :func:`check_file` was called.

    Raises
    ------
    MalformedError
        If the body is incomplete.
    web.HTTPException
        408 if it does not arrive in time, 413 over the limit.
    """
    send_continue(request)
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in _chunks(request):
                size += len(chunk)
                _check_size(size, settings.body_bytes_max)
                await write(chunk)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body took too long to arrive.") from None


async def stream(request: web.Request, settings: Settings) -> AsyncIterator[bytes]:
    """Yield an inflated body of any length as it arrives, and keep nothing of it.

    Raises
    ------
    MalformedError
        If the body is incomplete or its coded stream is corrupt.
    web.HTTPException
        408 if none of it arrives in time, 415 for another encoding.
    """
    inflater_type = codings.inflater_of(request.headers)
    inflater = None if inflater_type is None else inflater_type()
    send_continue(request)
    chunks, size = _chunks(request), 0
    while True:
        try:
            async with asyncio.timeout(settings.body_timeout_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="The body took too long to arrive.") from None
        if chunk is None:
            break
        if inflater is None:
            yield chunk
            continue
        async for part in _inflate(inflater, chunk, size):
            size += len(part)
            yield part
    if inflater is not None:
        inflater.finish()


def media_type_of(request: web.Request) -> str:
    """Return the media type of a body; "" without one, where aiohttp assumes application/octet-stream."""
    return request.content_type if "/" in request.headers.get(hdrs.CONTENT_TYPE, "") else ""


def _check_media_type(request: web.Request, media_types: Collection[str]) -> None:
    if request.headers.get(hdrs.CONTENT_TYPE) == JSON:
        return
    if media_type_of(request) not in media_types:
        raise web.HTTPUnsupportedMediaType(
            text=f"Send the body as Content-Type: {' or '.join(filter(None, media_types))}.",
            headers={hdrs.ACCEPT: ", ".join(filter(None, media_types))},
        )
    if request.content_type == JSON and (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise web.HTTPUnsupportedMediaType(
            text=f"JSON must be UTF-8, not {request.charset}: encode it as UTF-8 and leave the charset out.",
            headers={hdrs.ACCEPT: ", ".join(media_types)},
        )


class _Body:
    """The bytes of a body that arrived so far, checked against the limits of size and memory."""

    __slots__ = ("_held", "_request", "bytes_max", "data", "size")

    def __init__(self, request: web.Request, bytes_max: int) -> None:
        self._request = request
        self.bytes_max = bytes_max
        self.data = bytearray()
        self.size = 0
        self._held = 0

    def append(self, part: bytes) -> None:
        """Add bytes."""
        self.count(len(part))
        self._reserve(len(part))
        self.data += part

    def allocate(self, size: int) -> bytearray:
        """Return a buffer for a body of known size."""
        self.count(size)
        self._reserve(size)
        return bytearray(size)

    def hold(self, size_max: int) -> None:
        """Reserve what an inflater of at most `size_max` bytes of memory uses by now: no more than it returned."""
        used = min(self.size, size_max)
        self._reserve(used - self._held)
        self._held = used

    def count(self, size: int) -> None:
        """Count bytes without storing them."""
        self.size += size
        _check_size(self.size, self.bytes_max)

    def _reserve(self, size: int) -> None:
        # Small bodies are not counted: every connection may hold as much anyway.
        if self.size > INLINE_BYTES_MAX:
            self._request.app[BODY_MEMORY].reserve(self._request, size)


async def _read_stream(request: web.Request, inflater_type: type[Inflater] | None, body: _Body) -> bytearray:
    if inflater_type is None and request.content_length is not None:
        async for chunk in _chunks(request):
            body.append(chunk)
        return body.data
    async with _buffer() as buffer:
        try:
            data, end = body.allocate(await _fill_and_measure(request, inflater_type, body.bytes_max, buffer)), 0
            await run_in_thread_if_large(buffer.tell(), buffer.seek, 0)
            inflater = None if inflater_type is None else inflater_type()
            while chunk := await run_in_thread_if_large(len(data), buffer.read, STEP_BYTES):
                async for part in _single(chunk) if inflater is None else _inflate(inflater, chunk, end):
                    data[end : end + len(part)] = part
                    end += len(part)
        except OSError as error:
            raise UnavailableError(
                f"A body of unknown length is buffered on disk, which failed: {error.strerror}."
            ) from None
    return data


async def _single(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


@asynccontextmanager
async def _buffer() -> AsyncIterator[IO[bytes]]:
    buffer = SpooledTemporaryFile(BUFFERED_BYTES_MAX)  # noqa: SIM115 - closed below
    try:
        yield buffer
    finally:
        # Freeing the blocks of a large file takes long.
        await run_in_thread_if_large(buffer.tell(), buffer.close)


async def _fill_and_measure(
    request: web.Request, inflater_type: type[Inflater] | None, bytes_max: int, buffer: IO[bytes]
) -> int:
    """Write a body into `buffer` as it arrives; return its inflated size, once it is whole and within the limit."""
    received, inflated = _Body(request, bytes_max), _Body(request, bytes_max)
    inflater = None if inflater_type is None else inflater_type()
    async for chunk in _chunks(request):
        received.count(len(chunk))
        await run_in_thread_if_large(received.size, buffer.write, chunk)
        if inflater is not None:
            async for part in _inflate(inflater, chunk, inflated.size):
                inflated.count(len(part))
                inflated.hold(inflater.memory_bytes_max)
    if inflater is None:
        return received.size
    inflater.finish()
    return inflated.size


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    turns, size = request.app[BODY_MEMORY].turns, 0
    try:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > INLINE_BYTES_MAX:
                await turns.arrive()
            yield chunk
    except (ConnectionError, web.RequestPayloadError):
        raise MalformedError(INCOMPLETE) from None


async def _inflate(inflater: Inflater, chunk: bytes, size_before: int) -> AsyncIterator[bytes]:
    """Inflate a chunk in steps, in a thread unless the body is small; `size_before` is what was inflated before."""
    size = size_before
    inflater.feed(chunk)
    while inflater.pending:
        part = await run_in_thread_if_large(size + len(chunk), inflater.step)
        size += len(part)
        yield part


def _check_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise web.HTTPRequestEntityTooLarge(
            max_size=bytes_max, actual_size=size, text=f"The body is larger than {bytes_max} bytes."
        )
