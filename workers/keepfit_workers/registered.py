"""RQ's register of workers: what is announced when a worker joins it, leaves it, or is lost.

Owns the events about workers. Never ends a lease: :mod:`keepfit_workers.sweep` does. Invariant: the
process that removes a worker from the register announces it, so each end is announced once, whichever machine notices.
"""

from typing import Any, Literal

from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.store import events

WorkerKind = Literal["worker_joined", "worker_left", "worker_died", "worker_lost"]


def announce(store: Redis, kind: WorkerKind, worker: str, exitcode: int | None = None) -> None:
    """Write the event of a worker; its name begins with that of its host."""
    details: dict[str, Any] = {"worker": worker, "host": worker.rsplit(".", 2)[0]}
    if exitcode is not None:
        details["exitcode"] = exitcode
    events.announce_sync(store, events.entry(kind, **details))


def remove_lost(store: Redis, queue_redis: Redis) -> None:
    """Remove the workers whose records have expired, because nothing renews them: their machine or supervisor died.

    Raises
    ------
    UnavailableError
        If the queue's Redis is unavailable.
    """
    (keys,) = redis_scripts.run(queue_redis, ("SMEMBERS", redis_keys.RQ_WORKERS))
    known = redis_scripts.run(queue_redis, *(("EXISTS", key) for key in keys)) if keys else []
    for key, is_known in zip(keys, known, strict=True):
        if not is_known and redis_scripts.run(queue_redis, ("SREM", redis_keys.RQ_WORKERS, key)) == [1]:
            worker = key.decode(errors="replace").removeprefix(redis_keys.RQ_WORKER_PREFIX)
            announce(store, "worker_lost", worker)
