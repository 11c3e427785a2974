"""Sending for leases: RQ jobs are enqueued here.

Owns the blocking connection that RQ's client needs, and the threads it blocks. Invariant: the event loop never waits
for it; a lease that could not be enqueued is only late, because the workers' sweep rings again.
"""

import asyncio
import time

from redis.exceptions import RedisError

from keepfit.backends import redis_clients
from keepfit.jobs import rq_jobs
from keepfit.jobs.run_queue import RunQueue
from keepfit.observability.outage import Outage
from keepfit.settings import Settings

AGAIN_S = 0.2


class JobEnqueuer:
    """Enqueues the RQ jobs that work leases."""

    def __init__(self, settings: Settings) -> None:
        self._connection = redis_clients.queue_sync(settings)
        self._lease_ttl_s = settings.lease_ttl_s
        self._outage = Outage("queue", "leases are not sent for")
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def ring(self, room: RunQueue, lease: str) -> None:
        """Enqueue the job of `lease`, soon and elsewhere."""
        task = asyncio.create_task(self._enqueue(room, lease))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enqueue(self, room: RunQueue, lease: str) -> None:
        """Enqueue until it is done, or the lease has run out and the sweep sees to it; a job too many ends at once."""
        deadline_s = time.monotonic() + self._lease_ttl_s
        while True:
            try:
                await asyncio.to_thread(rq_jobs.enqueue, self._connection, room.function, lease)
            except RedisError as error:
                self._outage.begin(error)
            else:
                self._outage.end()
                return
            if time.monotonic() > deadline_s or self._closing:
                return
            await asyncio.sleep(AGAIN_S)

    async def close(self) -> None:
        """Wait for what is under way and close the connection."""
        self._closing = True
        await asyncio.gather(*self._tasks)
        await asyncio.to_thread(self._connection.close)
