"""Large requests take turns.

Owns how many large bodies are parsed, and then stored or predicted, at a time, and how much of them is taken in each
iteration of the event loop. Never reads or holds a body. Invariants:
turns of a lane begin in the order of the calls; a request that ends, however it ends, gives its turn back; a request
with a body of up to :data:`~keepfit_gateway.web.offload.INLINE_BYTES_MAX` needs no turn.

Why it exists: thirty bodies of 4 MB at a time are ten times as many bytes once they are rows, in this process and in
Redis, and they would occupy all workers.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.web_request import BaseRequest

from keepfit.errors import DeadlineError
from keepfit_gateway.web.offload import HUGE_BYTES_MIN, INLINE_BYTES_MAX

# Answers that workers compute and send at a time.
ANSWERS_BYTES_MAX = 24 << 20
# Bodies that are parsed, stored or predicted at a time; of huge bodies, one.
LANE_BYTES_MAX = 8 << 20


class Lane:
    """Requests whose sizes have a sum of at most `size_max`, and those that wait until they fit."""

    __slots__ = ("_free", "_waiting")

    def __init__(self, size_max: int) -> None:
        self._free = size_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def begin(self, size: int, timeout_s: float) -> float:
        """Wait until all earlier requests have begun and `size` fits; return what is left of `timeout_s` seconds.

        Raises
        ------
        DeadlineError
            After `timeout_s` seconds.
        """
        if not self._waiting and size <= self._free:
            self._free -= size
            return timeout_s
        loop = asyncio.get_running_loop()
        began_s, waiting = loop.time(), (size, loop.create_future())
        _, begun = waiting
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(timeout_s):
                await begun
        except (TimeoutError, asyncio.CancelledError) as error:
            if begun.done() and not begun.cancelled():
                # The turn began at the same moment.
                self.end(size)
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
                self._begin_next()
            if isinstance(error, TimeoutError):
                text = f"Other large requests took {timeout_s:g} s; send this again, or less at a time."
                raise DeadlineError(text) from None
            raise
        return max(timeout_s - (loop.time() - began_s), 0.0)

    @asynccontextmanager
    async def turn(self, size: int, timeout_s: float) -> AsyncIterator[float]:
        """Have a turn inside the `with` block; yields how many seconds are left. Raises as :meth:`begin`."""
        left_s = await self.begin(size, timeout_s)
        try:
            yield left_s
        finally:
            self.end(size)

    def end(self, size: int) -> None:
        """Give a turn back."""
        self._free += size
        self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, begun = self._waiting.popleft()
            if not begun.done():
                self._free -= size
                begun.set_result(None)


class Turns:
    """The lanes of one gateway. A huge body does not hold up those that are only large."""

    __slots__ = ("_arriving", "_huge", "_large")

    def __init__(self) -> None:
        self._arriving = asyncio.Lock()
        self._large = Lane(LANE_BYTES_MAX)
        self._huge = Lane(1)

    async def begin(self, request: BaseRequest, size: int, timeout_s: float) -> float:
        """Wait for the turn of a request whose body has `size` bytes; it keeps the turn until :meth:`end`.

        Returns what is left of `timeout_s` seconds.

        Raises
        ------
        DeadlineError
            After `timeout_s` seconds.
        """
        if size <= INLINE_BYTES_MAX:
            return timeout_s
        lane, weight = (self._huge, 1) if size >= HUGE_BYTES_MIN else (self._large, min(size, LANE_BYTES_MAX))
        left_s = await lane.begin(weight, timeout_s)
        request[TURN] = lane, weight
        return left_s

    async def arrive(self) -> None:
        """Wait until a chunk of a large body may be taken: one chunk in each iteration of the event loop.

        Thirty bodies that arrive together would otherwise keep the loop from other connections for 50 ms at a time.
        """
        async with self._arriving:
            await asyncio.sleep(0)

    def end(self, request: BaseRequest) -> None:
        """End the turn of a request, if it has one."""
        turn = request.pop(TURN, None)
        if turn is not None:
            lane, weight = turn
            lane.end(weight)


TURN = web.RequestKey("turn", tuple[Lane, int])
