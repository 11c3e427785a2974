"""Small JSON requests that need nothing special: their heads, and their bodies before anything has read them.

Owns which requests are plain. Never consumes a body. Invariant: a plain request has no header field that changes what
is answered, except for Cache-Control and those that :mod:`keepfit_gateway.auth.guard` reads.
"""

from typing import Any

from aiohttp import hdrs
from aiohttp.streams import StreamReader
from multidict import istr

from keepfit_gateway.web.fields import Headers

BODY_BYTES_MAX = 4096
PREFER, IDEMPOTENCY_KEY = istr("Prefer"), istr("Idempotency-Key")


def is_plain(method: str, headers: Headers) -> bool:
    """Return whether a request is a POST of JSON that needs nothing that only the regular path has."""
    return (
        method == "POST"
        and headers.get(hdrs.CONTENT_TYPE) == "application/json"
        and hdrs.CONTENT_ENCODING not in headers
        and hdrs.EXPECT not in headers
        and hdrs.IF_NONE_MATCH not in headers
        and PREFER not in headers
        and IDEMPOTENCY_KEY not in headers
        # A weight may exclude the plain body of a small response.
        and ";" not in "".join(headers.getall(hdrs.ACCEPT_ENCODING, ()))
    )


def peek(content: Any) -> bytes | None:
    """Return a small body that has arrived, without consuming it; None if it is large or broken."""
    if type(content) is not StreamReader or content.exception() is not None or content.total_bytes > BODY_BYTES_MAX:
        return None
    # aiohttp's only call that puts back what was read is deprecated.
    chunks = content._buffer
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
