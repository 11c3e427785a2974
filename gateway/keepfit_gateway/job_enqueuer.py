"""Enqueues the RQ jobs of leases.

Owns the blocking connection that the client of RQ needs, and the threads that it blocks. Invariant: the event loop
never waits for it. A job that could not be enqueued only delays its lease, because the workers' sweep enqueues again.
"""

import asyncio
import time
from contextlib import suppress

from redis.exceptions import RedisError

from keepfit.backends import redis_clients
from keepfit.backends.backoff import Backoff
from keepfit.jobs import rq_jobs
from keepfit.jobs.run_queue import RunQueue
from keepfit.observability.outage import Outage
from keepfit.settings import Settings

RETRY_PAUSE_S, RETRY_PAUSE_S_MAX = 0.2, 0.5


class JobEnqueuer:
    """Enqueues RQ jobs, each of which executes one lease."""

    def __init__(self, settings: Settings) -> None:
        self._connection = redis_clients.queue_sync(settings)
        self._lease_ttl_s = settings.lease_ttl_s
        self._outage = Outage("queue", "jobs of leases are not enqueued")
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def enqueue(self, queue: RunQueue, lease: str) -> None:
        """Enqueue the job of `lease` in the background."""
        task = asyncio.create_task(self._enqueue(queue, lease))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enqueue(self, queue: RunQueue, lease: str) -> None:
        """Retry until the job is enqueued or the lease has expired and the sweep takes over.

        A duplicate job finds no lease and ends at once.
        """
        deadline_s, backoff = time.monotonic() + self._lease_ttl_s, Backoff(RETRY_PAUSE_S, RETRY_PAUSE_S_MAX)
        while True:
            try:
                await asyncio.to_thread(rq_jobs.enqueue, self._connection, queue.function, lease)
            except RedisError as error:
                self._outage.begin(error)
            else:
                self._outage.end()
                return
            if time.monotonic() > deadline_s or self._closing.is_set():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff.next_s()):
                    await self._closing.wait()

    async def close(self) -> None:
        """Finish the running tasks and close the connection."""
        self._closing.set()
        await asyncio.gather(*self._tasks)
        await asyncio.to_thread(self._connection.close)
