"""Documents or points of the history as a stream of lines, which may have any length.

Owns the reader of the lines. Never asks again: what has been yielded would come twice. Invariant: the stream ends
without an error only if all of it has arrived.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from keepfit.client.calling import calls, problems, retries
from keepfit.client.calling.calls import Calls
from keepfit.client.transport.address import UNCODED
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.exchange import ExchangeError, Request, Send
from keepfit.client.transport.http1 import REFUSED, SUCCESSFUL, Response
from keepfit.errors import KeepfitError, UnavailableError

MEDIA_TYPE = "application/x-ndjson"
# A query of much time may read for some seconds before a line matches.
SILENCE_S_MAX = 60.0

Line = dict[str, Any]


class LineStream:
    """The answer to one query of the history, read line by line."""

    def __init__(self, shared: Calls, query: Mapping[str, Any]) -> None:
        self._target = target_of("/v1/history", **query)
        self._shared = shared
        self._rest = b""
        self._count = 0

    def request(self) -> Send:
        """Return the step that opens the stream."""
        fields = UNCODED + calls.lines_of({"Accept": MEDIA_TYPE})
        return Send(Request("GET", self._target, fields=fields), self._shared.deadline())

    def opened(self, response: Response) -> None:
        """Take the head of the answer. Raise the error that it reports."""
        gateway = self._shared.gateway
        gateway.is_reached = True
        if response.status >= REFUSED:
            raise problems.error_of(gateway.url, response)
        if response.status != SUCCESSFUL or not response.headers.get("content-type", "").startswith(MEDIA_TYPE):
            raise UnavailableError(f"{gateway.url} answers with {response.status} and no lines of the history.")

    def feed(self, data: bytes) -> Iterator[Line]:
        """Take bytes of the stream; yield the lines that they complete.

        >>> stream = LineStream(None, {})
        >>> list(stream.feed(b'{"type":"vote"}\\n{"ty'))
        [{'type': 'vote'}]
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        yield from self._decoded(lines)

    def end(self) -> Iterator[Line]:
        """Yield the last line, if the stream ended without a line end; all of it has arrived."""
        rest, self._rest = self._rest, b""
        yield from self._decoded([rest])

    def _decoded(self, lines: Iterable[bytes]) -> Iterator[Line]:
        for line in lines:
            if not line:
                continue
            try:
                found = msgspec.json.decode(line)
            except msgspec.DecodeError:
                raise UnavailableError(
                    f"Line {self._count + 1:,} of the history of {self._shared.gateway.url} is not JSON: a proxy may "
                    "have changed it."
                ) from None
            self._count += 1
            yield found

    def broken(self, error: ExchangeError) -> KeepfitError:
        """Return the error of a stream that has not begun, or has no end."""
        gateway = self._shared.gateway
        if not self._count:
            return retries.silent(gateway, error)
        reason = retries.reason_of(error)
        return UnavailableError(f"The history of {gateway.url} breaks off after {self._count:,} lines: {reason}.")
