"""Looking after what dead workers leave behind.

Owns two repairs: ending the leases of one dead worker at once, and a sweep for everything that fell between two stools
(a lease whose whole machine died, mail that no room knows of). Never learns or predicts. Invariant: both may run at any
time, anywhere, twice: the scripts they call change nothing that a living lease relies on for correctness.
"""

import os
import socket

import msgspec
import structlog
from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.worker import SimpleWorker

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import PoisonError
from keepfit.jobs import messages, rq_jobs, run_queue
from keepfit.observability import failpoints

log = structlog.get_logger(__name__)

# Mail without a hint is rare (a gateway died between two commands): looking for it may be slow.
MAIL_SWEEP_S = 5.0
SCAN_COUNT = 1000


def bury(store: Redis, queue_redis: Redis, worker_name: str, ttl_s: float) -> None:
    """End everything that the dead worker `worker_name` had in hand, and send for others to do it."""
    rq_queue = rq_jobs.queue_of(queue_redis)
    worker = SimpleWorker(
        [rq_queue],
        name=worker_name,
        connection=queue_redis,
        job_class=rq_jobs.LeaseJob,
        serializer=rq_jobs.SERIALIZER,
        prepare_for_work=False,
    )
    (executions,) = redis_scripts.run(queue_redis, ("SMEMBERS", worker.executions_key))
    for composite in executions:
        execution = Execution.from_composite_key(composite.decode(), queue_redis)
        execution.worker_name = worker_name
        end_lease(store, queue_redis, execution.job_id)
        try:
            job = rq_jobs.LeaseJob.fetch(execution.job_id, connection=queue_redis, serializer=rq_jobs.SERIALIZER)
        except NoSuchJobError:
            continue
        worker.handle_job_failure(job, rq_queue, exc_string="the worker process died", execution=execution)
    # Dequeued and not yet started: nobody knows by whom. Ending such a lease early only makes its job a short one.
    for job_id in rq_queue.intermediate_queue.get_job_ids():
        end_lease(store, queue_redis, job_id)
        rq_queue.intermediate_queue.remove(job_id)
    worker.register_death()  # type: ignore[no-untyped-call]
    _answer_poison(queue_redis)
    ring_all(queue_redis, ttl_s)


def bury_left_behind(store: Redis, queue_redis: Redis, ttl_s: float) -> None:
    """Bury the workers of this machine that are registered and no longer run: of a supervisor that was killed too."""
    (members,) = redis_scripts.run(queue_redis, ("SMEMBERS", redis_keys.RQ_WORKERS))
    for key in members:
        (record,) = redis_scripts.run(queue_redis, ("HMGET", key, "hostname", "pid"))
        hostname, pid = (field.decode() if field else "" for field in record)
        if hostname == socket.gethostname() and pid.isdecimal() and not _runs(int(pid)):
            log.warning("worker_left_behind", worker=key.decode())
            bury(store, queue_redis, key.decode().removeprefix(SimpleWorker.redis_worker_namespace_prefix), ttl_s)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_lease(store: Redis, queue_redis: Redis, lease: str) -> None:
    """End a lease that nobody works any more, and put back what it had in hand."""
    # The locks first: who takes up the work again must not find it locked by the dead.
    (held,) = redis_scripts.run(queue_redis, ("LRANGE", redis_keys.claimed(run_queue.LEARN.name, lease), 0, -1))
    if held:
        redis_scripts.run(
            store,
            *(
                redis_scripts.call("unlock", [redis_keys.state(h.decode()), redis_keys.lock(h.decode())], [lease, 1, 0])
                for h in held
            ),
        )
    failpoints.reach("reap.unlocked")
    run_queue.abandon(queue_redis, lease)


def _answer_poison(queue_redis: Redis) -> None:
    """Tell those who asked what no worker survives."""
    while (entry := run_queue.take_poison(queue_redis)) is not None:
        try:
            question = messages.decode_question(entry)
        except msgspec.MsgspecError as unreadable:
            log.warning("question_unreadable", reason=str(unreadable))
            continue
        log.warning(
            "question_put_aside", hash=question.hash, operation=question.operation, request_id=question.request or None
        )
        error = PoisonError(f"{run_queue.DEATHS_MAX} workers died while they answered this request; it was put aside.")
        redis_scripts.run(queue_redis, *messages.reply(question.gateway, [messages.failed(question, error)]))


def ring_all(queue_redis: Redis, ttl_s: float) -> None:
    """Send for a lease on every room where something waits and none is out."""
    for room in run_queue.RUN_QUEUES:
        run_queue.ring(queue_redis, room, ttl_s)


def sweep(store: Redis, queue_redis: Redis, ttl_s: float, *, after_outage: bool = False) -> None:
    """End expired leases and ring; every few seconds, and at once `after_outage`, look for mail that no room knows of.

    While Redis was away hints were lost, and with them the knowledge of what waits.
    """
    if after_outage:
        queue_redis.delete(redis_keys.SWEEP)
    for lease in run_queue.expired(queue_redis):
        log.warning("lease_expired", lease=lease)
        end_lease(store, queue_redis, lease)
    _answer_poison(queue_redis)
    ring_all(queue_redis, ttl_s)
    if queue_redis.set(redis_keys.SWEEP, 1, nx=True, px=round(MAIL_SWEEP_S * 1000)):
        mail = _unlocked_mail(store)
        if mail:
            run_queue.ring(queue_redis, run_queue.LEARN, ttl_s, mail)


def _unlocked_mail(store: Redis) -> list[str]:
    """Hashes of models that have mail and that nobody learns just now."""
    found: list[str] = []
    names: list[bytes] = []
    for name in store.scan_iter(match=redis_keys.STATE_PATTERN, count=SCAN_COUNT):
        names.append(name)
        if len(names) == SCAN_COUNT:
            found += _with_mail(store, names)
            names = []
    return found + _with_mail(store, names)


def _with_mail(store: Redis, names: list[bytes]) -> list[str]:
    if not names:
        return []
    hashes = [redis_keys.hash_of_state(name.decode()) for name in names]
    commands: list[redis_scripts.Command] = [("HMGET", name, "accepted", "learned") for name in names]
    commands += [("EXISTS", redis_keys.lock(h)) for h in hashes]
    answers = redis_scripts.run(store, *commands)
    counts, locked = answers[: len(hashes)], answers[len(hashes) :]
    return [h for h, count, held in zip(hashes, counts, locked, strict=True) if count[0] != count[1] and not held]
