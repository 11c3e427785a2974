"""The stream of events continues after an interruption, and its messages are whole however they arrive."""

import asyncio
from typing import Any

import pytest

from keepfit.client.calling import event_stream
from keepfit.client.calling.async_performer import AsyncPerformer
from keepfit.client.calling.calls import Calls
from keepfit.client.calling.event_stream import Event, EventStream
from keepfit.client.calling.sync_performer import SyncPerformer
from keepfit.client.transport.address import Address
from keepfit.client.transport.async_connections import AsyncConnections
from keepfit.client.transport.exchange import LostError
from keepfit.client.transport.sync_connections import SyncConnections
from keepfit.errors import KeepfitError, MalformedError, UnavailableError
from tests.keepfit.client.scripted_server import CLOSE, ok, scripted

EVENTS = [b'id: 1-0\r\ndata: {"kind":"commit"}\r\n\r\n', b'id: 2-0\r\ndata: {"kind":"drift"}\r\n\r\n']
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
BEGIN = b"retry: 1000\r\nid: 0-1\r\n\r\n"
AWAY = ok("", status="503 Service Unavailable")
WRONG = ok('{"type": "urn:keepfit:problem:malformed", "detail": "wrong"}', status="400 Bad Request")


def chunked(*pieces: bytes) -> bytes:
    """Return an answer whose body has these chunks."""
    coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"


def listen(url: str, client: str) -> tuple[list[Event], list[str], KeepfitError]:
    """Listen until the stream ends with an error; return the events, the notes of interruptions, and the error."""
    address = Address(url)
    shared = Calls(address)
    found: list[Event] = []
    notes: list[str] = []
    stream = EventStream(shared, (), None, None, {}, notes.append)

    def blocking() -> None:
        for event in SyncPerformer(SyncConnections(address), shared).listen(stream):
            found.append(event)  # noqa: PERF402 - the events before the error are wanted

    async def awaited() -> None:
        async for event in AsyncPerformer(AsyncConnections(address), shared).listen(stream):
            found.append(event)  # noqa: PERF401 - as above

    with pytest.raises(KeepfitError) as error:
        blocking() if client == "blocking" else asyncio.run(awaited())
    return found, notes, error.value


@pytest.mark.parametrize("data", [b"<html>", b"[1]"])
def test_a_message_that_is_no_event_is_an_interruption(data: bytes) -> None:
    """What a proxy has put into the stream is not taken for an event, and is no error of a library."""
    stream = EventStream(Calls(Address("http://127.0.0.1:8000")), (), None, None, {})
    with pytest.raises(LostError, match="not JSON, or no event"):
        list(stream.feed(b"id: 1-0\r\ndata: %b\r\n\r\n" % data))


@pytest.mark.parametrize("client", ["blocking", "asyncio"])
def test_it_continues_after_an_interruption(monkeypatch: pytest.MonkeyPatch, client: str) -> None:
    """A stream that ends, or a gateway that cannot answer, is asked again after the last event; an error is raised."""
    monkeypatch.setattr(event_stream, "PAUSE_S", 0.0)
    first = chunked(BEGIN + EVENTS[0][:20], EVENTS[0][20:-1], EVENTS[0][-1:] + b": ping\r\n\r\n")
    # The end of the connection is that of the body.
    second = HEAD + b"\r\n" + BEGIN + EVENTS[1]
    with scripted([first, AWAY, CLOSE, second, WRONG]) as server:
        found, notes, error = listen(server.url, client)
        asked = [one.fields.get("last-event-id") for one in server.received]
    assert found == [{"id": "1-0", "kind": "commit"}, {"id": "2-0", "kind": "drift"}]
    assert asked == [None, "1-0", "1-0", "1-0", "2-0"]
    assert notes == ["the gateway ended the stream", "", "the gateway ended the stream"]
    assert (type(error), str(error)) == (MalformedError, "wrong")


@pytest.mark.parametrize("client", ["blocking", "asyncio"])
@pytest.mark.parametrize("answer", [ok("<html>"), ok("", "Location: /", status="302 Found")])
def test_another_server_has_no_events(client: str, answer: bytes) -> None:
    """What is no stream of events is reported, instead of being asked for events for ever."""
    with scripted([answer]) as server:
        found, notes, error = listen(server.url, client)
    assert (found, notes, type(error)) == ([], [], UnavailableError)
    assert "no events" in str(error)


@pytest.mark.parametrize("client", ["blocking", "asyncio"])
def test_without_a_gateway_there_is_an_error(client: str) -> None:
    """A wrong URL is reported at once."""
    assert "No gateway answers" in str(listen("http://127.0.0.1:1", client)[2])


def read(*pieces: bytes) -> tuple[list[Event], str | None]:
    """Return the events of these pieces of a stream, and the position after them."""
    stream = EventStream(Calls(Address("http://host")), (), None, None, {})
    return [event for piece in pieces for event in stream.feed(piece)], stream.last_id


def test_messages_are_whole_however_they_arrive() -> None:
    """Bytes one at a time give the messages of all at once, also where the end of a line is divided."""
    data = BEGIN + b": ping\r\n\r\n" + b"".join(EVENTS)
    whole: Any = ([{"id": "1-0", "kind": "commit"}, {"id": "2-0", "kind": "drift"}], "2-0")
    assert read(data) == read(*(bytes([byte]) for byte in data)) == whole
    for place in range(len(data)):
        assert read(data[:place], data[place:]) == whole


def test_a_message_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without an end of a message does not fill the memory."""
    monkeypatch.setattr(event_stream, "MESSAGE_BYTES_MAX", 1000)
    with pytest.raises(LostError, match="too long"):
        read(b"data: ", *[b"x" * 100] * 20)


def test_a_position_is_one_line() -> None:
    """The id of an event that a program has kept cannot add a header field."""
    stream = EventStream(Calls(Address("http://host")), (), None, "1-0\r\nX: 1", {})
    with pytest.raises(MalformedError):
        stream.request()
