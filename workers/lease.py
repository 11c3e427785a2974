"""A lease: one RQ job's turn at a waiting room.

Owns when to take the next entries, when to linger, and when to hand over. Never looks into an entry. Invariant: a lease
ends only when nothing waits or after it has sent for a successor; one that dies is ended by the supervisor, or by the
sweep once its deadline has passed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from keepfit import keys, rooms, scripts
from keepfit.rooms import Room
from workers.process import Process

# A lease that keeps others from a worker hands over after this long; each hand-over costs about 3 ms.
SHARED_SLICE_S = 0.02
CLAIM_MAX = {rooms.LEARN.name: 16, rooms.PREDICT.name: 1024}


def batches(process: Process, room: Room, lease: str) -> Iterator[list[bytes]]:
    """Yield what waits in `room`, batch by batch, for as long as the lease should go on.

    The entries of a batch count as done when the next one is asked for.
    """
    settings = process.settings
    started = time.monotonic()
    process.pulse.lease((room, lease))
    try:
        while True:
            (answer,) = scripts.run(process.queue, rooms.claim(room, lease, settings.lease_ttl_s, CLAIM_MAX[room.name]))
            jobs_waiting, *entries = answer
            if jobs_waiting < 0:
                return
            if entries:
                yield entries
            elif not _linger(process, room) and _released(process, room, lease):
                return
            elapsed = time.monotonic() - started
            slice_s = SHARED_SLICE_S if jobs_waiting else settings.lease_slice_s
            if process.stopping or elapsed > slice_s:
                _hand_over(process, room, lease)
                return
    finally:
        process.pulse.lease(None)


@contextmanager
def ended_on_error(process: Process, room: Room, lease: str) -> Iterator[None]:
    """End the lease when its job fails, so that the next entry sends for another at once.

    What was in hand is not put back: it may be why the job failed. Rows wait in their inbox for the sweep.
    """
    try:
        yield
    except BaseException:
        scripts.run(process.queue, rooms.release(room, lease, force=True))
        raise


def _linger(process: Process, room: Room) -> bool:
    """Wait a little for more, taking nothing: moving the first entry to where it is only blocks until there is one."""
    waiting = keys.waiting(room.name)
    seconds = process.settings.linger_ms / 1000
    (first,) = scripts.run(process.queue, ("BLMOVE", waiting, waiting, "LEFT", "LEFT", seconds))
    return first is not None


def _released(process: Process, room: Room, lease: str) -> bool:
    (ended,) = scripts.run(process.queue, rooms.release(room, lease))
    return bool(ended)


def _hand_over(process: Process, room: Room, lease: str) -> None:
    """End the lease and send for a successor, which goes to the back of RQ's queue."""
    scripts.run(process.queue, rooms.release(room, lease, force=True))
    rooms.ring(process.queue, room, process.settings.lease_ttl_s)
