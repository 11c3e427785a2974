"""Events of a gateway (server-sent events of the HTML standard), for as long as the caller listens.

Owns the position in the stream. Invariant: after an interruption the stream continues after the last event that was
yielded, at whichever gateway answers, or an event of the kind ``gap`` says that events are missing.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec

from keepfit.client.gateway import Gateway
from keepfit.errors import UnavailableError

# A gateway sends a comment every 15 s.
SILENCE_S_MAX = 45.0
PAUSE_S, PAUSE_S_MAX = 1.0, 30.0


class Message(NamedTuple):
    """A message of the stream: its position, and its event, None if it only moves the position."""

    id: str
    event: dict[str, Any] | None


class MessageReader:
    """Divides the bytes of a stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that are complete with `data`.

        >>> reader = MessageReader()
        >>> list(reader.feed(b'id: 1-0\\r\\n\\r\\n: ping\\r\\n\\r\\nid: 2-0\\r\\ndata: {"kind":"gap"}\\r'))
        [Message(id='1-0', event=None)]
        >>> list(reader.feed(b'\\n\\r\\n'))
        [Message(id='2-0', event={'kind': 'gap'})]
        """
        # A message of the gateway has one line of data, and lines that end in CR and LF.
        *messages, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for message in messages:
            fields = dict(line.partition(b": ")[::2] for line in message.split(b"\r\n"))
            event = fields.get(b"data")
            if b"id" in fields:
                yield Message(fields[b"id"].decode(), None if event is None else msgspec.json.decode(event))


async def listen(
    gateway: Gateway,
    *,
    kinds: Iterable[str] = (),
    hashes: Iterable[str] = (),
    where: Iterable[tuple[str, str]] = (),
    after: str = "",
    interrupted: Callable[[str], None] = lambda reason: None,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield events as they happen, each with its ``id``, and never end.

    Parameters
    ----------
    kinds, hashes, where : only events of these kinds, of these models, of models with these values in their metadata
    after : id of an event; those after it are yielded first. By default the stream begins with the next event
    interrupted : called with the reason when the stream is interrupted, and with "" when it continues

    Raises
    ------
    KeepfitError
        The error that the gateway reports, if repeating the call does not help.
    UnavailableError
        If no gateway has answered at all.
    """
    query = {"kind": ",".join(kinds), "hash": ",".join(hashes)}
    query |= {f"metadata[{key}]": value for key, value in where}
    path = f"/v1/events?{urlencode({name: value for name, value in query.items() if value})}"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_S_MAX)
    pause_s, is_away = PAUSE_S, False
    while True:
        reason = "the gateway ended the stream"
        try:
            async with gateway.open("GET", path, {"Last-Event-ID": after} if after else {}, timeout) as response:
                reader = MessageReader()
                async for data in response.content.iter_any():
                    if is_away:
                        is_away, pause_s = False, PAUSE_S
                        interrupted("")
                    for message in reader.feed(data):
                        after = message.id
                        if message.event is not None:
                            yield {"id": message.id, **message.event}
        except UnavailableError as error:
            if not gateway.is_reached:
                raise
            reason = str(error)
        if not is_away:
            is_away = True
            interrupted(reason)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S_MAX)
