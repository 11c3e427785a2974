"""The address of a gateway, and what the head of every request to it holds.

Pure. Invariant: an API key is in the head and in no error message.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from keepfit.client.transport import http1
from keepfit.client.transport.exchange import PIECE_BYTES, Request, StreamedBody
from keepfit.errors import MalformedError

if TYPE_CHECKING:
    import ssl

PORTS = {"http": 80, "https": 443}
# The fields of a request with a JSON body, and no others.
PLAIN = b"Content-Type: application/json\r\n"
# The field of a request whose answer is read as it comes, and is not decompressed.
UNCODED = b"Accept-Encoding: identity\r\n"
NO_URL = "{!r} is not the URL of a gateway: http://127.0.0.1:8000."
# A space or a line end in a target would end it, and begin another header field.
TARGET = re.compile(r"/[!-~]*")
# Heads of plain requests that are kept.
STARTS_MAX = 256
# A longer body is sent by itself instead of being copied behind its head.
JOINED_BYTES_MAX = 64 << 10


class Address:
    """Where a gateway is: `host` and `port` of its connections, and `head`, the lines that every request has."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = split(url)
        self.url = url.rstrip("/")
        self.is_secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or PORTS[parts.scheme]
        self.prefix = quote(parts.path.rstrip("/"), safe="/%")
        self._starts: dict[tuple[str, str], bytes] = {}
        self.is_loopback = _is_loopback(self.host)
        fields = {"Host": parts.netloc, "User-Agent": "keepfit"}
        # On one machine, coding costs more than it saves.
        self.coding = UNCODED if self.is_loopback else b"Accept-Encoding: gzip\r\n"
        if api_key:
            fields["Authorization"] = f"Bearer {api_key}"
        try:
            self.head = http1.field_lines(fields)
        except ValueError:
            raise MalformedError("The API key, or the host, has a character that cannot be sent in a header.") from None

    def encode(self, request: Request) -> tuple[bytes, Iterable[bytes | memoryview]]:
        """Return what is sent at once, the head and a short body, and the pieces that are sent one after another."""
        body = request.body
        if body is None:
            return self._start(request) + (b"\r\n" if request.method == "GET" else b"Content-Length: 0\r\n\r\n"), ()
        if isinstance(body, bytes):
            size = len(body)
            if size <= JOINED_BYTES_MAX:
                return b"%bContent-Length: %d\r\n\r\n%b" % (self._start(request), size, body), ()
            return b"%bContent-Length: %d\r\n\r\n" % (self._start(request), size), _pieces(body)
        if body.size is None:
            return self._start(request) + b"Transfer-Encoding: chunked\r\n\r\n", _chunks(body)
        return b"%bContent-Length: %d\r\n\r\n" % (self._start(request), body.size), body

    def encode_post(self, target: str, body: bytes) -> bytes:
        """Return a POST of short JSON, as :meth:`encode` does."""
        start = self._starts.get(("POST", target)) or self._start(Request("POST", target, fields=PLAIN))
        return b"%bContent-Length: %d\r\n\r\n%b" % (start, len(body), body)

    def _start(self, request: Request) -> bytes:
        """Return the head of a request without what frames its body; that of a plain one is made once."""
        if request.fields is not PLAIN:
            return self._new_start(request)
        start = self._starts.get((request.method, request.target))
        if start is None:
            if len(self._starts) >= STARTS_MAX:
                self._starts.clear()
            start = self._starts[request.method, request.target] = self._new_start(request)
        return start

    def _new_start(self, request: Request) -> bytes:
        if not TARGET.fullmatch(request.target):
            raise MalformedError(f"{request.target[:100]!r} has a character that no path has.")
        line = f"{request.method} {self.prefix}{request.target} HTTP/1.1\r\n".encode("ascii")
        coding = b"" if UNCODED in request.fields else self.coding
        return line + self.head + coding + request.fields


def _pieces(body: bytes) -> Iterator[memoryview]:
    """Yield a long body in pieces, so that an early answer ends it, and no transport copies all of it."""
    view = memoryview(body)
    for start in range(0, len(body), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]


def split(url: str) -> SplitResult:
    """Return the parts of the URL of a gateway.

    Raises
    ------
    MalformedError
        If it is none, or has a password, which errors and logs that name the gateway would show.
    """
    # Before all else: the other error shows what was given.
    if "@" in re.split("[?#]", url)[0]:
        raise MalformedError("The URL of a gateway has no user name or password; the API key is given by itself.")
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in PORTS and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        is_one = False
    if not is_one:
        raise MalformedError(NO_URL.format(url))
    return parts


def _chunks(body: StreamedBody) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a body in the chunked coding (RFC 9112, section 7.1)."""
    for piece in body:
        if size := memoryview(piece).nbytes:
            yield b"%x\r\n" % size
            yield piece
            yield b"\r\n"
    yield b"0\r\n\r\n"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def default_tls() -> "ssl.SSLContext":
    """Return what is checked of a gateway behind ``https``: its certificate and its name."""
    import ssl  # noqa: PLC0415 - slow to import, and not needed for http

    return ssl.create_default_context()


def target(path: str, **query: object) -> str:
    """Return a path with a query, percent-encoded; parameters that are None are left out.

    >>> target("/v1/history", type="running shoes", limit=None)
    '/v1/history?type=running%20shoes'
    """
    given = [(name, str(value).lower() if isinstance(value, bool) else value) for name, value in query.items()]
    text = urlencode([(name, value) for name, value in given if value is not None], doseq=True, quote_via=quote)
    return f"{path}?{text}" if text else path
