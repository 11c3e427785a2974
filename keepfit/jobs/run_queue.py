"""Waiting rooms: where work waits for a lease.

Owns the life of a lease on the queue's Redis::

    push ──(no lease out, or those out are late)──▶ RQ job ──▶ claim, claim, … linger ──▶ release
      ▲                                                          │ worker dies
      └──────────────── abandon: put back to the front ◀─────────┘

Two rooms, both lists of models with work: *learn*, whose rows wait in the models' inboxes, and *predict*, which holds
the questions itself. Never holds what must not be lost: a sweep rings for mail that no room knows of, and who asks asks
again. Invariant: an entry is in the room or in one lease's hand; a lease not in the room's register claims nothing.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import rq_jobs

CLAIMED_KEEP_MS = 3_600_000
# How long work may wait for the next claim before one more worker is sent for. A round of a lease takes about 1 ms, and
# some with many models.
LATE_MS = 10
# A lease that has claimed nothing for this long is busy with something slow; its models are anybody's.
AWAKE_MS = 50
# Workers that a question may take along; what is put aside is kept for a look, a hundred at most and for a day.
DEATHS_MAX = 3
PUT_ASIDE_MAX = 100
PUT_ASIDE_TTL_S = 86_400


When = Literal["idle", "spare", "now"]


@dataclass(frozen=True, slots=True)
class RunQueue:
    """A waiting room: its name, the RQ job that drains it, and what one claim takes.

    `questions` is 0 where the models themselves are the work.
    """

    name: str
    function: str
    models: int
    questions: int


LEARN = RunQueue("learn", rq_jobs.PARTIAL_FIT, models=1, questions=0)
PREDICT = RunQueue("predict", rq_jobs.PREDICT, models=256, questions=512)
RUN_QUEUES = (LEARN, PREDICT)
# Commands that count what waits: models with rows to learn, models with questions, leases out, RQ jobs, and put aside.
BACKLOG: dict[str, Command] = {
    "models_to_learn": ("LLEN", redis_keys.waiting(LEARN.name)),
    "models_to_predict": ("LLEN", redis_keys.waiting(PREDICT.name)),
    "learn_leases": ("ZCARD", redis_keys.leases(LEARN.name)),
    "predict_leases": ("ZCARD", redis_keys.leases(PREDICT.name)),
    "jobs": ("LLEN", redis_keys.RQ_QUEUE),
    "questions_put_aside": ("LLEN", redis_keys.put_aside(PREDICT.name)),
}


def new_lease() -> str:
    """Id for a lease and its RQ job."""
    return uuid.uuid4().hex


def entry(model_hash: str, timeout_s: float, question: bytes) -> bytes:
    """Entry of the predict room: a question about a model, which may wait for `timeout_s` seconds."""
    return b"%s%09d%s" % (model_hash.encode(), min(round(timeout_s * 1000), 999_999_999), question)


def push(room: RunQueue, lease: str, ttl_s: float, entries: Iterable[str | bytes] = (), most: int = 1) -> Command:
    """Put `entries` in: hashes of models, or what :func:`entry` makes of questions, up to `most` waiting per model.

    Answers with 1 where the caller must enqueue the job `lease`, else 0, and the numbers (from 1) of refused entries.
    """
    return redis_scripts.call(
        "push",
        [
            redis_keys.waiting(room.name),
            redis_keys.known(room.name),
            redis_keys.leases(room.name),
            redis_keys.RQ_WORKERS,
            redis_keys.since(room.name),
            redis_keys.questions(room.name),
        ],
        [lease, round(ttl_s * 1000), LATE_MS, most, *entries],
    )


def claim(room: RunQueue, lease: str, ttl_s: float, worker: str, *, renew: bool = False) -> Command:
    """Lay down what was done and take what comes next; or only `renew` the lease."""
    return redis_scripts.call(
        "claim",
        [
            redis_keys.waiting(room.name),
            redis_keys.known(room.name),
            redis_keys.leases(room.name),
            redis_keys.claimed(room.name, lease),
            redis_keys.RQ_QUEUE,
            redis_keys.since(room.name),
            redis_keys.holders(room.name),
            redis_keys.questions(room.name),
            redis_keys.turns(room.name),
        ],
        [
            lease,
            round(ttl_s * 1000),
            worker,
            0 if renew else room.models,
            room.questions,
            CLAIMED_KEEP_MS,
            AWAKE_MS,
        ],
    )


def release(room: RunQueue, lease: str, when: When = "idle") -> Command:
    """End the lease where nothing waits ("idle"), where another one is out ("spare"), or in any case ("now")."""
    return redis_scripts.call(
        "release",
        [
            redis_keys.waiting(room.name),
            redis_keys.leases(room.name),
            redis_keys.claimed(room.name, lease),
            redis_keys.holders(room.name),
        ],
        [lease, when],
    )


def ring(connection: Redis, room: RunQueue, ttl_s: float, models: Sequence[str] = ()) -> bool:
    """Put `models` in and send for a lease where one is missing; tell whether one was sent for."""
    lease = new_lease()
    ((missing, *_),) = redis_scripts.run(connection, push(room, lease, ttl_s, models))
    if missing:
        rq_jobs.enqueue(connection, room.function, lease)
    return bool(missing)


def abandon(connection: Redis, lease: str) -> None:
    """End a lease whose worker is dead, whichever room it is on, and put back what it had in hand.

    A question that has taken :data:`DEATHS_MAX` workers along is put aside instead (:func:`take_poison`).
    """
    redis_scripts.run(
        connection,
        *(
            redis_scripts.call(
                "abandon",
                [
                    redis_keys.waiting(room.name),
                    redis_keys.known(room.name),
                    redis_keys.leases(room.name),
                    redis_keys.claimed(room.name, lease),
                    redis_keys.holders(room.name),
                    redis_keys.questions(room.name),
                    redis_keys.poison(room.name),
                ],
                [lease, DEATHS_MAX],
            )
            for room in RUN_QUEUES
        ),
    )


def take_poison(connection: Redis) -> bytes | None:
    """Take a question that was put aside, to answer it; None if there is none."""
    poison, aside = redis_keys.poison(PREDICT.name), redis_keys.put_aside(PREDICT.name)
    question, *_ = redis_scripts.run(
        connection,
        ("LMOVE", poison, aside, "LEFT", "RIGHT"),
        ("LTRIM", aside, -PUT_ASIDE_MAX, -1),
        ("EXPIRE", aside, PUT_ASIDE_TTL_S),
    )
    return question if isinstance(question, bytes) else None


def expired(connection: Redis) -> list[str]:
    """Leases that were not renewed in time."""
    seconds, micros = connection.time()
    now_ms = seconds * 1000 + micros // 1000
    commands = [("ZRANGEBYSCORE", redis_keys.leases(room.name), 0, now_ms) for room in RUN_QUEUES]
    return [lease.decode() for found in redis_scripts.run(connection, *commands) for lease in found]
