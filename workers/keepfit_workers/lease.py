"""A lease: one RQ job's turn at a waiting room.

Owns when to take the next entries, when to linger, and when to hand over. Never looks into an entry. Invariant: a lease
ends only when nothing waits or after it has sent for a successor; one that dies is ended by the supervisor, or by the
sweep once its deadline has passed.
"""

import time
from collections.abc import Callable, Sequence

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import run_queue
from keepfit.jobs.run_queue import RunQueue, When
from keepfit.observability import failpoints
from keepfit_workers.context import WorkerContext

# A lease that keeps others from a worker hands over after this long; each hand-over costs about 3 ms.
SHARED_SLICE_S = 0.02
# One of several leases that had nothing to do for half of this long ends: the others' batches are the better for it.
SPARE_S = 0.5

Work = Callable[[Sequence[bytes]], Sequence[Command]]


def drain(process: WorkerContext, room: RunQueue, lease: str, work: Work) -> int:
    """Do what waits in `room`, batch by batch, for as long as the lease should go on; return the number of entries.

    `work` may leave commands for the queue's Redis; they are sent with the next claim, which counts the batch as done.
    """
    settings, started, done = process.settings, time.monotonic(), 0
    watched, idle_s = started, 0.0
    left: Sequence[Command] = ()
    process.pulse.lease((room, lease))
    try:
        while True:
            # In this order: should the worker die between the two, an answer is sent twice, and not never.
            *_, answer = redis_scripts.run(
                process.queue, *left, run_queue.claim(room, lease, settings.lease_ttl_s, process.name)
            )
            left = ()
            if answer[0] < 0:
                return done
            jobs_waiting, bounds, *entries = answer
            process.note_turns(bounds)
            if entries:
                failpoints.reach("lease.claimed")
                left = work(entries)
                done += len(entries)
            else:
                lingered = time.monotonic()
                if not _linger(process, room) and _released(process, room, lease):
                    return done
                idle_s += time.monotonic() - lingered
            now = time.monotonic()
            slice_s = SHARED_SLICE_S if jobs_waiting else settings.lease_slice_s
            if process.stopping or now - started > slice_s:
                _hand_over(process, room, lease, left)
                return done
            if now - watched > SPARE_S and not left:
                if idle_s > (now - watched) / 2 and _released(process, room, lease, "spare"):
                    return done
                watched, idle_s = now, 0.0
    except BaseException:
        # What was in hand is not put back: it may be why the job failed. Rows wait in their inbox for the sweep.
        # Answers on their way when the connection broke are sent once more; a second one does no harm.
        redis_scripts.run(process.queue, *left, run_queue.release(room, lease, "now"))
        raise
    finally:
        process.pulse.lease(None)


def _linger(process: WorkerContext, room: RunQueue) -> bool:
    """Wait a little for more, taking nothing: moving the first entry to where it is only blocks until there is one."""
    waiting = redis_keys.waiting(room.name)
    seconds = process.settings.linger_ms / 1000
    (first,) = redis_scripts.run(process.queue, ("BLMOVE", waiting, waiting, "LEFT", "LEFT", seconds))
    return first is not None


def _released(process: WorkerContext, room: RunQueue, lease: str, when: When = "idle") -> bool:
    failpoints.reach("lease.releasing")
    (ended,) = redis_scripts.run(process.queue, run_queue.release(room, lease, when))
    return bool(ended)


def _hand_over(process: WorkerContext, room: RunQueue, lease: str, left: Sequence[Command]) -> None:
    """End the lease and send for a successor, which goes to the back of RQ's queue."""
    redis_scripts.run(process.queue, *left, run_queue.release(room, lease, "now"))
    failpoints.reach("lease.released")
    run_queue.ring(process.queue, room, process.settings.lease_ttl_s)
