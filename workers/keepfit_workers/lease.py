"""A lease: one RQ job's turn at a run queue.

Owns when to claim the next entries, when to linger, and when to hand over. Never reads an entry. Invariant: a lease
ends only when its run queue is empty or after it has enqueued a successor. If its worker dies, the supervisor ends it,
or the sweep does once its deadline has passed.
"""

import time
from collections.abc import Callable, Sequence

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import run_queue
from keepfit.jobs.run_queue import RunQueue, When
from keepfit.observability import failpoints
from keepfit_workers.activity import BATCH
from keepfit_workers.context import WorkerContext

# A lease hands over after this time if other jobs wait for a worker; each hand-over costs about 3 ms.
SHARED_SLICE_S = 0.02
# One of several leases that was idle for half of this time ends: larger batches are more efficient for the others.
SPARE_S = 0.5

Work = Callable[[Sequence[bytes]], Sequence[Command]]


def drain(context: WorkerContext, queue: RunQueue, lease: str, work: Work) -> int:
    """Process the entries of a run queue, batch by batch, until the lease ends; return the number of entries.

    `work` may return commands for the queue's Redis. They are sent with the next claim, which marks the batch as done.
    """
    with context.activity.holding_lease(queue.name, lease):
        return _drain(context, queue, lease, work)


def _drain(context: WorkerContext, queue: RunQueue, lease: str, work: Work) -> int:
    settings, started, done = context.settings, time.monotonic(), 0
    watched, idle_s = started, 0.0
    unsent: Sequence[Command] = ()
    try:
        while True:
            # In this order: if the worker dies between the two, a reply is sent twice rather than never.
            claim = run_queue.claim(queue, lease, settings.lease_ttl_s, context.name)
            *_, answer = redis_scripts.run(context.queue, *unsent, claim)
            unsent = ()
            if answer[0] < 0:
                return done
            jobs_waiting, limits, *entries = answer
            context.set_request_limits(limits)
            if entries:
                failpoints.reach("lease.claimed")
                context.activity.begin(BATCH)
                unsent = work(entries)
                context.activity.end()
                done += len(entries)
            else:
                lingered = time.monotonic()
                if limits and not queue.requests and _release(context, queue, lease, "now"):
                    # Only models wait that are being repaired. The sweep enqueues the next lease, within a second.
                    return done
                if limits:
                    # Only models wait that this worker may not claim now: a list with them does not block.
                    time.sleep(settings.linger_ms / 1000)
                elif not _linger(context, queue) and _release(context, queue, lease):
                    return done
                idle_s += time.monotonic() - lingered
            now = time.monotonic()
            slice_s = SHARED_SLICE_S if jobs_waiting else settings.lease_slice_s
            if context.stopping or now - started > slice_s:
                _hand_over(context, queue, lease, unsent)
                return done
            if now - watched > SPARE_S and not unsent:
                if idle_s > (now - watched) / 2 and _release(context, queue, lease, "spare"):
                    return done
                watched, idle_s = now, 0.0
    except BaseException:
        # The claimed entries are not put back: one of them may be the reason of the failure. Rows stay in their inbox,
        # where the sweep finds them. Replies that were being sent when the connection broke are sent again; a second
        # copy is harmless.
        redis_scripts.run(context.queue, *unsent, run_queue.release(queue, lease, "now"))
        raise


def _linger(context: WorkerContext, queue: RunQueue) -> bool:
    """Wait a little for an entry without claiming it: moving the first entry onto itself blocks until there is one."""
    waiting = redis_keys.queued_models(queue.name)
    seconds = context.settings.linger_ms / 1000
    (first,) = redis_scripts.run(context.queue, ("BLMOVE", waiting, waiting, "LEFT", "LEFT", seconds))
    return first is not None


def _release(context: WorkerContext, queue: RunQueue, lease: str, when: When = "idle") -> bool:
    """Release the lease; return whether it has ended."""
    failpoints.reach("lease.releasing")
    (ended,) = redis_scripts.run(context.queue, run_queue.release(queue, lease, when))
    return bool(ended)


def _hand_over(context: WorkerContext, queue: RunQueue, lease: str, unsent: Sequence[Command]) -> None:
    """End the lease and enqueue a successor at the end of RQ's queue."""
    redis_scripts.run(context.queue, *unsent, run_queue.release(queue, lease, "now"))
    failpoints.reach("lease.released")
    run_queue.enqueue_lease(context.queue, queue, context.settings.lease_ttl_s)
