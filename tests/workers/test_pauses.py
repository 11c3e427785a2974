"""Pauses of workers and supervisors while Redis is unavailable: they grow, and begin again after a success."""

from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.exceptions import StopRequested

from keepfit.errors import UnavailableError
from keepfit.settings import Settings
from keepfit_workers import queue_care, worker
from keepfit_workers.context import WorkerContext
from keepfit_workers.supervisor import Supervisor
from keepfit_workers.worker import LeaseWorker

FAILURES = 8


def check_growth(pauses_s: list[float], first_s: float, max_s: float) -> None:
    """Check that each pause is at most twice as long as the one before may be, and at least half of that."""
    longest_s = [min(first_s * 2**number, max_s) for number in range(len(pauses_s))]
    assert all(longest / 2 <= pause <= longest for pause, longest in zip(pauses_s, longest_s, strict=True)), pauses_s


class Clock:
    """Replaces the module `time`: sleeping takes no time, and is recorded."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Record a pause."""
        self.slept_s.append(seconds)


def test_a_worker_that_waits_for_the_queue_pauses_longer_each_time(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its start a worker tries again, with growing pauses, until the queue's Redis answers."""
    clock = Clock()
    monkeypatch.setattr(worker, "time", clock)

    def ping() -> None:
        if len(clock.slept_s) < FAILURES:
            raise RedisConnectionError

    monkeypatch.setattr(context, "queue", SimpleNamespace(ping=ping, close=context.queue.close))
    assert worker._wait_for_queue(context)
    check_growth(clock.slept_s, worker.RETRY_PAUSE_S, worker.RETRY_PAUSE_S_MAX)


def test_a_worker_without_redis_pauses_longer_each_time(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two jobs, too; after a success the first pause is short again."""
    clock, outages = Clock(), []
    leased = LeaseWorker(context, "test")
    monkeypatch.setattr(worker, "time", clock)

    def recover() -> None:
        if len(clock.slept_s) == FAILURES:
            outages.append(list(clock.slept_s))
            clock.slept_s.clear()
            leased._stop_requested = len(outages) == 2
        else:
            raise UnavailableError("Redis is unavailable.")

    monkeypatch.setattr(leased, "_recover", recover)
    monkeypatch.setattr(leased, "_next", lambda: None)
    with pytest.raises(StopRequested):
        leased.dequeue_job_and_maintain_ttl(None)
    for pauses_s in outages:
        check_growth(pauses_s, worker.RETRY_PAUSE_S, worker.RETRY_PAUSE_S_MAX)


def test_a_supervisor_without_redis_pauses_longer_each_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attempts are as far apart as its sweeps at last, and no farther."""
    supervised = Supervisor(settings)
    (care,) = supervised._cares
    monkeypatch.setattr(queue_care, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(supervised, "_beat", lambda care, store, queues: None)

    def look_after() -> float:
        supervised._look_after()
        return care.next_sweep_s

    def fail(*_: object) -> None:
        raise UnavailableError("Redis is unavailable.")

    for _ in range(2):
        monkeypatch.setattr(supervised, "_reap_and_sweep", fail)
        pauses_s = [look_after() for _ in range(FAILURES)]
        check_growth(pauses_s, queue_care.RETRY_PAUSE_S, queue_care.SWEEP_S)
        monkeypatch.setattr(supervised, "_reap_and_sweep", lambda *_: None)
        supervised._look_after()
