"""Run queues: models that have work wait here for a lease.

Owns the states of a lease in the queue's Redis::

    push ──(no lease, or all leases are late)──▶ RQ job ──▶ claim, claim, … linger ──▶ release
      ▲                                                       │ worker dies
      └──────────────── abandon: put back to the front ◀──────┘

Two run queues, both lists of models with work: *learn*, whose rows are in the models' inboxes, and *predict*, which
holds the requests of gateways itself. Never holds what must not be lost: a sweep finds pending requests that are in no
run queue, and gateways repeat their requests. Invariant: an entry is in the run queue or claimed by one lease; a lease
that is not in the queue's register claims nothing.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import rq_jobs

CLAIMED_TTL_MS = 3_600_000
# Work that has waited longer than this for the next claim is late: one more worker joins. A round of a lease takes
# about 1 ms, and a few with many models.
LATE_MS = 10
# A lease that has claimed nothing for this long is busy with something slow; other leases may take its models.
AWAKE_MS = 50
# A request is put aside after it has killed this many workers. The last hundred are kept for a day, for inspection.
DEATHS_MAX = 3
PUT_ASIDE_MAX = 100
PUT_ASIDE_TTL_S = 86_400
# Limit of requests of a very slow model (claim.lua).
VERY_SLOW = b"01"


When = Literal["idle", "spare", "now"]


@dataclass(frozen=True, slots=True)
class RunQueue:
    """A run queue: its name, the RQ job that drains it, and how much one claim takes.

    `requests` is 0 if the models themselves are the work.
    """

    name: str
    function: str
    models: int
    requests: int


LEARN = RunQueue("learn", rq_jobs.PARTIAL_FIT, models=1, requests=0)
PREDICT = RunQueue("predict", rq_jobs.PREDICT, models=256, requests=512)
RUN_QUEUES = (LEARN, PREDICT)
# The marks of models that are restored or repaired expire so long after the last one, if something goes wrong.
RESTORES_TTL_MS = 86_400_000
# Commands that count work: models with rows to learn, models with requests, leases, RQ jobs, requests put aside.
BACKLOG: dict[str, Command] = {
    "models_to_learn": ("LLEN", redis_keys.queued_models(LEARN.name)),
    "models_to_predict": ("LLEN", redis_keys.queued_models(PREDICT.name)),
    "learn_leases": ("ZCARD", redis_keys.leases(LEARN.name)),
    "predict_leases": ("ZCARD", redis_keys.leases(PREDICT.name)),
    "jobs": ("LLEN", redis_keys.RQ_QUEUE),
    "questions_put_aside": ("LLEN", redis_keys.put_aside_requests(PREDICT.name)),
}


def new_lease() -> str:
    """Return an id for a lease and its RQ job."""
    return uuid.uuid4().hex


def make_entry(model_hash: str, timeout_s: float, request: bytes) -> bytes:
    """Return an entry of the predict queue: a request about a model, which may wait for `timeout_s` seconds."""
    return b"%s%09d%s" % (model_hash.encode(), min(round(timeout_s * 1000), 999_999_999), request)


def split_entry(entry: bytes) -> tuple[float, bytes]:
    """Return what a claim says of a request: the seconds until its deadline, and the request.

    >>> split_entry(b"000001500request")
    (1.5, b'request')
    """
    return int(entry[:9]) / 1000, entry[9:]


def push(
    queue: RunQueue, lease: str, ttl_s: float, entries: Iterable[str | bytes] = (), requests_max: int = 1
) -> Command:
    """Return the command that adds `entries`: hashes of models, or results of :func:`make_entry`.

    Up to `requests_max` requests of a model may wait. The command answers 1 if the caller must enqueue the job `lease`,
    else 0, and the numbers (from 1) of the refused entries.
    """
    return redis_scripts.call(
        "push",
        [
            redis_keys.queued_models(queue.name),
            redis_keys.queued_models_set(queue.name),
            redis_keys.leases(queue.name),
            redis_keys.RQ_WORKERS,
            redis_keys.waiting_since(queue.name),
            redis_keys.worker_requests(queue.name),
        ],
        [lease, round(ttl_s * 1000), LATE_MS, requests_max, *entries],
    )


def claim(queue: RunQueue, lease: str, ttl_s: float, worker: str, *, renew: bool = False) -> Command:
    """Return the command that completes the last batch and claims the next one, or only renews the lease (`renew`)."""
    return redis_scripts.call(
        "claim",
        [
            redis_keys.queued_models(queue.name),
            redis_keys.queued_models_set(queue.name),
            redis_keys.leases(queue.name),
            redis_keys.claimed(queue.name, lease),
            redis_keys.RQ_QUEUE,
            redis_keys.waiting_since(queue.name),
            redis_keys.lease_holders(queue.name),
            redis_keys.worker_requests(queue.name),
            redis_keys.request_limits(queue.name),
            redis_keys.RQ_WORKERS,
            redis_keys.RESTORES,
            redis_keys.leases(_other(queue).name),
        ],
        [
            lease,
            round(ttl_s * 1000),
            worker,
            0 if renew else queue.models,
            queue.requests,
            CLAIMED_TTL_MS,
            AWAKE_MS,
        ],
    )


def release(queue: RunQueue, lease: str, when: When = "idle") -> Command:
    """Return the command that ends a lease: if the queue is empty ("idle"), if there are others ("spare"), or "now"."""
    return redis_scripts.call(
        "release",
        [
            redis_keys.queued_models(queue.name),
            redis_keys.leases(queue.name),
            redis_keys.claimed(queue.name, lease),
            redis_keys.lease_holders(queue.name),
        ],
        [lease, when],
    )


def _other(queue: RunQueue) -> RunQueue:
    return PREDICT if queue.name == LEARN.name else LEARN


def mark_restores(connection: Redis, lease: str, models: Sequence[str]) -> list[str]:
    """Mark models that `lease` is about to restore or repair; return those that no other lease has marked."""
    (marked,) = redis_scripts.run(
        connection,
        redis_scripts.call(
            "mark_restores",
            [redis_keys.RESTORES, redis_keys.leases(PREDICT.name), redis_keys.leases(LEARN.name)],
            [lease, RESTORES_TTL_MS, *models],
        ),
    )
    return [model for model, is_marked in zip(models, marked, strict=True) if is_marked]


def unmark_restores(lease: str, models: Sequence[str]) -> Command:
    """Return the command that removes the marks of :func:`mark_restores`."""
    return redis_scripts.call("unmark_restores", [redis_keys.RESTORES], [lease, *models])


def enqueue_lease(
    connection: Redis, queue: RunQueue, ttl_s: float, entries: Sequence[str | bytes] = (), requests_max: int = 1
) -> bool:
    """Push `entries` to a run queue, and enqueue a lease if one is missing; return whether one was enqueued."""
    lease = new_lease()
    ((missing, *_),) = redis_scripts.run(connection, push(queue, lease, ttl_s, entries, requests_max))
    if missing:
        rq_jobs.enqueue(connection, queue.function, lease)
    return bool(missing)


def abandon(connection: Redis, lease: str, *, died: bool) -> None:
    """End a lease that no worker executes any more, on whichever run queue it is, and put its claimed work back.

    `died` says that the worker died while it processed that work. A request that has killed :data:`DEATHS_MAX` workers
    is put aside instead (:func:`pop_poison_request`).
    """
    redis_scripts.run(
        connection,
        *(
            redis_scripts.call(
                "abandon",
                [
                    redis_keys.queued_models(queue.name),
                    redis_keys.queued_models_set(queue.name),
                    redis_keys.leases(queue.name),
                    redis_keys.claimed(queue.name, lease),
                    redis_keys.lease_holders(queue.name),
                    redis_keys.worker_requests(queue.name),
                    redis_keys.poison_requests(queue.name),
                ],
                [lease, DEATHS_MAX, int(died)],
            )
            for queue in RUN_QUEUES
        ),
    )


def pop_poison_request(connection: Redis) -> bytes | None:
    """Remove and return a request that was put aside, to answer it; None if there is none."""
    poison, aside = redis_keys.poison_requests(PREDICT.name), redis_keys.put_aside_requests(PREDICT.name)
    request, *_ = redis_scripts.run(
        connection,
        ("LMOVE", poison, aside, "LEFT", "RIGHT"),
        ("LTRIM", aside, -PUT_ASIDE_MAX, -1),
        ("EXPIRE", aside, PUT_ASIDE_TTL_S),
    )
    return request if isinstance(request, bytes) else None


def expired(connection: Redis) -> list[str]:
    """Return the leases whose deadline has passed."""
    seconds, micros = connection.time()
    now_ms = seconds * 1000 + micros // 1000
    commands = [("ZRANGEBYSCORE", redis_keys.leases(queue.name), 0, now_ms) for queue in RUN_QUEUES]
    return [lease.decode() for found in redis_scripts.run(connection, *commands) for lease in found]


def renew_if_queued(connection: Redis, lease: str, ttl_s: float) -> bool:
    """Renew a lease whose job still waits in RQ's queue, because all workers are busy; return whether it does."""
    (position,) = redis_scripts.run(connection, ("LPOS", redis_keys.RQ_QUEUE, lease))
    if position is None:
        return False
    redis_scripts.run(connection, *(claim(queue, lease, ttl_s, "", renew=True) for queue in RUN_QUEUES))
    return True


def holder_of(connection: Redis, lease: str) -> str:
    """Return the name of the worker that has claimed work with a lease, '' if none has."""
    commands = [("HGET", redis_keys.lease_holders(queue.name), lease) for queue in RUN_QUEUES]
    found = [answer for answer in redis_scripts.run(connection, *commands) if answer]
    return found[0].decode().partition(" ")[0] if found else ""
