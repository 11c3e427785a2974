"""The stream of events (server-sent events, HTML standard), which continues after an interruption.

Owns the reader of the stream and its position. Invariant: after an interruption the stream continues behind the last
event that the caller has asked to follow: an event counts as handled when the next one is asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from keepfit.client import http1, problems, retries
from keepfit.client.address import target as target_of
from keepfit.client.calls import Calls
from keepfit.client.exchange import ExchangeError, Request, Send
from keepfit.client.http1 import REFUSED, Response

# The fields of the event, and its ``id``.
Event: TypeAlias = dict[str, Any]
# The gateway sends a comment every 15 s.
SILENCE_S_MAX = 45.0
PAUSE_S, PAUSE_S_MAX = 1.0, 30.0


class EventStream:
    """A selection of events, and the position in their stream."""

    def __init__(
        self, shared: Calls, kinds: Sequence[str], of: str | Sequence[str] | None, after: str | None, metadata: Any
    ) -> None:
        hashes = [of] if isinstance(of, str) else of
        query = {f"metadata[{name}]": value for name, value in metadata.items()}
        self._target = target_of(
            "/v1/events", kind=",".join(kinds) or None, hash=",".join(hashes) if hashes else None, **query
        )
        self._shared = shared
        self._failures = 0
        self.last_id = after
        self.text = bytearray()

    def request(self) -> Send:
        """Return the step that opens the stream behind the last event."""
        fields = {"Accept": "text/event-stream"}
        if self.last_id:
            fields["Last-Event-ID"] = self.last_id
        self.text.clear()
        return Send(Request("GET", self._target, fields=http1.field_lines(fields)), self._shared.deadline())

    def opened(self, response: Response) -> None:
        """Take the head of the answer. Raise the error that it reports, unless it passes by itself."""
        self._shared.gateway.is_reached = True
        if response.status in retries.TRANSIENT:
            raise ExchangeError
        if response.status >= REFUSED:
            raise problems.error_of(self._shared.address.url, response)
        self._failures = 0

    def interrupted(self, error: ExchangeError) -> float:
        """Return after how many seconds to connect again. Raise UnavailableError if there never was a gateway."""
        if not self._shared.gateway.is_reached:
            raise retries.silent(self._shared.gateway, error) from None
        pause_s = min(PAUSE_S * 2**self._failures, PAUSE_S_MAX)
        self._failures = min(self._failures + 1, 10)
        return retries.jittered(pause_s)

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take bytes of the stream; yield the events that they complete.

        >>> stream = EventStream(None, (), None, None, {})
        >>> list(stream.feed(b'id: 7-0\\r\\ndata: {"kind":"commit"}\\r\\n\\r\\nid: 8-0\\r\\n'))
        [{'id': '7-0', 'kind': 'commit'}]
        >>> stream.last_id
        '7-0'
        """
        self.text += data.replace(b"\r\n", b"\n")
        *messages, rest = bytes(self.text).split(b"\n\n")
        self.text[:] = rest
        for message in messages:
            fields: dict[str, str] = {}
            for line in message.decode("utf-8", "replace").split("\n"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            if "data" in fields:
                yield {"id": fields.get("id"), **msgspec.json.decode(fields["data"])}
            self.last_id = fields.get("id") or self.last_id
