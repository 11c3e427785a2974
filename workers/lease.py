"""A lease: one RQ job's turn at a waiting room.

Owns when to take the next entries, when to linger, and when to hand over. Never looks into an entry. Invariant: a lease
ends only when nothing waits or after it has sent for a successor; one that dies is ended by the supervisor, or by the
sweep once its deadline has passed.
"""

import time
from collections.abc import Callable, Sequence

from keepfit import faults, keys, rooms, scripts
from keepfit.rooms import Room, When
from keepfit.scripts import Command
from workers.process import Process

# A lease that keeps others from a worker hands over after this long; each hand-over costs about 3 ms.
SHARED_SLICE_S = 0.02
# One of several leases that had nothing to do for half of this long ends: the others' batches are the better for it.
SPARE_S = 0.5

Work = Callable[[Sequence[bytes]], Sequence[Command]]


def drain(process: Process, room: Room, lease: str, work: Work) -> int:
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
            *_, answer = scripts.run(process.queue, *left, rooms.claim(room, lease, settings.lease_ttl_s, process.name))
            left = ()
            if answer[0] < 0:
                return done
            jobs_waiting, bounds, *entries = answer
            process.note_turns(bounds)
            if entries:
                faults.reach("lease.claimed")
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
        scripts.run(process.queue, *left, rooms.release(room, lease, "now"))
        raise
    finally:
        process.pulse.lease(None)


def _linger(process: Process, room: Room) -> bool:
    """Wait a little for more, taking nothing: moving the first entry to where it is only blocks until there is one."""
    waiting = keys.waiting(room.name)
    seconds = process.settings.linger_ms / 1000
    (first,) = scripts.run(process.queue, ("BLMOVE", waiting, waiting, "LEFT", "LEFT", seconds))
    return first is not None


def _released(process: Process, room: Room, lease: str, when: When = "idle") -> bool:
    faults.reach("lease.releasing")
    (ended,) = scripts.run(process.queue, rooms.release(room, lease, when))
    return bool(ended)


def _hand_over(process: Process, room: Room, lease: str, left: Sequence[Command]) -> None:
    """End the lease and send for a successor, which goes to the back of RQ's queue."""
    scripts.run(process.queue, *left, rooms.release(room, lease, "now"))
    faults.reach("lease.released")
    rooms.ring(process.queue, room, process.settings.lease_ttl_s)
