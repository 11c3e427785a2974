"""Streams of the history that do not end, or are none."""

import pytest

from keepfit import Client
from keepfit.errors import UnavailableError
from tests.keepfit.client.scripted_server import ok, scripted

LINES = "Content-Type: application/x-ndjson; charset=utf-8"
# The second line, and the last chunk, are missing.
HALF = (
    f'HTTP/1.1 200 OK\r\n{LINES}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n8\r\n{{"n":1}}\n\r\n'
).encode()


def test_a_stream_without_its_end_is_an_error() -> None:
    """What arrived is yielded, and then it is said that it is not all."""
    with scripted([HALF]) as server, Client(server.url) as client:
        lines = client.stream_history(type="vote")
        assert next(lines) == {"n": 1}
        with pytest.raises(UnavailableError, match="breaks off after 1 lines"):
            next(lines)


def test_another_answer_is_an_error() -> None:
    """The page of a proxy is not taken for an empty history."""
    page = ok("<html>", "Content-Type: text/html")
    with scripted([page]) as server, Client(server.url) as client, pytest.raises(UnavailableError, match="no lines"):
        list(client.stream_history(type="vote"))


def test_lines_in_any_pieces() -> None:
    """Lines are whole however the body is cut, and text may have any letter."""
    body = '{"n":1,"name":"größe"}\n{"n":2}\n'
    text = body.encode()
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in text)
    head = f"HTTP/1.1 200 OK\r\n{LINES}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with scripted([head + pieces + b"0\r\n\r\n"]) as server, Client(server.url) as client:
        assert list(client.stream_history(type="vote")) == [{"n": 1, "name": "größe"}, {"n": 2}]


@pytest.mark.parametrize("lines", ['{"n":1}\n{"n":2}', '{"n":1}\n\n{"n":2}\n'])
def test_the_last_line_needs_no_end(lines: str) -> None:
    """A last line without a line end is a line; an empty one is none."""
    with scripted([ok(lines, LINES)]) as server, Client(server.url) as client:
        assert list(client.stream_history(type="vote")) == [{"n": 1}, {"n": 2}]


def test_a_line_that_is_not_json_is_an_error_of_keepfit() -> None:
    """What came before it is yielded; the error names the line."""
    with scripted([ok('{"n":1}\n<html>\n', LINES)]) as server, Client(server.url) as client:
        found = client.stream_history(type="vote")
        assert next(found) == {"n": 1}
        with pytest.raises(UnavailableError, match=r"Line 2 .* is not JSON"):
            next(found)
