"""Natural batching: items that arrive during a round trip to Redis are sent together with the next one.

Owns when a batch is sent. Never waits for more items: a single item is sent at once, and under load batches grow by
themselves. Invariants: one round trip at a time, so that items are sent in the order of their arrival; a failure of one
batch does not stop the next ones.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

# A larger batch would block Redis for other clients for longer than a few milliseconds.
BATCH_MAX = 1024


class Batcher(Generic[T]):
    """Sends items in batches. `send` delivers the result of each item to its owner, and raises nothing."""

    def __init__(self, send: Callable[[list[T]], Awaitable[None]], batch_max: int = BATCH_MAX) -> None:
        self._send = send
        self._batch_max = batch_max
        self._items: list[T] = []
        self._sending: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item to the next batch."""
        self._items.append(item)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._items:
                batch, self._items = self._items[: self._batch_max], self._items[self._batch_max :]
                await self._try_send(batch)
        finally:
            self._sending = None

    async def _try_send(self, batch: list[T]) -> None:
        try:
            await self._send(batch)
        except Exception:
            # A defect. The items that arrived meanwhile must not wait for another one to be put.
            log.exception("batch_failed", items=len(batch))

    async def close(self) -> None:
        """Wait for the batches that are being sent."""
        if self._sending is not None:
            await asyncio.wait([self._sending])
