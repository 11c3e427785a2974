"""Bodies of lines: whole lines as they arrive, of a body of any length.

Owns where lines end and how long one may be. Never parses one. Invariant: memory for a body is bounded by a line and
what of it arrives at a time, whatever its length.
"""

from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from keepfit.history.writing.checks import DOCUMENT_BYTES_MAX
from keepfit.settings import Settings
from keepfit_gateway.web import bodies
from keepfit_gateway.web.offload import INLINE_BYTES_MAX

# What a body may use of the memory for bodies: a line, what arrives with it, and the documents of a batch.
RESERVED_BYTES = 2 * DOCUMENT_BYTES_MAX


async def read_lines(request: web.Request, settings: Settings) -> AsyncIterator[list[bytes]]:
    """Yield the lines of a body, without their ends, as they arrive; a last one needs no end.

    Of a line that is longer than a document may be, one byte more than that is yielded.

    Raises
    ------
    UnavailableError
        If other bodies use all memory for bodies.
    MalformedError, web.HTTPException
        As :func:`keepfit_gateway.web.bodies.stream`.
    """
    length = request.content_length
    if length is None or length > INLINE_BYTES_MAX or hdrs.CONTENT_ENCODING in request.headers:
        request.app[bodies.BODY_MEMORY].reserve(request, RESERVED_BYTES)
    rest = bytearray()
    async for part in bodies.stream(request, settings):
        first, *lines = part.split(b"\n")
        rest += first[: DOCUMENT_BYTES_MAX + 1 - len(rest)]
        if lines:
            lines.insert(0, bytes(rest))
            rest = bytearray(lines.pop())
            yield lines
    if rest:
        yield [bytes(rest)]
