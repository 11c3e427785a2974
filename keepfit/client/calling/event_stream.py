"""The stream of events (server-sent events, HTML standard), which continues after an interruption.

Owns the reader of the stream and its position. Invariant: after an interruption the stream continues behind the last
event that the caller has asked to follow, at whichever gateway answers, or an event of the kind ``gap`` says that
events are missing. An event counts as handled when the next one is asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from keepfit.client.calling import calls, problems, retries
from keepfit.client.calling.calls import Calls
from keepfit.client.transport.address import UNCODED
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.exchange import ExchangeError, LostError, Request, Send
from keepfit.client.transport.http1 import REFUSED, SUCCESSFUL, Response
from keepfit.errors import UnavailableError

# The fields of the event, and its ``id``.
Event: TypeAlias = dict[str, Any]
# The gateway sends a comment every 15 s.
SILENCE_S_MAX = 45.0
PAUSE_S, PAUSE_S_MAX = 1.0, 30.0
MEDIA_TYPE = "text/event-stream"
# The largest messages, of commits, have some kilobytes.
MESSAGE_BYTES_MAX = 1 << 20


class EventStream:
    """A selection of events, and the position in their stream.

    `interrupted` is called with the reason when the stream is interrupted, and with "" when it continues.
    """

    def __init__(
        self,
        shared: Calls,
        kinds: Sequence[str],
        of: str | Sequence[str] | None,
        after: str | None,
        metadata: Mapping[str, Any],
        interrupted: Callable[[str], None] = lambda reason: None,
    ) -> None:
        hashes = [of] if isinstance(of, str) else of
        query = {f"metadata[{name}]": value for name, value in metadata.items()}
        self._target = target_of(
            "/v1/events", kind=",".join(kinds) or None, hash=",".join(hashes) if hashes else None, **query
        )
        self._shared = shared
        self._interrupted = interrupted
        # Interruptions since bytes have arrived.
        self._failures = 0
        self.last_id = after
        self._text = b""

    def request(self) -> Send:
        """Return the step that opens the stream behind the last event."""
        fields = {"Accept": MEDIA_TYPE}
        if self.last_id:
            fields["Last-Event-ID"] = self.last_id
        self._text = b""
        return Send(Request("GET", self._target, fields=UNCODED + calls.lines_of(fields)), self._shared.deadline())

    def opened(self, response: Response) -> None:
        """Take the head of the answer. Raise the error that it reports, unless it passes by itself."""
        gateway = self._shared.gateway
        gateway.is_reached = True
        if response.status in retries.TRANSIENT:
            raise LostError(f"{gateway.url} answers with {response.status}")
        if response.status >= REFUSED:
            raise problems.error_of(gateway.url, response)
        if response.status != SUCCESSFUL or not response.headers.get("content-type", "").startswith(MEDIA_TYPE):
            raise UnavailableError(
                f"{gateway.url} answers with {response.status} and no events: this is not a gateway of keepfit, or a "
                "proxy answers for it."
            )

    def pause_s(self, error: ExchangeError | None) -> float:
        """Return after how many seconds to connect again, after an error or the end of the stream (None).

        Raises
        ------
        UnavailableError
            If there never was a gateway.
        """
        if error is not None and not self._shared.gateway.is_reached:
            raise retries.silent(self._shared.gateway, error) from None
        if self._failures == 0:
            self._interrupted("the gateway ended the stream" if error is None else retries.reason_of(error))
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
        if self._failures:
            self._failures = 0
            self._interrupted("")
        text = self._text + data
        # The end of a line may arrive in two parts.
        whole = text.removesuffix(b"\r")
        *messages, self._text = whole.replace(b"\r\n", b"\n").split(b"\n\n")
        self._text += text[len(whole) :]
        if len(self._text) > MESSAGE_BYTES_MAX:
            raise LostError("a message of the stream is too long")
        for message in messages:
            fields: dict[str, str] = {}
            for line in message.decode("utf-8", "replace").split("\n"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            if "data" in fields:
                try:
                    event = msgspec.json.decode(fields["data"], type=dict[str, Any])
                except (msgspec.DecodeError, msgspec.ValidationError):
                    raise LostError("a message of the stream is not JSON, or no event") from None
                yield {"id": fields.get("id"), **event}
            self.last_id = fields.get("id") or self.last_id
