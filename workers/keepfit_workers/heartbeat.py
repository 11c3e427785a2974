"""The heartbeat of the workers of one supervisor: renews what living workers hold.

Owns the renewal of leases, locks and RQ's records of workers. It runs in the supervisor, because native code that keeps
Python's global lock stops every thread of its own process. Never takes a lease or a lock. Invariants: only what a
worker has recorded in its :class:`~keepfit_workers.activity.Activity` is renewed; no lease or lock of a stopped
(SIGSTOP) or dead worker is, so that other workers take over its work.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from rq.utils import now, utcformat

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import run_queue
from keepfit.store.commit import renew_lock
from keepfit_workers.activity import Doing

# The states of a process in /proc that is stopped, by a signal or by a debugger.
STOPPED = ("T", "t")


# Period of the rate of rows; longer if heartbeats are rarer.
RATE_S = 10.0


class RowRate:
    """Rows per second of one worker, from the counts that its heartbeats find."""

    def __init__(self, now_s: float) -> None:
        self._seen = deque([(now_s, 0)])

    def per_s(self, now_s: float, rows: int) -> float:
        """Return the rows per second since the last count that is at least :data:`RATE_S` old, or since the start.

        >>> rate = RowRate(0.0)
        >>> [rate.per_s(now_s, rows) for now_s, rows in ((2.0, 10), (12.0, 10), (14.0, 10), (24.0, 40))]
        [5.0, 0.8333333333333334, 0.0, 3.0]
        """
        self._seen.append((now_s, rows))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - RATE_S:
            self._seen.popleft()
        began_s, before = self._seen[0]
        return (rows - before) / (now_s - began_s) if now_s > began_s else 0.0


@dataclass(frozen=True, slots=True)
class Beat:
    """A living worker, and what it does; `stopped_s` are the seconds for which it has been stopped by a signal.

    `rows_per_s` are the rows that it has learned each second, over the last :data:`RATE_S`.
    """

    worker: str
    doing: Doing
    stopped_s: float = 0.0
    rows_per_s: float = 0.0

    @property
    def call_s(self) -> int:
        """Whole seconds for which the worker has been unable to take work."""
        return int(max(self.stopped_s, self.doing.call_s(time.monotonic())))


def record_ttl_s(lease_ttl_s: float) -> int:
    """Return the seconds after which RQ's record of a worker expires that is not renewed: three lives of a lease.

    >>> record_ttl_s(6.0), record_ttl_s(0.5)
    (18, 10)
    """
    return max(10, math.ceil(3 * lease_ttl_s))


def lock_ttl_s(lease_ttl_s: float) -> float:
    """Return the seconds after which a lock expires that is not renewed.

    After the lease of its worker: first the sweep decides whether the worker has died (:mod:`keepfit_workers.sweep`).
    """
    return 2 * lease_ttl_s


def is_heard(queue_redis: Redis, worker: str, lease_ttl_s: float) -> bool:
    """Return whether a worker, or its supervisor, has renewed its record within the life of a lease."""
    (left_ms,) = redis_scripts.run(queue_redis, ("PTTL", redis_keys.rq_worker(worker)))
    return bool(left_ms > (record_ttl_s(lease_ttl_s) - lease_ttl_s) * 1000)


def renew(store: Redis, queue_redis: Redis, beats: Iterable[Beat], lease_ttl_s: float) -> None:
    """Renew the leases and records of these workers, then their locks, which live longer.

    Raises
    ------
    UnavailableError
        If a Redis is unavailable; what is in the other one is renewed.
    """
    beats = list(beats)
    if not beats:
        return
    try:
        _renew_leases(queue_redis, beats, lease_ttl_s)
    finally:
        renew_locks(store, beats, lease_ttl_s)


def renew_locks(store: Redis, beats: Iterable[Beat], lease_ttl_s: float) -> None:
    """Renew the locks of these workers; raise UnavailableError if the store is unavailable."""
    locks = [
        renew_lock(beat.doing.locked, beat.doing.locked_by, lock_ttl_s(lease_ttl_s))
        for beat in beats
        if beat.doing.locked and not beat.stopped_s
    ]
    if locks:
        redis_scripts.run(store, *locks)


def _renew_leases(queue_redis: Redis, beats: Sequence[Beat], lease_ttl_s: float) -> None:
    """Renew the leases and the records of RQ."""
    commands: list[Command] = [
        run_queue.renew(beat.doing.lease, lease_ttl_s) for beat in beats if beat.doing.lease and not beat.stopped_s
    ]
    ttl_s = record_ttl_s(lease_ttl_s)
    for beat in beats:
        commands.append(("EXPIRE", redis_keys.rq_executions(beat.worker), ttl_s))
        commands.append(("EXPIRE", redis_keys.rq_worker(beat.worker), ttl_s))
    known = redis_scripts.run(queue_redis, *commands)[-2 * len(beats) :][1::2]
    # Only in a record that exists: RQ would take one without its other fields for a worker.
    stamps = [
        (
            "HSET", redis_keys.rq_worker(beat.worker), "last_heartbeat", utcformat(now()), "call_s", beat.call_s,
            "models_held", beat.doing.models_held, "rows_per_s", f"{beat.rows_per_s:.3f}",
        )
        for beat, exists in zip(beats, known, strict=True)
        if exists
    ]  # fmt: skip
    if stamps:
        redis_scripts.run(queue_redis, *stamps)


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal; False on systems without ``/proc`` (all but Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in STOPPED
    except OSError:
        return False
