"""The steps of flows on blocking connections.

Owns how a thread performs a step: it sends, sleeps, listens. Never decides what is sent. Invariant: the result of a
flow is that of its steps, whatever the shorter path of a question leaves out.
"""

import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar, cast

from keepfit.client.calling import line_stream, problems, retries
from keepfit.client.calling.answer_cache import ANSWER_BYTES_MIN
from keepfit.client.calling.calls import Calls
from keepfit.client.calling.event_stream import SILENCE_S_MAX, Event, EventStream
from keepfit.client.calling.line_stream import Line, LineStream
from keepfit.client.transport.address import UNCODED
from keepfit.client.transport.exchange import Ask, ExchangeError, Flow, Request, Send, Step
from keepfit.client.transport.http1 import SUCCESSFUL, Response
from keepfit.client.transport.sync_connections import SyncConnections
from keepfit.errors import UnavailableError

T = TypeVar("T")
# A body that is read as it comes may take any time, as long as it moves.
READ_SILENCE_S_MAX = 180.0
# Rows that are sent in one piece with their head.
ASKED_BYTES_MAX = 32 << 10


class SyncPerformer:
    """Perform the steps of flows on blocking connections."""

    def __init__(self, connections: SyncConnections, shared: Calls) -> None:
        self.connections = connections
        self._shared = shared

    def run(self, flow: Flow[T]) -> T:
        """Perform a flow and return its result."""
        try:
            step = next(flow)
            while True:
                try:
                    result = self._perform(step)
                except BaseException as error:  # noqa: BLE001 - the flow decides
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            return cast("T", end.value)

    def _perform(self, step: Step) -> Any:
        if type(step) is Send:
            return self.connections.send(step)
        if type(step) is Ask:
            return self.ask(step.target, step.options, step.rows, step.count, step.timeout_s)
        return time.sleep(step.seconds)  # type: ignore[union-attr]

    def ask(self, target: str, options: bytes, rows: bytes, count: int, timeout_s: float) -> Any:
        """Perform an :class:`Ask`, most of which are answered at once, without the steps for all others."""
        shared = self._shared
        # An answer that is kept has an ETag, which is another field of the head.
        if shared.cache.is_used or len(rows) > ASKED_BYTES_MAX:
            return self.run(shared.ask_alone(Ask(target, options, rows, count, timeout_s)))
        deadline = time.monotonic() + timeout_s
        outcome: Response | ExchangeError
        try:
            outcome = self.connections.ask(
                shared.address.encode_post(target, b'{"X":%b%b}' % (rows, options)), deadline
            )
        except ExchangeError as error:
            outcome = error
        else:
            if outcome.status == SUCCESSFUL and len(outcome.body) < ANSWER_BYTES_MIN:
                shared.gateway.is_reached = True
                return problems.decode(shared.address.url, outcome)
        return self.run(shared.ask_again(Ask(target, options, rows, count, timeout_s), deadline, outcome))

    def read(self, path: str, deadline: float) -> Generator[Response | bytes, None, None]:
        """Yield the head of the answer to a GET, and then its body as it arrives."""
        gateway = self._shared.gateway
        request = Request("GET", path, fields=UNCODED)
        has_head = False
        try:
            for part in self.connections.stream(Send(request, deadline), READ_SILENCE_S_MAX):
                if isinstance(part, Response):
                    has_head = gateway.is_reached = True
                    if part.status != SUCCESSFUL:
                        raise problems.error_of(gateway.url, part)
                yield part
        except ExchangeError as error:
            if has_head:
                reason = retries.reason_of(error)
                raise UnavailableError(f"The answer of {gateway.url} breaks off: {reason}.") from None
            raise retries.silent(gateway, error) from None

    def lines(self, stream: LineStream) -> Iterator[Line]:
        """Yield the lines of a stream as they arrive."""
        try:
            for part in self.connections.stream(stream.request(), line_stream.SILENCE_S_MAX):
                if isinstance(part, Response):
                    stream.opened(part)
                else:
                    yield from stream.feed(part)
        except ExchangeError as error:
            raise stream.broken(error) from None
        yield from stream.end()

    def listen(self, stream: EventStream) -> Iterator[Event]:
        """Yield events as they happen."""
        while True:
            interruption: ExchangeError | None = None
            try:
                for part in self.connections.stream(stream.request(), SILENCE_S_MAX):
                    if isinstance(part, Response):
                        stream.opened(part)
                    else:
                        yield from stream.feed(part)
            except ExchangeError as error:
                interruption = error
            time.sleep(stream.pause_s(interruption))
