"""Run queues: models that have work wait here for a lease.

Owns the states of a lease in the queue's Redis::

    push ──(no lease, or all leases are late)──▶ RQ job ──▶ claim, claim, … linger ──▶ release
      ▲                                                       │ worker dies
      └──────────────── abandon: put back to the front ◀──────┘

Two run queues, both lists of models with work: *learn*, whose rows are in the models' inboxes, and *predict*, which
holds the requests of gateways itself. A lease serves both. Never holds what must not be lost: a sweep finds pending
requests that are in no run queue, and gateways repeat their requests. Invariant: an entry is in a run queue or claimed
by one lease; a lease that is not in the register claims nothing.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from redis import Redis

from keepfit.backends import queue_servers, redis_clients, redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import rq_jobs
from keepfit.settings import Settings

CLAIMED_TTL_MS = 3_600_000
# Work that has waited longer than this for the next claim is late: one more worker joins. A round of a lease takes
# about 1 ms, a few with many models, and a slice of learning 10 ms.
LATE_MS = 20
# A lease that has claimed nothing for this long is busy with something slow; other leases may take its models.
AWAKE_MS = 50
# If all leases have claimed nothing for this long, one more is enqueued at once: between two claims are at most a round
# and the time for which a lease lingers.
BUSY_MS = 25
# A request is put aside after it has killed this many workers. The last hundred are kept for a day, for inspection.
DEATHS_MAX = 3
PUT_ASIDE_MAX = 100
PUT_ASIDE_TTL_S = 86_400
# Limit of requests of a very slow model (claim.lua).
VERY_SLOW = b"01"
# An entry is the hash of a model, followed by a request in the predict queue. Requests about a snapshot wait under its
# SHA-256, which has the same form, like requests about a model of its own.
MODEL_BYTES = 64
# For the pushes of a lease that goes on: it is busy, but will claim what it pushes.
NEVER_MS = 2**40

When = Literal["idle", "spare", "now"]


@dataclass(frozen=True, slots=True)
class RunQueue:
    """A run queue: its name, the RQ job that work in it prompts, and how much one claim takes.

    `requests` is 0 if the models themselves are the work. A lease that also serves the other run queue may leave this
    one alone for `pause_ms` milliseconds, after which work begins to be late.
    """

    name: str
    function: str
    models: int
    requests: int
    pause_ms: int = 0


LEARN = RunQueue("learn", rq_jobs.PARTIAL_FIT, models=1, requests=0, pause_ms=40)
PREDICT = RunQueue("predict", rq_jobs.PREDICT, models=256, requests=512)
RUN_QUEUES = (LEARN, PREDICT)
FORMER_REGISTERS = [redis_keys.former_leases(queue.name) for queue in RUN_QUEUES]
# The marks of models that are restored or repaired expire so long after the last one, if something goes wrong.
RESTORES_TTL_MS = 86_400_000
# Commands that count work: models with rows to learn, models with requests, leases, RQ jobs, requests put aside.
BACKLOG: dict[str, Command] = {
    "models_to_learn": ("LLEN", redis_keys.queued_models(LEARN.name)),
    "models_to_predict": ("LLEN", redis_keys.queued_models(PREDICT.name)),
    "leases": ("ZCARD", redis_keys.LEASES),
    "jobs": ("LLEN", redis_keys.RQ_QUEUE),
    "questions_put_aside": ("LLEN", redis_keys.put_aside_requests(PREDICT.name)),
}


class Claim(NamedTuple):
    """What a claim found; `jobs` wait for a worker, `left` models in the run queue, and `others` in the other one.

    `is_late` if work is left that has waited too long: one more lease is to be enqueued. `woken` is the id of the last
    wake-up. `limits` alternates slow models and the number of their requests that one claim takes.
    """

    jobs: int
    left: int
    others: int
    is_late: bool
    woken: bytes
    limits: Sequence[bytes]
    entries: Sequence[bytes]


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
    queue: RunQueue,
    lease: str,
    ttl_s: float,
    entries: Iterable[str | bytes] = (),
    requests_max: int = 1,
    *,
    late_ms: int | None = None,
) -> Command:
    """Return the command that adds `entries`: hashes of models, or results of :func:`make_entry`.

    Up to `requests_max` requests of a model may wait. The command answers 1 if the caller must enqueue the job `lease`,
    else 0, and the numbers (from 1) of the refused entries. `late_ms` replaces the times after which work is late and
    leases are busy.
    """
    return redis_scripts.call(
        "push",
        [
            redis_keys.queued_models(queue.name),
            redis_keys.queued_models_set(queue.name),
            redis_keys.LEASES,
            redis_keys.RQ_WORKERS,
            redis_keys.waiting_since(queue.name),
            redis_keys.worker_requests(queue.name),
            redis_keys.LEASE_HOLDERS,
            redis_keys.WAKE_UPS,
        ],
        [
            lease,
            round(ttl_s * 1000),
            LATE_MS + queue.pause_ms if late_ms is None else late_ms,
            BUSY_MS if late_ms is None else late_ms,
            requests_max,
            *entries,
        ],
    )


def claim(queue: RunQueue, lease: str, ttl_s: float, worker: str) -> Command:
    """Return the command that completes the last batch and claims the next one (:func:`read_claim`)."""
    late_ms = LATE_MS + queue.pause_ms
    return redis_scripts.call(
        "claim",
        [
            redis_keys.queued_models(queue.name),
            redis_keys.queued_models_set(queue.name),
            redis_keys.LEASES,
            redis_keys.claimed(lease),
            redis_keys.RQ_QUEUE,
            redis_keys.waiting_since(queue.name),
            redis_keys.LEASE_HOLDERS,
            redis_keys.worker_requests(queue.name),
            redis_keys.request_limits(queue.name),
            redis_keys.RQ_WORKERS,
            redis_keys.RESTORES,
            redis_keys.queued_models(_other(queue).name),
            redis_keys.WAKE_UPS,
        ],
        [lease, round(ttl_s * 1000), worker, queue.models, queue.requests, CLAIMED_TTL_MS, AWAKE_MS, late_ms],
    )


def read_claim(answer: list[Any]) -> Claim | None:
    """Return what a claim answered; None if the lease is not valid (any more)."""
    if not answer:
        return None
    (jobs, left, others, is_late, woken), limits, *entries = answer
    return Claim(jobs, left, others, bool(is_late), woken, limits, entries)


def renew(lease: str, ttl_s: float) -> Command:
    """Return the command that extends a lease; it answers 0 if the lease is not valid (any more)."""
    return redis_scripts.call("renew_lease", [redis_keys.LEASES], [lease, round(ttl_s * 1000)])


def adopt(connection: Redis, lease: str, ttl_s: float) -> bool:
    """Register a lease that a gateway of 0.1 has registered; return whether one has.

    It stays in the register of 0.1 as well, so that such a gateway enqueues no other before it expires there.
    """
    known = redis_scripts.run(connection, *(("ZSCORE", register, lease) for register in FORMER_REGISTERS))
    if known == [None] * len(known):
        return False
    redis_scripts.run(connection, ("ZADD", redis_keys.LEASES, 0, lease), renew(lease, ttl_s))
    return True


def forget(lease: str) -> list[Command]:
    """Return the commands that remove an adopted lease from the registers of 0.1."""
    return [("ZREM", register, lease) for register in FORMER_REGISTERS]


def release(lease: str, when: When = "idle") -> Command:
    """Return the command that ends a lease: if both queues are empty, if another lease is awake ("spare"), or "now"."""
    return redis_scripts.call(
        "release",
        [
            redis_keys.queued_models(LEARN.name),
            redis_keys.queued_models(PREDICT.name),
            redis_keys.LEASES,
            redis_keys.claimed(lease),
            redis_keys.LEASE_HOLDERS,
        ],
        [lease, when, AWAKE_MS],
    )


def linger(woken: bytes, seconds: float) -> Command:
    """Return the command that waits for a wake-up after `woken`; unlike a list, a stream wakes all that wait for it."""
    return ("XREAD", "BLOCK", max(1, round(seconds * 1000)), "STREAMS", redis_keys.WAKE_UPS, woken)


def woken_by(answer: Any) -> RunQueue:
    """Return the run queue into which the last work came, by the answer to :func:`linger`."""
    streams = list(answer.values()) if isinstance(answer, dict) else [entries for _, entries in answer]
    fields = streams[0][-1][1]
    return LEARN if fields[-1] == redis_keys.queued_models(LEARN.name).encode() else PREDICT


def mark_restores(connection: Redis, lease: str, models: Sequence[str]) -> list[str]:
    """Mark models that `lease` is about to restore or repair; return those that no other lease has marked."""
    (marked,) = redis_scripts.run(
        connection,
        redis_scripts.call(
            "mark_restores", [redis_keys.RESTORES, redis_keys.LEASES], [lease, RESTORES_TTL_MS, *models]
        ),
    )
    return [model for model, is_marked in zip(models, marked, strict=True) if is_marked]


def unmark_restores(lease: str, models: Sequence[str]) -> Command:
    """Return the command that removes the marks of :func:`mark_restores`."""
    return redis_scripts.call("unmark_restores", [redis_keys.RESTORES], [lease, *models])


def enqueue_lease(
    connection: Redis,
    queue: RunQueue,
    ttl_s: float,
    entries: Sequence[str | bytes] = (),
    requests_max: int = 1,
    *,
    late_ms: int | None = None,
) -> bool:
    """Push `entries` to a run queue, and enqueue a lease if one is missing; return whether one was enqueued."""
    lease = new_lease()
    command = push(queue, lease, ttl_s, entries, requests_max, late_ms=late_ms)
    ((missing, *_),) = redis_scripts.run(connection, command)
    if missing:
        rq_jobs.enqueue(connection, queue.function, lease)
    return bool(missing)


def enqueue_model(settings: Settings, model_hash: str) -> None:
    """Notify the learn queue of a model, on its server or on another one that answers.

    Raises
    ------
    UnavailableError
        If no server of the queue answers; then the sweep of the workers finds the model.
    """
    one = queue_servers.first_up(model_hash, settings)
    with redis_clients.queue_sync(one) as connection, redis_scripts.unavailable():
        enqueue_lease(connection, LEARN, settings.lease_ttl_s, [model_hash])


def enqueue_leases(connection: Redis, ttl_s: float) -> None:
    """Enqueue a lease if there is work and none, or work is late."""
    for queue in (PREDICT, LEARN):
        enqueue_lease(connection, queue, ttl_s)


def abandon(connection: Redis, lease: str, *, died: bool) -> None:
    """End a lease that no worker executes any more, and put its claimed work back.

    `died` says that the worker died while it processed that work. A request that has killed :data:`DEATHS_MAX` workers
    is put aside instead (:func:`pop_poison_request`).
    """
    redis_scripts.run(
        connection,
        redis_scripts.call(
            "abandon",
            [
                redis_keys.queued_models(LEARN.name),
                redis_keys.queued_models_set(LEARN.name),
                redis_keys.queued_models(PREDICT.name),
                redis_keys.queued_models_set(PREDICT.name),
                redis_keys.LEASES,
                redis_keys.claimed(lease),
                redis_keys.LEASE_HOLDERS,
                redis_keys.worker_requests(PREDICT.name),
                redis_keys.poison_requests(PREDICT.name),
            ],
            [lease, DEATHS_MAX, int(died)],
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
    """Return the leases whose deadline has passed; remove those of gateways of 0.1 (:func:`adopt`)."""
    seconds, micros = connection.time()
    now_ms = seconds * 1000 + micros // 1000
    former = [("ZREMRANGEBYSCORE", register, 0, now_ms) for register in FORMER_REGISTERS]
    found, *_ = redis_scripts.run(connection, ("ZRANGEBYSCORE", redis_keys.LEASES, 0, now_ms), *former)
    return [lease.decode() for lease in found]


def renew_if_queued(connection: Redis, lease: str, ttl_s: float) -> bool:
    """Renew a lease whose job still waits in RQ's queue, because all workers are busy; return whether it does."""
    (position,) = redis_scripts.run(connection, ("LPOS", redis_keys.RQ_QUEUE, lease))
    if position is None:
        return False
    redis_scripts.run(connection, renew(lease, ttl_s))
    return True


def holder_of(connection: Redis, lease: str) -> str:
    """Return the name of the worker that has claimed work with a lease, '' if none has."""
    (holder,) = redis_scripts.run(connection, ("HGET", redis_keys.LEASE_HOLDERS, lease))
    return holder.decode().partition(" ")[0] if holder else ""


def models_in(entries: Iterable[bytes]) -> list[str]:
    """Return the models to learn among claimed entries, which are those without a request."""
    return [entry.decode() for entry in entries if len(entry) == MODEL_BYTES]


def _other(queue: RunQueue) -> RunQueue:
    return PREDICT if queue.name == LEARN.name else LEARN
