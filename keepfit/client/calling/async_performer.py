"""The steps of flows on asyncio connections.

Owns how a task performs a step: it sends, sleeps, listens, and asks together with others. Never decides what is sent.
Invariant: no step blocks the event loop.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar, cast

from keepfit.client.calling import line_stream
from keepfit.client.calling.batching import Batching
from keepfit.client.calling.calls import Calls
from keepfit.client.calling.event_stream import SILENCE_S_MAX, Event, EventStream
from keepfit.client.calling.line_stream import Line, LineStream
from keepfit.client.transport.async_connections import AsyncConnections
from keepfit.client.transport.exchange import Ask, ExchangeError, Flow, Send, Step
from keepfit.client.transport.http1 import Response

T = TypeVar("T")


class AsyncPerformer:
    """Perform the steps of flows on asyncio connections."""

    def __init__(self, connections: AsyncConnections, shared: Calls) -> None:
        self.connections = connections
        self.batching = Batching(self._ask_alone)
        self._shared = shared

    async def run(self, flow: Flow[T]) -> T:
        """Perform a flow and return its result."""
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._perform(step)
                except BaseException as error:  # noqa: BLE001 - the flow decides
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            return cast("T", end.value)

    async def _perform(self, step: Step) -> Any:
        if type(step) is Send:
            return await self.connections.send(step)
        if type(step) is Ask:
            return await self.batching.ask(step)
        return await asyncio.sleep(step.seconds)  # type: ignore[union-attr]

    async def _ask_alone(self, question: Ask) -> Any:
        return await self.run(self._shared.ask_alone(question))

    async def lines(self, stream: LineStream) -> AsyncGenerator[Line, None]:
        """Yield the lines of a stream as they arrive."""
        try:
            async with aclosing(self.connections.stream(stream.request(), line_stream.SILENCE_S_MAX)) as parts:
                async for part in parts:
                    if isinstance(part, Response):
                        stream.opened(part)
                    else:
                        for line in stream.feed(part):
                            yield line
        except ExchangeError as error:
            raise stream.broken(error) from None
        for line in stream.end():
            yield line

    async def listen(self, stream: EventStream) -> AsyncGenerator[Event, None]:
        """Yield events as they happen."""
        while True:
            interruption: ExchangeError | None = None
            try:
                async with aclosing(self.connections.stream(stream.request(), SILENCE_S_MAX)) as parts:
                    async for part in parts:
                        if isinstance(part, Response):
                            stream.opened(part)
                        else:
                            for event in stream.feed(part):
                                yield event
            except ExchangeError as error:
                interruption = error
            await asyncio.sleep(stream.pause_s(interruption))
