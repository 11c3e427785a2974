"""A source at an https address: read range by range, or from its start to its end.

Owns the connection: which address it is made to, what is asked and what is accepted. Never follows a redirect, never
uses a proxy, never sends credentials or cookies. Invariants: the host's name is resolved once for each opening, and the
connection is made to one of exactly those addresses, all of them public; the certificate is that of the host's name;
each answer is of the state of the source that was found first.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from keepfit.backends.range_file import RangeFile, block_bytes
from keepfit.backends.source_urls import COMPRESSED, SourceUrl
from keepfit.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
from keepfit.ingest.addresses import is_public

CHANGED = "The source has changed."
# To connect, and for a single read; for one range; for a source without ranges each read has the first one.
CONNECT_S, RANGE_S = 10.0, 60.0
AGENT = "keepfit"
NOT_PUBLIC = "The name of the host leads to an address that is not public."
NO_RANGES = "The server sends no ranges of the source, which is read at any place: use CSV or JSON lines, or S3."
NO_SIZE = "The server sends ranges of the source, and does not say how large it is."
NO_STATE = "The server names neither ETag nor Last-Modified: a change of the source could not be noticed."


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises
    ------
    UnavailableError
        If its name cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(f"The name of {host} cannot be resolved: {error}", "The host is unknown.") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(slots=True)
class HttpsSource:
    """One state of a source; `identity` tells it from others. `size` is None if the server does not say it."""

    url: SourceUrl
    resolve: Callable[[str, int], Sequence[str]] = resolve
    is_allowed: Callable[[str], bool] = is_public
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    identity: str = ""
    size: int | None = None
    has_ranges: bool = False
    _addresses: Sequence[str] = ()
    _connection: http.client.HTTPSConnection | None = None

    def open(self, *, seekable: bool) -> BinaryIO:
        """Find the source and return it as a file, from its start.

        Raises
        ------
        ForbiddenError
            If the host has an address that is not public.
        NotFoundError, InvalidError
            If the server does not have it, or answers what cannot be used.
        UnavailableError
            If the server does not answer.
        """
        try:
            return self._open(seekable=seekable)
        except BaseException:
            self.close()
            raise

    def _open(self, *, seekable: bool) -> BinaryIO:
        self._addresses = self.resolve(self.url.host, self.url.port)
        if not self._addresses or not all(map(self.is_allowed, self._addresses)):
            raise ForbiddenError(NOT_PUBLIC)
        answer = self._ask("bytes=0-0")
        self.has_ranges = answer.status == http.client.PARTIAL_CONTENT
        self.identity, self.size = _identity_of(answer), _size_of(answer)
        if self.has_ranges:
            if self.size is None:
                raise InvalidError(NO_SIZE)
            self._body_of(answer, 0, 1)
            return cast("BinaryIO", io.BufferedReader(RangeFile(self.read, self.size, block_bytes(seekable=seekable))))
        if seekable:
            raise InvalidError(NO_RANGES)
        return cast("BinaryIO", io.BufferedReader(_Body(answer, self.size)))

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from `begin` up to `end`; raises ConflictError if the source has changed."""
        answer = self._ask(f"bytes={begin}-{end - 1}")
        if answer.status != http.client.PARTIAL_CONTENT or _identity_of(answer) != self.identity:
            self.close()
            raise ConflictError(CHANGED)
        return self._body_of(answer, begin, end)

    def _body_of(self, answer: http.client.HTTPResponse, begin: int, end: int) -> bytes:
        """Return the body of an answer, which must be the bytes from `begin` up to `end`."""
        try:
            return _exactly(answer, begin, end)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UnavailableError(f"The source cannot be read: {error}", "The source cannot be read.") from error

    def check(self) -> None:
        """Raise ConflictError if the source has another state by now."""
        if self.has_ranges:
            self.read(0, 1)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, wanted: str) -> http.client.HTTPResponse:
        """Return the answer to a request, whose status is 200 or 206; once more if the server has closed meanwhile."""
        is_new = self._connection is None
        try:
            return self._ask_once(wanted)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not is_new:
                return self._ask(wanted)
            raise UnavailableError(f"The source cannot be read: {error}", "The source cannot be read.") from error

    def _ask_once(self, wanted: str) -> http.client.HTTPResponse:
        connection = self._connection or self._connect()
        self._connection = connection
        target = str(SourceUrl("https", "", 443, self.url.path, self.url.query)).removeprefix("https://")
        headers = {"Range": wanted, "Accept-Encoding": "identity", "User-Agent": AGENT}
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        if answer.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
            self.close()
            _refuse(answer.status)
        if answer.headers.get("Content-Encoding", "identity") != "identity" and not self.url.path.endswith(COMPRESSED):
            self.close()
            raise InvalidError("The server compresses the source, although it was asked not to.")
        return answer

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(self.url.host, self.url.port, timeout=CONNECT_S)
        # It would resolve the name again, and connect to whatever that gives.
        connection.auto_open = 0
        error: OSError | None = None
        for address in self._addresses:
            try:
                plain = socket.create_connection((address, self.url.port), CONNECT_S)
            except OSError as failure:
                error = failure
                continue
            try:
                connection.sock = self.context.wrap_socket(plain, server_hostname=self.url.host)
            except OSError:
                plain.close()
                raise
            return connection
        raise error or OSError("the host has no address")


def _exactly(answer: http.client.HTTPResponse, begin: int, end: int) -> bytes:
    """Return the body, the bytes from `begin` up to `end`; raises OSError or HTTPException if not, or too slowly."""
    # Names of units are written in any case (RFC 9110, section 14.1).
    if not answer.headers.get("Content-Range", "").lower().startswith(f"bytes {begin}-{end - 1}/"):
        raise http.client.HTTPException("the server sent another range than it was asked for")
    deadline_s, parts, left = time.monotonic() + RANGE_S, list[bytes](), end - begin
    while left and (part := answer.read1(left)):
        parts.append(part)
        left -= len(part)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"a range took more than {RANGE_S:g} s")
    if left or answer.read1(1):
        raise http.client.HTTPException(f"the answer does not have the {end - begin} bytes that were asked for")
    return b"".join(parts)


class _Body(io.RawIOBase):
    """The body of an answer, which must not end early."""

    def __init__(self, answer: http.client.HTTPResponse, size: int | None) -> None:
        super().__init__()
        self._answer, self._left = answer, size

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has arrived."""
        try:
            count = self._answer.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"The source cannot be read: {error}", "The source cannot be read.") from error
        if self._left is not None:
            self._left -= count
            if not count and self._left > 0 and memoryview(buffer).nbytes:
                raise UnavailableError("The server closed the connection before the end of the source.")
        return count


def _refuse(status: int) -> None:
    if 300 <= status < 400:
        raise InvalidError(f"The server redirects ({status}), which is not followed: give the final address.")
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise InvalidError("The source is empty.")
    if status in (404, 410):
        raise NotFoundError("There is no such source.")
    if status in (408, 425, 429) or status >= 500:
        raise UnavailableError(f"The server of the source answers {status}.", "The server of the source fails.")
    raise InvalidError(f"The server answers {status}.")


def _identity_of(answer: http.client.HTTPResponse) -> str:
    tag, modified = (answer.headers.get(name, "") for name in ("ETag", "Last-Modified"))
    if not tag and not modified:
        raise InvalidError(NO_STATE)
    return f"{tag} {modified} {_size_of(answer)}"


def _size_of(answer: http.client.HTTPResponse) -> int | None:
    text = answer.headers.get("Content-Length", "")
    if answer.status == http.client.PARTIAL_CONTENT:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isascii() and text.isdecimal() else None
