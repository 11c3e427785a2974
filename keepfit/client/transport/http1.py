"""HTTP/1.1 (RFC 9112) as a client speaks it, without I/O: heads that are sent, responses that are read.

Owns the form of requests and the reader of responses, which the blocking and the asyncio connections share. Never
touches a socket. Invariant: a response that is not exactly what RFC 9112 allows is an error after which its connection
is not used again, so an answer is never taken for that of another request. Interim responses (1xx) are skipped.
"""

import re
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

# A head that a gateway of keepfit sends has a few hundred bytes.
HEAD_BYTES_MAX = 64 * 1024
# The largest answer is a file with a trained object.
BODY_BYTES_MAX = 1 << 30
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?")
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Python reads no number of thousands of digits.
NUMBER = re.compile(r"[0-9]{1,18}")
# A head as most are: with one length, and without another line that frames the body, codes it or ends the connection.
OTHER_LINES = rb"(?:(?![Cc][Oo][Nn]|[Tt][Rr][Aa][Nn]| )[ -~]++\r\n|Content-Type:[ -~]*+\r\n)*+"
WHOLE = re.compile(
    rb"HTTP/1\.1 200 [ -~]*\r\n(" + OTHER_LINES + rb"Content-Length: ([0-9]{1,18})\r\n" + OTHER_LINES + rb")\r\n"
)
# The characters of a head; a line that begins with a space would continue the one before, which is obsolete.
IN_HEAD = bytes([*b"\t\r\n", *range(0x20, 0x7F), *range(0x80, 0x100)])
CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?")
FORBIDDEN = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
NO_CONTENT, NOT_MODIFIED, SWITCHING_PROTOCOLS = 204, 304, 101
SUCCESSFUL, REDIRECTED, REFUSED = 200, 300, 400


class ProtocolError(Exception):
    """What arrives is not an HTTP/1.1 response."""


