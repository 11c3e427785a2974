"""Waiting rooms: where work waits for a lease.

Owns the life of a lease on the queue's Redis::

    push ──(no lease out, or more waits than leases)──▶ RQ job ──▶ claim, claim, … linger ──▶ release
      ▲                                                              │ worker dies
      └────────────────────── abandon: put back to the front ◀───────┘

Two rooms: *learn* holds hashes of models whose inbox has mail (each once), *predict* holds requests. Never holds what
must not be lost: rows wait in the model's inbox, and a sweep rings for mail that no room knows of. Invariant: an entry
is in the room or in one lease's hand; a lease not in the room's register claims nothing.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from keepfit import keys, queue, scripts
from keepfit.scripts import Command

CLAIMED_KEEP_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Room:
    """A waiting room: its name, the RQ job that drains it, whether an entry waits only once."""

    name: str
    function: str
    once: bool


LEARN = Room("learn", queue.PARTIAL_FIT, once=True)
PREDICT = Room("predict", queue.PREDICT, once=False)
ROOMS = (LEARN, PREDICT)


def new_lease() -> str:
    """Id for a lease and its RQ job."""
    return uuid.uuid4().hex


def push(room: Room, lease: str, ttl_s: float, entries: Sequence[str | bytes] = ()) -> Command:
    """Put `entries` in; answers 1 where the caller must enqueue the job `lease`."""
    return scripts.call(
        "push",
        [keys.waiting(room.name), keys.known(room.name), keys.leases(room.name), keys.RQ_WORKERS],
        [lease, round(ttl_s * 1000), int(room.once), *entries],
    )


def claim(room: Room, lease: str, ttl_s: float, most: int) -> Command:
    """Take the next `most` entries; 0 only renews the lease."""
    return scripts.call(
        "claim",
        [
            keys.waiting(room.name),
            keys.known(room.name),
            keys.leases(room.name),
            keys.claimed(room.name, lease),
            keys.RQ_QUEUE,
        ],
        [lease, round(ttl_s * 1000), int(room.once), most, CLAIMED_KEEP_MS],
    )


def release(room: Room, lease: str, *, force: bool = False) -> Command:
    """End the lease where nothing waits, or in any case."""
    return scripts.call(
        "release",
        [keys.waiting(room.name), keys.leases(room.name), keys.claimed(room.name, lease)],
        [lease, int(force)],
    )


def ring(connection: Redis, room: Room, ttl_s: float, entries: Sequence[str | bytes] = ()) -> bool:
    """Put `entries` in and send for a lease where one is missing; tell whether one was sent for."""
    lease = new_lease()
    (missing,) = scripts.run(connection, push(room, lease, ttl_s, entries))
    if missing:
        queue.enqueue(connection, room.function, lease)
    return bool(missing)


def abandon(connection: Redis, lease: str) -> None:
    """End a lease whose worker is dead, whichever room it is on, and put back what it had in hand."""
    scripts.run(
        connection,
        *(
            scripts.call(
                "abandon",
                [
                    keys.waiting(room.name),
                    keys.known(room.name),
                    keys.leases(room.name),
                    keys.claimed(room.name, lease),
                ],
                [lease, int(room.once)],
            )
            for room in ROOMS
        ),
    )


def expired(connection: Redis) -> list[str]:
    """Leases that were not renewed in time."""
    seconds, micros = connection.time()
    now_ms = seconds * 1000 + micros // 1000
    commands = [("ZRANGEBYSCORE", keys.leases(room.name), 0, now_ms) for room in ROOMS]
    return [lease.decode() for found in scripts.run(connection, *commands) for lease in found]
