"""The sweep: what becomes of leases that were not renewed."""

import pytest
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import rq_jobs, run_queue
from keepfit.jobs.run_queue import LEARN, PREDICT, RunQueue
from keepfit_workers import heartbeat, sweep
from keepfit_workers.context import WorkerContext

TTL_S = 6.0
MODEL, WORKER = "2".rjust(8, "0").ljust(64, "0"), "machine.1.one"


def push_and_claim(context: WorkerContext, lease: str) -> None:
    """Push a request about a very slow model, and claim it with a lease."""
    context.queue.sadd(redis_keys.RQ_WORKERS, redis_keys.rq_worker(WORKER))
    context.queue.hset(redis_keys.request_limits(PREDICT.name), MODEL, run_queue.VERY_SLOW)
    entry = run_queue.make_entry(MODEL, 60, b"request")
    *_, answer = redis_scripts.run(
        context.queue,
        run_queue.push(PREDICT, lease, TTL_S, [entry]),
        run_queue.claim(PREDICT, lease, TTL_S, WORKER),
    )
    assert answer[-1].endswith(b"request")


def expire(context: WorkerContext, lease: str) -> None:
    """Let the deadline of a lease pass."""
    assert context.queue.zadd(redis_keys.LEASES, {lease: 1}, xx=True, ch=True)


@pytest.mark.parametrize(("heard", "deaths"), [(True, b"0"), (False, b"1")], ids=["stopped worker", "dead machine"])
def test_an_expired_lease_counts_a_death_only_if_its_worker_is_silent(
    context: WorkerContext, heard: bool, deaths: bytes
) -> None:
    """The request about a very slow model is put back; a death is counted if the worker's record expired, too."""
    push_and_claim(context, "lease")
    if heard:
        context.queue.hset(redis_keys.rq_worker(WORKER), "pid", 1)
        context.queue.expire(redis_keys.rq_worker(WORKER), heartbeat.record_ttl_s(TTL_S))
    expire(context, "lease")
    sweep.sweep(context.store, context.queue, TTL_S)
    stored = context.queue.hgetall(redis_keys.worker_requests(PREDICT.name))
    assert [value[:1] for value in stored.values() if value.endswith(b"request")] == [deaths]
    assert context.queue.zscore(redis_keys.LEASES, "lease") is None


@pytest.mark.parametrize("queue", run_queue.RUN_QUEUES, ids=lambda queue: queue.name)
def test_a_lease_whose_job_waits_for_a_worker_is_renewed(context: WorkerContext, queue: RunQueue) -> None:
    """While all workers are busy, its job stays the only one, and no expiry is logged; if the job is lost, it ends."""
    entry = MODEL if queue is LEARN else run_queue.make_entry(MODEL, 60, b"request")
    lease = run_queue.new_lease()
    redis_scripts.run(context.queue, run_queue.push(queue, lease, TTL_S, [entry]))
    rq_jobs.enqueue(context.queue, queue.function, lease)
    with structlog.testing.capture_logs() as logged:
        expire(context, lease)
        sweep.sweep(context.store, context.queue, TTL_S)
        assert run_queue.expired(context.queue) == logged == []
        assert rq_jobs.queue_of(context.queue).get_job_ids() == [lease]
        rq_jobs.queue_of(context.queue).empty()
        expire(context, lease)
        sweep.sweep(context.store, context.queue, TTL_S)
    assert [line["event"] for line in logged] == ["lease_expired"]
    (successor,) = rq_jobs.queue_of(context.queue).get_job_ids()
    assert context.queue.zrange(redis_keys.LEASES, 0, -1) == [successor.encode()]
    assert successor != lease
