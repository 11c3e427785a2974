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

from keepfit import faults, keys, questions, queue, rooms, scripts
from keepfit.errors import PoisonError

log = structlog.get_logger(__name__)

# Mail without a hint is rare (a gateway died between two commands): looking for it may be slow.
MAIL_SWEEP_S = 5.0
SCAN_COUNT = 1000


def bury(store: Redis, queue_redis: Redis, worker_name: str, ttl_s: float) -> None:
    """End everything that the dead worker `worker_name` had in hand, and send for others to do it."""
    rq_queue = queue.queue_of(queue_redis)
    worker = SimpleWorker(
        [rq_queue],
        name=worker_name,
        connection=queue_redis,
        job_class=queue.LeaseJob,
        serializer=queue.SERIALIZER,
        prepare_for_work=False,
    )
    (executions,) = scripts.run(queue_redis, ("SMEMBERS", worker.executions_key))
    for composite in executions:
        execution = Execution.from_composite_key(composite.decode(), queue_redis)
        execution.worker_name = worker_name
        end_lease(store, queue_redis, execution.job_id)
        try:
            job = queue.LeaseJob.fetch(execution.job_id, connection=queue_redis, serializer=queue.SERIALIZER)
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
    (members,) = scripts.run(queue_redis, ("SMEMBERS", keys.RQ_WORKERS))
    for key in members:
        (record,) = scripts.run(queue_redis, ("HMGET", key, "hostname", "pid"))
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
    (held,) = scripts.run(queue_redis, ("LRANGE", keys.claimed(rooms.LEARN.name, lease), 0, -1))
    if held:
        scripts.run(
            store,
            *(scripts.call("unlock", [keys.state(h.decode()), keys.lock(h.decode())], [lease, 1, 0]) for h in held),
        )
    faults.reach("bury.unlocked")
    rooms.abandon(queue_redis, lease)


def _answer_poison(queue_redis: Redis) -> None:
    """Tell those who asked what no worker survives."""
    while (entry := rooms.take_poison(queue_redis)) is not None:
        try:
            question = questions.decode_question(entry)
        except msgspec.MsgspecError as unreadable:
            log.warning("question_unreadable", reason=str(unreadable))
            continue
        log.warning(
            "question_put_aside", hash=question.hash, operation=question.operation, request_id=question.request or None
        )
        error = PoisonError(f"{rooms.DEATHS_MAX} workers died while they answered this request; it was put aside.")
        scripts.run(queue_redis, *questions.reply(question.gateway, [questions.failed(question, error)]))


def ring_all(queue_redis: Redis, ttl_s: float) -> None:
    """Send for a lease on every room where something waits and none is out."""
    for room in rooms.ROOMS:
        rooms.ring(queue_redis, room, ttl_s)


def sweep(store: Redis, queue_redis: Redis, ttl_s: float, *, after_outage: bool = False) -> None:
    """End expired leases and ring; every few seconds, and at once `after_outage`, look for mail that no room knows of.

    While Redis was away hints were lost, and with them the knowledge of what waits.
    """
    if after_outage:
        queue_redis.delete(keys.SWEEP)
    for lease in rooms.expired(queue_redis):
        log.warning("lease_expired", lease=lease)
        end_lease(store, queue_redis, lease)
    _answer_poison(queue_redis)
    ring_all(queue_redis, ttl_s)
    if queue_redis.set(keys.SWEEP, 1, nx=True, px=round(MAIL_SWEEP_S * 1000)):
        mail = _unlocked_mail(store)
        if mail:
            rooms.ring(queue_redis, rooms.LEARN, ttl_s, mail)


def _unlocked_mail(store: Redis) -> list[str]:
    """Hashes of models that have mail and that nobody learns just now."""
    found: list[str] = []
    names: list[bytes] = []
    for name in store.scan_iter(match=keys.STATE_PATTERN, count=SCAN_COUNT):
        names.append(name)
        if len(names) == SCAN_COUNT:
            found += _with_mail(store, names)
            names = []
    return found + _with_mail(store, names)


def _with_mail(store: Redis, names: list[bytes]) -> list[str]:
    if not names:
        return []
    hashes = [keys.hash_of_state(name.decode()) for name in names]
    commands: list[scripts.Command] = [("HMGET", name, "accepted", "learned") for name in names]
    commands += [("EXISTS", keys.lock(h)) for h in hashes]
    answers = scripts.run(store, *commands)
    counts, locked = answers[: len(hashes)], answers[len(hashes) :]
    return [h for h, count, held in zip(hashes, counts, locked, strict=True) if count[0] != count[1] and not held]