class Response:
    """A response. `head` is the rest of its head after the status line."""

    __slots__ = ("_fields", "_head", "body", "is_coded", "keep_alive", "status")

    def __init__(self, status: int, head: bytes, body: bytes | bytearray = b"") -> None:
        self.status = status
        self.body = body
        self.keep_alive = True
        # Whether it may have a content coding.
        self.is_coded = True
        self._head = head
        self._fields: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The header fields by lower-case name; the values of a repeated field are joined with commas."""
        if self._fields is None:
            self.split_head()
        return self._fields or {}

    def split_head(self) -> bool:
        """Find the header fields; return whether each line is one."""
        fields: dict[str, str] = {}
        is_well_formed = True
        for line in self._head.decode("latin-1").split("\r\n") if self._head else ():
            raw, colon, value = line.partition(":")
            name, value = _field_name(raw), value.strip(" \t")
            if name and colon:
                fields[name] = f"{fields[name]}, {value}" if name in fields else value
            else:
                is_well_formed = False
        self._fields = fields
        return is_well_formed

    def content(self) -> bytes | bytearray:
        """Return the body without its content coding. Raise ProtocolError for a coding that was not asked for."""
        if not self.is_coded or not self.body:
            return self.body
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding == "identity":
            return self.body
        if coding not in ("gzip", "x-gzip"):
            raise ProtocolError(f"the answer has the coding {coding[:40]!r}")
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            data = inflater.decompress(self.body, BODY_BYTES_MAX)
        except zlib.error as error:
            raise ProtocolError(f"the answer is not gzip: {error}") from None
        if not inflater.eof or inflater.unused_data:
            raise ProtocolError("the answer is not one whole gzip stream")
        return data


def field_lines(fields: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    """Return header fields as they are sent.

    >>> field_lines({"Prefer": "wait=10"})
    b'Prefer: wait=10\\r\\n'

    Raises
    ------
    ValueError
        If a value has a character that no field may have; the message does not show it.
    """
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    lines = []
    for name, value in pairs:
        if FORBIDDEN.search(value):
            raise ValueError(f"the header field {name} has a character that cannot be sent")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("latin-1")


def number(text: str) -> int | None:
    """Return the whole number that is the value of a field; None if it is none."""
    return int(text) if NUMBER.fullmatch(text) else None


@lru_cache(256)
def _field_name(text: str) -> str:
    """Return the name of a field in lower case; "" if it is none."""
    return text.lower() if TOKEN.fullmatch(text) else ""


def read_whole(data: bytes) -> Response | None:
    """Return the response if `data` is one of status 200, whole, with a length and no coding, as most are.

    None: :class:`ResponseReader` reads it. The header fields that do not frame it are split when they are used.
    """
    found = WHOLE.match(data)
    if found is None:
        return None
    end = found.end()
    if int(found[2]) != len(data) - end:
        return None
    response = Response(SUCCESSFUL, data[found.start(1) : end - 4], data[end:])
    response.is_coded = False
    return response


def _is_text(head: bytes) -> bool:
    """Whether lines end with CRLF, and have no control characters."""
    lines = head.count(b"\r\n")
    return not head.translate(None, IN_HEAD) and head.count(b"\r") == lines == head.count(b"\n")


class ResponseReader:
    """Read one response from bytes as they arrive.

    >>> reader = ResponseReader()
    >>> reader.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{")
    False
    >>> reader.feed(b"}")
    True
    >>> reader.response.status, bytes(reader.response.body)
    (200, b'{}')
    """

    __slots__ = (
        "_buffer",
        "_chunk_left",
        "_is_chunked",
        "_is_head",
        "_left",
        "_size",
        "is_begun",
        "is_complete",
        "response",
    )

    def __init__(self, *, is_head: bool = False) -> None:
        self._buffer = bytearray()
        self._is_head = is_head
        # Bytes of the body that are missing; None: it ends with the connection.
        self._left: int | None = 0
        self._size = 0
        self._is_chunked = False
        # Of the present chunk: None before its line, -1 in the trailer.
        self._chunk_left: int | None = None
        # Whether bytes, perhaps of interim responses, have arrived.
        self.is_begun = False
        self.is_complete = False
        self.response: Response

    @property
    def has_head(self) -> bool:
        """Whether the head of the response has been read."""
        return hasattr(self, "response")

    @property
    def may_be_streamed(self) -> bool:
        """Whether there is a response: all of one that is an error, the head of another."""
        return self.is_complete or (self.has_head and self.response.status == SUCCESSFUL)

    def feed(self, data: bytes | bytearray) -> bool:
        """Take bytes; return whether the response is complete.

        Raises
        ------
        ProtocolError
            If they are no response, too long, or more than the response.
        """
        self.is_begun = True
        self.is_complete = self._feed(data)
        return self.is_complete

    def _feed(self, data: bytes | bytearray) -> bool:
        if not self.has_head:
            if self._buffer:
                self._buffer += data
                data = self._buffer
            end = data.find(b"\r\n\r\n")
            while end >= 0:
                response = self._read_head(bytes(data[:end]))
                data = data[end + 4 :]
                if response.status >= SUCCESSFUL:
                    self.response = response
                    self._buffer = bytearray()
                    return self._read_body(data)
                end = data.find(b"\r\n\r\n")
            if len(data) > HEAD_BYTES_MAX:
                raise ProtocolError("the head of the answer is too long")
            self._buffer = bytearray(data)
            return False
        return self._read_body(data)

    def end(self) -> bool:
        """Take the end of the connection; return whether the response is complete."""
        if not self.has_head or self._left is not None or self._is_chunked:
            return False
        self.response.body = self._buffer
        self.is_complete = True
        return True

    def take(self) -> bytes:
        """Return and forget what has arrived of a body so far, for one that is read as it comes."""
        data = bytes(self._buffer)
        self._buffer.clear()
        self._size = 0
        return data

    def _read_head(self, head: bytes) -> Response:
        first, _, fields = head.partition(b"\r\n")
        status_line = STATUS_LINE.fullmatch(first)
        if status_line is None or not _is_text(head):
            raise ProtocolError("the answer does not begin with a head of HTTP/1.1")
        response = Response(int(status_line[2]), fields)
        if not response.split_head():
            raise ProtocolError("the answer has a malformed header field")
        headers = response.headers
        if response.status == SWITCHING_PROTOCOLS:
            raise ProtocolError("the answer switches to another protocol")
        connection = headers.get("connection", "").lower()
        response.keep_alive = "close" not in connection and (status_line[1] == b"1" or "keep-alive" in connection)
        if response.status >= SUCCESSFUL:
            self._frame(response)
        return response

    def _frame(self, response: Response) -> None:
        """Find out where the body ends (RFC 9112, section 6.3)."""
        coding, length = response.headers.get("transfer-encoding"), response.headers.get("content-length")
        if coding is not None and (coding.lower() != "chunked" or length is not None):
            raise ProtocolError("the answer has a transfer coding that is not chunked, or a length as well")
        size = None if length is None else number(length)
        if length is not None and size is None:
            raise ProtocolError("the length of the answer is not a number")
        if self._is_head or response.status in (NO_CONTENT, NOT_MODIFIED):
            self._left = 0
        elif coding is not None:
            self._is_chunked = True
        elif size is not None:
            self._left = size
            self._check_size(size)
        else:
            self._left, response.keep_alive = None, False

    def _check_size(self, size: int) -> None:
        if size > BODY_BYTES_MAX:
            raise ProtocolError(f"the answer has more than {BODY_BYTES_MAX} bytes")

    def _read_body(self, data: bytes | bytearray) -> bool:
        if self._is_chunked:
            return self._read_chunks(data)
        self._size += len(data)
        if self._left is None:
            self._check_size(self._size)
            self._buffer += data
            return False
        if len(data) > self._left:
            raise ProtocolError("bytes follow the end of the answer")
        self._left -= len(data)
        if self._left == 0:
            # A short answer is all in its first bytes.
            self.response.body = self._joined(data)
            return True
        self._buffer += data
        return False

    def _joined(self, data: bytes | bytearray) -> bytes | bytearray:
        if not self._buffer:
            return data
        self._buffer += data
        return self._buffer

    def _read_chunks(self, data: bytes | bytearray) -> bool:
        """Take bytes of a chunked body; what is not yet decoded stays at the end of the raw bytes."""
        raw = bytearray(self.response.body) + data
        while True:
            if self._chunk_left is not None and self._chunk_left > 0:
                part = raw[: self._chunk_left]
                del raw[: len(part)]
                self._buffer += part
                self._chunk_left -= len(part)
                if self._chunk_left > 0:
                    break
            if self._chunk_left == 0:
                if len(raw) < 2:
                    break
                if raw[:2] != b"\r\n":
                    raise ProtocolError("a chunk of the answer does not end where it should")
                del raw[:2]
                self._chunk_left = None
            end = raw.find(b"\r\n")
            if end < 0:
                if len(raw) > HEAD_BYTES_MAX:
                    raise ProtocolError("a line between chunks of the answer is too long")
                break
            line = bytes(raw[:end])
            del raw[: end + 2]
            if self._chunk_left is None:
                self._begin_chunk(line)
            elif not line:
                return self._end_chunks(raw)
        self.response.body = raw
        return False

    def _begin_chunk(self, line: bytes) -> None:
        size = CHUNK_LINE.fullmatch(line)
        if size is None:
            raise ProtocolError("the answer has a malformed chunk")
        self._chunk_left = int(size[1], 16) or -1
        self._size += max(self._chunk_left, 0)
        self._check_size(self._size)

    def _end_chunks(self, rest: bytearray) -> bool:
        if rest:
            raise ProtocolError("bytes follow the end of the answer")
        self.response.body = self._buffer
        return True
