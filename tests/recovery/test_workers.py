"""Workers without memory, or without the store during a turn: nothing is learned twice or put aside."""

import os
import signal
from typing import Any

import aiohttp
import pytest
import redis

from keepfit.backends import redis_keys
from keepfit.errors import UnavailableError
from keepfit.model.bundle import Bundle
from keepfit.store.models import Store
from keepfit_workers import bundle_cache, learning
from keepfit_workers import context as contexts
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests import servers
from tests.gateway.api_client import REGRESSOR, Api
from tests.recovery.deployment import deployed
from tests.workers.test_learning import described, make, send
from tests.workers.test_predicting import execute, make_learned, request, rows_of

SLOPE = {"estimator": "SGDRegressor"}


async def test_a_memory_error_during_a_batch_learns_nothing_twice(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that a MemoryError left half changed is discarded: the next turn learns each request once."""
    model = await make(store, SLOPE)
    for value in (1.0, 2.0, 3.0):
        await send(store, model, [[value]], [value])
    once, calls = Bundle.partial_fit_unchecked, 0

    def short(bundle: Bundle, rows: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError
        once(bundle, rows)

    monkeypatch.setattr(Bundle, "partial_fit_unchecked", short)
    # All three are one batch, however slow the machine is.
    monkeypatch.setattr(learning, "COMMIT_AFTER_S", 60.0)
    assert not learn(context, model.hash, "lease")
    assert (await described(store, model)).inbox == 3
    assert not client.exists(redis_keys.lock(model.hash))
    monkeypatch.setattr(Bundle, "partial_fit_unchecked", once)
    assert not learn(context, model.hash, "again")
    after = await described(store, model)
    assert (after.rows_seen, after.inbox) == (3, 0)


async def test_a_cached_bundle_is_not_used_after_a_failure(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next turn reads a cached bundle again if a failed turn has changed it."""
    model = await make(store, SLOPE)
    await send(store, model, [[1.0]], [1.0])
    learn(context, model.hash, "first")
    once = Bundle.partial_fit_unchecked

    def half(bundle: Bundle, rows: Any) -> None:
        once(bundle, rows)
        raise MemoryError

    await send(store, model, [[2.0]], [2.0])
    monkeypatch.setattr(Bundle, "partial_fit_unchecked", half)
    learn(context, model.hash, "second")
    monkeypatch.setattr(Bundle, "partial_fit_unchecked", once)
    learn(context, model.hash, "third")
    after = await described(store, model)
    assert (after.rows_seen, after.version, after.inbox) == (2, 2, 0)


async def test_a_turn_aborted_by_the_store_counts_no_attempt(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails at every commit counts no attempt for the request; after a pause, its lock is released."""
    clock = [1000.0]
    monkeypatch.setattr(contexts.time, "monotonic", lambda: clock[0])
    model = await make(store, SLOPE)
    await send(store, model, [[1.0]], [1.0])
    commit = context.consumer.commit

    def unavailable(*args: Any, **more: Any) -> Any:
        raise UnavailableError("Redis is unavailable")

    monkeypatch.setattr(context.consumer, "commit", unavailable)
    for turn in range(learning.ATTEMPTS_MAX + 2):
        with pytest.raises(UnavailableError):
            learn(context, model.hash, f"turn{turn}")
        context.run_deferred_unlocks()
        assert client.exists(redis_keys.lock(model.hash))
        clock[0] += 10.0
        context.run_deferred_unlocks()
        assert not client.exists(redis_keys.lock(model.hash))
    monkeypatch.setattr(context.consumer, "commit", commit)
    learn(context, model.hash, "last")
    after = await described(store, model)
    assert (after.rows_seen, after.inbox, client.xlen(redis_keys.dead(model.hash))) == (1, 0, 0)


async def test_a_memory_error_fails_one_worker_request_only(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of worker requests that are answered together only the one whose rows do not fit fails."""
    model = await make_learned(store, context, 1)
    once = Bundle.predict

    def short(bundle: Bundle, rows: Any) -> list[Any]:
        if rows.n > 2:
            raise MemoryError
        return once(bundle, rows)

    monkeypatch.setattr(Bundle, "predict", short)
    other = await make_learned(store, context, 2)
    found = execute(
        context,
        request(1, model, rows_of(1.0)),
        request(2, model, rows_of(1.0, 2.0, 3.0)),
        request(3, model, rows_of(2.0)),
    )
    assert [len(found[number].result) for number in (1, 3)] == [1, 1]
    with pytest.raises(UnavailableError, match="too little memory"):
        found[2].raise_error()
    assert [context.bundles.cache.digest(one.hash) for one in (model, other)] == ["", ""], "no memory for another try"


@pytest.mark.parametrize("step", ["learning", "loading"])
async def test_bundles_of_other_models_give_way_to_a_turn(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A turn that lacks memory is tried again without the cached bundles, and counts no attempt for its requests."""
    other, model = await make_learned(store, context, 1), await make(store, SLOPE)
    await send(store, model, [[1.0]], [1.0])
    owner, name = (
        (Bundle, "partial_fit_unchecked") if step == "learning" else (bundle_cache.object_bundle, "new_bundle")
    )
    once = getattr(owner, name)

    def short(*args: Any) -> Any:
        if context.bundles.cache.digest(other.hash):
            raise MemoryError
        return once(*args)

    monkeypatch.setattr(owner, name, short)
    assert not learn(context, model.hash, "lease")
    after = await described(store, model)
    assert (after.rows_seen, after.inbox) == (1, 0)
    assert client.hget(redis_keys.state(model.hash), "attempts") == b"0"


async def test_a_bundle_larger_than_the_memory_puts_no_request_aside(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that were never tried, because their bundle does not fit into memory, stay pending."""
    model = await make(store, SLOPE)
    await send(store, model, [[1.0]], [1.0])

    def short(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(bundle_cache.object_bundle, "new_bundle", short)
    for turn in range(learning.ATTEMPTS_MAX):
        assert not learn(context, model.hash, f"turn{turn}")
        assert not client.exists(redis_keys.lock(model.hash))
    monkeypatch.undo()
    learn(context, model.hash, "last")
    after = await described(store, model)
    assert (after.rows_seen, client.xlen(redis_keys.dead(model.hash))) == (1, 0)


async def test_killed_and_grown_workers_are_replaced(tmp_path: Any, metadata: dict[str, Any]) -> None:
    """A worker that the system kills is replaced, and so is one that exits because it exceeds its memory limit."""
    with deployed(tmp_path / "data", worker_memory_bytes_max="1") as deployment:
        before = set(deployment.workers.children())
        async with aiohttp.ClientSession(deployment.urls[0]) as http:
            api = Api(http)
            path = await api.make(metadata, REGRESSOR)
            for _ in range(3):
                await api.learn(path, [[1.0]], [1.0])
            assert (await api.model(path))["rows_seen"] == 3
        servers.wait_until(lambda: bool(deployment.workers.events("worker_died")), "the end of a grown worker")
        assert {event["exitcode"] for event in deployment.workers.events("worker_died")} == {0}
        servers.wait_until(lambda: bool(set(deployment.workers.children()) - before), "its replacement")
        victim = deployment.workers.children()[0]

        os.kill(victim, signal.SIGKILL)
        servers.wait_until(
            lambda: any(event["exitcode"] == -signal.SIGKILL for event in deployment.workers.events("worker_died")),
            "the death",
        )
        servers.wait_until(lambda: len(deployment.workers.children()) == 2, "the replacement")
