"""Responses of HTTP/1.1 are read as RFC 9112 says, however they arrive, and anything else is refused."""

import gzip
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfit.client.transport.address import Address
from keepfit.client.transport.exchange import Request
from keepfit.client.transport.http1 import ProtocolError, Response, ResponseReader, field_lines, number, read_whole
from keepfit.errors import MalformedError

PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\nETag: W/"1"\r\n\r\n{"a":1}\n'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n3\r\n, w\r\n0\r\nTrailer: 1\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + PLAIN
EMPTY = b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n"
UNCHANGED = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n"


def read(*pieces: bytes, is_head: bool = False) -> Response:
    """Read a response from these pieces; it must be complete after the last one, and not before."""
    reader = ResponseReader(is_head=is_head)
    *before, last = pieces
    for piece in before:
        assert not reader.feed(piece)
    assert reader.feed(last)
    return reader.response


@given(st.sampled_from([PLAIN, CHUNKED, INTERIM, EMPTY, UNCHANGED]), st.lists(st.integers(0, 200), max_size=6))
def test_the_same_is_read_however_it_is_divided(answer: bytes, cuts: list[int]) -> None:
    """Bytes that arrive in pieces give the response that they give at once."""
    at_once = read(answer)
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    pieces = [answer[start:end] for start, end in itertools.pairwise(places)]
    divided = read(*pieces)
    assert (divided.status, divided.headers, bytes(divided.body)) == (
        at_once.status,
        at_once.headers,
        bytes(at_once.body),
    )


def test_each_framing() -> None:
    """Lengths, chunks, statuses and methods without a body, and the end of the connection say where a body ends."""
    assert bytes(read(PLAIN).body) == b'{"a":1}\n'
    assert bytes(read(CHUNKED).body) == b"hello, w"
    assert read(INTERIM).status == 200
    assert bytes(read(EMPTY).body) == bytes(read(UNCHANGED).body) == b""
    head = PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert bytes(read(head, is_head=True).body) == b""
    reader = ResponseReader()
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nto the ")
    assert not reader.feed(b"end")
    assert reader.end()
    assert (bytes(reader.response.body), reader.response.keep_alive) == (b"to the end", False)


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, b"HTTP/1.1 200 OK\r\n"])
def test_an_end_before_the_end_is_no_response(answer: bytes) -> None:
    """A connection that ends in the middle of a response with a known end has given none."""
    reader = ResponseReader()
    assert not reader.feed(answer[:-3])
    assert not reader.end()


def test_which_connections_are_used_again() -> None:
    """HTTP/1.1 keeps a connection unless it says close; HTTP/1.0 only if it says so."""
    kept = {
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n": True,
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n": False,
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n": False,
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n": True,
    }
    assert {answer: read(answer).keep_alive for answer in kept} == kept


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncolon\r\n\r\n",
        PLAIN + b"HTTP/1.1 200 OK\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_response_is_refused(answer: bytes) -> None:
    """Malformed heads, two framings, and bytes behind the end are errors, for both readers."""
    assert read_whole(answer) is None
    with pytest.raises(ProtocolError):
        ResponseReader().feed(answer)


def test_a_whole_response_is_read_as_by_the_reader() -> None:
    """The reader of short answers gives the same, and leaves all but plain ones to the other."""
    whole = read_whole(PLAIN)
    assert whole is not None
    assert (whole.status, whole.headers, whole.body) == (200, read(PLAIN).headers, b'{"a":1}\n')
    for other in (CHUNKED, INTERIM, EMPTY, UNCHANGED, PLAIN[:-1], PLAIN.replace(b"ETag", b"Connection")):
        assert read_whole(other) is None


@pytest.mark.parametrize(
    "line",
    [
        b"connection: close", b"CONNECTION: close", b"Content-Encoding: gzip", b"content-encoding: gzip",
        b"Transfer-Encoding: chunked", b"TRANSFER-ENCODING: chunked", b"Content-Length: 8", b"content-length: 8",
        b" folded", b"X: a\rb", b"X: a\nb", b"X: \x00", b"X: \x7f", b"",
    ],
)  # fmt: skip
def test_a_line_that_may_frame_a_body_is_read_by_the_reader(line: bytes) -> None:
    """Wherever it stands in the head, and in whatever case, a response with it is no plain one."""
    head, _, body = PLAIN.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for place in range(1, len(lines) + 1):
        other = b"\r\n".join([*lines[:place], line, *lines[place:]]) + b"\r\n\r\n" + body
        assert read_whole(other) is None


def test_a_part_of_a_head_is_no_response() -> None:
    """However many bytes of a head have arrived, they are never taken for the body of the response."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nServer: keepfit"
    for length in range(200):
        assert read_whole(head % length) is None


def test_a_number_is_one_of_digits() -> None:
    """Other digits than those of ASCII, and more than a number of a header has, are no number."""
    assert [number(text) for text in ("0", "30", "", "-1", "\xb2", "9" * 5000)] == [0, 30, None, None, None, None]


@pytest.mark.parametrize("target", ["/v1/a b", "/v1/a\r\nX: 1", "/v1/ä", "v1"])
def test_a_target_cannot_end_its_line(target: str) -> None:
    """A path with a character that no path has is refused before anything is sent."""
    with pytest.raises(MalformedError, match="no path has"):
        Address("http://host").encode(Request("GET", target))


def test_a_coded_body() -> None:
    """gzip is undone; what is not one gzip stream, or has another coding, is refused."""
    packed = gzip.compress(b"{}" * 1000)

    def answer(body: bytes, coding: str = "gzip") -> Response:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n"
        return read(head.encode() + body)

    assert answer(packed).content() == b"{}" * 1000
    for body, coding in ((packed[:-4], "gzip"), (packed + b"x", "gzip"), (b"{}", "gzip"), (b"{}", "br")):
        with pytest.raises(ProtocolError):
            answer(body, coding).content()


@pytest.mark.parametrize("value", ["a\r\nX: 1", "a\nb", "\0", "é€"])
def test_a_value_cannot_add_a_field(value: str) -> None:
    """Characters that would end a field, or that no field has, are refused, and not shown."""
    with pytest.raises(ValueError, match="Authorization") as error:
        field_lines({"Authorization": value})
    assert value not in str(error.value)
