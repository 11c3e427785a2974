"""Clean up after dead workers.

Owns two repairs: reaping one dead worker at once, and a sweep for everything else (a lease whose whole machine died,
pending requests of a model that is in no run queue). Never learns or predicts. Invariant: both may run at any time, on
any machine and repeatedly: the scripts they call change nothing that the correctness of a live lease depends on.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
from keepfit.store import events, unloadable
from keepfit.store.commit import Harm, unlock
from keepfit_workers import heartbeat
from keepfit_workers.activity import LOAD, RESTORE, Doing
from keepfit_workers.registered import announce, remove_lost

log = structlog.get_logger(__name__)

# Pending requests without a hint are rare (a gateway died between two commands), so the search may be slow.
PENDING_SWEEP_S = 5.0
SCAN_COUNT = 1000


@dataclass(frozen=True, slots=True)
class Death:
    """A dead worker, and what it did when it died, if that is known; `harm` is None if it ended as requested.

    `exitcode` is that of its process, None if its supervisor has not seen it end.
    """

    worker: str
    harm: Harm | None = Harm.DEATH
    doing: Doing = field(default_factory=Doing)
    exitcode: int | None = None

    @property
    def is_loading(self) -> bool:
        """Whether the worker died while it loaded or repaired the bundle of a model."""
        return self.harm is not None and self.doing.step in (LOAD, RESTORE) and bool(self.doing.model)

    @property
    def harm_of_requests(self) -> Harm | None:
        """What the claimed requests have done to the worker; None if they had not been tried."""
        return None if self.is_loading else self.harm


def reap(store: Redis, queue_redis: Redis, death: Death, ttl_s: float) -> None:
    """End the leases of a dead worker, put its claimed work back, and enqueue leases for it."""
    worker_name, harm = death.worker, death.harm_of_requests
    if death.is_loading:
        _note_load_death(store, death)
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
        end_lease(store, queue_redis, execution.job_id, harm)
        try:
            job = rq_jobs.LeaseJob.fetch(execution.job_id, connection=queue_redis, serializer=rq_jobs.SERIALIZER)
        except NoSuchJobError:
            continue
        worker.handle_job_failure(job, rq_queue, exc_string="the worker process died", execution=execution)
    # Dequeued and not started: the worker is unknown. Ending such a lease early only makes its job a short one.
    if death.doing.lease:
        # Ended above, unless the record of RQ has expired or is lost.
        end_lease(store, queue_redis, death.doing.lease, harm)
    release_lock(store, death)
    for job_id in rq_queue.intermediate_queue.get_job_ids():
        end_lease(store, queue_redis, job_id, None)
        rq_queue.intermediate_queue.remove(job_id)
    # One that has ended as requested has announced that itself.
    if queue_redis.srem(redis_keys.RQ_WORKERS, worker.key):
        announce(store, "worker_lost" if death.exitcode is None else "worker_died", worker_name, death.exitcode)
    worker.register_death()  # type: ignore[no-untyped-call]
    _answer_poison(queue_redis)
    run_queue.enqueue_leases(queue_redis, ttl_s)


def release_lock(store: Redis, death: Death) -> None:
    """Release the lock of a dead worker, and count what its claim did to it; what is repeated counts once."""
    if death.doing.locked:
        unlocked = unlock(death.doing.locked, death.doing.locked_by, force=True, harm=death.harm_of_requests)
        redis_scripts.run(store, unlocked)


def _note_load_death(store: Redis, death: Death) -> None:
    """Count the death of a worker for the bundle that it was loading or repairing, before another worker does that."""
    doing, is_overdue = death.doing, death.harm is Harm.TIME
    generation, digest = doing.generation, doing.digest
    if doing.step == RESTORE:
        # The bundle to be repaired is live until the repair has ended.
        (found,) = redis_scripts.run(store, ("HMGET", redis_keys.state(doing.model), "generation", "digest"))
        generation, digest = int(found[0] or 0), (found[1] or b"").decode()
    if unloadable.note_death(store, doing.model, generation, digest, death.worker, certain=is_overdue):
        log.error("bundle_unloadable", hash=doing.model, generation=generation, overdue=is_overdue)


def reap_left_behind(store: Redis, queue_redis: Redis, ttl_s: float, own: Mapping[str, int]) -> None:
    """Reap registered workers of this machine that no longer run, including those of a killed supervisor.

    `own` are names and process ids of the caller's workers and of itself: a restarted container gives its processes the
    numbers of their predecessors.
    """
    (members,) = redis_scripts.run(queue_redis, ("SMEMBERS", redis_keys.RQ_WORKERS))
    for key in members:
        (record,) = redis_scripts.run(queue_redis, ("HMGET", key, "hostname", "pid"))
        hostname, pid = (field.decode() if field else "" for field in record)
        name = key.decode().removeprefix(SimpleWorker.redis_worker_namespace_prefix)
        if hostname != socket.gethostname() or not pid.isdecimal() or name in own:
            continue
        if int(pid) in own.values() or not _runs(int(pid)):
            log.warning("worker_left_behind", worker=key.decode())
            reap(store, queue_redis, Death(name), ttl_s)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_lease(store: Redis, queue_redis: Redis, lease: str, harm: Harm | None) -> None:
    """End a lease that no worker executes any more, and put its claimed work back.

    `harm` is what that work has done to its worker; None if the worker lives, or nothing is known of it.
    """
    # The locks first: the next worker must not find the models locked by the dead one.
    (entries,) = redis_scripts.run(queue_redis, ("LRANGE", redis_keys.claimed(lease), 0, -1))
    held = run_queue.models_in(entries)
    if held:
        redis_scripts.run(store, *(unlock(model_hash, lease, force=True, harm=harm) for model_hash in held))
    failpoints.reach("reap.unlocked")
    run_queue.abandon(queue_redis, lease, died=harm is not None)


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
        redis_scripts.run(
            queue_redis,
            *messages.send_replies(request.gateway, [messages.encode_reply(messages.failed(request, error))]),
        )


def sweep(
    store: Redis,
    queue_redis: Redis,
    ttl_s: float,
    *,
    after_outage: bool = False,
    expire: bool = True,
    beat: Callable[[], None] = lambda: None,
    search: bool = True,
    notify: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """End expired leases (`expire`), enqueue missing ones, and announce the last commits of models.

    Every few seconds, and at once `after_outage`, also search for models with pending requests that are in no run
    queue: hints are lost while Redis is unavailable. With many models that takes long; `beat` is called meanwhile. And
    remove workers from the register whose machine died. With several servers of the queue, one of them is swept with
    `search`, and `notify` enqueues the models that it finds, each on its server.
    """
    if after_outage:
        queue_redis.delete(redis_keys.SWEEP)
    for lease in run_queue.expired(queue_redis) if expire else ():
        worker = run_queue.holder_of(queue_redis, lease)
        if not worker and run_queue.renew_if_queued(queue_redis, lease, ttl_s):
            continue
        is_silent = bool(worker) and not heartbeat.is_heard(queue_redis, worker, ttl_s)
        log.warning("lease_expired", lease=lease, worker=worker or None, silent=is_silent)
        # A worker whose supervisor is silent as well is dead: its machine or container ended.
        end_lease(store, queue_redis, lease, Harm.DEATH if is_silent else None)
    _answer_poison(queue_redis)
    run_queue.enqueue_leases(queue_redis, ttl_s)
    events.announce_due(store)
    if queue_redis.set(redis_keys.SWEEP, 1, nx=True, px=round(PENDING_SWEEP_S * 1000)):
        remove_lost(store, queue_redis)
        models = _models_with_pending(store, beat) if search else []
        if models and notify is not None:
            notify(models)
        elif models:
            run_queue.enqueue_lease(queue_redis, run_queue.LEARN, ttl_s, models)


def _models_with_pending(store: Redis, beat: Callable[[], None]) -> list[str]:
    """Return the hashes of models that have pending requests and are not locked."""
    found: list[str] = []
    names: list[bytes] = []
    for name in redis_scripts.scan(store, redis_keys.STATE_PATTERN, SCAN_COUNT):
        names.append(name)
        if len(names) == SCAN_COUNT:
            found += _with_pending(store, names)
            names = []
            beat()
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
