"""Sending for leases: RQ jobs are enqueued here.

Owns the blocking connection that RQ's client needs, and the threads it blocks. Invariant: the event loop never waits
for it; a lease that could not be enqueued is only late, because the workers' sweep rings again.
"""

import asyncio

import structlog
from redis.exceptions import RedisError

from keepfit import connections, queue
from keepfit.rooms import Room
from keepfit.settings import Settings

log = structlog.get_logger(__name__)


class Bell:
    """Enqueues the RQ jobs that work leases."""

    def __init__(self, settings: Settings) -> None:
        self._connection = connections.queue_sync(settings)
        self._tasks: set[asyncio.Task[None]] = set()

    def ring(self, room: Room, lease: str) -> None:
        """Enqueue the job of `lease`, soon and elsewhere."""
        task = asyncio.create_task(self._enqueue(room, lease))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enqueue(self, room: Room, lease: str) -> None:
        try:
            await asyncio.to_thread(queue.enqueue, self._connection, room.function, lease)
        except RedisError as error:
            log.warning("lease_not_enqueued", room=room.name, reason=str(error))

    async def close(self) -> None:
        """Wait for what is under way and close the connection."""
        await asyncio.gather(*self._tasks)
        await asyncio.to_thread(self._connection.close)
