"""The heartbeat: what is renewed in which Redis."""

from contextlib import nullcontext
from typing import Any

import pytest
import redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import UnavailableError
from keepfit.jobs import run_queue
from keepfit_workers import heartbeat
from keepfit_workers.activity import Doing
from keepfit_workers.context import WorkerContext
from keepfit_workers.heartbeat import Beat

TTL_S = 60.0
HASHES = ("a" * 64, "b" * 64)


@pytest.mark.parametrize("away", ["", "store", "queue"])
def test_leases_are_renewed_first_and_locks_in_one_round_trip(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """If one Redis is unavailable, what is in the other one is renewed."""
    connections = {"store": context.store, "queue": context.queue}
    leases, locks = redis_keys.LEASES, [redis_keys.lock(model_hash) for model_hash in HASHES]
    for model_hash, name in zip(HASHES, locks, strict=True):
        context.store.set(name, model_hash[0], px=10_000)
        context.queue.zadd(leases, {model_hash[0]: 1})
    trips: list[str] = []
    run = redis_scripts.run

    def spy(connection: redis.Redis, *commands: redis_scripts.Command) -> list[Any]:
        trips.append(next(name for name, each in connections.items() if each is connection))
        if trips[-1] == away:
            raise UnavailableError(f"The {away} is away.")
        return run(connection, *commands)

    monkeypatch.setattr(redis_scripts, "run", spy)
    beats = [Beat(f"worker {h[0]}", Doing(h[0], locked=h, locked_by=h[0])) for h in HASHES]

    with pytest.raises(UnavailableError, match=away) if away else nullcontext():
        heartbeat.renew(context.store, context.queue, beats, TTL_S)
    assert trips == ["queue", "store"]
    renewed = [context.store.pttl(name) > 10_000 for name in locks]
    assert renewed == [away != "store"] * 2
    monkeypatch.setattr(redis_scripts, "run", run)
    assert run_queue.expired(context.queue) == (["a", "b"] if away == "queue" else [])


def test_a_stopped_worker_has_nothing_renewed(context: WorkerContext) -> None:
    """Its lock and its lease expire, so that other workers take over."""
    lock = redis_keys.lock(HASHES[0])
    context.store.set(lock, "a", px=10_000)
    context.queue.zadd(redis_keys.LEASES, {"a": 1})
    stopped = Beat("worker", Doing("a", locked=HASHES[0], locked_by="a"), stopped_s=1.0)
    heartbeat.renew(context.store, context.queue, [stopped], TTL_S)
    assert 0 < context.store.pttl(lock) <= 10_000
    assert run_queue.expired(context.queue) == ["a"]
