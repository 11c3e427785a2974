"""Clean up after dead workers.

Owns two repairs: reaping one dead worker at once, and a sweep for everything else (a lease whose whole machine died,
pending requests of a model that is in no run queue). Never learns or predicts. Invariant: both may run at any time, on
any machine and repeatedly: the scripts they call change nothing that the correctness of a live lease depends on.
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

# Pending requests without a hint are rare (a gateway died between two commands), so the search may be slow.
PENDING_SWEEP_S = 5.0
SCAN_COUNT = 1000


def reap(store: Redis, queue_redis: Redis, worker_name: str, ttl_s: float) -> None:
    """End the leases of the dead worker `worker_name`, put its claimed work back, and enqueue leases for it."""
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
    # Dequeued and not started: the worker is unknown. Ending such a lease early only makes its job a short one.
    for job_id in rq_queue.intermediate_queue.get_job_ids():
        end_lease(store, queue_redis, job_id)
        rq_queue.intermediate_queue.remove(job_id)
    worker.register_death()  # type: ignore[no-untyped-call]
    _answer_poison(queue_redis)
    enqueue_leases(queue_redis, ttl_s)


def reap_left_behind(store: Redis, queue_redis: Redis, ttl_s: float) -> None:
    """Reap registered workers of this machine that no longer run, including those of a killed supervisor."""
    (members,) = redis_scripts.run(queue_redis, ("SMEMBERS", redis_keys.RQ_WORKERS))
    for key in members:
        (record,) = redis_scripts.run(queue_redis, ("HMGET", key, "hostname", "pid"))
        hostname, pid = (field.decode() if field else "" for field in record)
        if hostname == socket.gethostname() and pid.isdecimal() and not _runs(int(pid)):
            log.warning("worker_left_behind", worker=key.decode())
            reap(store, queue_redis, key.decode().removeprefix(SimpleWorker.redis_worker_namespace_prefix), ttl_s)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_lease(store: Redis, queue_redis: Redis, lease: str) -> None:
    """End a lease that no worker executes any more, and put its claimed work back."""
    # The locks first: the next worker must not find the models locked by the dead one.
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
    """Reply with an error to the requests that killed their workers."""
    while (entry := run_queue.pop_poison_request(queue_redis)) is not None:
        try:
            request = messages.decode_request(entry)
        except msgspec.MsgspecError as unreadable:
            log.warning("worker_request_unreadable", reason=str(unreadable))
            continue
        request_id = request.request_id or None
        log.warning("worker_request_put_aside", hash=request.hash, operation=request.operation, request_id=request_id)
        error = PoisonError(f"{run_queue.DEATHS_MAX} workers died while they answered this request; it was put aside.")
        redis_scripts.run(queue_redis, *messages.send_replies(request.gateway, [messages.failed(request, error)]))


def enqueue_leases(queue_redis: Redis, ttl_s: float) -> None:
    """Enqueue a lease for every run queue that has work and no lease."""
    for queue in run_queue.RUN_QUEUES:
        run_queue.enqueue_lease(queue_redis, queue, ttl_s)


def sweep(store: Redis, queue_redis: Redis, ttl_s: float, *, after_outage: bool = False) -> None:
    """End expired leases and enqueue missing ones.

    Every few seconds, and at once `after_outage`, also search for models with pending requests that are in no run
    queue: hints are lost while Redis is unavailable.
    """
    if after_outage:
        queue_redis.delete(redis_keys.SWEEP)
    for lease in run_queue.expired(queue_redis):
        log.warning("lease_expired", lease=lease)
        end_lease(store, queue_redis, lease)
    _answer_poison(queue_redis)
    enqueue_leases(queue_redis, ttl_s)
    if queue_redis.set(redis_keys.SWEEP, 1, nx=True, px=round(PENDING_SWEEP_S * 1000)):
        models = _models_with_pending(store)
        if models:
            run_queue.enqueue_lease(queue_redis, run_queue.LEARN, ttl_s, models)


def _models_with_pending(store: Redis) -> list[str]:
    """Return the hashes of models that have pending requests and are not locked."""
    found: list[str] = []
    names: list[bytes] = []
    for name in store.scan_iter(match=redis_keys.STATE_PATTERN, count=SCAN_COUNT):
        names.append(name)
        if len(names) == SCAN_COUNT:
            found += _with_pending(store, names)
            names = []
    return found + _with_pending(store, names)


def _with_pending(store: Redis, names: list[bytes]) -> list[str]:
    if not names:
        return []
    hashes = [redis_keys.hash_of_state(name.decode()) for name in names]
    commands: list[redis_scripts.Command] = [("HMGET", name, "accepted", "learned") for name in names]
    commands += [("EXISTS", redis_keys.lock(h)) for h in hashes]
    answers = redis_scripts.run(store, *commands)
    counts, locked = answers[: len(hashes)], answers[len(hashes) :]
    return [h for h, count, held in zip(hashes, counts, locked, strict=True) if count[0] != count[1] and not held]
